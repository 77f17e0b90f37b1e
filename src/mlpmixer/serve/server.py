"""Sockets, signals and worker processes, with uvicorn."""

import asyncio
import copy
import errno
import logging
import math
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.supervisors.multiprocess import Multiprocess

from mlpmixer.serve.metrics import MULTIPROC_DIR
from mlpmixer.serve.schemas import ErrorResponse
from mlpmixer.serve.settings import Settings

HEADER_S = 10.0  # for a request header to arrive, and for a client to read the next part of a response
CONNECTIONS = 1024  # per worker, at most half of them idle; more get 503
MIN_IDLE_S = 1.0
WARN_EVERY_S = 60.0
SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none


class TimeoutProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Closes connections whose client neither sends a request nor reads the response. Checked every HEADER_S.

    When more than half of CONNECTIONS are open, a new one replaces those idle for longest, MIN_IDLE_S at least: each of
    many simultaneous connections has time to send a request.
    """

    _seen: Any = None
    _unsent = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._timer = self.loop.call_later(HEADER_S, self._check)
        if (excess := len(self.connections) - CONNECTIONS // 2) > 0:
            before = self._idle_since - MIN_IDLE_S
            idle = [
                c for c in self.connections if c._is_idle() and c._idle_since <= before and not c.transport.is_closing()
            ]
            for connection in sorted(idle, key=lambda c: c._idle_since)[:excess]:
                if not connection._is_asking():
                    connection.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._idle_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        if not self._is_idle():  # the body is not HTTP: drop whatever the app still sends
            self.cycle.disconnected = True
            if self.cycle.response_started:
                self.transport.close()
                return
        body = ErrorResponse(detail="not HTTP/1.1, or a malformed request").model_dump_json()
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        self.transport.close()

    def _is_idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _is_asking(self) -> bool:
        """Whether a request has arrived that the busy loop has not read yet."""
        if not hasattr(select, "poll"):  # Windows
            return False
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def shutdown(self) -> None:
        if self._is_idle() and not self.transport.is_closing() and self._is_asking():
            self.loop.call_later(0.01, self.shutdown)  # it is read first
        else:
            super().shutdown()

    def _check(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if (self._is_idle() and self.cycle is self._seen) or (unsent and unsent >= self._unsent > 0):
            self.transport.abort()
            return
        self._seen, self._unsent = self.cycle, unsent
        self._timer = self.loop.call_later(HEADER_S, self._check)


class Workers(Multiprocess):
    """uvicorn's supervisor, which replaces workers that die."""

    def keep_subprocess_alive(self) -> None:
        for process in self.processes:
            process.child_conn.close()  # the worker's end: left open here, it would hide that the worker has died
        super().keep_subprocess_alive()

    def handle_hup(self) -> None:
        self.handle_term()

    def terminate_all(self) -> None:
        super().terminate_all()
        for (
            sock
        ) in self.sockets:  # workers have copies; once all are closed, connections are refused rather than left waiting
            sock.close()


class Seldom(logging.Filter):
    """Passes warnings from one place in the code once every WARN_EVERY_S: strangers must not fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[tuple[str, int], tuple[float, int]] = {}
        """When a warning passed last, and how many have not since then."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        place, now = (record.pathname, record.lineno), time.monotonic()
        at, dropped = self._passed.get(place, (-math.inf, 0))
        passes = now - at >= WARN_EVERY_S
        self._passed[place] = (now, 0) if passes else (at, dropped + 1)
        if passes and dropped:
            record.msg = f"{record.msg} ({dropped} more since the last such line)"
        return passes


def log_config() -> dict[str, Any]:
    """uvicorn's configuration of logging, with the filter; for whatever the libraries below warn about, too."""
    config = copy.deepcopy(LOGGING_CONFIG)
    for formatter in config["formatters"].values():
        formatter["use_colors"] = False  # nothing here is coloured, and uvicorn does not ask for NO_COLOR
    config["filters"] = {"seldom": {"()": Seldom}}
    config["handlers"]["default"]["filters"] = ["seldom"]
    config["root"] = {"handlers": ["default"], "level": "WARNING"}
    config["loggers"]["python_multipart"] = {"level": "ERROR"}  # its warnings repeat what was sent
    config["loggers"]["PIL"] = {"level": "CRITICAL"}  # it writes errors of images, which the answers tell
    return config


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, not listening. Port 0 takes a free one. ValueError when that cannot be."""
    if not 0 <= port < 2**16:
        raise ValueError(f"--port must be 0 to 65535, got {port}")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
    except OSError as e:
        hint = "; try another --port (0 takes a free one)" if e.errno in (errno.EADDRINUSE, errno.EACCES) else ""
        raise ValueError(f"cannot listen on {host}:{port}: {e.strerror or e}{hint}") from None
    return sock


def run(
    make: Callable[[], FastAPI],
    sock: socket.socket,
    settings: Settings,
    *,
    workers: int,
    trusted: str,
    log_requests: bool,
) -> int:
    """Serves until SIGTERM, SIGHUP or SIGINT, finishes accepted requests and returns the exit code.

    make: creates the app in each worker; must be picklable when there are several.
    trusted: addresses of proxies whose X-Forwarded-For is trusted; "": none.
    """

    def config(app: Any, **more: Any) -> uvicorn.Config:
        return uvicorn.Config(
            app,
            http=TimeoutProtocol,
            ws="none",
            lifespan="on",
            proxy_headers=bool(trusted),
            forwarded_allow_ips=trusted or None,
            server_header=False,
            log_level="info" if log_requests else "warning",
            access_log=log_requests,
            log_config=log_config(),
            limit_concurrency=CONNECTIONS,
            timeout_worker_healthcheck=60,  # seconds; starting a worker imports a lot
            **more,
        )

    if workers == 1:
        server = uvicorn.Server(config(draining(make(), settings.drain_s)))
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again after shutdown
        server.run(sockets=[sock])
        return 0
    with tempfile.TemporaryDirectory(prefix="mlpmixer-metrics-") as folder:
        os.environ[MULTIPROC_DIR] = folder
        nohup = SIGHUP is not None and signal.getsignal(SIGHUP) is signal.SIG_IGN
        supervisor = Workers(config(Worker(make, settings.drain_s), factory=True, workers=workers), [sock])
        if SIGHUP is not None and nohup:
            signal.signal(SIGHUP, signal.SIG_IGN)
        supervisor.run()
        return 2 if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes) else 0


class Worker:
    """Creates the app in a worker process; picklable."""

    def __init__(self, make: Callable[[], FastAPI], drain_s: float) -> None:
        self.make, self.drain_s = make, drain_s

    def __call__(self) -> FastAPI:
        if SIGHUP is not None:
            signal.signal(SIGHUP, signal.SIG_IGN)  # the first process stops the workers
        try:
            return draining(self.make(), self.drain_s)
        except ValueError as e:  # a new worker would fail the same way
            print(f"mlpmixer: {e}", file=sys.stderr, flush=True)
            raise SystemExit(STARTUP_FAILURE) from None


def draining(app: FastAPI, drain_s: float) -> FastAPI:
    """The app with a grace period: SIGTERM or SIGHUP (the terminal is closed) makes /ready return 503; `drain_s` later,
    or at a second one, it shuts down."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with inner(app) as state:
            if threading.current_thread() is threading.main_thread():
                _drain_on_signal(app.state.service, drain_s)
            yield state

    app.router.lifespan_context = lifespan
    return app


def _drain_on_signal(service: Any, drain_s: float) -> None:
    loop, stop = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
    assert callable(stop)  # uvicorn's

    def go() -> None:
        service.draining = True
        stop(signal.SIGTERM, None)

    def leave(*_: Any) -> None:
        again, service.leaving = service.leaving, True
        loop.call_soon_threadsafe(loop.call_later, 0 if again else drain_s, go)

    signal.signal(signal.SIGTERM, leave)
    if SIGHUP is not None and signal.getsignal(SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(SIGHUP, leave)

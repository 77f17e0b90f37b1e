"""Prometheus metrics. Several workers write to one folder, and the one that serves /metrics adds them up."""

import glob
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"  # folder shared by workers; prometheus_client reads the variable on import
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
CLOSE = (b"connection", b"close")
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Metrics of one app, with a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.answers = Counter("mlpmixer_answers", "Responses by path and status.", ("path", "status"), registry=r)
        self.seconds = Histogram(
            "mlpmixer_answer_seconds",
            "Seconds from request header to response.",
            ("path",),
            buckets=SECONDS,
            registry=r,
        )
        self.batches = Histogram(
            "mlpmixer_batch_images", "Images per batch.", ("kind",), buckets=BATCH_SIZES, registry=r
        )
        self.engine = Histogram(
            "mlpmixer_engine_seconds", "Seconds per batch in the network.", ("kind",), buckets=SECONDS, registry=r
        )
        self.inside = Gauge(
            "mlpmixer_images_inside", "Images accepted and not answered yet.", registry=r, multiprocess_mode="livesum"
        )
        if MULTIPROC_DIR not in os.environ:
            ProcessCollector(registry=r)

    def batch(self, kind: str, images: int, seconds: float) -> None:
        self.batches.labels(kind).observe(images)
        self.engine.labels(kind).observe(seconds)

    @contextmanager
    def track_images(self, images: int) -> Iterator[None]:
        self.inside.inc(images)
        try:
            yield
        finally:
            self.inside.dec(images)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        folder = os.environ.get(MULTIPROC_DIR)
        if folder is None:
            return generate_latest(self.registry)
        for file in glob.glob(os.path.join(folder, "gauge_live*.db")):
            pid = int(file.rpartition("_")[2].removesuffix(".db"))
            if not os.path.exists(f"/proc/{pid}") and os.path.exists(
                "/proc/self"
            ):  # killed: its gauges would never change again
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
        every = CollectorRegistry()
        MultiProcessCollector(every)  # type: ignore[no-untyped-call]
        return generate_latest(every)


class MetricsMiddleware:
    """Counts and times responses, and adds the headers that all of them have.

    Paths outside `paths` count as "other", so that clients cannot create label values.
    leaving: whether the service shuts down soon, so that connections should not be used again.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str], leaving: Callable[[], bool]) -> None:
        self.app, self.metrics, self.paths, self.leaving = app, metrics, frozenset(paths), leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"] if scope["path"] in self.paths else "other"
        start, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), *HEADERS]
                message["headers"] = [*headers, CLOSE] if self.leaving() and CLOSE not in headers else headers
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            status = 500
            raise
        finally:
            self.metrics.answers.labels(path, str(status) if status else "gone").inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)

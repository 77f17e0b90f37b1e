"""Limits that apply before a body is parsed: host, origin, token, concurrency, size, speed, content type. Pure ASGI."""

import asyncio
import hmac
import ipaddress
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlpmixer.serve.schemas import ErrorResponse
from mlpmixer.serve.settings import Settings

FORM, JSON, FILE = "multipart/form-data", "application/json", "application/octet-stream"
OF_CURL = "application/x-www-form-urlencoded"  # what curl says of --data-binary unless it is told
ONCE = ("host", "content-type", "authorization", "origin", "sec-fetch-site")  # twice, one could not tell which counts
PUBLIC_PATHS = ("/", "/docs", "/health", "/ready")  # need no token: the pages ask for it, and probes have none
RETRY = {"retry-after": "1"}  # seconds; sent where the same request may succeed later
LINGER_S, LINGER_BYTES = 2.0, 64 * 2**20  # how long a refused body is still read: many clients read only after sending
SEND_S = 30.0  # for the client to read the response


class LimitsMiddleware:
    """Passes on requests that are within the limits, each with its complete body.

    post_paths: where a body is read. hosts: names that requests may be for, without ports; None: any.
    draining: whether the service is shutting down. Belongs to one event loop: the counters have no lock.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        *,
        token: str,
        draining: Callable[[], bool],
        post_paths: Collection[str],
        hosts: Collection[str] | None = None,
    ) -> None:
        self.app, self.settings, self.token, self.draining = app, settings, token.encode(), draining
        self.post_paths, self.hosts = post_paths, hosts
        self.inside: Counter[str] = Counter()
        """POST requests in progress, by client."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            headers = _unambiguous(scope["headers"])
            self._require_host(headers)
            if scope["method"] not in ("GET", "HEAD"):
                _require_same_origin(headers)
            path = route_path(scope)
            self._require_token(path, headers)
            if scope["method"] == "HEAD":  # the server leaves the body out
                scope = {**scope, "method": "GET"}
            if scope["method"] != "POST" or path not in self.post_paths:
                return await self.app(scope, _empty_body, send)
            client = _client(scope)
            self._require_room(client)
        except HTTPException as error:
            return await send_error(error, _BodyReader(receive), send)
        self.inside[client] += 1
        incoming = _BodyReader(receive)
        try:
            body = await self._body(headers, incoming)
            async with asyncio.timeout(
                self.settings.answer_s + SEND_S
            ):  # a client that does not read must not hold its slot
                await self.app(scope, _replay(body, receive), send)
        except HTTPException as error:
            await send_error(error, incoming, send)
        except (ClientDisconnect, TimeoutError):
            pass  # the server closes the connection
        finally:
            self.inside[client] -= 1
            if not self.inside[client]:
                del self.inside[client]

    def _require_host(self, headers: dict[str, str]) -> None:
        """Against DNS rebinding: a page of another site whose name has come to mean this machine."""
        if self.hosts is not None and "host" in headers and host_of(headers["host"]) not in self.hosts:
            name = headers["host"][:100]
            raise HTTPException(
                421,
                f"this service does not answer for the host {name!r}: open it as localhost, "
                "or start it with --allow-host NAME",
            )

    def _require_token(self, path: str, headers: dict[str, str]) -> None:
        if self.token and path not in PUBLIC_PATHS:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if not (kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self.token)):
                raise HTTPException(
                    401,
                    "this service requires a token: send Authorization: Bearer TOKEN",
                    headers={"www-authenticate": "Bearer"},
                )

    def _require_room(self, client: str) -> None:
        if self.draining():
            raise HTTPException(503, "the service is shutting down", RETRY)
        most = self.settings.client_requests
        if most and self.inside[client] >= most:
            raise HTTPException(429, f"{most} requests from this client are in progress: wait for a response", RETRY)
        if self.inside.total() >= self.settings.requests:
            raise HTTPException(503, "too many requests in progress", RETRY)

    async def _body(self, headers: dict[str, str], incoming: "_BodyReader") -> bytes:
        kind, most = headers.get("content-type", "").partition(";")[0].strip().lower(), self.settings.max_bytes
        if not kind.startswith("image/") and kind not in (FORM, JSON, FILE):  # the first bytes say which kind of image
            expected = f"expected content-type image/jpeg, image/png or another image, {FILE}, {FORM} or {JSON}"
            advice = " (to curl, add -H 'content-type: image/jpeg')" if kind == OF_CURL else ""
            raise HTTPException(415, f"{expected}, got {kind[:100] or 'none'}{advice}")
        too_large = HTTPException(413, f"the body has more than {most:,} bytes")
        if (said := headers.get("content-length", "")).isdigit() and int(said) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.upload_s):
                while incoming.more:
                    body += await incoming.part()
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise HTTPException(408, f"the body took longer than {self.settings.upload_s:g} s to arrive") from None
        return bytes(body)


def _unambiguous(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by name. HTTPException 400 where two readers of the request could understand it differently."""
    names = Counter(name.decode("latin-1") for name, _ in raw)
    for name in ONCE:
        if names[name] > 1:
            raise HTTPException(400, f"the header {name} came {names[name]} times, expected it once")
    if names["content-length"] and names["transfer-encoding"]:  # RFC 9112, section 6.1
        raise HTTPException(400, "content-length and transfer-encoding came together, expected one of them")
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}


def _require_same_origin(headers: dict[str, str]) -> None:
    """HTTPException 403 for what a browser sends on behalf of a page of another origin."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    own = origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()
    if not (own if site is None else site in ("same-origin", "none")):
        raise HTTPException(403, "a page of another site may not send requests here (Origin, Sec-Fetch-Site)")


def host_of(authority: str) -> str:
    """The host of host:port, in lower case, IPv6 without brackets; empty when it is malformed."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def route_path(scope: Scope) -> str:
    """The path below where the app is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class _BodyReader:
    """Reads a request body. `more`: whether more is to come."""

    def __init__(self, receive: Receive) -> None:
        self.receive, self.more = receive, True

    async def part(self) -> bytes:
        message = await self.receive()
        self.more = message["type"] == "http.request" and message.get("more_body", False)
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part: bytes = message.get("body", b"")
        return part


async def send_error(error: HTTPException, incoming: _BodyReader, send: Send) -> None:
    """Sends an error and closes the connection; reads on briefly, so that a client that is still sending sees it."""
    body = ErrorResponse(detail=error.detail).model_dump_json().encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"} | dict(
        error.headers or {}
    )
    raw = [(key.encode(), value.encode("latin-1")) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status_code, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    left = LINGER_BYTES
    with suppress(ClientDisconnect, TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while incoming.more and left > 0:
                left -= len(await incoming.part())
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _client(scope: Scope) -> str:
    """Client address; for IPv6 the /64 network, which belongs to one subscriber."""
    host = str((scope.get("client") or ("",))[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and not address.ipv4_mapped:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host


async def _empty_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body in one message, then whatever comes."""
    pending = True

    async def give() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return give

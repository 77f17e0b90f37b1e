"""Limits that apply before a body is parsed: token, concurrency, size, speed, content type. Pure ASGI."""

import asyncio
import hmac
import ipaddress
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from fastapi import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlpmixer.serve.schemas import ErrorResponse
from mlpmixer.serve.settings import Settings

FORM, JSON, FILE = "multipart/form-data", "application/json", "application/octet-stream"
PUBLIC_PATHS = ("/", "/health", "/ready")  # need no token: the page asks for it, and probes have none
RETRY = {"retry-after": "1"}  # seconds; sent where the same request may succeed later
LINGER_S, LINGER_BYTES = 2.0, 64 * 2**20  # how long a refused body is still read: many clients read only after sending
SEND_S = 30.0  # for the client to read the response


class LimitsMiddleware:
    """Passes on requests that are within the limits, each with its complete body.

    draining: whether the service is shutting down. Belongs to one event loop: the counters have no lock.
    """

    def __init__(self, app: ASGIApp, settings: Settings, *, token: str, draining: Callable[[], bool]) -> None:
        self.app, self.settings, self.token, self.draining = app, settings, token.encode(), draining
        self.inside: Counter[str] = Counter()
        """POST requests in progress, by client."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers: dict[bytes, bytes] = dict(scope["headers"])
        try:
            self._require_token(scope["path"], headers)
            if scope["method"] != "POST":
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

    def _require_token(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self.token and path not in PUBLIC_PATHS:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not (kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.token)):
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

    async def _body(self, headers: dict[bytes, bytes], incoming: "_BodyReader") -> bytes:
        kind, most = (
            headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1"),
            self.settings.max_bytes,
        )
        if not kind.startswith("image/") and kind not in (FORM, JSON, FILE):  # the first bytes say which kind of image
            expected = f"expected content-type image/jpeg, image/png or another image, {FILE}, {FORM} or {JSON}"
            raise HTTPException(415, f"{expected}, got {kind[:100] or 'none'}")
        too_large = HTTPException(413, f"the body has more than {most:,} bytes")
        if (said := headers.get(b"content-length", b"")).isdigit() and int(said) > most:
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

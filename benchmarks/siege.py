"""Ten minutes of good and hostile requests at once against `mlpmixer serve`, then kills: python benchmarks/siege.py
--minutes 10

S/16 at 224 px with random weights, unless --export names a file. 127.0.0.1 only, bounded in time and in count.

mixed: good requests (files, forms, JSON; each answer is compared with the model's own) beside truncated and damaged
files, PNG and WebP files of 30,000 x 30,000 px and JPEG files that say so, bodies of 1 GB (announced, chunked, and
announced but never sent), slow headers and slow bodies, wrong types, forms and JSON, floods beyond the queue,
connections that are dropped at any moment, pipelined garbage, and oddities of HTTP. Fails for: a wrong answer; a status
that a request must not get; a 500 or a traceback; a good request that was sent whole and got no answer (200, 429 or
503); /health or /ready without 200; memory that grows by more than 10 % and 64 MiB between the second and the last
tenth.

workers: of two workers one is killed (SIGKILL) under load, --kills times: what was inside it is reset and counted, all
else must be answered; says how long it takes until both answer again. Then SIGTERM under load: everything sent whole
before it must be answered, and the exit code is 0.

Writes siege.json (--out) with all counts; exit code 1 and a list when something fails. It is drawn with --seed.
"""

import argparse
import asyncio
import base64
import errno
import json
import os
import random
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from served import (
    HOST,
    Answer,
    Connection,
    Server,
    add_model_arguments,
    form_of,
    make_exports,
    mlpmixer_serve,
    percentile,
    photo,
    read_answer,
    request_of,
    serving,
)

from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.exported import export_at
from mlpmixer.inference.load import load

BUSY = (429, 503)  # told to come back
PATIENCE_S = 60.0  # the service answers within --upload-s and --answer-s
TOLERANCE = 1e-3  # of a probability: a batch of another size is summed in another order
HUNG_UP = (ConnectionError, asyncio.IncompleteReadError)
GIGABYTE = 10**9
OPTIONS = ("--upload-s", "5", "--client-requests", "24", "--requests", "48", "--queue", "64", "--answer-s", "20")
"""Options of the service under siege: all requests come from one address, and slow bodies must end within a test."""


class Findings:
    """What was seen, by kind; and what must not be."""

    def __init__(self, say: bool = True) -> None:
        self.say = say
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.latencies_ms: list[float] = []

    def count(self, kind: str, outcome: Any) -> None:
        self.counts[f"{kind}: {outcome}"] += 1

    def fail(self, what: str) -> None:
        if self.say and what[:400] not in self.failures:
            print(f"siege: {what}", file=sys.stderr, flush=True)
        self.failures[what[:400]] += 1


class Good:
    """Requests with known answers."""

    def __init__(self, model: Classifier, images: int) -> None:
        height, width = model.preprocess.image_size
        files = [
            photo(i, width + 40 * (i % 3), height + 30 * (i % 2), ("JPEG", "PNG", "WEBP")[i % 3]) for i in range(images)
        ]
        rows = [model.probabilities(model.preprocess_image(file)[None])[0] for file in files]
        self.requests: list[tuple[bytes, list[dict[str, float]]]] = []
        """What is sent, and for each image the probability of each class."""
        known = [dict(zip(model.classes, map(float, row), strict=True)) for row in rows]
        if len({max(k, key=k.__getitem__) for k in known}) < 2 and len({round(max(k.values()), 3) for k in known}) < 2:
            raise SystemExit("this model answers all images alike: a wrong answer could not be told")
        for i, file in enumerate(files):
            other = (i + 1) % images
            kind = ("image/jpeg", "image/png", "image/webp")[i % 3]
            self.requests.append((request_of(file, kind), [known[i]]))
            self.requests.append((request_of(*form_of(file)), [known[i]]))
            said = {"images": [base64.b64encode(f).decode() for f in (file, files[other])]}
            self.requests.append((request_of(json.dumps(said).encode(), "application/json"), [known[i], known[other]]))

    def wrong(self, answer: Answer, known: list[dict[str, float]]) -> str:
        """What is wrong with an answer of status 200; empty when it is right."""
        results = json.loads(answer.body)["results"]
        if len(results) != len(known):
            return f"{len(results)} results for {len(known)} images"
        for result, row in zip(results, known, strict=True):
            best = max(row.values())
            if abs(result["probability"] - best) > TOLERANCE or abs(row.get(result["label"], -1) - best) > TOLERANCE:
                return f"{result['label']} with {result['probability']}, where the model says {best:.6f} at most"
            if any(abs(row.get(t["label"], -1) - t["probability"]) > TOLERANCE for t in result["top"]):
                return f"top {result['top']}, which the model does not say"
        return ""


# --- hostile requests -------------------------------------------------------------------------------------------------


def png_of(width: int, height: int, kibibytes: int = 64) -> bytes:
    """A PNG that says it is so large, with so much of it there: zeros, which compress a thousand times."""
    rows = zlib.compress(bytes(kibibytes * 1024 * 1000), 1) if kibibytes else zlib.compress(b"")
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )


def webp_of(width: int, height: int) -> bytes:
    body = (
        b"VP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def jpeg_of(width: int, height: int) -> bytes:
    small = photo(0, 16, 16)
    at = small.index(b"\xff\xc0") + 5
    return small[:at] + struct.pack(">HH", height, width) + small[at + 4 :]


Statuses = tuple[int, ...]


class Hostile:
    """What is sent to it that is not good, each with the statuses it may get beside `BUSY`; 0: none, the connection is
    closed."""

    def __init__(self, port: int, findings: Findings, seed: int) -> None:
        self.port, self.findings, self.rng = port, findings, random.Random(seed)
        self.jpeg, self.png, self.webp = (photo(i, 150, 130, kind) for i, kind in enumerate(("JPEG", "PNG", "WEBP")))
        self.bombs = [
            png_of(30_000, 30_000),
            png_of(30_000, 30_000, 0),
            png_of(7000, 7000, 48),
        ]  # the last one's size is allowed
        self.bombs += [webp_of(30_000, 30_000), jpeg_of(30_000, 30_000)]
        self.attacks: list[Callable[[], Awaitable[None]]] = [
            self.truncated,
            self.damaged,
            self.bomb,
            self.announced_gigabyte,
            self.chunked_gigabyte,
            self.broken_promise,
            self.slow_header,
            self.slow_body,
            self.wrong_type,
            self.wrong_json,
            self.wrong_form,
            self.dropped,
            self.pipelined_garbage,
            self.oddity,
            self.wrong_value,
            self.idle_flood,
        ]

    async def send(self, kind: str, expected: Statuses, *parts: bytes, wait_s: float = 0.0, half: bool = False) -> None:
        """The parts, one after the other, and what comes back."""
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(HOST, self.port, limit=2**20)
        try:
            async with asyncio.timeout(PATIENCE_S):
                answering = asyncio.create_task(read_answer(reader))
                try:
                    for part in parts:
                        writer.write(part)
                        await writer.drain()
                        if wait_s:
                            await asyncio.sleep(wait_s)
                        if answering.done():
                            break
                    if half:
                        writer.write_eof()
                except ConnectionError:  # it has closed the door; perhaps with a word before
                    pass
                status = (await answering).status
        except HUNG_UP:
            status = 0
        except TimeoutError:
            return self.findings.fail(f"{kind}: no answer within {PATIENCE_S:g} s")
        finally:
            answering.cancel()
            writer.transport.abort()
        self.findings.count(kind, status or "closed")
        if status not in (*expected, *BUSY):
            self.findings.fail(
                f"{kind}: answered {status or 'by closing the connection'}, expected {expected}: {parts[0][:80]!r}"
            )

    async def truncated(self) -> None:
        data = self.rng.choice((self.jpeg, self.png, self.webp))
        await self.send(
            "truncated file", (415, 422), request_of(data[: self.rng.randrange(len(data) - 30)], "image/jpeg")
        )

    async def damaged(self) -> None:
        data = bytearray(self.rng.choice((self.jpeg, self.png, self.webp)))
        for _ in range(self.rng.randint(1, 20)):
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        await self.send("damaged file", (200, 413, 415, 422), request_of(bytes(data), "image/png"))

    async def bomb(self) -> None:
        data = self.rng.choice(self.bombs)
        body, kind = form_of(data) if self.rng.random() < 0.3 else (data, "image/png")
        await self.send("decompression bomb", (413, 422), request_of(body, kind))

    async def announced_gigabyte(self) -> None:
        head = f"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/png\r\ncontent-length: {GIGABYTE}\r\n\r\n".encode()  # noqa: E501
        block = bytes(2**18)
        await self.send("1 GB, announced", (413, 408, 0), head, *(block for _ in range(GIGABYTE // 2**18)))

    async def chunked_gigabyte(self) -> None:
        head = (
            b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: multipart/form-data; "
            b"boundary=x\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        block = b"40000\r\n" + bytes(2**18) + b"\r\n"
        await self.send("1 GB, chunked", (413, 408, 0), head, *(block for _ in range(GIGABYTE // 2**18)))

    async def broken_promise(self) -> None:
        head = (
            b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/png\r\ncontent-length: 1000000\r\n\r\n"
        )
        await self.send("announced and never sent", (408, 0), head + bytes(1000))

    async def slow_header(self) -> None:
        lines = [b"POST /predict HTTP/1.1\r\n", *(b"x-%d: y\r\n" % i for i in range(40))]
        await self.send("slow header", (0, 400, 408), *lines, wait_s=1)

    async def slow_body(self) -> None:
        whole = request_of(self.jpeg, "image/jpeg")
        at = whole.index(b"\r\n\r\n") + 4
        await self.send("slow body", (408, 0), whole[:at], *(whole[at + i : at + i + 1] for i in range(40)), wait_s=0.5)

    async def wrong_type(self) -> None:
        kinds = (
            "text/plain",
            "application/x-www-form-urlencoded",
            "image",
            "\xff",
            ";",
            "a" * 4000,
        )
        await self.send("wrong type", (415, 400), request_of(self.jpeg, self.rng.choice(kinds)))

    async def wrong_json(self) -> None:
        bodies = [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"image": null}', b'{"image": 5}', b'{"images": []}']
        bodies += [b'{"images": ' + b"[" * 100_000]
        bodies += [
            b'{"image": "%s"}' % text
            for text in (b"/etc/passwd", b"http://127.0.0.1:1/", b"aGk=", b"!" * 1000, b"\\ud800")
        ]
        bodies += [
            b'{"images": [%s]}' % b",".join([b'"aGk="'] * 1000),
            b'{"image": NaN}',
            b'{"image": ' + b"9" * 100_000 + b"}",
        ]
        await self.send("wrong JSON", (422, 415, 413), request_of(self.rng.choice(bodies), "application/json"))

    async def wrong_form(self) -> None:
        body, kind = form_of(self.jpeg)
        line = b'--x\r\nContent-Disposition: form-data; name="url"\r\n\r\nfile:///etc/passwd\r\n--x--\r\n'
        forms = [(body[: self.rng.randrange(len(body) - 12)], kind), (body, "multipart/form-data")]
        forms += [(line, "multipart/form-data; boundary=x"), (b"", kind), (b"--x--x" * 10_000, kind)]
        forms += [(body[:-10] * 40 + body[-10:], kind), (b"--x--x\r\n" + b"a: b\r\n" * 20_000, kind)]
        forms += [(body, f"multipart/form-data; boundary={'y' * 5000}"), (b"--x--x\r\n" * 1000 + b"\r\n--x--x--", kind)]
        await self.send("wrong form", (422, 415, 413, 400), request_of(*self.rng.choice(forms)))

    async def wrong_value(self) -> None:
        value = self.rng.choice(("0", "-1", "x", "", "9" * 5000, "1e3", "%00", "%ff"))
        await self.send("wrong value", (422, 400), request_of(self.jpeg, "image/jpeg", f"/predict?top_k={value}"))

    async def dropped(self) -> None:
        whole = request_of(self.jpeg, "image/jpeg")
        _, writer = await asyncio.open_connection(HOST, self.port)
        writer.write(whole[: self.rng.choice((1, 20, 200, len(whole) // 2, len(whole)))])
        await asyncio.sleep(self.rng.choice((0, 0.01, 0.2)))
        writer.transport.abort()
        self.findings.count("dropped connection", "dropped")

    async def idle_flood(self) -> None:
        pairs = await asyncio.gather(*(asyncio.open_connection(HOST, self.port) for _ in range(200)))
        await asyncio.sleep(3)
        for _, writer in pairs:
            writer.transport.abort()
        self.findings.count("flood of 200 connections that say nothing", "opened")

    async def pipelined_garbage(self) -> None:
        whole = request_of(self.jpeg, "image/jpeg")
        await self.send("good, then garbage", (200,), whole + self.rng.randbytes(3000))
        await self.send("garbage", (400, 0), self.rng.randbytes(self.rng.randint(1, 3000)) + b"\r\n\r\n", half=True)

    async def oddity(self) -> None:
        jpeg = self.jpeg
        n = str(len(jpeg)).encode()
        post, kind = b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\n", b"content-type: image/jpeg\r\n"
        odd: list[tuple[Statuses, bytes]] = [
            ((400, 0), post + kind + b"content-length: -5\r\n\r\n" + jpeg),
            ((400, 0), post + kind + b"content-length: 5\r\ncontent-length: " + n + b"\r\n\r\n" + jpeg),
            (
                (400,),
                post + kind + b"content-length: " + n + b"\r\ntransfer-encoding: chunked\r\n\r\n" + jpeg,
            ),
            ((400, 0), post + kind + b"transfer-encoding: chunked\r\n\r\nzz\r\n" + jpeg),
            ((400, 0), post + kind + b"transfer-encoding: gzip\r\n\r\n" + jpeg),
            ((400, 413, 431, 0), post + b"x: " + b"y" * 200_000 + b"\r\n\r\n"),
            ((400, 413, 431, 0), post + b"".join(b"x%d: y\r\n" % i for i in range(20_000)) + b"\r\n"),
            ((400, 404, 414, 0), b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"),
            ((404, 400), b"GET /../../etc/passwd HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"),
            ((404, 400), b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"),
            ((405, 400), b"DELETE /predict HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"),
            ((405, 400, 404, 0), b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"),
            ((200, 400, 505), b"GET / HTTP/9.9\r\n\r\n"),
            ((400, 0), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),  # TLS
            ((400, 404, 505, 0), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            (
                (200, 400, 426),
                b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            ),
            (
                (200,),
                post + kind + b"expect: 100-continue\r\nconnection: close\r\ncontent-length: " + n + b"\r\n\r\n" + jpeg,
            ),
            ((200, 400), b"GET /health HTTP/1.0\r\n\r\n"),
        ]
        which = self.rng.randrange(len(odd))
        expected, request = odd[which]
        if b"100-continue" in request:
            expected = (*expected, 100)
        await self.send(
            f"odd HTTP, {request[:60]!r}" if which > 4 else f"odd body {which}", expected, request, half=0 in expected
        )


# --- the sieges -------------------------------------------------------------------------------------------------------


async def keep_asking(port: int, good: Good, findings: Findings, until: Callable[[], bool], seed: int) -> None:
    """Good requests, one after the other, each of which must be answered."""
    rng, connection = random.Random(seed), Connection(port)
    while not until():
        request, known = rng.choice(good.requests)
        if await _ask(connection, request, known, good, findings) != 200:
            await asyncio.sleep(0.2)
    connection.close()


async def _ask(
    connection: Connection, request: bytes, known: list[dict[str, float]], good: Good, findings: Findings
) -> int:
    """The status; 0 where the connection was closed instead."""
    start = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE_S):
            answer = await connection.ask(request)
    except TimeoutError:
        findings.fail(f"a good request has no answer after {PATIENCE_S:g} s")
        return 0
    except HUNG_UP as e:
        findings.count("good", "reset")
        findings.fail(
            f"a good request was sent whole, and the connection closed instead of an answer: {type(e).__name__}"
        )
        return 0
    findings.count("good", answer.status)
    if answer.status == 200:
        findings.latencies_ms.append(1000 * (time.monotonic() - start))
        if problem := good.wrong(answer, known):
            findings.fail(f"a wrong answer: {problem}")
    elif answer.status not in BUSY:
        findings.fail(f"a good request was answered {answer.status}: {answer.body[:200]!r}")
    return answer.status


async def probe(port: int, findings: Findings, until: Callable[[], bool]) -> None:
    """/health and /ready, each on a connection of its own."""
    while not until():
        for path in ("/health", "/ready"):
            connection = Connection(port)
            try:
                async with asyncio.timeout(10):
                    status = (await connection.ask(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())).status
            except (*HUNG_UP, TimeoutError) as e:
                status = type(e).__name__  # type: ignore[assignment]
            connection.close()
            findings.count(path, status)
            if status != 200:
                findings.fail(f"{path} said {status}")
        await asyncio.sleep(0.5)


async def mixed(server: Server, good: Good, findings: Findings, minutes: float, seed: int) -> list[tuple[float, float]]:
    """(seconds, MiB resident) all along."""
    begin = time.monotonic()
    end, memory = begin + 60 * minutes, list[tuple[float, float]]()
    hostile, rng = Hostile(server.port, findings, seed), random.Random(seed)

    def over() -> bool:
        return time.monotonic() > end

    async def attack() -> None:
        while not over():
            try:
                await rng.choice(hostile.attacks)()
            except OSError as e:
                if e.errno not in (
                    errno.ENOTCONN,
                    errno.ECONNRESET,
                ):  # one of a flood of idle ones, whose place another one took
                    findings.fail(f"no connection: {type(e).__name__}: {e}")
                findings.count("connection", "closed before it asked")

    async def flood() -> None:
        while not over():
            await asyncio.sleep(20 * rng.random())
            connections = [Connection(server.port) for _ in range(150)]
            await asyncio.gather(*(_ask(c, *rng.choice(good.requests), good, findings) for c in connections))
            findings.count("flood of 150 requests", "sent")
            for connection in connections:
                connection.close()

    async def watch() -> None:
        said = 0.0
        while not over():
            if time.monotonic() > said + 60:
                said = time.monotonic()
                so_far = (
                    f"{(said - begin) / 60:.0f} min, {findings.counts.total()} requests, {server.rss_mib():.0f} MiB"
                )
                print(f"siege: {so_far}", file=sys.stderr, flush=True)
            memory.append((time.monotonic() - begin, server.rss_mib()))
            await asyncio.sleep(min(1.0, 3 * minutes))

    askers = [keep_asking(server.port, good, findings, over, i) for i in range(4)]
    await asyncio.gather(*askers, *(attack() for _ in range(10)), flood(), watch(), probe(server.port, findings, over))
    return memory


def require_steady(memory: list[tuple[float, float]], findings: Findings) -> dict[str, float]:
    """The first tenth is left out: threads and caches come into being in it."""
    tenth = max(len(memory) // 10, 1)
    early, late = (
        sorted(mib for _, mib in part)[len(part) // 2]
        for part in (memory[tenth : 2 * tenth] or memory, memory[-tenth:])
    )
    if late > 1.1 * early + 64:
        findings.fail(f"memory grew from {early:.0f} to {late:.0f} MiB")
    return {
        "early_mib": round(early, 1),
        "late_mib": round(late, 1),
        "most_mib": round(max(mib for _, mib in memory), 1),
    }


async def killed(server: Server, good: Good, findings: Findings, kills: int) -> list[float]:
    """Seconds until two workers answer again, for each kill of one."""
    stop, back = False, list[float]()
    resets: Counter[str] = Counter()

    async def ask(seed: int) -> None:
        rng = random.Random(seed)
        while not stop:
            request, known = rng.choice(good.requests)
            connection, own = Connection(server.port), Findings(say=False)
            await _ask(connection, request, known, good, own)
            connection.close()
            findings.counts.update(own.counts)
            findings.latencies_ms += own.latencies_ms
            for what, n in own.failures.items():
                if "closed instead" in what:
                    resets["reset"] += n
                else:
                    findings.failures[what] += n

    askers = [asyncio.create_task(ask(i)) for i in range(INSIDE)]
    for _ in range(kills):
        await asyncio.sleep(2)
        before, victim = resets["reset"], workers_of(server)[0]
        os.kill(victim, signal.SIGKILL)
        start = time.monotonic()
        while True:
            if time.monotonic() - start > PATIENCE_S:
                findings.fail(f"one worker of two after {PATIENCE_S:g} s")
                break
            await asyncio.sleep(0.1)
            if victim not in workers_of(server) and len(await answering(server, 20)) == 2:
                back.append(time.monotonic() - start)
                break
        if resets["reset"] - before > INSIDE:
            findings.fail(
                f"a kill reset {resets['reset'] - before} requests, more than the {INSIDE} that were under way"
            )
    stop = True
    await asyncio.gather(*askers)
    findings.counts["good: reset, in a killed worker"] = resets["reset"]
    return back


INSIDE = 8  # requests under way at once


def workers_of(server: Server) -> list[int]:
    """The processes that serve, without the first one and multiprocessing's tracker."""
    found = []
    for pid in server.pids()[1:]:
        with suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return sorted(found)


async def answering(server: Server, tries: int) -> set[int]:
    """The workers that answer /health, asked on so many connections at once."""
    connections = [Connection(server.port) for _ in range(tries)]
    asked = (asyncio.wait_for(c.ask(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"), 5) for c in connections)
    await asyncio.gather(*asked, return_exceptions=True)
    ports = {c.streams[1].get_extra_info("sockname")[1] for c in connections if c.streams}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = {f"socket:[{r[9]}]" for r in rows if int(r[1][-4:], 16) == server.port and int(r[2][-4:], 16) in ports}
    found = {pid for pid in workers_of(server) if ends & _open_files(pid)}
    for connection in connections:
        connection.close()
    return found


def _open_files(pid: int) -> set[str]:
    names = set()
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                names.add(os.readlink(entry))
    return names


async def terminated(server: Server, good: Good, findings: Findings) -> int:
    """SIGTERM while requests are under way: the exit code."""
    gone, sent = asyncio.Event(), 0

    async def ask(seed: int) -> None:
        nonlocal sent
        rng = random.Random(seed)
        while not gone.is_set():
            try:
                reader, writer = await asyncio.open_connection(HOST, server.port, limit=2**20)
            except ConnectionError:
                findings.count("at SIGTERM", "connection refused")
                break
            request, known = rng.choice(good.requests)
            before = not gone.is_set()
            writer.write(request)
            sent += 1
            try:
                async with asyncio.timeout(PATIENCE_S):
                    answer = await read_answer(reader)
            except (*HUNG_UP, TimeoutError) as e:
                findings.count("at SIGTERM", type(e).__name__)
                if before:
                    findings.fail(f"SIGTERM: a request that was under way got no answer: {type(e).__name__}")
                break
            finally:
                writer.transport.abort()
            findings.count("at SIGTERM", answer.status)
            if answer.status == 200 and (problem := good.wrong(answer, known)):
                findings.fail(f"SIGTERM: a wrong answer: {problem}")
            if answer.status not in (200, *BUSY):
                findings.fail(f"SIGTERM: answered {answer.status}")

    askers = [asyncio.create_task(ask(i)) for i in range(INSIDE)]
    await asyncio.sleep(2)
    server.process.terminate()
    gone.set()
    await asyncio.gather(*askers)
    code = await asyncio.to_thread(server.process.wait, 60)
    if code != 0:
        findings.fail(f"SIGTERM: exit code {code}")
    return code


def require_quiet(server: Server, findings: Findings) -> None:
    """No traceback of the service, whatever came."""
    log = server.log.read_text(errors="replace")
    if "Traceback" in log or "ERROR" in log:
        start = min(at for word in ("Traceback", "ERROR") if (at := log.find(word)) >= 0)
        findings.fail("the service complains: " + log[start : start + 6000])


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, "S/16")
    parser.add_argument("--minutes", type=float, default=10, help="duration of the mixed requests")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--images", type=int, default=12, help="different good files")
    parser.add_argument("--only", choices=["mixed", "workers"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="siege.json", metavar="FILE")
    args = parser.parse_args(words)
    findings, found = Findings(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        file = export_at(args.export) if args.export else make_exports(args.model, Path(folder))["float32"]
        if file is None:
            raise SystemExit(f"{args.export} is not an export")
        good = Good(load(file), args.images)
        if args.only != "workers":
            with serving(mlpmixer_serve(file, *OPTIONS)) as server:
                memory = asyncio.run(mixed(server, good, findings, args.minutes, args.seed))
                found["memory"] = require_steady(memory, findings)
                said = server.metrics()
                found["statuses"] = {k: int(v) for k, v in said.items() if k.startswith("mlpmixer_answers_total")}
                if bad := [k for k in found["statuses"] if 'status="5' in k and 'status="503"' not in k]:
                    findings.fail(f"the service counts {bad}")
                if said["mlpmixer_images_inside"]:
                    findings.fail(f"{said['mlpmixer_images_inside']:g} images are still inside when nobody asks")
                require_quiet(server, findings)
            latencies = sorted(findings.latencies_ms)
            found["good_latency_ms"] = (
                {f"p{p}": round(percentile(latencies, p), 1) for p in (50, 90, 99)} if latencies else {}
            )
        if args.only != "mixed":
            with serving(mlpmixer_serve(file, "--workers", "2", "--threads", "1")) as server:
                found["back_after_s"] = [round(s, 2) for s in asyncio.run(killed(server, good, findings, args.kills))]
            with serving(mlpmixer_serve(file)) as server:
                found["exit_code"] = asyncio.run(terminated(server, good, findings))
                require_quiet(server, findings)
    found |= {
        "minutes": args.minutes,
        "counts": dict(sorted(findings.counts.items())),
        "failures": dict(findings.failures),
    }
    Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 1 if findings.failures else 0


if __name__ == "__main__":
    sys.exit(main())

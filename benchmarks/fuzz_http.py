"""10,000 requests over a real connection against `mlpmixer serve`: python benchmarks/fuzz_http.py --requests 10000

In turns: good requests (files of every format, forms, JSON in every spelling of base64), whose answers are compared
with the model's own; damaged bodies (fuzz_uploads.py); and damaged HTTP: a good request with its head mutated byte by
byte, or with a line that should not be there, such as a second Content-Type, Content-Length beside Transfer-Encoding,
another host or origin, or chunks that are none. 127.0.0.1 only, a tiny network with random weights.

Fails for: a wrong answer, a good request without status 200, any status of 500 or more, a damaged body without 200 or a
refusal, no answer and no closed connection within 20 s, a traceback or more than 50 lines on standard error, images
that are still inside at the end, memory that grows by more than 10 % and 64 MiB after the first tenth. Request i is
made from --seed and i alone: --only I. The last line is JSON: counts, memory and failures; the exit code is 1 for a
failure.
"""

import argparse
import asyncio
import base64
import json
import random
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fuzz_uploads import FILES, MUTATIONS, REFUSALS, input_of
from served import HOST, Server, form_of, mlpmixer_serve, read_answer, request_of, serving
from siege import HUNG_UP, Findings, require_quiet, require_steady

from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.load import load
from mlpmixer.serve.headers import NotServed, read_header

PATIENCE_S = 20.0
LOG_LINES = 50


def export(folder: Path) -> Path:
    """A tiny network that tells images apart, as an .onnx file with patch evidence."""
    import torch

    from mlpmixer import create_model
    from mlpmixer.data.preprocess import Preprocess
    from mlpmixer.exporters.job import new_job
    from mlpmixer.exporters.targets import onnx
    from mlpmixer.inference.torch_classifier import from_network
    from mlpmixer.models.configs import MixerConfig
    from mlpmixer.weights.model_file import ModelMeta

    torch.manual_seed(0)
    size = {"num_blocks": 1, "hidden_dim": 16, "tokens_mlp_dim": 8, "channels_mlp_dim": 16}
    cfg = MixerConfig(image_size=32, patch_size=8, num_classes=7, **size)
    network = create_model(cfg)
    torch.nn.init.normal_(network.head.weight)
    meta = ModelMeta(config=cfg, classes=tuple("abcdefg"), preprocess=Preprocess(image_size=(32, 32)))
    onnx.write(new_job(from_network(network, meta), evidence=True), folder / "tiny.onnx")
    return folder / "tiny.onnx"


# --- requests ---------------------------------------------------------------------------------------------------------


class Requests:
    """Requests by number."""

    def __init__(self, model: Classifier, port: int, seed: int) -> None:
        self.port, self.seed = port, seed
        self.files: list[tuple[str, bytes, str]] = []
        for kind, data in FILES:
            label = model.classes[int(model.probabilities(model.preprocess_image(data)[None])[0].argmax())]
            with suppress(NotServed):
                read_header(data)
                self.files.append((kind, data, label))

    def __call__(self, i: int) -> tuple[str, bytes, tuple[int, ...] | None, str]:
        """What it is, its bytes, the statuses that it may get, and its label if it is good.

        Statuses None: any below 500, or a closed connection.
        """
        rng = random.Random(f"{self.seed} http {i}")
        what = ("good", "damaged body", "damaged HTTP")[i % 3]
        if what == "damaged body":
            kind, body = input_of(self.seed, i)
            return what, request_of(body, kind), (200, *REFUSALS), ""
        request, label = self._good(rng)
        if what == "good":
            return what, request, (200,), label
        return what, self._odd(request, rng), None, ""

    def _good(self, rng: random.Random) -> tuple[bytes, str]:
        kind, data, label = rng.choice(self.files)
        path = rng.choice(("/predict", "/predict?top_k=1", "/predict?top_k=99"))
        form = rng.randrange(4)
        if form == 0:
            return request_of(data, rng.choice((kind, "image/jpg", "application/octet-stream")), path), label
        if form == 1:
            return request_of(*form_of(data), path), label
        text = rng.choice((base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes))(data).decode()
        text = rng.choice(("", f"data:{kind};base64,")) + text
        body = {"image": text} if form == 2 else {"images": [text] * rng.randint(1, 4)}
        return request_of(json.dumps(body).encode(), "application/json", path), label

    def _odd(self, request: bytes, rng: random.Random) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        if rng.random() < 0.4:
            data = bytearray(head)
            for _ in range(rng.choice((1, 2, 5))):
                if data:
                    rng.choice(MUTATIONS)(data, rng)
            return bytes(data) + b"\r\n\r\n" + body
        lines = head.split(b"\r\n")
        if rng.random() < 0.5:
            lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(LINES))
        else:
            lines[0] = rng.choice(STARTS)
        ends = (b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n ")
        whole = rng.choice(ends).join(lines) + b"\r\n\r\n" + body
        return whole if rng.random() < 0.8 else whole[: rng.randrange(len(whole))]


LINES = [
    b"content-type: application/json",
    b"content-length: 5",
    b"content-length: -1",
    b"content-length: 99999999999999999999",
    b"content-length: 1e3",
    b"transfer-encoding: chunked",
    b"transfer-encoding: gzip, chunked",
    b"transfer-encoding: chunked, identity",
    b"host: evil.example",
    b"origin: http://evil.example",
    b"origin: http://[",
    b"sec-fetch-site: cross-site",
    b"expect: 100-continue",
    b"expect: 200-ok",
    b"connection: close",
    b"connection: upgrade\r\nupgrade: websocket",
    b"authorization: Bearer \xff\xfe",
    b"authorization: Bearer x\r\nauthorization: Bearer y",
    b"x: " + b"y" * 70_000,
    b"\r\n".join(b"x%d: y" % i for i in range(2000)),
    b"x: \0",
    b": y",
    b"x y: z",
    b" folded",
    b"x-forwarded-for: ::1, \xff",
    b"x-forwarded-proto: javascript",
    b"content-encoding: gzip",
    b"content-type: multipart/form-data; boundary=" + b"b" * 5000,
]
METHODS = (b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"PATCH", b"post", b"P\xd6ST", b"")
TARGETS = (
    b"/",
    b"/docs",
    b"/metrics",
    b"/ready",
    b"/model",
    b"/openapi.json",
    b"/predict/",
    b"/docs/",
    b"//",
    b"*",
    b"",
)
TARGETS += (
    b"/../../etc/passwd",
    b"/%2e%2e/%00",
    b"/%ff",
    b"http://evil.example/predict",
    b"/predict?top_k=%ff",
    b"/\xff",
)
TARGETS += (b"/evidence?class=" + b"x" * 9000, b"/predict?" + b"&".join(b"a=%d" % i for i in range(3000)), b"evil:80")
STARTS = [method + b" /predict HTTP/1.1" for method in METHODS]
STARTS += [method + b" " + target + b" HTTP/1.1" for target in TARGETS for method in (b"GET", b"POST", b"HEAD")]
STARTS += [b"POST /predict " + version for version in (b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9", b"ICY", b"")]


# --- sending ----------------------------------------------------------------------------------------------------------


async def send(port: int, data: bytes, close: bool) -> tuple[int, bytes]:
    """Status and body of the first answer, 0 where the connection was closed without one."""
    reader, writer = await asyncio.open_connection(HOST, port, limit=2**20)
    try:
        async with asyncio.timeout(PATIENCE_S):
            try:
                writer.write(data)
                if close:
                    writer.write_eof()
                while (answer := await read_answer(reader, head_only=data.startswith(b"HEAD"))).status == 100:
                    pass
            except HUNG_UP:
                return 0, b""
            return answer.status, answer.body
    finally:
        writer.transport.abort()


async def attack(server: Server, requests: Requests, numbers: range, findings: Findings) -> list[tuple[float, float]]:
    """Sends them, eight at a time. (seconds, MiB resident) all along."""
    start, memory, waiting = time.monotonic(), list[tuple[float, float]](), iter(numbers)

    async def ask() -> None:
        for i in waiting:
            what, data, allowed, label = requests(i)
            try:
                status, body = await send(server.port, data, close=allowed is None)
            except TimeoutError:
                findings.fail(f"request {i}, {what}: neither an answer nor a closed connection within {PATIENCE_S:g} s")
                continue
            findings.count(what, status or "closed")
            if status not in allowed if allowed else status >= 500:
                findings.fail(f"request {i}, {what}: answered {status or 'by closing'}: {body[:200]!r}")
            elif label and {result["label"] for result in json.loads(body)["results"]} != {label}:
                findings.fail(f"request {i}, {what}: a wrong answer: {body[:200]!r}, expected {label}")
            if i % 20 == 0:
                memory.append((time.monotonic() - start, server.rss_mib()))

    await asyncio.gather(*(ask() for _ in range(8)))
    return memory


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this request alone, and what came back")
    args = parser.parse_args(words)
    findings, start = Findings(), time.monotonic()
    numbers = range(args.requests) if args.only is None else range(args.only, args.only + 1)
    with tempfile.TemporaryDirectory() as folder:
        file = export(Path(folder))
        with serving(mlpmixer_serve(file)) as server:
            requests = Requests(load(file), server.port, args.seed)
            if args.only is not None:
                what, data, allowed, _ = requests(args.only)
                print(what, data[:300], asyncio.run(send(server.port, data, close=allowed is None)), sep="\n")
                return 0
            memory = require_steady(asyncio.run(attack(server, requests, numbers, findings)), findings)
            said = server.metrics()
            if said["mlpmixer_images_inside"]:
                findings.fail(f"{said['mlpmixer_images_inside']:g} images are still inside when nobody asks")
            require_quiet(server, findings)
            lines = len(server.log.read_text(errors="replace").splitlines())
            if lines > LOG_LINES:
                findings.fail(f"{lines} lines on standard error, expected at most {LOG_LINES}")
    found: dict[str, Any] = {"requests": findings.counts.total(), "seed": args.seed, "log_lines": lines, **memory}
    found |= {"s": round(time.monotonic() - start, 1), "counts": dict(sorted(findings.counts.items()))}
    print(json.dumps(found | {"failures": dict(findings.failures)}))
    return 1 if findings.failures else 0


if __name__ == "__main__":
    sys.exit(main())

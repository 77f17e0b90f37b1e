"""What damaged bodies do to the upload path of `mlpmixer serve`: python benchmarks/fuzz_uploads.py --inputs 100000

Bodies are files of all formats that the service reads, JSON and forms, mutated: bits and bytes changed, runs cut,
doubled or replaced, lengths and sizes set to extremes, files spliced, checksums of PNG chunks mended afterwards so
that what is behind them is reached; and random ones. Each goes through what the service calls (serve.uploads:
parse_uploads, check_headers and decode_upload with the limits of serve.settings), in processes of their own with
--memory-mib of address space beyond what they start with and a limit of time; every --through-app-th one also through
the whole ASGI app. Clear refusals are an `HTTPException` with a status of 413, 415, 422 or 503, and from the app such a
status; a good answer has pixels of the model's size. All else (another exception, a 500, a crash, a hang beyond
--seconds) is saved to --out as a file, and makes the exit code 1.

Input i is made from --seed and i alone, so that a finding can be made again: --only I. The last line is JSON: counts by
answer, and the slowest input.
"""

import argparse
import asyncio
import base64
import io
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException
from PIL import Image

from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.classifier import Classifier
from mlpmixer.serve.settings import Settings
from mlpmixer.serve.uploads import check_headers, decode_upload, parse_uploads

SETTINGS = Settings(max_pixels=4_000_000, max_bytes=2**20)  # as in the service, but that a large image costs less here
REFUSALS = (413, 415, 422, 503)
CHUNK = 500  # inputs that a process does before it reports


# --- inputs -----------------------------------------------------------------------------------------------------------


def seeds() -> list[tuple[str, bytes]]:
    """(Content-Type, body) of good requests: files of every kind that Pillow writes of the three, a form, JSON."""
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 255, 48)[:, None, None] * np.ones((48, 40, 4)) * [1, 0.5, 0.3, 0.8] + rng.normal(
        0, 9, (48, 40, 4)
    )
    rgba = Image.fromarray(smooth.clip(0, 255).astype(np.uint8))
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    wide = Image.fromarray((smooth[..., 0] * 200).clip(0, 65535).astype(np.uint16))
    made: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", rgb, {}),
        ("JPEG", rgb, {"progressive": True, "exif": exif, "icc_profile": bytes(300), "comment": b"x"}),
        ("JPEG", grey, {"optimize": True, "restart_marker_blocks": 2}),
        ("JPEG", rgb.convert("CMYK"), {}),
        ("JPEG", rgb.convert("YCbCr"), {"subsampling": "4:1:1"}),
        ("PNG", rgb, {}),
        ("PNG", rgba, {"exif": exif}),
        ("PNG", rgb.quantize(16), {"transparency": 3}),
        ("PNG", rgb.convert("1"), {}),
        ("PNG", wide, {}),
        ("PNG", grey.convert("LA"), {"icc_profile": bytes(300)}),
        ("PNG", rgb, {"save_all": True, "append_images": [rgb.rotate(90), rgb], "duration": 5}),
        ("WEBP", rgb, {}),
        ("WEBP", rgba, {"lossless": True, "exif": exif}),
        ("WEBP", rgb, {"save_all": True, "append_images": [rgb.rotate(90)], "duration": 5}),
        ("GIF", rgb, {}),
        ("GIF", rgb.quantize(8), {"save_all": True, "append_images": [grey], "transparency": 2, "comment": b"x"}),
        ("BMP", rgb, {}),
        ("BMP", rgb.quantize(16), {}),
        ("TIFF", rgb, {}),
        ("TIFF", rgba, {"compression": "tiff_lzw"}),
        ("TIFF", wide, {"compression": "tiff_adobe_deflate"}),
        ("TIFF", rgb.convert("1"), {"compression": "packbits", "save_all": True, "append_images": [grey]}),
        ("AVIF", rgb, {"speed": 10}),
        ("AVIF", rgba, {"speed": 10, "exif": exif}),
    ]
    with suppress(ImportError):  # the extra heic
        import pillow_heif

        pillow_heif.register_heif_opener()
        made += [("HEIF", rgb, {}), ("HEIF", rgba, {"exif": exif.tobytes()})]
    found: list[tuple[str, bytes]] = []
    for kind, image, options in made:
        file = io.BytesIO()
        image.copy().save(file, kind, **options)  # a JPEG leaves its options in the image
        found.append((f"image/{kind.lower()}", file.getvalue()))
    files = [data for _, data in found]
    texts = [base64.b64encode(data).decode() for data in files[:3]]
    found += [("application/json", json.dumps(value).encode()) for value in ({"image": texts[0]}, {"images": texts})]
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="f{i}"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for i, (name, data) in enumerate(
            zip(("a.jpg", "b%22.png", "ä.webp"), (files[0], files[5], files[12]), strict=True)
        )
    ]
    found += [("multipart/form-data; boundary=edge", b"".join(some) + b"--edge--\r\n") for some in (parts[:1], parts)]
    return found


SEEDS = seeds()
FILES = [seed for seed in SEEDS if seed[0].startswith("image/")]
CONTENT_TYPES = sorted({kind for kind, _ in SEEDS})
EXTREMES = [struct.pack(f"{order}{code}", value) for order in "<>" for code, most in (("B", 255), ("H", 2**16 - 1), ("I", 2**32 - 1))  # noqa: E501
            for value in (0, 1, most // 2, most // 2 + 1, most - 1, most)]  # fmt: skip
WORDS = b"IHDR IDAT PLTE tRNS iCCP zTXt acTL fcTL fdAT eXIf VP8X VP8L VP8\x20 ALPH ANIM ANMF ICCP".split(b" ")
WORDS += [b"ftyp", b"meta", b"iloc", b"ispe"]
WORDS += [b"\xff" + bytes([marker]) for marker in (0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD, 0xD8, 0xD9, 0xE1, 0xED, 0xFE)]
WORDS += [
    b'"',
    b"\\u0000",
    b"[",
    b"{",
    b"null",
    b"1e999",
    b"=",
    b"--edge",
    b"\r\n",
    b"\r\n\r\n",
    b"filename*=UTF-8''%00",
    b"\xff\xfe",
]


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def put(data: bytearray, rng: random.Random) -> None:
    what = rng.choice((rng.randbytes(1), rng.choice(EXTREMES), rng.choice(WORDS)))
    at = _place(data, rng)
    data[at : at + (len(what) if rng.random() < 0.8 else 0)] = what


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def cut(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 16, 100))]


def double(data: bytearray, rng: random.Random) -> None:
    at, n = _place(data, rng), rng.choice((1, 4, 30, 300))
    data[at:at] = data[at : at + n] * rng.choice((1, 2, 50))


def noise(data: bytearray, rng: random.Random) -> None:
    at, n = _place(data, rng), rng.choice((4, 30, 300))
    data[at : at + n] = rng.randbytes(n)


def splice(data: bytearray, rng: random.Random) -> None:
    other = rng.choice(SEEDS)[1]
    data[_place(data, rng) :] = other[rng.randrange(len(other)) :]


def _place(data: bytearray, rng: random.Random) -> int:
    """Headers decide more than what follows."""
    return rng.randrange(min(len(data), 80) if rng.random() < 0.5 else len(data)) if data else 0


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    flip,
    flip,
    put,
    put,
    put,
    truncate,
    cut,
    double,
    noise,
    splice,
]


def mend_png(data: bytes) -> bytes:
    """The same PNG with the right checksum behind each chunk, as far as the lengths lead."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack(">I", out[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def input_of(seed: int, i: int) -> tuple[str, bytes]:
    """(Content-Type, body) number i."""
    rng = random.Random(f"{seed} {i}")
    kind, good = rng.choice(SEEDS)
    if rng.random() < 0.02:
        return rng.choice(CONTENT_TYPES), rng.randbytes(rng.choice((0, 1, 12, 100, 3000)))
    inner = kind in ("application/json", "multipart/form-data; boundary=edge") and rng.random() < 0.3
    data = bytearray(rng.choice(FILES)[1] if inner else good)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if data:
            rng.choice(MUTATIONS)(data, rng)
    body = mend_png(bytes(data)) if data.startswith(b"\x89PNG") and rng.random() < 0.8 else bytes(data)
    if inner and kind == "application/json":
        body = json.dumps({"image": base64.b64encode(body).decode()}).encode()
    elif inner:
        body = b'--edge\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + body + b"\r\n--edge--\r\n"
    return kind, body


# --- what they do -----------------------------------------------------------------------------------------------------


def classifier_of() -> Classifier:
    """Nothing is computed: the answer is how bright an image is."""

    def logits(images: np.ndarray) -> np.ndarray:
        mean = images.mean(axis=(1, 2, 3), dtype=np.float32)[:, None]
        return np.hstack([mean, -mean])

    return Classifier(
        classes=("bright", "dark"), preprocess=Preprocess(image_size=(32, 32)), logits=logits, pre_logits=logits
    )


class Way:
    """The upload path, as the service goes it."""

    def __init__(self, through_app: int) -> None:
        from mlpmixer.serve.app import make_app

        self.classifier, self.through_app = classifier_of(), through_app
        self.app = make_app(self.classifier, SETTINGS)
        self.loop = asyncio.new_event_loop()
        self.running = self.app.state.service.running()
        self.loop.run_until_complete(self.running.__aenter__())

    def __call__(self, i: int, kind: str, body: bytes) -> str:
        """How it was answered. Whatever it raises must not be."""
        if self.through_app and i % self.through_app == 0:
            status = self.loop.run_until_complete(self._app(kind, body))
            assert status in (200, *REFUSALS), f"the app answers {status}"
        try:
            uploads = parse_uploads(kind, body, SETTINGS)
            check_headers(uploads, SETTINGS)
            arrays = [decode_upload(upload, self.classifier) for upload in uploads]
        except HTTPException as refused:
            assert refused.status_code in REFUSALS, f"refused with {refused.status_code}"
            refused.detail.encode()  # it becomes JSON
            return str(refused.status_code)
        assert len(arrays) == len(uploads) > 0
        assert all(a.shape == (32, 32, 3) and a.dtype == np.uint8 for a in arrays)
        return "200"

    async def _app(self, kind: str, body: bytes) -> int:
        sent: list[Any] = []
        parts = [body]

        async def receive() -> dict[str, Any]:
            return (
                {"type": "http.request", "body": parts.pop(), "more_body": False}
                if parts
                else {"type": "http.disconnect"}
            )

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", kind.encode("latin-1")), (b"content-length", str(len(body)).encode())]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "headers": headers,
        }
        scope |= {
            "path": "/predict",
            "raw_path": b"/predict",
            "root_path": "",
            "query_string": b"",
            "client": ("127.0.0.1", 1),
            "state": {},
        }
        await self.app(scope, receive, send)
        json.loads(b"".join(m.get("body", b"") for m in sent[1:]))
        return int(sent[0]["status"])


class TooSlow(Exception):
    """An input took longer than it may."""


def worker(pipe: Connection, seed: int, through_app: int, seconds: float, memory_mib: int) -> None:
    """Receives lists of inputs, sends what each did: before each its number, so that a crash has a culprit."""
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="PIL")  # as `mlpmixer serve` does
    path = Way(through_app)
    if memory_mib:
        (pages,) = (int(n) for n in Path("/proc/self/statm").read_text().split()[:1])
        most = pages * resource.getpagesize() + memory_mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def slow(*_: Any) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, slow)
    for numbers in iter(pipe.recv, None):
        counts: Counter[str] = Counter()
        slowest = (0.0, -1)
        for i in numbers:
            kind, body = input_of(seed, i)
            pipe.send(i)
            start = time.process_time()
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                counts[f"{kind.partition(';')[0]}: {path(i, kind, body)}"] += 1
            except BaseException:
                signal.setitimer(signal.ITIMER_REAL, 0)
                pipe.send(("finding", i, traceback.format_exc()))
            signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, (time.process_time() - start, i))
        pipe.send(("done", counts, slowest))


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this input alone, here, with its traceback")
    parser.add_argument(
        "--through-app", type=int, default=20, help="every so many-th goes through the whole app, too; 0: none"
    )
    parser.add_argument("--seconds", type=float, default=5, help="limit for one input")
    parser.add_argument("--memory-mib", type=int, default=512, help="address space for one input; 0: no limit")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", default="fuzz", metavar="DIR", help="where findings are saved")
    args = parser.parse_args(words)
    if args.only is not None:
        kind, body = input_of(args.seed, args.only)
        print(kind, len(body), body[:60])
        print(Way(1)(args.only, kind, body))
        return 0
    context = multiprocessing.get_context("spawn")
    todo = [
        list(range(at, min(at + CHUNK, args.first + args.inputs)))
        for at in range(args.first, args.first + args.inputs, CHUNK)
    ][::-1]
    counts: Counter[str] = Counter()
    slowest, findings, start = (0.0, -1), list[tuple[int, str]](), time.monotonic()
    workers: dict[Any, Any] = {}
    """Pipe -> process, the inputs it works on, the input it is at, and since when."""

    def hire() -> None:
        if todo:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=worker, args=(theirs, args.seed, args.through_app, args.seconds, args.memory_mib), daemon=True
            )
            process.start()
            theirs.close()
            numbers = todo.pop()
            ours.send(numbers)
            workers[ours] = [process, numbers, None, time.monotonic()]

    def give_up(pipe: Any, why: str) -> None:
        """What is left behind the culprit is done by another one."""
        process, numbers, at, _ = workers.pop(pipe)
        process.kill()
        process.join()
        findings.append((at, why))
        rest = numbers[numbers.index(at) + 1 :] if at is not None else []
        counts["in a process that died, counted nowhere"] += (
            len(numbers) - len(rest) - 1 if at is not None else len(numbers)
        )
        if rest:
            todo.append(rest)
        hire()

    for _ in range(args.processes):
        hire()
    while workers:
        for pipe in wait(list(workers), timeout=1):
            try:
                said = pipe.recv()  # type: ignore[union-attr]
            except (EOFError, ConnectionError):
                workers[pipe][0].join(5)
                give_up(pipe, f"the process died, exit code {workers[pipe][0].exitcode}")
                continue
            workers[pipe][3] = time.monotonic()
            if isinstance(said, int):
                workers[pipe][2] = said
            elif said[0] == "finding":
                findings.append((said[1], said[2]))
            else:
                counts.update(said[1])
                slowest = max(slowest, said[2])
                if todo:
                    workers[pipe][1:3] = todo.pop(), None
                    pipe.send(workers[pipe][1])  # type: ignore[union-attr]
                else:
                    pipe.send(None)  # type: ignore[union-attr]
                    workers.pop(pipe)[0].join()
        for pipe, (_, _, at, since) in list(workers.items()):
            if at is not None and time.monotonic() - since > 3 * args.seconds + 30:
                give_up(pipe, "a hang that no signal ends")
    for i, why in findings:
        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        kind, body = input_of(args.seed, i)
        (folder / f"{args.seed}-{i}.bin").write_bytes(body)
        (folder / f"{args.seed}-{i}.txt").write_text(f"{kind}\n{why}\n", encoding="utf-8")
        print(f"input {i}, {kind}, {len(body)} bytes: {why.strip().splitlines()[-1]}", file=sys.stderr)
    slow = {"input": slowest[1], "cpu_s": round(slowest[0], 3)}
    inputs = sum(counts.values()) + len(findings)
    took = round(time.monotonic() - start, 1)
    answers = dict(sorted(counts.items()))
    print(
        json.dumps(
            {
                "inputs": inputs,
                "seed": args.seed,
                "s": took,
                "answers": answers,
                "slowest": slow,
                "findings": len(findings),
            }
        )
    )
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())

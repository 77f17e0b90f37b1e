"""A running `mlpmixer serve` to measure or to attack, and a cheap client; load.py and siege.py use them. 127.0.0.1
only."""

import argparse
import asyncio
import io
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HOST = "127.0.0.1"
TICKS = os.sysconf("SC_CLK_TCK")
START_S = 120.0
IDLE_S = 2.0  # servers close a connection that nobody uses, uvicorn after 5 s


# --- models -----------------------------------------------------------------------------------------------------------


def make_exports(model: str, folder: Path, precisions: tuple[str, ...] = ("float32",)) -> dict[str, Path]:
    """An .onnx file of an untrained network for each of float32 and int8: speed and answers are real, accuracy is not.

    model: a name of `mlpmixer list models`. int8: every layer, calibrated on noise.
    """
    import torch

    from mlpmixer import create_model
    from mlpmixer.config import pair
    from mlpmixer.data.preprocess import Preprocess
    from mlpmixer.exporters.export import write_unchecked
    from mlpmixer.exporters.int8 import Quantiser
    from mlpmixer.inference.torch_classifier import from_network
    from mlpmixer.models.names import MIXERS
    from mlpmixer.weights.model_file import ModelMeta

    torch.manual_seed(0)
    cfg = MIXERS[model]
    network = create_model(cfg)
    torch.nn.init.normal_(
        network.head.weight, std=3 / math.sqrt(cfg.hidden_dim)
    )  # so that different images get different answers
    size = pair(cfg.image_size)
    pixels = Preprocess(image_size=size, in_channels=cfg.in_channels)
    meta = ModelMeta(config=cfg, classes=tuple(f"class {i}" for i in range(cfg.num_classes)), preprocess=pixels)
    classifier = from_network(network, meta)
    files = {"float32": folder / "float32.onnx"}
    write_unchecked(classifier, "onnx", files["float32"])
    if "int8" in precisions:
        noise = np.random.default_rng(0).integers(0, 256, (16, *size, cfg.in_channels), np.uint8)
        files["int8"] = folder / "int8.onnx"
        quantiser = Quantiser(files["float32"], folder, noise)
        quantiser.write(files["int8"], list(quantiser.layers))
    return {name: files[name] for name in precisions}


def photo(seed: int, width: int, height: int, kind: str = "JPEG", **options: Any) -> bytes:
    """A file that compresses about as a photograph does: soft shapes, some edges, a little grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    planes = np.zeros((height, width, 3))
    for _ in range(12):
        fy, fx, phase = rng.normal(0, 8), rng.normal(0, 8), rng.uniform(0, 2 * math.pi)
        planes += np.sin(2 * math.pi * (fy * y + fx * x) + phase)[..., None] * rng.normal(0, 14, 3)
    for _ in range(6):
        planes[(x - rng.uniform()) ** 2 + (y - rng.uniform()) ** 2 < rng.uniform(0.01, 0.06)] += rng.normal(0, 40, 3)
    planes += rng.uniform(60, 190, 3) + rng.normal(0, 4, (height, width, 1))
    file = io.BytesIO()
    Image.fromarray(planes.clip(0, 255).astype(np.uint8)).save(
        file, kind, **({"quality": 90} if kind == "JPEG" else {}) | options
    )
    return file.getvalue()


# --- the server -------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A process that answers HTTP, and those it has started."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    """Its standard error."""

    def pids(self) -> list[int]:
        """Itself and all its descendants."""
        children: dict[int, list[int]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (stat := _stat(int(entry))):
                children.setdefault(int(stat[1]), []).append(int(entry))
        found = [self.process.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """While the block runs it gets no processor time; LitServe, for one, takes a fifth of a core when nobody asks
        it."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def cpu_s(self) -> float:
        """Processor seconds so far, of those that live."""
        return sum((int(stat[11]) + int(stat[12])) / TICKS for pid in self.pids() if (stat := _stat(pid)))

    def rss_mib(self) -> float:
        """Memory that is resident now, together (pages they share count for each)."""
        return sum(_rss_mib(pid) for pid in self.pids())

    def metrics(self) -> dict[str, float]:
        """What /metrics says, by name with labels."""
        with urllib.request.urlopen(f"http://{HOST}:{self.port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
        }


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _rss_mib(pid: int) -> float:
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        found = None
    return int(found[1]) / 1024 if found else 0.0


@contextmanager
def serving(command: list[str], port: int | None = None, ready_at: str = "/ready") -> Iterator[Server]:
    """The command, until the block ends. port: None: it says so itself, as `mlpmixer serve --port 0` does.

    ready_at: a path that says 200 when it is ready.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # no server stays behind
    log = Path(tempfile.mkdtemp(prefix="server-")) / "stderr.txt"
    with open(log, "wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True)
    assert process.stdout
    try:
        if port is None:
            line = process.stdout.readline().decode()
            found = re.search(rf"http://{HOST}:(\d+)/", line)
            if not found:
                process.wait(10)
                raise SystemExit(f"the server did not start: {line}{log.read_text()}")
            port = int(found[1])
        server = Server(process, port, log)
        until = time.monotonic() + START_S
        while not ready(port, ready_at):
            if time.monotonic() > until or process.poll() is not None:
                raise SystemExit(f"the server does not get ready: {log.read_text()}")
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whom it has left behind: the group is its own
        process.wait()
        process.stdout.close()
        shutil.rmtree(log.parent)


def mlpmixer_serve(export: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "mlpmixer", "serve", str(export), "--host", HOST, "--port", "0", *options]


def ready(port: int, path: str = "/ready") -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# --- the client -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A whole answer. `last`: the connection takes no further request."""

    status: int
    headers: dict[str, str]
    body: bytes
    last: bool


def request_of(body: bytes, kind: str, path: str = "/predict?top_k=5") -> bytes:
    """A POST, ready to be sent as often as one likes."""
    return (
        f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
    )


def form_of(data: bytes, field: str = "file") -> tuple[bytes, str]:
    """A file as a form, and the form's Content-Type."""
    head = f'--x--x\r\nContent-Disposition: form-data; name="{field}"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'  # noqa: E501
    return head.encode() + data + b"\r\n--x--x--\r\n", "multipart/form-data; boundary=x--x"


async def read_answer(reader: asyncio.StreamReader, *, head_only: bool = False) -> Answer:
    """The next answer on a connection. ConnectionError or IncompleteReadError when there is none."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
    if head_only:
        body = b""
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        parts = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            parts.append((await reader.readexactly(size + 2))[:-2])
        await reader.readuntil(b"\r\n")
        body = b"".join(parts)
    else:
        body = await reader.read()
    return Answer(int(head[0].split()[1]), headers, body, headers.get("connection", "").lower() == "close")


@dataclass
class Connection:
    """Kept alive from one request to the next; opened again when the server has closed it, or might be about to."""

    port: int
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    used: float = 0.0

    async def ask(self, request: bytes) -> Answer:
        """ConnectionError or IncompleteReadError when the server hangs up instead of answering."""
        if self.streams and time.monotonic() - self.used > IDLE_S:
            self.close()
        reader, writer = self.streams = self.streams or await asyncio.open_connection(HOST, self.port, limit=2**20)
        try:
            writer.write(request)
            answer = await read_answer(reader)
        except BaseException:
            self.close()
            raise
        self.used = time.monotonic()
        if answer.last:
            self.close()
        return answer

    def close(self) -> None:
        if self.streams:
            self.streams[1].transport.abort()
            self.streams = None


def percentile(sorted_values: list[float], p: float) -> float:
    return sorted_values[min(int(p / 100 * len(sorted_values)), len(sorted_values) - 1)]


def add_model_arguments(parser: argparse.ArgumentParser, model: str) -> None:
    parser.add_argument(
        "--model", default=model, help=f"a name of `mlpmixer list models`, with random weights ({model})"
    )
    parser.add_argument("--export", metavar="FILE", help="instead of --model: an .onnx or .xml file, or a bundle")

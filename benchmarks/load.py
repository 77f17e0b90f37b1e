"""What `mlpmixer serve` makes of the engine behind it, on loopback: python benchmarks/load.py

S/16 at 224 px with random weights, in float32 and int8, unless --export names a file. In turns, so that what drifts on
the machine meets all of them: the bare engine in this process (uint8 images that are in memory, at the batch size that
is best for it), then each server under as many requests at a time as --connections says, one image each; whoever is not
measured stands still. `share_of_bare` is the median over the turns of a server's images/s by the mean of the bare
engine's before and after. Then half of that rate, by Poisson arrivals or evenly spaced: latencies count from the moment
a request should have been sent, so that a server that stands still pays for it.

Requests are JPEG files of the model's size, and of a photograph's. `decode_ms` is what one costs to decode and fit,
alone on one thread, in processor time; `server_cpu` and `client_cpu` are processor seconds a second, of all cores. The
answers are compared with the engine's before anything is timed.

With --litserve PYTHON the same runs behind LitServe (litserve_rival.py says how to set that up), in the same turns, all
requests as forms then. Options after -- go to `mlpmixer serve`: python benchmarks/load.py -- --workers 2 --threads 1
Writes benchmarks/load_<torch>_<device>.csv, or --out.
"""

import argparse
import asyncio
import json
import os
import random
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from served import (
    Connection,
    Server,
    add_model_arguments,
    form_of,
    make_exports,
    mlpmixer_serve,
    percentile,
    photo,
    request_of,
    serving,
)
from table import path_of, write

from mlpmixer.inference.exported import PROBABILITIES, export_at
from mlpmixer.inference.exported_classifier import Exported
from mlpmixer.inference.load import load
from mlpmixer.serve.server import listen

BATCHES = (1, 2, 4, 8, 16, 32)
CORES = len(os.sched_getaffinity(0))
OURS, RIVAL = "mlpmixer serve", "LitServe"


@contextmanager
def alone(servers: dict[str, Server], name: str = "") -> Iterator[None]:
    """All servers but the named one stand still while the block runs."""
    with ExitStack() as stack:
        for other, server in servers.items():
            if other != name:
                stack.enter_context(server.standing_still())
        yield


def bare(model: Exported, batch: int, seconds: float) -> float:
    """Images/s of the engine alone."""
    pre = model.preprocess
    images = np.random.default_rng(0).integers(0, 256, (batch, *pre.image_size, pre.in_channels)).astype(pre.dtype)
    start, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - start < seconds:
        model.export(images, PROBABILITIES)
        done += batch
    return done / (time.perf_counter() - start)


def best_batch(model: Exported, seconds: float) -> dict[int, float]:
    """Images/s by batch size."""
    bare(model, max(BATCHES), 0)  # memory is taken
    return {batch: bare(model, batch, seconds) for batch in BATCHES}


async def saturate(port: int, requests: list[bytes], connections: int, seconds: float) -> tuple[float, int]:
    """Images/s that are answered while each connection always has a request under way, and how many were not."""
    clock = asyncio.get_running_loop().time
    begin = clock() + min(1.0, seconds / 4)  # until then batches form
    end, done, other = begin + seconds, 0, 0

    async def keep_asking(i: int) -> None:
        nonlocal done, other
        connection = Connection(port)
        while clock() < end:
            answer = await connection.ask(requests[i % len(requests)])
            i += connections
            if begin <= clock() < end:
                done += answer.status == 200
                other += answer.status != 200
        connection.close()

    await asyncio.gather(*map(keep_asking, range(connections)))
    return done / seconds, other


async def at_rate(
    port: int, requests: list[bytes], rate: float, seconds: float, arrivals: str
) -> tuple[list[float], int]:
    """Latencies in ms, sorted, of requests that come at `rate` a second whatever becomes of those before; and how many
    had no answer."""
    clock, rng = asyncio.get_running_loop().time, random.Random(0)
    free: list[Connection] = []
    latencies: list[float] = []
    other = 0

    async def ask(due: float, request: bytes) -> None:
        nonlocal other
        connection = free.pop() if free else Connection(port)
        answer = await connection.ask(request)
        free.append(connection)
        if answer.status == 200:
            latencies.append(1000 * (clock() - due))
        else:
            other += 1

    start = due = clock()
    tasks = []
    while due < start + seconds:
        await asyncio.sleep(max(due - clock(), 0))
        tasks.append(asyncio.create_task(ask(due, requests[len(tasks) % len(requests)])))
        due += rng.expovariate(rate) if arrivals == "poisson" else 1 / rate
    await asyncio.gather(*tasks)
    for connection in free:
        connection.close()
    return sorted(latencies), other


async def require_right(port: int, name: str, model: Exported, files: list[bytes], requests: list[bytes]) -> None:
    """SystemExit when an answer is not that of the engine."""
    connection = Connection(port)
    for file, request in zip(files, requests, strict=True):
        answer = await connection.ask(request)
        if answer.status != 200:
            raise SystemExit(f"{name} answers {answer.status}: {answer.body[:300]!r}")
        (said,) = json.loads(answer.body)["results"]
        (right,) = model.rank([""], model.preprocess_image(file)[None], 5)
        if any(abs(dict(right.top).get(t["label"], -1) - t["probability"]) > 1e-3 for t in said["top"][:1]):
            raise SystemExit(f"{name} answers {said}, the engine {right}")
    connection.close()


def decode_ms(model: Exported, files: list[bytes], seconds: float) -> float:
    """Processor time of one image, from the file's bytes to pixels of the model's size."""
    start, done = time.process_time(), 0
    while done < len(files) or time.process_time() - start < seconds:
        model.preprocess_image(files[done % len(files)])
        done += 1
    return 1000 * (time.process_time() - start) / done


def batches_of(server: Server) -> tuple[float, float]:
    """Images and batches that the engine has computed so far."""
    m = server.metrics()
    return tuple(m.get(f'mlpmixer_batch_images_{what}{{kind="predict"}}', 0.0) for what in ("sum", "count"))  # type: ignore[return-value]


def measure(precision: str, file: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one export: each server with each size of image."""
    threads = int(found[1]) if (found := re.search(r"--threads[ =](\d+)", shlex.join(args.options))) else 0
    workers = int(found[1]) if (found := re.search(r"--workers[ =](\d+)", shlex.join(args.options))) else 1
    engine = found[1] if (found := re.search(r"--engine[ =](\w+)", shlex.join(args.options))) else None
    rows = []
    with ExitStack() as stack:
        servers = {OURS: stack.enter_context(serving(mlpmixer_serve(file, "--client-requests", "0", *args.options)))}
        if args.litserve:
            with listen("127.0.0.1", 0) as sock:
                port = sock.getsockname()[1]
            script = str(Path(__file__).with_name("litserve_rival.py"))
            rival = [
                args.litserve,
                script,
                str(file),
                "--port",
                str(port),
                "--threads",
                str(threads),
                "--workers",
                str(workers),
            ]
            servers[RIVAL] = stack.enter_context(
                serving([*rival, *shlex.split(args.litserve_options)], port, "/health")
            )
        model = load(file, engine=engine, threads=0 if workers > 1 else threads)
        assert isinstance(model, Exported)
        with alone(servers):
            by_batch = best_batch(model, args.seconds / 5)
        batch = max(by_batch, key=lambda b: by_batch[b])
        print(
            f"{precision}: {model.runtime} alone: "
            + ", ".join(f"{n:.1f} images/s at {b}" for b, n in by_batch.items()),
            flush=True,
        )
        for width, height in (model.preprocess.image_size[::-1], tuple(map(int, args.photo.split("x")))):
            files = [photo(i, width, height) for i in range(args.images)]
            kb = sum(map(len, files)) / len(files) / 1000
            as_form = bool(args.litserve)
            requests = [request_of(*(form_of(f) if as_form else (f, "image/jpeg"))) for f in files]
            for name, server in servers.items():
                path = b"/predict?top_k=5"
                asked = [r.replace(path, b"/predict", 1) for r in requests] if name == RIVAL else requests
                asyncio.run(require_right(server.port, name, model, files, asked))
            shares: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
            with alone(servers):
                before = bare(model, batch, args.seconds / 3)
            for _ in range(args.turns):
                for name, server in servers.items():
                    images, batches = batches_of(server) if name == OURS else (0.0, 0.0)
                    start, server_cpu, client_cpu = time.perf_counter(), server.cpu_s(), time.process_time()
                    with alone(servers, name):
                        rate, refused = asyncio.run(saturate(server.port, requests, args.connections, args.seconds))
                    took = time.perf_counter() - start
                    server_cpu, client_cpu = (
                        (server.cpu_s() - server_cpu) / took,
                        (time.process_time() - client_cpu) / took,
                    )
                    more_images, more_batches = batches_of(server) if name == OURS else (0.0, 0.0)
                    with alone(servers):
                        after = bare(model, batch, args.seconds / 3)
                    turn = {"rate": rate, "bare": (before + after) / 2, "refused": refused, "server_cpu": server_cpu}
                    turn |= {"client_cpu": client_cpu, "batch": (more_images - images) / max(more_batches - batches, 1)}
                    shares[name].append(turn)
                    before = after
            with alone(servers):
                ms = decode_ms(model, files, args.seconds / 10)
            for name, server in servers.items():
                turns = shares[name]
                middle = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
                if not middle["rate"] or not middle["server_cpu"]:
                    raise SystemExit(f"{name} answered nothing within {args.seconds:g} s: give more --seconds")
                row = {
                    "server": name,
                    "options": shlex.join(args.options) if name == OURS else args.litserve_options,
                    "runtime": str(model.runtime),
                    "precision": precision,
                    "image": f"{width}x{height} px, {kb:.0f} kB" + (", form" if as_form else ""),
                    "cores": CORES,
                    "connections": args.connections,
                    "bare_images_per_s": round(middle["bare"], 2),
                    "bare_batch": batch,
                    "images_per_s": round(middle["rate"], 2),
                    "share_of_bare": round(statistics.median(t["rate"] / t["bare"] for t in turns), 3),
                    "least_share": round(min(t["rate"] / t["bare"] for t in turns), 3),
                    "mean_batch": round(middle["batch"], 1) if name == OURS else "",
                    "not_answered": sum(int(t["refused"]) for t in turns),
                    "server_cpu": round(middle["server_cpu"], 2),
                    "client_cpu": round(middle["client_cpu"], 3),
                    "decode_ms": round(ms, 2),
                    "decode_share_of_server_cpu": round(ms / 1000 * middle["rate"] / middle["server_cpu"], 3),
                }
                for arrivals in ("poisson", "even"):
                    half = middle["rate"] / 2
                    with alone(servers, name):
                        found = asyncio.run(at_rate(server.port, requests, half, args.latency_seconds, arrivals))
                    p50, p90, p99 = (percentile(found[0], p) for p in (50, 90, 99)) if found[0] else (float("nan"),) * 3
                    figures = {
                        "requests": len(found[0]),
                        "p50_ms": p50,
                        "p90_ms": p90,
                        "p99_ms": p99,
                        "p99_by_p50": p99 / p50,
                    }
                    row |= {f"{arrivals}_{key}": round(value, 2) for key, value in figures.items()} | {
                        f"{arrivals}_not_answered": found[1]
                    }
                rows.append(row)
                print(
                    f"{name:14} {precision}, {row['image']}: {row['images_per_s']} images/s, "
                    f"{100 * row['share_of_bare']:.1f} % of "
                    f"the bare engine's {row['bare_images_per_s']} (batch {row['mean_batch']}; cores: server "
                    f"{row['server_cpu']}, client "
                    f"{row['client_cpu']}, decoding {100 * row['decode_share_of_server_cpu']:.0f} % of the server's); "
                    f"at half of it p50 "
                    f"{row['poisson_p50_ms']} ms, p99 {row['poisson_p99_by_p50']} times that by Poisson, "
                    f"{row['even_p99_by_p50']} evenly",
                    flush=True,
                )
    return rows


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, "S/16")
    parser.add_argument(
        "--precision", nargs="+", default=["float32", "int8"], choices=["float32", "int8"], help="forms of --model"
    )
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=15, help="length of a turn; the bare engine gets a third of it"
    )
    parser.add_argument(
        "--latency-seconds", type=float, default=60, help="length of the run at half load, for each kind of arrivals"
    )
    parser.add_argument("--photo", default="2048x1536", help="pixels of the larger file (2048x1536)")
    parser.add_argument("--images", type=int, default=8, help="different files")
    parser.add_argument(
        "--litserve", metavar="PYTHON", help="python of an environment with LitServe, to measure it, too"
    )
    parser.add_argument("--litserve-options", default="--max-batch 8", help="options of litserve_rival.py")
    parser.add_argument("--out", help="a CSV file, instead of the one beside this script")
    args = parser.parse_args(words[:cut])
    args.options = words[cut + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        if args.export:
            file = export_at(args.export)
            if file is None:
                raise SystemExit(f"{args.export} is not an export")
            exports = {Path(args.export).name: file}
        else:
            exports = make_exports(args.model, Path(folder), tuple(args.precision))
        rows = [row for precision, file in exports.items() for row in measure(precision, file, args)]
    write(Path(args.out) if args.out else path_of("load", torch.device("cpu")), rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""A training step on compiled kernels beside the same step written plainly in torch at its defaults: python
benchmarks/kernels.py

Each implementation lives in a process of its own (what `kernels.install` asks of the memory allocator holds for a
process), all stay alive, and they take turns; a row is the median of the rounds, `ratio` the median, over rounds, of
its speed over plain torch in float32. A step is forward, cross-entropy and backward, without an optimizer.
`max_abs_diff_vs_reference` is the largest difference of the logits from plain float32 ones; `gradient_error` the mean,
over parameters, of the relative distance of the gradient from the plain float32 one (without the token-mixing biases,
whose gradient is 0 but for rounding). Writes benchmarks/kernels_<torch>_<cpu>.csv.

With --avx2 a processor with AVX-512 does without it: torch, MKL, oneDNN and block.c. A processor that has only AVX2
has other caches, and MKL another share of its speed.
"""

import argparse
import multiprocessing as mp
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from table import model_and_batch, path_of, write

from mlpmixer.hardware import has_bf16
from mlpmixer.models.architecture import create_model
from mlpmixer.training.recipe import Recipe, Run
from mlpmixer.training.start import choose_kernels

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def work(name: str, batch: int, compiled: bool, bf16: bool, threads: int, pipe: Connection) -> None:
    """Answer each "step" with its seconds, and "check" with (logits, gradients)."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = create_model(name)
    torch.nn.init.normal_(model.head.weight, std=0.02)  # type: ignore[union-attr, arg-type]
    size = model.cfg.image_size
    assert isinstance(size, int)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, model.cfg.num_classes, (batch,))
    if compiled:
        try:
            choose_kernels(model, Recipe(model=model.cfg, run=Run(kernels="compiled")), torch.device("cpu"))
        except ValueError as e:
            raise SystemExit(str(e)) from None
    for order in orders(pipe):
        model.zero_grad()
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        seconds = time.perf_counter() - start
        grads = {
            n: p.grad.numpy()
            for n, p in model.named_parameters()
            if p.grad is not None and "token_mixing.fc2.bias" not in n
        }
        pipe.send(seconds if order == "step" else (logits.detach().float().numpy(), grads))


def orders(pipe: Connection) -> Iterator[str]:
    """What is asked for, until whoever asks stops or has ended."""
    with suppress(EOFError):
        while (order := pipe.recv()) != "stop":
            yield order


def main() -> None:
    parser = argparse.ArgumentParser()
    models = [("Nano/4", 128), ("S/16", 8)]
    parser.add_argument("--models", type=model_and_batch, nargs="+", default=models, metavar="NAME:BATCH")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--avx2", action="store_true")
    args = parser.parse_args()
    if args.avx2:
        os.environ.update(AVX2)  # of the processes to come
    rows: list[dict[str, Any]] = []
    kinds = [
        (compiled, bf16)
        for bf16 in ([False, True] if has_bf16(torch.device("cpu")) and not args.avx2 else [False])
        for compiled in (False, True)
    ]
    os.environ.setdefault(
        "GOMP_SPINCOUNT", "10000"
    )  # as `mlpmixer` sets it: else the threads of who waits for its turn keep a core busy
    context = mp.get_context("spawn")
    for name, batch in args.models:
        pipes, workers = {}, []
        for kind in kinds:
            pipes[kind], theirs = context.Pipe()
            workers.append(context.Process(target=work, args=(name, batch, *kind, args.threads, theirs), daemon=True))
            workers[-1].start()
            theirs.close()  # then it is closed where the process ends, and nobody waits for it

        def ask(kind: tuple[bool, bool], order: str, pipes: dict[tuple[bool, bool], Any] = pipes) -> Any:
            try:
                pipes[kind].send(order)
                return pipes[kind].recv()
            except (EOFError, OSError):
                raise SystemExit("one of the processes has ended, and said why") from None

        checks = {kind: ask(kind, "check") for kind in kinds}
        times: dict[tuple[bool, bool], list[float]] = {kind: [] for kind in kinds}
        for i in range(args.rounds + 2):
            for kind in kinds:
                seconds = ask(kind, "step")
                if i >= 2:  # the first rounds warm up
                    times[kind].append(seconds)
        logits, grads = checks[False, False]
        for kind in kinds:
            median = statistics.median(times[kind])
            ratio = statistics.median(a / b for a, b in zip(times[False, False], times[kind], strict=True))
            errors = [((checks[kind][1][n] - g) ** 2).sum() ** 0.5 / (g**2).sum() ** 0.5 for n, g in grads.items()]
            rows.append(
                {
                    "model": name, "batch": batch, "threads": args.threads,
                    "kernels": "compiled" if kind[0] else "torch", "precision": "bfloat16" if kind[1] else "float32",
                    "images_per_s": round(batch / median, 1), "median_ms": round(1000 * median, 1),
                    "min_ms": round(1000 * min(times[kind]), 1), "ratio": round(ratio, 2),
                    "max_abs_diff_vs_reference": f"{abs(checks[kind][0] - logits).max():.1e}",
                    "gradient_error": f"{statistics.mean(errors):.1e}",
                }
            )  # fmt: skip
            print(*rows[-1].values(), sep="\t", flush=True)
        for kind, worker in zip(kinds, workers, strict=True):
            pipes[kind].send("stop")
            worker.join()
    torch.set_num_threads(args.threads)
    write(path_of("kernels-as-avx2" if args.avx2 else "kernels", torch.device("cpu")), rows)


if __name__ == "__main__":
    main()

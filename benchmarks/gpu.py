"""How fast training is on this GPU, and what it spends its time on: python benchmarks/gpu.py [--max-minutes 9]

1. `matrix`: the largest rate of bf16 matrix products on random data, sustained (zeros would run faster).
2. `train`: a training step of B/16 at 224 px (forward, loss, backward, fused AdamW), plain and compiled, with autocast
   or with weights in bf16, at several batch sizes: images/s, and model FLOPs (3 times those of a forward pass) as a
   share of the rate of 1. To reach: 55 %.
3. `step`: whole steps of small recipes as `train` takes them (50,000 noise images on the device, augmentation,
   optimizer, average), and the same step's forward, loss and backward alone: the share of the time outside the network.
   To reach: at most 10 %.
4. `profile`: where the time of those steps goes, kernel by kernel, by torch.profiler.

Writes benchmarks/gpu_<environment>.csv and gpu-profile_<environment>.csv, row by row: a run that was cut off goes on
with the rows that are missing. --tiny tries everything with tiny networks, on a CPU too. Not run yet on a GPU.
"""

import argparse
import csv
import dataclasses
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_recipes import RECIPES
from gpu_table import noise

from mlpmixer.hardware import choose_device, device_name, peak_mib
from mlpmixer.models import names
from mlpmixer.models.architecture import create_model
from mlpmixer.models.configs import MixerConfig
from mlpmixer.training.inputs import batches, load_images
from mlpmixer.training.step import TrainingStep

FIELDS = [
    "section",
    "what",
    "mode",
    "precision",
    "batch",
    "ms",
    "images_per_s",
    "tflops",
    "of_matrix_rate",
    "outside_network",
    "first_s",
    "peak_mib",
]
PROFILE_FIELDS = ["recipe", "mode", "kernel", "calls_a_step", "ms_a_step", "share"]
ROUNDS = 5
Row = dict[str, Any]
Plans = Iterator[tuple[tuple[str, ...], Callable[[], Row]]]
"""The first columns of a row, and what measures the rest."""


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", default=str(Path(__file__).parent), help="folder of the CSV files")
    parser.add_argument("--max-minutes", type=float, default=0.0, help="start no further row after that; 0: no limit")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each row")
    parser.add_argument(
        "--section", nargs="+", choices=["matrix", "train", "step"], default=["matrix", "train", "step"]
    )
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(words)
    try:
        device = choose_device(args.device)
    except ValueError as e:
        parser.error(str(e))
    deadline = time.monotonic() + 60 * args.max_minutes if args.max_minutes else float("inf")
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-") + ("_tiny" if args.tiny else "")
    cuda = f"_cuda-{torch.version.cuda}" if device.type == "cuda" else ""
    environment = f"torch-{torch.__version__.split('+')[0]}{cuda}_python-{platform.python_version()}_{slug}"
    table = Table(Path(args.out) / f"gpu_{environment}.csv", FIELDS, keys=5)
    profile = Table(Path(args.out) / f"gpu-profile_{environment}.csv", PROFILE_FIELDS, keys=2)
    sections = {"matrix": matrix, "train": training, "step": stepping}
    for section in args.section:
        for key, measure in sections[section](args, device, table, profile):
            if key in table:
                continue
            if time.monotonic() > deadline:
                print(f"left: {' '.join(key)} and what follows; the same command goes on")
                return 3
            table.add(dict(zip(FIELDS, key, strict=False)) | measured(measure, device))
    print(f"{table.path}\n{profile.path}")
    return 0


def measured(measure: Callable[[], Row], device: torch.device) -> Row:
    """A row's figures; what does not fit into memory, or what torch.compile cannot do, is a row that says so."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch._dynamo.reset()
    try:
        return measure() | {"peak_mib": peak_mib(device)}
    except RuntimeError as e:
        print(e, file=sys.stderr)
        return {"ms": type(e).__name__}


class Table:
    """A CSV file that grows by rows; the first `keys` columns name one."""

    def __init__(self, path: Path, fields: list[str], keys: int) -> None:
        self.path, self.fields, self.keys, self.rows = path, fields, keys, list[Row]()
        if path.exists():
            with open(path, newline="") as f:
                self.rows = list(csv.DictReader(f))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(",".join(fields) + "\n")

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return any(tuple(row[f] for f in self.fields[: self.keys]) == key for row in self.rows)

    def add(self, row: Row) -> None:
        self.rows.append({f: str(row.get(f, "")) for f in self.fields})
        with open(self.path, "a", newline="") as f:
            csv.DictWriter(f, self.fields).writerow(self.rows[-1])
        print(*self.rows[-1].values(), sep="\t", flush=True)

    def best_tflops(self) -> float:
        """The rate that others are a share of: the best of the `matrix` rows."""
        return max((float(row["tflops"]) for row in self.rows if row["section"] == "matrix"), default=float("nan"))


def seconds_of(run: Callable[[], object], device: torch.device, at_least_s: float) -> tuple[float, float]:
    """(median time of a call, time of the first one with whatever it compiles), the device waited for only between
    rounds."""

    def timed(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = timed(1)
    timed(3)
    times = max(round(at_least_s / ROUNDS / timed(1)), 1)
    return statistics.median(timed(times) for _ in range(ROUNDS)) / times, first


def matrix(args: argparse.Namespace, device: torch.device, *_: Table) -> Plans:
    for size in (256,) if args.tiny else (4096, 8192, 16384):

        def measure(size: int = size) -> Row:
            a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
            seconds, first = seconds_of(lambda: a @ b, device, args.seconds)
            return {
                "ms": round(1e3 * seconds, 4),
                "tflops": round(2 * size**3 / seconds / 1e12, 3),
                "first_s": round(first, 1),
            }

        yield ("matrix", f"{size}x{size}x{size}", "none", "bfloat16", "1"), measure


def training(args: argparse.Namespace, device: torch.device, table: Table, _: Table) -> Plans:
    """The cheap questions first; what searches for kernels, for minutes, last. Max-autotune without CUDA graphs, which
    B/16 is too large to gain from."""
    name, few, batch, many = ("Pico/2", "4", "8", "16") if args.tiny else ("B/16", "128", "256", "512")
    plans = [(mode, precision, batch) for mode in ("none", "default") for precision in ("autocast", "weights")]
    plans += [("default", precision, size) for size in (many, few) for precision in ("autocast", "weights")]
    plans += [
        (mode, precision, batch)
        for mode in ("max-autotune-no-cudagraphs", "reduce-overhead")
        for precision in ("weights", "autocast")
    ]
    for mode, precision, batch in plans:

        def measure(mode: str = mode, precision: str = precision, batch: int = int(batch)) -> Row:
            cfg = names.MIXERS[name]
            run = training_step(cfg, mode, precision, batch, device, args.tiny)
            seconds, first = seconds_of(run, device, args.seconds)
            tflops = 3 * batch * sum(layer.flops for layer in cfg.layers()) / seconds / 1e12
            return {
                "ms": round(1e3 * seconds, 3), "images_per_s": round(batch / seconds, 1), "tflops": round(tflops, 3),
                "of_matrix_rate": round(tflops / table.best_tflops(), 4), "first_s": round(first, 1),
            }  # fmt: skip

        yield ("train", name, mode, precision, batch), measure


def training_step(
    cfg: MixerConfig, mode: str, precision: str, batch: int, device: torch.device, tiny: bool
) -> Callable[[], None]:
    """A step on random images, as plainly as can be; weights and their gradients are in bf16, or cast by autocast."""
    model = create_model(cfg).to(device, torch.bfloat16 if precision == "weights" else torch.float32)
    forward = (
        model if mode == "none" else torch.compile(model, backend="eager") if tiny else torch.compile(model, mode=mode)
    )
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    size = cfg.image_size
    images = torch.randn(batch, cfg.in_channels, size, size, device=device, dtype=next(model.parameters()).dtype)  # type: ignore[arg-type]
    labels = torch.randint(cfg.num_classes, (batch,), device=device)

    def run() -> None:
        if mode != "none":
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "autocast"):
            logits = forward(images)
        F.cross_entropy(logits.float(), labels).backward()
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    return run


def stepping(args: argparse.Namespace, device: torch.device, _: Table, profile: Table) -> Plans:
    modes = ("none",) if args.tiny else ("none", "default", "reduce-overhead")
    for name in ("small-images-1m", "small-images-30s", "small-images-wide"):
        for mode in modes:

            def measure(name: str = name, mode: str = mode) -> Row:
                return step_row(name, mode, args, device, profile)

            yield ("step", name, mode, "autocast", "16" if args.tiny else str(RECIPES[name]().run.batch_size)), measure


def step_row(name: str, mode: str, args: argparse.Namespace, device: torch.device, profile: Table) -> Row:
    """Whole steps, the network alone, and a profile of the whole steps."""
    recipe = RECIPES[name]()
    run = dataclasses.replace(recipe.run, compile=mode != "none", compile_mode="default" if mode == "none" else mode)
    model = recipe.model
    if args.tiny:
        run = dataclasses.replace(run, batch_size=16)
        model = dataclasses.replace(model, num_blocks=2, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=16)
    with tempfile.TemporaryDirectory() as folder:
        noise(Path(folder), per_class=4 if args.tiny else 1000)
        recipe = dataclasses.replace(
            recipe, model=model, run=run, data=dataclasses.replace(recipe.data, name="cifar10", data_dir=folder)
        )
        step = TrainingStep(recipe, load_images(recipe.data, recipe.model), device, torch.bfloat16)
        given = batches(step.images, run, 1, 1 << 40)

        def whole() -> None:
            step(next(given), 0.1)
            step.average_in(1e-3)

        whole()
        images, targets = step.prepare(next(given))

        def inside() -> None:
            if step.compiles_augmentation:
                torch.compiler.cudagraph_mark_step_begin()
            step.compute_gradients(images, targets, 1)
            step.model.zero_grad(set_to_none=True)

        seconds, first = seconds_of(whole, device, args.seconds)
        alone, _ = seconds_of(inside, device, args.seconds)
        add_profile(profile, name, mode, whole, device)
    flops = 3 * run.batch_size * sum(layer.flops for layer in model.layers())
    return {
        "ms": round(1e3 * seconds, 3), "images_per_s": round(run.batch_size / seconds, 1), "tflops": round(flops / seconds / 1e12, 3),  # noqa: E501
        "outside_network": round(1 - alone / seconds, 4), "first_s": round(first, 1),
    }  # fmt: skip


def add_profile(
    profile: Table, name: str, mode: str, run: Callable[[], None], device: torch.device, steps: int = 10, most: int = 25
) -> None:
    """The kernels that take most of `steps` steps; in the last row how much of the time by the clock the device was
    busy."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    if (name, mode) in profile:
        return
    cuda = device.type == "cuda"
    start = time.perf_counter()
    with profiler(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU], acc_events=True) as traced:
        for _ in range(steps):
            run()
        if cuda:
            torch.cuda.synchronize()
        wall_ms = 1e3 * (time.perf_counter() - start)
    kernels = [
        (e.key, e.count, (e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e3)
        for e in traced.key_averages()
    ]
    total = sum(ms for _, _, ms in kernels)
    for key, count, ms in sorted(kernels, key=lambda kernel: -kernel[2])[:most]:
        profile.add(profile_row(name, mode, key[:120], count / steps, ms / steps, ms / total))
    profile.add(
        profile_row(
            name, mode, "all kernels, and their share of the time by the clock", "", total / steps, total / wall_ms
        )
    )


def profile_row(name: str, mode: str, kernel: str, calls: float | str, ms: float, share: float) -> Row:
    return dict(zip(PROFILE_FIELDS, (name, mode, kernel, calls, round(ms, 4), round(share, 4)), strict=True))


if __name__ == "__main__":
    sys.exit(main())

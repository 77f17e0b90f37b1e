"""Figures 2 (left) and 3: accuracy against training time and against throughput, over sizes of one family."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from mlpmixer.config import Config, pair
from mlpmixer.data.datasets import open_data
from mlpmixer.inference.load import load
from mlpmixer.models.configs import MixerConfig
from mlpmixer.reproduce.chance import describe_difference, mean_and_range
from mlpmixer.reproduce.comparison import nano
from mlpmixer.reproduce.experiment import ExperimentContext, Scale
from mlpmixer.reproduce.page import Page, Panel, Plot, Series, make_table, percent
from mlpmixer.reproduce.published import TABLE3, Row
from mlpmixer.training.recipe import Recipe, Run
from mlpmixer.training.recipes import cifar10

PAPER = [row for row in TABLE3 if row.is_mixer and row.upstream == "JFT-300M" and row.image_px == 224]


@dataclass(frozen=True, kw_only=True)
class Family(Config):
    """Sizes as (num_blocks, hidden_dim, tokens_mlp_dim), and how long each is trained."""

    sizes: dict[str, tuple[int, int, int]]
    epochs: tuple[float, ...]
    seeds: int = 1
    turns: int = 5
    """How often the throughput of all sizes is measured; the best turn counts."""
    large_batches: bool = False
    """Train by `for_a_gpu` instead of the recipe `cifar10`."""
    images: int = 128
    """Images in a timed forward pass."""

    def model(self, name: str) -> MixerConfig:
        return nano(*self.sizes[name])


_SMALL = {"2 x 32": (2, 32, 24), "4 x 32": (4, 32, 24), "4 x 48": (4, 48, 36), "6 x 64": (6, 64, 48)}
_MIDDLE = _SMALL | {"8 x 96": (8, 96, 72)}
_LARGE = {"8 x 128": (8, 128, 96), "8 x 256": (8, 256, 192), "12 x 384": (12, 384, 288)}
SCALES: dict[Scale, Family] = {
    "small": Family(sizes=_SMALL, epochs=(1, 3)),
    "long": Family(sizes=_MIDDLE, epochs=(1, 3)),
    "full": Family(sizes=_MIDDLE | _LARGE, epochs=(10, 30, 100), seeds=3, large_batches=True, images=512),
}


def for_a_gpu(base: Recipe) -> Recipe:
    """`base` in batches of 512, with an average of the weights."""
    augment = dataclasses.replace(base.augment, mix_probability=0.5)
    optim = dataclasses.replace(base.optim, lr=4e-3, muon_lr=1e-2, warmup_steps=200, mirror=False, ema_decay=0.999)
    return dataclasses.replace(base, augment=augment, optim=optim, run=Run(batch_size=512, log_every=100))


def frontier(cost: Sequence[float], gain: Sequence[float]) -> list[int]:
    """The points that no other beats, by cost: none has more gain at no more cost, or as much at less."""
    order = sorted(range(len(cost)), key=lambda i: (cost[i], -gain[i]))
    return [i for k, i in enumerate(order) if all(gain[i] > gain[j] for j in order[:k])]


def trace_frontier(context: ExperimentContext) -> Page:
    family = SCALES[context.scale]
    base = for_a_gpu(cifar10()) if family.large_batches else cifar10()
    data = dataclasses.replace(base.data, name="cifar10", data_dir=context.data_dir)
    splits = open_data(data)
    assert splits.test is not None
    n = len(splits.test)
    context.num_parts = len(family.sizes) * len(family.epochs) * family.seeds + family.turns
    points: list[dict[str, Any]] = []
    for epochs in family.epochs:
        for name in family.sizes:
            runs = []
            for seed in context.seeds(family.seeds):
                run = dataclasses.replace(base.run, epochs=epochs, seed=seed, eval_every=epochs, save_every_s=60)
                recipe = dataclasses.replace(base, data=data, model=family.model(name), run=run)
                runs.append(context.train(_run_name(name, epochs, seed), recipe).summary)
            point: dict[str, Any] = {"size": name, "epochs": epochs, "params": runs[0]["params"]}
            point |= {what: [run[what] for run in runs] for what in ("top1", "train_s")}
            points.append(point | {"precision": runs[0]["precision"]})
    turns = [context.measure(f"turn-{k}", lambda: _throughputs(context, family)) for k in range(1, family.turns + 1)]
    speeds = {name: max(turn[name] for turn in turns) for name in family.sizes}
    top1, train_s = ([fmean(p[what]) for p in points] for what in ("top1", "train_s"))
    by_time = frontier(train_s, top1)
    by_throughput = frontier([1 / speeds[p["size"]] for p in points], top1)
    for i, point in enumerate(points):
        point |= {"images_per_s": speeds[point["size"]]}
        point |= {"frontier_time": i in by_time, "frontier_throughput": i in by_throughput}
    smallest, *_, largest = family.sizes
    best = max(range(len(points)), key=lambda i: top1[i])
    largest_short = next(i for i, p in enumerate(points) if p["size"] == largest)
    smallest_long = max(i for i, p in enumerate(points) if p["size"] == smallest)
    label = [f"{p['size']}, {p['epochs']:g} epochs ({s / 60:.1f} min)" for p, s in zip(points, train_s, strict=True)]
    difference = describe_difference(
        label[largest_short], top1[largest_short], label[smallest_long], top1[smallest_long], n
    )
    return Page(
        template="frontier.md",
        values={"family": family, "recipe": "cifar10" + ", in batches of 512" * family.large_batches},
        findings=(
            f"On the frontier of training time: {'; '.join(label[i] for i in by_time)}.",
            f"On the frontier of throughput: {'; '.join(label[i] for i in by_throughput)}.",
            f"Best: {label[best]}, {percent(top1[best])}.",
            f"Larger or longer? {difference}.",
        ),
        tables=(
            make_table("CIFAR-10", [_describe(point) for point in points]),
            make_table("The paper's table 3, JFT-300M, 224 px", [_describe_published(row) for row in PAPER]),
        ),
        plots=(
            Plot(
                "frontier",
                "Test top-1; the line is the frontier",
                [
                    _panel("training, s", points, train_s, by_time),
                    _panel("images/s, forward", points, [speeds[p["size"]] for p in points], by_throughput),
                ],
            ),
        ),
        figures={"points": points, "paper": [row._asdict() for row in PAPER]},
    )


def _run_name(size: str, epochs: float, seed: int) -> str:
    return f"{size.replace(' ', '')}-{epochs:g}-{seed}"


def _throughputs(context: ExperimentContext, family: Family) -> dict[str, float]:
    """Forward images/s of each size, as a user of the trained model has them."""
    found = {}
    for name in family.sizes:
        classifier = load(context.out / "runs" / _run_name(name, family.epochs[0], context.seed), device=context.device)
        images = np.zeros((family.images, *pair(family.model(name).image_size), 3), np.uint8)
        classifier.probabilities(images)  # warms up
        start = time.perf_counter()
        classifier.probabilities(images)
        found[name] = len(images) / (time.perf_counter() - start)
    return found


def _describe(point: dict[str, Any]) -> dict[str, object]:
    return {
        "size": point["size"],
        "parameters": f"{point['params']:,}",
        "epochs": f"{point['epochs']:g}",
        "test top-1": mean_and_range(point["top1"]),
        "training, min": f"{fmean(point['train_s']) / 60:.1f}",
        "images/s": f"{point['images_per_s']:,.0f}",
        "on the frontier of": ", ".join(what for what in ("time", "throughput") if point[f"frontier_{what}"]),
    }


def _describe_published(row: Row) -> dict[str, object]:
    return {
        "model": row.model,
        "epochs": row.epochs,
        "ImageNet top-1": percent(row.imagenet, 2),
        "images/s/core, TPUv3": f"{row.images_per_s_core:,}",
        "core-days, TPUv3": f"{1000 * row.kilo_core_days:g}",
    }


def _panel(xlabel: str, points: list[dict[str, Any]], x: list[float], on_frontier: list[int]) -> Panel:
    """Points in a colour for each size, and the frontier as a line."""
    places = list(zip(x, [fmean(p["top1"]) for p in points], strict=True))
    series = [Series(sorted(places[i] for i in on_frontier), colour="0.6")]
    for size in dict.fromkeys(p["size"] for p in points):
        series.append(Series([places[i] for i, p in enumerate(points) if p["size"] == size], size, "o"))
    return Panel(xlabel, "test top-1", series, log="x")

"""Figures 2 (left) and 3: accuracy against training time and against throughput, over sizes of one family."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlpmixer.config import Config, pair
from mlpmixer.data.datasets import open_data
from mlpmixer.inference.classifier import load
from mlpmixer.models.configs import MixerConfig
from mlpmixer.reproduce.comparison import DRAW, against, nano, spread
from mlpmixer.reproduce.experiment import Lab, Scale
from mlpmixer.reproduce.page import Cells, Page, Plot
from mlpmixer.reproduce.published import TABLE3
from mlpmixer.training.recipes import RECIPES

PAPER = [row for row in TABLE3 if row.is_mixer and row.upstream == "JFT-300M" and row.image_px == 224]


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """Sizes of the family, as (num_blocks, hidden_dim, tokens_mlp_dim), and how long each is trained."""

    sizes: dict[str, tuple[int, int, int]]
    epochs: tuple[float, ...]
    seeds: int = 1
    turns: int = 5
    recipe: str = "cifar10"
    """All of the training but the widths."""
    images: int = 128
    """Whose forward pass is timed."""

    def model(self, name: str) -> MixerConfig:
        return nano(*self.sizes[name])


_SMALL = {"2 x 32": (2, 32, 24), "4 x 32": (4, 32, 24), "4 x 48": (4, 48, 36), "6 x 64": (6, 64, 48)}
_MIDDLE = _SMALL | {"8 x 96": (8, 96, 72)}
_LARGE = {"8 x 128": (8, 128, 96), "8 x 256": (8, 256, 192), "12 x 384": (12, 384, 288)}
SCALES: dict[Scale, Settings] = {
    "small": Settings(sizes=_SMALL, epochs=(1, 3)),
    "long": Settings(sizes=_MIDDLE, epochs=(1, 3)),
    "full": Settings(sizes=_MIDDLE | _LARGE, epochs=(10, 30, 100), seeds=3, recipe="small-images-30s", images=512),
}


def frontier(cost: Sequence[float], gain: Sequence[float]) -> list[int]:
    """Which points no other beats: none has at most their cost and more gain, or less cost and as much. In the order of
    cost."""
    order = sorted(range(len(cost)), key=lambda i: (cost[i], -gain[i]))
    kept: list[int] = []
    for i in order:
        if not kept or gain[i] > gain[kept[-1]]:
            kept.append(i)
    return kept


def run(lab: Lab) -> Page:
    settings = SCALES[lab.scale]
    base = RECIPES[settings.recipe]()
    data = dataclasses.replace(base.data, name="cifar10", data_dir=lab.data_dir)
    splits = open_data(data)
    assert splits.test is not None
    lab.parts = len(settings.sizes) * len(settings.epochs) * settings.seeds + settings.turns
    points: list[dict[str, Any]] = []
    for epochs in settings.epochs:
        for name in settings.sizes:
            done = []
            for seed in range(lab.seed, lab.seed + settings.seeds):
                train = dataclasses.replace(base.run, epochs=epochs, seed=seed, eval_every=epochs, save_every_s=60)
                recipe = dataclasses.replace(base, data=data, model=settings.model(name), run=train)
                done.append(lab.train(f"{name.replace(' ', '')}-{epochs:g}-{seed}", recipe).summary)
            points.append(
                {
                    "size": name,
                    "epochs": epochs,
                    "params": done[0]["params"],
                    "top1": [s["top1"] for s in done],
                    "train_s": [s["train_s"] for s in done],
                    "precision": done[0]["precision"],
                }
            )
    turns = [lab.measure(f"turn-{k}", lambda: _speeds(lab, settings)) for k in range(1, settings.turns + 1)]
    speeds = {name: max(turn[name] for turn in turns) for name in settings.sizes}
    top1 = [_mean(p["top1"]) for p in points]
    by_time = frontier([_mean(p["train_s"]) for p in points], top1)
    by_speed = frontier([1 / speeds[p["size"]] for p in points], top1)
    for i, point in enumerate(points):
        point |= {
            "images_per_s": speeds[point["size"]],
            "frontier_time": i in by_time,
            "frontier_throughput": i in by_speed,
        }
    n, best = len(splits.test), max(range(len(points)), key=lambda i: top1[i])
    largest_short = next(i for i, p in enumerate(points) if p["size"] == list(settings.sizes)[-1])
    smallest_long = max(i for i, p in enumerate(points) if p["size"] == next(iter(settings.sizes)))

    def named(i: int) -> str:
        return f"{points[i]['size']}, {points[i]['epochs']:g} epochs ({_mean(points[i]['train_s']) / 60:.1f} min)"

    return Page(
        claim=(
            "figures 2 (left) and 3: accuracy grows with the compute of pre-training along a frontier on which Mixers "
            "lie beside ViTs, and "
            "a larger Mixer is slower and better. The figures of table 3 are below."
        ),
        findings=(
            f"On the frontier of training time: {'; '.join(named(i) for i in by_time)}.",
            f"On the frontier of throughput: {'; '.join(named(i) for i in by_speed)}.",
            f"Best: {named(best)}, {100 * top1[best]:.1f} %.",
            f"Larger or longer? "
            f"{against(named(largest_short), top1[largest_short], named(smallest_long), top1[smallest_long], n)}.",
        ),
        tables=(_ours(points), _papers()),
        plots=(
            Plot(
                name="frontier",
                caption="Test top-1; the line is the frontier",
                draw=lambda f: _draw(f, points),
                size=(9, 4),
            ),
        ),
        notes=(
            "One family: blocks x channels, patches of 4 px, token mixing 3/4 and channel mixing 4 times as wide as "
            "the "
            f"channels. All else is the recipe {settings.recipe}, whose rates were not made for each size and time; n "
            f"= {settings.seeds}.",
            "Training time is the run's, with one evaluation on validation images. Throughput is of the forward pass, "
            f"{settings.images} images at a time in float32, the best of {settings.turns} turns, all sizes in each.",
            "CIFAR-10 from scratch at 32 px says nothing of pre-training on JFT-300M; what is compared is the shape.",
            DRAW,
        ),
        figures={"points": points, "paper": [dataclasses.asdict(row) for row in PAPER]},
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _speeds(lab: Lab, settings: Settings) -> dict[str, float]:
    """Images a second of each size, forward, as a user of the trained model has them."""
    out = {}
    for name in settings.sizes:
        run = lab.out / "runs" / f"{name.replace(' ', '')}-{settings.epochs[0]:g}-{lab.seed}"
        classifier = load(run, device=lab.device)
        images = np.zeros((settings.images, *pair(settings.model(name).image_size), 3), np.uint8)
        classifier.probabilities(images)  # warms up
        start = time.perf_counter()
        classifier.probabilities(images)
        out[name] = len(images) / (time.perf_counter() - start)
    return out


def _ours(points: list[dict[str, Any]]) -> Cells:
    rows = tuple(
        (
            p["size"],
            f"{p['params']:,}",
            f"{p['epochs']:g}",
            spread(p["top1"]),
            f"{_mean(p['train_s']) / 60:.1f}",
            f"{p['images_per_s']:,.0f}",
            ", ".join(what for what in ("time", "throughput") if p[f"frontier_{what}"]),
        )
        for p in points
    )
    header = ("size", "parameters", "epochs", "test top-1", "training, min", "images/s", "on the frontier of")
    return Cells(title="CIFAR-10", header=header, rows=rows)


def _papers() -> Cells:
    rows = tuple(
        (
            r.model,
            f"{r.epochs}",
            f"{100 * r.imagenet:.2f} %",
            f"{r.images_per_s_core:,}",
            f"{1000 * r.kilo_core_days:g}",
        )
        for r in PAPER
    )
    header = ("model", "epochs", "ImageNet top-1", "images/s/core, TPUv3", "core-days, TPUv3")
    return Cells(title="The paper's table 3, JFT-300M, 224 px", header=header, rows=rows)


def _draw(figure: Any, points: list[dict[str, Any]]) -> None:
    sizes = list(dict.fromkeys(p["size"] for p in points))
    for column, (what, label) in enumerate((("train_s", "training, s"), ("images_per_s", "images/s, forward")), 1):
        axes = figure.add_subplot(1, 2, column, xscale="log", xlabel=label, ylabel="test top-1")
        xs = [_mean(p[what]) if what == "train_s" else p[what] for p in points]
        ys = [_mean(p["top1"]) for p in points]
        for k, size in enumerate(sizes):
            own = [i for i, p in enumerate(points) if p["size"] == size]
            axes.plot([xs[i] for i in own], [ys[i] for i in own], "o", color=f"C{k}", label=size)
        best = [i for i, p in enumerate(points) if p["frontier_time" if what == "train_s" else "frontier_throughput"]]
        best.sort(key=lambda i: xs[i])
        axes.plot([xs[i] for i in best], [ys[i] for i in best], "-", color="0.6", zorder=0)
        axes.tick_params(axis="x", which="both", labelsize="x-small", labelrotation=30)
        axes.legend(fontsize="small")

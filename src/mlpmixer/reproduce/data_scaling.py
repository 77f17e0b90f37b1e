"""Figure 2, right: what a Mixer, a ViT and a ResNet make of 3, 10, 30 and 100 % of the images in an equal number of
steps."""

import dataclasses
from typing import Any

from mlpmixer.data.datasets import open_data, stratified_share
from mlpmixer.evaluation.probe import probe
from mlpmixer.inference.classifier import load
from mlpmixer.reproduce.comparison import COLOURS, CONTESTS, DRAW, against, best_rates, sizes, spread
from mlpmixer.reproduce.experiment import Lab
from mlpmixer.reproduce.page import Cells, Page, Plot

FRACTIONS = (0.03, 0.1, 0.3, 1.0)
NAMES = ("Mixer", "ViT", "ResNet")
SHOTS = 5
DRAWN_FROM = 0.01  # of the training images, of which the shots are drawn: enough for them, and soon read

Table = dict[str, dict[float, dict[str, list[Any]]]]
"""Network -> share -> what was measured, a value for each seed."""


def run(lab: Lab) -> Page:
    contest = CONTESTS[lab.scale]
    data = contest.data(lab)
    splits = open_data(data)
    assert splits.test is not None
    drawn = stratified_share(
        splits.train.labels, max(DRAWN_FROM, 2 * SHOTS * len(splits.classes) / len(splits.train)), lab.seed
    )
    few = dataclasses.replace(splits, train=splits.train.subset(drawn))
    lab.parts = sum(len(contest.rates[name]) for name in NAMES) + 2 * len(NAMES) * len(FRACTIONS) * contest.seeds
    rates, tried = best_rates(lab, contest, NAMES, data, len(splits.train))

    cells: Table = {name: {f: {"top1": [], "few": [], "best_step": []} for f in FRACTIONS} for name in NAMES}
    for seed in range(lab.seed, lab.seed + contest.seeds):
        for fraction in FRACTIONS:
            for name in NAMES:
                share = dataclasses.replace(data, train_fraction=fraction)
                images = len(open_data(share).train)
                recipe = contest.recipe(share, images, rates[name], seed)
                best = dataclasses.replace(
                    recipe.run, patience=contest.evaluations + 1
                )  # never stops, and keeps the best on validation
                network = contest.network(name)
                result = lab.train(f"{name}-{fraction:g}-{seed}", dataclasses.replace(recipe, run=best), network)

                def shots(path: Any = result.path, network: Any = network) -> float:
                    return probe(load(path, device=lab.device, network=network), few, shots=(SHOTS,)).few_shot[0].mean

                cell = cells[name][fraction]
                cell["top1"].append(result.summary["top1"])
                cell["few"].append(lab.measure(f"{SHOTS}-shot-{name}-{fraction:g}-{seed}", shots))
                cell["best_step"].append(result.summary["best_step"])
                cell["images"] = [result.summary["train_images"]]
    n = len(splits.test)
    measured, size = sizes(contest, NAMES)

    def mean(name: str, fraction: float, what: str = "top1") -> float:
        values = cells[name][fraction][what]
        return float(sum(values) / len(values))

    def meeting(fraction: float) -> str:
        pairs = [against("Mixer", mean("Mixer", fraction), name, mean(name, fraction), n) for name in NAMES[1:]]
        return f"With {100 * fraction:g} % of the images: {'; '.join(pairs)}."

    def gap(name: str) -> str:
        gaps = [100 * (mean(name, f) - mean("Mixer", f)) for f in FRACTIONS]
        return f"{name} {', '.join(f'{g:+.1f}' for g in gaps)}"

    return Page(
        claim=(
            "figure 2, right (JFT-300M and linear 5-shot ImageNet top-1, 233, 70, 23 and 7 epochs): with 3 % of the "
            "images all Mixers "
            "overfit strongly; Mixers gain more from more data than ResNets, which level off, and the gap to ViT "
            "shrinks. The paper draws "
            "curves and gives no figures."
        ),
        findings=(
            meeting(FRACTIONS[0]),
            meeting(FRACTIONS[-1]),
            f"Points above the Mixer at {', '.join(f'{100 * f:g}' for f in FRACTIONS)} %: "
            f"{'; '.join(gap(name) for name in NAMES[1:])}.",
        ),
        tables=(
            *(
                _cells(title, what, cells)
                for title, what in (("Test top-1", "top1"), (f"Linear {SHOTS}-shot top-1", "few"))
            ),
            tried,
        ),
        plots=(
            Plot(
                name="scaling",
                caption="Accuracy over the share of the training images",
                draw=lambda f: _draw(f, cells),
                size=(10, 4),
            ),
        ),
        notes=(
            f"CIFAR-10 at 32 px; {contest.steps:,} steps of {contest.batch_size} images for every run, n = "
            f"{contest.seeds}: "
            f"{', '.join(f'{contest.steps / (len(splits.train) * f / contest.batch_size):.1f}' for f in FRACTIONS)} "
            f"epochs. Shares are "
            "stratified, and each is part of the next.",
            size,
            "The learning rate of each network was chosen on validation images with all training images. Of each run "
            "the best of "
            f"{contest.evaluations} evaluations on validation images is taken, as in the paper.",
            f"{SHOTS}-shot: ridge regression on frozen features (the official rule), {SHOTS} training images of each "
            f"class, three draws, "
            f"all {n:,} test images. Unlike in the paper they are of the classes that the network was trained on.",
            DRAW,
        ),
        figures={
            "cells": {name: {f"{f:g}": cell for f, cell in of.items()} for name, of in cells.items()},
            "sizes": measured,
            "rates": rates,
            "n": n,
        },
    )


def _cells(title: str, what: str, cells: Table) -> Cells:
    rows = []
    for fraction in FRACTIONS:
        images = next(iter(cells.values()))[fraction]["images"][0]
        rows.append((f"{100 * fraction:g} %", f"{images:,}", *(spread(cells[name][fraction][what]) for name in cells)))
    return Cells(title=title, header=("share", "training images", *cells), rows=tuple(rows))


def _draw(figure: Any, cells: Table) -> None:
    for column, (what, title) in enumerate((("top1", "test top-1"), ("few", f"linear {SHOTS}-shot top-1")), 1):
        axes = figure.add_subplot(1, 2, column, xscale="log", xlabel="share of the training images", ylabel=title)
        for name, of in cells.items():
            means = [sum(cell[what]) / len(cell[what]) for cell in of.values()]
            axes.plot(list(of), means, marker="o", color=COLOURS[name], label=name)
        axes.set_xticks(FRACTIONS, [f"{100 * f:g} %" for f in FRACTIONS], minor=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

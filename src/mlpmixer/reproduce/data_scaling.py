"""Figure 2, right: a Mixer, a ViT and a ResNet trained on 3, 10, 30 and 100 % of the images in equally many steps."""

import dataclasses
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from mlpmixer.data.datasets import open_data, stratified_share
from mlpmixer.evaluation.probe import probe
from mlpmixer.inference.load import load
from mlpmixer.reproduce.chance import describe_difference, mean_and_range
from mlpmixer.reproduce.comparison import COLOURS, COMPARISONS, Trial, cifar10
from mlpmixer.reproduce.experiment import ExperimentContext
from mlpmixer.reproduce.page import Page, Panel, Plot, Series, make_table

FRACTIONS = (0.03, 0.1, 0.3, 1.0)
SHOTS = 5
SHOTS_FROM = 0.01  # share of the training images that the shots are drawn from: enough for them, and quick to read


def train_on_shares(context: ExperimentContext) -> Page:
    comparison, data = COMPARISONS[context.scale], cifar10(context)
    networks, splits = comparison.networks, open_data(data)
    assert splits.test is not None
    n, rivals = len(splits.test), [name for name in networks if name != "Mixer"]
    share = max(SHOTS_FROM, 2 * SHOTS * len(splits.classes) / len(splits.train))
    drawn = splits.train.subset(stratified_share(splits.train.labels, share, context.seed))
    few = dataclasses.replace(splits, train=drawn)
    # a patience that never ends the run keeps the weights that are best on validation
    patience = {"patience": comparison.evaluations + 1}
    shares = {f: dataclasses.replace(data, train_fraction=f) for f in FRACTIONS}
    trials = {f"{name}-{f:g}": Trial(name, part, changes=patience) for f, part in shares.items() for name in networks}
    results, rates, tried = comparison.train(context, trials, len(trials) * comparison.seeds)

    def few_shot(run: Path) -> float:
        return probe(load(run, device=context.device), few, shots=(SHOTS,)).few_shot[0].mean

    cells: dict[str, dict[float, dict[str, list[Any]]]] = {name: {} for name in networks}
    for name in networks:
        for f in FRACTIONS:
            runs = results[f"{name}-{f:g}"]
            probed = [context.measure(f"{SHOTS}-shot-{r.path.name}", partial(few_shot, r.path)) for r in runs]
            cell = {what: [run.summary[what] for run in runs] for what in ("top1", "best_step", "train_images")}
            cells[name][f] = {"top1": cell["top1"], "few": probed, "best_step": cell["best_step"]}
            cells[name][f]["images"] = cell["train_images"][:1]
    sizes = comparison.sizes()
    mean = {name: {f: fmean(cell["top1"]) for f, cell in row.items()} for name, row in cells.items()}

    def against_rivals(f: float) -> str:
        differences = [describe_difference("Mixer", mean["Mixer"][f], name, mean[name][f], n) for name in rivals]
        return f"With {100 * f:g} % of the images: {'; '.join(differences)}."

    leads = {n: ", ".join(f"{100 * (mean[n][f] - mean['Mixer'][f]):+.1f}" for f in FRACTIONS) for n in rivals}
    titles = {"top1": "test top-1", "few": f"linear {SHOTS}-shot top-1"}
    tables = [
        make_table(
            title[0].upper() + title[1:],
            [
                {"share": f"{100 * f:g} %", "training images": f"{cells['Mixer'][f]['images'][0]:,}"}
                | {name: mean_and_range(row[f][what]) for name, row in cells.items()}
                for f in FRACTIONS
            ],
        )
        for what, title in titles.items()
    ]
    panels = [
        Panel(
            "share of the training images, %",
            title,
            [
                Series([(100 * f, fmean(cell[what])) for f, cell in row.items()], name, "-o", COLOURS[name])
                for name, row in cells.items()
            ],
            log="x",
        )
        for what, title in titles.items()
    ]
    epochs = [f"{comparison.steps * comparison.batch_size / len(splits.train) / f:.1f}" for f in FRACTIONS]
    return Page(
        template="data_scaling.md",
        values={"comparison": comparison, "epochs": epochs, "sizes": sizes, "shots": SHOTS, "n": n},
        findings=(
            against_rivals(FRACTIONS[0]),
            against_rivals(FRACTIONS[-1]),
            f"Points above the Mixer with {', '.join(f'{100 * f:g}' for f in FRACTIONS)} % of the images: "
            f"{'; '.join(f'{name} {points}' for name, points in leads.items())}.",
        ),
        tables=(*tables, tried),
        plots=(Plot("scaling", "Accuracy over the share of the training images", panels, size=(10, 4)),),
        figures={
            "cells": {name: {f"{f:g}": cell for f, cell in row.items()} for name, row in cells.items()},
            "sizes": sizes,
            "rates": rates,
            "n": n,
        },
    )

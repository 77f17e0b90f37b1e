"""The two small runs in the project's first notes, CIFAR-10 and MNIST, with ours beside them, epoch by epoch."""

import dataclasses
from typing import Any

from mlpmixer.models.architecture import configured
from mlpmixer.reproduce.chance import describe_difference
from mlpmixer.reproduce.experiment import ExperimentContext, Scale
from mlpmixer.reproduce.page import Page, Panel, Plot, Series, Table, make_table, percent
from mlpmixer.training.recipe import Augment, Init, Optim, Recipe
from mlpmixer.training.recipes import RECIPES
from mlpmixer.weights.run_folder import read_metrics

RUNS = {"seed-cifar10": "cifar10", "seed-mnist": "mnist"}  # our recipe in each experiment
WIDTHS: dict[Scale, dict[str, int]] = {  # in place of the recipe's: small ends within a quarter of an hour on two cores
    "small": {"num_blocks": 2, "hidden_dim": 48, "tokens_mlp_dim": 36, "channels_mlp_dim": 192},
    "long": {},
}
STYLES = {"the notes": "k.--", "plain": "C1.-", "recipe": "C0.-"}
Curve = list[tuple[float, float]]
"""Validation top-1 and loss (cross-entropy in nats) after each epoch."""

# A PyTorch class on CIFAR-10: 782 training and 157 validation batches of 64 an epoch
NOTES: Curve = [
    *((0.4216, 1.6007), (0.4688, 1.4704), (0.4873, 1.4345), (0.5071, 1.3591), (0.5228, 1.3403)),
    *((0.5201, 1.3165), (0.5390, 1.2793), (0.5393, 1.2745), (0.5535, 1.2384), (0.5562, 1.2237)),
]


def plain(recipe: Recipe) -> Recipe:
    """The recipe with Adam at its usual rate: no schedule, augmentation or special initialisation."""
    optim = Optim(lr=1e-3, weight_decay=0.0, schedule="constant")
    return dataclasses.replace(recipe, init=Init(), augment=Augment(), optim=optim)


def train_plain_and_recipe(context: ExperimentContext) -> Page:
    whole = RECIPES[RUNS[context.name]]()
    cfg = configured(whole.model, **WIDTHS[context.scale])
    recipe = dataclasses.replace(whole, model=cfg, run=dataclasses.replace(whole.run, seed=context.seed))
    context.num_parts = 2
    results = {name: context.train(name, made) for name, made in (("plain", plain(recipe)), ("recipe", recipe))}
    summaries = {name: result.summary for name, result in results.items()}
    ours: dict[str, Curve] = {}
    for name, result in results.items():
        lines = read_metrics(result.path / "metrics.jsonl")
        ours[name] = [(line["top1"], line["nll"]) for line in lines if line["kind"] == "eval"]
    with_notes = context.name == "seed-cifar10"
    curves = {"the notes": NOTES} | ours if with_notes else ours
    n = summaries["recipe"]["test"]["n"]

    def top1(name: str) -> str:
        low, high = summaries[name]["test"]["top1_interval"]
        return f"{name} {percent(summaries[name]['top1'], 2)} ({100 * low:.2f}-{100 * high:.2f})"

    findings = [f"Test top-1 (95 % interval), {n:,} images, once, after the last epoch: {', '.join(map(top1, ours))}."]
    if with_notes:
        last = NOTES[-1][0]
        for name, s in summaries.items():
            findings.append(f"{describe_difference(name, s['top1'], 'the notes', last, n)}.")
        passed = [f"{name} {_first_above(last, curve)}" for name, curve in ours.items()]
        findings.append(f"The last validation accuracy of the notes is passed by {', '.join(passed)}.")
    minutes = [f"{name} {s['train_s'] / 60 / len(ours[name]):.2f}" for name, s in summaries.items()]
    panels = [
        Panel(
            "epoch",
            label,
            [Series(list(enumerate((p[i] for p in c), 1)), name, STYLES[name]) for name, c in curves.items()],
        )
        for i, label in enumerate(("validation top-1", "validation loss, nats"))
    ]
    return Page(
        template="seed.md",
        values={"recipe": recipe, "whole": whole, "summary": summaries["recipe"], "minutes": ", ".join(minutes)},
        findings=findings,
        tables=(_table(curves),),
        plots=(Plot("epochs", "Validation, epoch by epoch", panels),),
        figures={
            "epochs": {name: [{"val_top1": a, "val_loss": b} for a, b in curve] for name, curve in curves.items()},
            "top1": {name: s["top1"] for name, s in summaries.items()},
            "params": summaries["recipe"]["params"],
            "train_s": {name: s["train_s"] for name, s in summaries.items()},
            "n": n,
        },
    )


def _first_above(value: float, curve: Curve) -> str:
    return next((f"after epoch {i}" for i, (top1, _) in enumerate(curve, 1) if top1 > value), "in no epoch")


def _table(curves: dict[str, Curve]) -> Table:
    rows: list[dict[str, Any]] = []
    for i in range(len(curves["plain"])):
        row = {"epoch": i + 1} | {f"{name}, top-1": percent(curve[i][0], 2) for name, curve in curves.items()}
        rows.append(row | {f"{name}, loss": f"{curve[i][1]:.4f}" for name, curve in curves.items()})
    return make_table("Validation: accuracy, and loss in nats", rows)

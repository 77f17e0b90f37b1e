"""The two small runs of the notes that this project is made from, with ours beside them, epoch by epoch: CIFAR-10 and
MNIST."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from mlpmixer.models.architecture import configured
from mlpmixer.reproduce.comparison import DRAW, against
from mlpmixer.reproduce.experiment import Lab, Scale
from mlpmixer.reproduce.page import Cells, Page, Plot
from mlpmixer.reproduce.published import NOTES_CIFAR10, Epoch
from mlpmixer.training.recipe import Augment, Init, Optim, Recipe
from mlpmixer.training.recipes import RECIPES
from mlpmixer.weights.run_folder import read_metrics

NOTES = "the notes"
STYLES = {NOTES: "k--", "plain": "C1-", "recipe": "C0-"}
Curves = dict[str, list[Epoch]]

RUNS = {"seed-cifar10": "cifar10", "seed-mnist": "mnist"}
"""Of each experiment the recipe that is ours."""
WIDTHS: dict[Scale, dict[str, int]] = {
    "small": {"num_blocks": 2, "hidden_dim": 48, "tokens_mlp_dim": 36, "channels_mlp_dim": 192},
    "long": {},
}
"""What is replaced in the recipe's network, so that small ends within a quarter of an hour on two slow cores."""
CLAIMS = {
    "seed-cifar10": (
        "a PyTorch class with the arguments (img_sz, patch_sz, dim, token_dim, channel_dim, n_classes, n_blocks) and "
        "its run on CIFAR-10: "
        "10 epochs of 782 training and 157 validation batches of 64, 7.5 minutes an epoch, in the tables below. Sizes, "
        "optimizer, rate, "
        "augmentation and hardware are not known here. As printed, its forward pass applies the final norm, the "
        "pooling and the head in "
        "every turn of the loop over the blocks, which cannot be meant."
    ),
    "seed-mnist": "a Mixer demo on MNIST, named among the neighbours. No figures are published for it, so there are none to compare with.",
}


def plain(recipe: Recipe) -> Recipe:
    """The network, images and length of `recipe`, and else Adam at its usual rate: no schedule, augmentation or special
    start."""
    return dataclasses.replace(
        recipe, init=Init(), augment=Augment(), optim=Optim(lr=1e-3, weight_decay=0.0, schedule="constant")
    )


def epochs(lines: Iterable[dict[str, Any]]) -> list[Epoch]:
    """From the lines of metrics.jsonl of a run that evaluates after each epoch: means over its steps, and validation at
    its end."""
    found: list[Epoch] = []
    steps, right, loss, before = 0, 0.0, 0.0, 0
    for line in lines:
        if line["kind"] == "step":  # it speaks for all steps since the last one
            new, before = line["step"] - before, line["step"]
            steps, right, loss = steps + new, right + new * line["top1"], loss + new * line["loss"]
        elif line["kind"] == "eval":
            found.append(
                Epoch(train_top1=right / steps, train_loss=loss / steps, val_top1=line["top1"], val_loss=line["nll"])
            )
            steps, right, loss = 0, 0.0, 0.0
    return found


def run(lab: Lab) -> Page:
    whole = RECIPES[RUNS[lab.name]]()
    cfg = configured(whole.model, **WIDTHS[lab.scale])
    recipe = dataclasses.replace(whole, model=cfg, run=dataclasses.replace(whole.run, seed=lab.seed))
    lab.parts = 2
    results = {name: lab.train(name, made) for name, made in (("plain", plain(recipe)), ("recipe", recipe))}
    summaries = {name: result.summary for name, result in results.items()}
    ours = {name: epochs(read_metrics(result.path / "metrics.jsonl")) for name, result in results.items()}
    curves = ({NOTES: NOTES_CIFAR10} if lab.name == "seed-cifar10" else {}) | ours
    one, val_images, n = summaries["recipe"], summaries["recipe"]["val"]["n"], summaries["recipe"]["test"]["n"]
    shown = {name: f"{name} {100 * s['top1']:.2f} % ({_interval(s)})" for name, s in summaries.items()}
    findings = [f"Test top-1 (95 % interval), {n:,} images, once, after the last epoch: {', '.join(shown.values())}."]
    if NOTES in curves:
        last = NOTES_CIFAR10[-1].val_top1
        findings += [
            *(f"{against(name, s['top1'], NOTES, last, n)}." for name, s in summaries.items()),
            f"Their last validation accuracy is passed by "
            f"{', '.join(f'{name} {_passed(of, last)}' for name, of in ours.items())}.",
        ]
    minutes = ", ".join(f"{name} {s['train_s'] / 60 / len(ours[name]):.2f}" for name, s in summaries.items())
    return Page(
        claimed_by="The notes that this project is made from",
        claim=CLAIMS[lab.name],
        findings=tuple(findings),
        tables=(
            _table("Accuracy", curves, ("train_top1", "val_top1"), lambda share: f"{100 * share:.2f} %"),
            _table("Loss, nats", curves, ("train_loss", "val_loss"), lambda loss: f"{loss:.4f}"),
        ),
        plots=(
            Plot(
                name="epochs",
                caption="Validation, epoch by epoch",
                draw=lambda figure: _draw(figure, curves),
                size=(9, 4),
            ),
        ),
        notes=(
            f"plain and recipe are one network, a Mixer of {cfg.num_blocks} blocks, {cfg.hidden_dim} channels, D_S "
            f"{cfg.tokens_mlp_dim}, "
            f"D_C {cfg.channels_mlp_dim}: {one['params']:,} parameters, {'as' if cfg == whole.model else 'fewer than'} "
            f"the recipe "
            f"{whole.name} has. {one['steps']:,} steps of {recipe.run.batch_size} images, {one['train_images']:,} "
            f"training images, n = 1.",
            "plain: Adam at 1e-3, a constant rate, no augmentation; our choice, and nothing was tuned. recipe: all but "
            "the network as the "
            f"recipe {whole.name} has it.",
            f"Validation is {val_images:,} images cut from train: a standard error of up to {50 / val_images**0.5:.1f} "
            f"points of accuracy"
            + (
                "; that of the notes is, by its size, the test split, seen after each epoch."
                if NOTES in curves
                else "."
            ),
            "Training figures are means over an epoch's steps, while the network changes. Those of the recipe are of "
            "augmented images with "
            "smoothed labels, so they say little beside the others; validation losses are all plain cross-entropy.",
            f"Minutes an epoch, training alone: {minutes}.",
            *([DRAW, "Epochs are counted from 1; in the notes from 0."] if NOTES in curves else []),
        ),
        figures={
            "epochs": {name: [dataclasses.asdict(epoch) for epoch in of] for name, of in curves.items()},
            "top1": {name: s["top1"] for name, s in summaries.items()},
            "params": one["params"],
            "train_s": {name: s["train_s"] for name, s in summaries.items()},
            "n": n,
        },
    )


def _interval(summary: dict[str, Any]) -> str:
    return "-".join(f"{100 * end:.2f}" for end in summary["test"]["top1_interval"])


def _passed(of: list[Epoch], value: float) -> str:
    """When validation accuracy was above `value` for the first time."""
    return next((f"after epoch {i}" for i, epoch in enumerate(of, 1) if epoch.val_top1 > value), "in no epoch")


def _table(title: str, curves: Curves, parts: tuple[str, str], form: Callable[[float], str]) -> Cells:
    header = ("epoch", *(f"{name}, {part.split('_')[0]}" for name in curves for part in parts))
    rows = [
        (f"{i}", *(form(getattr(epoch, part)) for epoch in epoch_of_each for part in parts))
        for i, epoch_of_each in enumerate(zip(*curves.values(), strict=True), 1)
    ]
    return Cells(title=title, header=header, rows=tuple(rows))


def _draw(figure: Any, curves: Curves) -> None:
    for column, (part, label) in enumerate(
        (("val_top1", "validation top-1"), ("val_loss", "validation loss, nats")), 1
    ):
        axes = figure.add_subplot(1, 2, column, xlabel="epoch", ylabel=label)
        for name, of in curves.items():
            axes.plot(
                range(1, len(of) + 1), [getattr(epoch, part) for epoch in of], STYLES[name], marker=".", label=name
            )
        axes.legend()

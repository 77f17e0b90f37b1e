"""The learning-rate range test (Smith 2017, arXiv:1506.01186): raise the rate step by step until the loss diverges."""

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlpmixer.download import Report
from mlpmixer.training.batch_size import fix_batch_size
from mlpmixer.training.distillation import TeacherFunction
from mlpmixer.training.inputs import batches
from mlpmixer.training.recipe import Recipe, variant
from mlpmixer.training.run import make_training_step
from mlpmixer.training.start import load_networks, with_network
from mlpmixer.training.threads import on_threads

MEMORY = 0.9  # of the moving average that smooths the losses
DIVERGED = 2.0  # times the lowest smoothed loss: the sweep ends


@dataclass(frozen=True)
class Sweep:
    """The learning rate (`optim.lr`), the loss of the batch and the moving average of the losses, for each step."""

    lr: tuple[float, ...]
    loss: tuple[float, ...]
    smooth: tuple[float, ...]
    muon_per_lr: float | None
    """`optim.muon_lr` as a multiple of the rate, if the optimizer is Muon: both were raised together."""

    @property
    def lowest(self) -> float:
        """The rate at which the smoothed loss is lowest."""
        return self.lr[int(np.argmin(self.smooth))]

    @property
    def suggested(self) -> float:
        """A peak for `optim.lr`: a tenth of `lowest`, since a whole training tolerates less than a single step."""
        return self.lowest / 10

    def to_json(self) -> dict[str, Any]:
        muon = None if self.muon_per_lr is None else self.suggested * self.muon_per_lr
        return dataclasses.asdict(self) | {
            "lowest": self.lowest,
            "suggested": self.suggested,
            "suggested_muon_lr": muon,
        }


def find_lr(
    recipe: Recipe,
    *,
    steps: int = 100,
    low: float = 1e-5,
    high: float = 10.0,
    report: Report | None = None,
    teacher: TeacherFunction | None = None,
) -> Sweep:
    """Train for some steps while `optim.lr` grows from `low` to `high` by a constant factor; nothing is written.

    Batches (measured as in `train` for `run.batch_size=auto`), augmentation, optimizer, clipping and distillation are
    the recipe's. Its schedule, `head_steps` and averages are not used, and with `run.progressive` images have their
    first size. The sweep ends early when the loss diverges.

    teacher: as in `train`.
    report: receives {"kind": "progress", "what": "step", "done", "of", "now": texts}, and before that the progress of
        downloads.

    Errors: ValueError as in `train`, for an invalid range, and when the loss is not finite within the first ten steps.
    """
    if not 0 < low < high or steps < 20:
        raise ValueError(
            f"expected 0 < low < high and at least 20 steps, got low={low:g}, high={high:g}, steps={steps}"
        )
    report = report or (lambda event: None)
    rates = f"at rates from {low:g} to {high:g}"
    report({"kind": "note", "note": f"a copy is trained for up to {steps} steps, {rates}; it is not kept"})
    recipe = with_network(recipe, None)
    recipe = variant(recipe, optim={"head_steps": 0, "ema_decay": 0.0, "average_last": 0.0})
    optim = recipe.optim
    start, source = load_networks(recipe, report, teacher)
    rates, losses, smooth = np.geomspace(low, high, steps).tolist(), [], []
    with torch.random.fork_rng(), on_threads(recipe.run.threads):
        training_step = make_training_step(recipe, start, source)
        if recipe.run.batch_size == "auto":
            fix_batch_size(training_step, start, report)
        mean = 0.0
        for batch in batches(training_step.images, training_step.recipe.run, 1, steps):
            loss = training_step(batch, rates[batch.step - 1] / optim.lr)[0].item()
            if not math.isfinite(loss):
                break
            mean = MEMORY * mean + (1 - MEMORY) * loss
            losses.append(loss)
            smooth.append(mean / (1 - MEMORY**batch.step))
            now = (f"rate {rates[batch.step - 1]:.1e}", f"loss {smooth[-1]:.4f}")
            report({"kind": "progress", "what": "step", "done": batch.step, "of": steps, "now": now})
            if smooth[-1] > DIVERGED * min(smooth):
                break
    if len(losses) < 10:
        raise ValueError(
            f"the loss is not finite after {len(losses)} steps, at a rate of {rates[len(losses)]:g}: start lower than "
            f"{low:g}"
        )
    ratio = optim.muon_lr / optim.lr if optim.name == "muon" else None
    return Sweep(tuple(rates[: len(losses)]), tuple(losses), tuple(smooth), ratio)


def plot(sweep: Sweep, path: str | os.PathLike[str]) -> Path:
    """Write the loss over the rate as a PNG; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", xlabel="learning rate (optim.lr)", ylabel="loss")
    axes.plot(sweep.lr, sweep.loss, color="0.75", linewidth=0.8, label="of each batch")
    axes.plot(sweep.lr, sweep.smooth, color="tab:blue", label="smoothed")
    axes.axvline(sweep.suggested, color="tab:red", linestyle="--", label=f"suggested: {sweep.suggested:.2g}")
    axes.set_ylim(0.9 * min(sweep.smooth), 1.1 * min(max(sweep.smooth), 1.5 * sweep.smooth[0]))
    axes.legend()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=120)
    return path

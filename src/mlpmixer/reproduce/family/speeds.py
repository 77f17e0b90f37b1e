"""How fast the networks of the family train, and compute forward when exported."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from mlpmixer.exporters.export import export
from mlpmixer.exporters.int8 import images_per_s
from mlpmixer.models.architecture import has
from mlpmixer.reproduce.experiment import ExperimentContext
from mlpmixer.reproduce.family.recipes import NETWORKS, Length, recipe, run_name
from mlpmixer.training.inputs import ImageCache, batches
from mlpmixer.training.recipe import variant
from mlpmixer.training.recipes import cifar10

WARM, TIMED = 2, 6  # steps of a turn that are left out, and timed
FORWARD_BATCH = 32  # images at a time in a timed export


def training_speeds(context: ExperimentContext, rates: Mapping[str, float], turns: int) -> dict[str, dict[str, float]]:
    """Images/s in a training step with torch's operations and as shipped: medians over turns in which all take part.

    A network without compiled kernels is shipped with torch's operations, and has one speed.
    """
    from mlpmixer.training.run import make_training_step

    images = ImageCache()
    made = {}
    for name in NETWORKS:
        for shipped in (False, True) if has(NETWORKS[name], "kernels") else (False,):
            asked = recipe(name, context, rates[name], 1000, shipped=shipped)
            asked = variant(asked, asked.name, run={"device": context.device})
            step = make_training_step(asked, None, None, images=images)
            step.resize(asked.model.image_size)
            made[name, shipped] = step
    found: dict[tuple[str, bool], list[float]] = {key: [] for key in made}
    for _ in range(turns):
        for key, step in made.items():
            began = 0.0
            for batch in batches(step.images, step.recipe.run, 1, WARM + TIMED, step.rows):
                if batch.step == WARM + 1:
                    began = time.perf_counter()
                step(batch, 0.0)[0].item()
            found[key].append(TIMED * step.rows.batch_size / (time.perf_counter() - began))
    speeds = {key: median(of) for key, of in found.items()}
    return {
        name: {"torch": speeds[name, False], "shipped": speeds.get((name, True), speeds[name, False])}
        for name in NETWORKS
    }


def export_both(context: ExperimentContext, name: str, length: Length) -> dict[str, Any]:
    """Export a network of the first table to ONNX in float32 and with layers in int8, each through its check.

    int8 is calibrated on training images; validation images decide which layers stay in float32 (`exporters.int8`).
    "float32" and "int8" are why a form is refused, or "".
    """
    found: dict[str, Any] = {"float32": "", "int8": ""}
    data = dataclasses.replace(cifar10().data, data_dir=context.data_dir)
    run = context.out / "runs" / run_name("images", name, context.seed)
    for form in ("float32", "int8"):
        path = export_path(context, name, form)
        path.unlink(missing_ok=True)
        try:
            written = export(run, "onnx", out=path, data=data, int8=form == "int8", images=length.checked)
        except ValueError as e:
            found[form] = str(e)
            continue
        if written.int8:
            found |= dataclasses.asdict(written.int8)
            found |= {"agreeing": written.checked.agreeing, "checked": written.checked.n}
    return found


def export_path(context: ExperimentContext, name: str, form: str) -> Path:
    path: Path = context.out / "measured" / f"{name.replace(' ', '-')}-{form}.onnx"
    return path


def forward_speeds(
    context: ExperimentContext, exported: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Images/s of processor time of each export on one thread, pixels to probabilities; all take turns."""
    made = [(name, form) for name, of in exported.items() for form in ("float32", "int8") if not of[form]]
    _, *speeds = images_per_s(*(export_path(context, *key) for key in made), batch=FORWARD_BATCH)
    found: dict[str, dict[str, float]] = {name: {} for name in exported}
    for (name, form), speed in zip(made, speeds, strict=True):
        found[name][form] = speed
    return found

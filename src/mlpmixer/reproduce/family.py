"""The Mixer and its relatives, all of one size, trained alike on CIFAR-10: the networks, their training, their speed.

`family_page` trains them in its order and writes the page.
"""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mlpmixer.exporters.export import export
from mlpmixer.exporters.int8 import images_per_s
from mlpmixer.models.architecture import has
from mlpmixer.models.configs import (
    ASMLPConfig,
    EAMLPConfig,
    GMLPConfig,
    NetworkConfig,
    RepMLPNetConfig,
    ResMLPConfig,
    ResNetConfig,
    S2MLPConfig,
    S2MLPv2Config,
    ViPConfig,
    ViTConfig,
)
from mlpmixer.models.names import MIXERS
from mlpmixer.reproduce.experiment import ExperimentContext, Scale
from mlpmixer.training.inputs import ImageCache, batches
from mlpmixer.training.recipe import Init, Recipe, variant
from mlpmixer.training.recipes import cifar10

SIZES: dict[str, Any] = {"image_size": 32, "num_classes": 10}
RELATIVES: dict[str, NetworkConfig] = {
    "Mixer": MIXERS["Nano/4"],
    "ResMLP": ResMLPConfig(**SIZES, patch_size=4, num_blocks=8, hidden_dim=132, channels_mlp_dim=528),
    "gMLP": GMLPConfig(**SIZES, patch_size=4, num_blocks=9, hidden_dim=128, channels_mlp_dim=640),
    "S2-MLP": S2MLPConfig(**SIZES, patch_size=4, num_blocks=8, hidden_dim=120, channels_mlp_dim=480),
    "S2-MLPv2": S2MLPv2Config(**SIZES, patch_size=2, hidden_dims=(48, 128), depths=(2, 6)),
    "AS-MLP": ASMLPConfig(**SIZES, patch_size=2, hidden_dims=(60, 120), depths=(1, 6)),
    "ViP": ViPConfig(**SIZES, patch_size=2, hidden_dims=(48, 128), depths=(2, 6), strides=(2,)),
    "RepMLPNet": RepMLPNetConfig(**SIZES, patch_size=2, hidden_dims=(64, 128), depths=(2, 6), share_sets=(1, 4)),
    "EAMLP": EAMLPConfig(**SIZES, patch_size=4, num_blocks=5, hidden_dim=128, channels_mlp_dim=384),
}
"""The all-MLP networks: 1.12 to 1.19 million parameters, 74 to 95 million multiply-adds an image."""
LOCAL = "Mixer with locality"
BASELINES: dict[str, NetworkConfig] = {
    "ViT": ViTConfig(**SIZES, patch_size=4, num_blocks=6, hidden_dim=128, num_heads=4, mlp_dim=512),
    "ResNet": ResNetConfig(**SIZES, depths=(1, 1, 1, 1), width=31, bottleneck=False, small_images=True),
}
NETWORKS: dict[str, NetworkConfig] = RELATIVES | {LOCAL: RELATIVES["Mixer"]} | BASELINES
MUON_RATES = (4e-3, 8e-3, 1.6e-2)  # half, once and twice that of the recipe
RATES: dict[str, tuple[float, ...]] = {  # more where the best of three was an end of them; ResNet's are AdamW's
    "ResMLP": (*MUON_RATES, 3.2e-2),
    "gMLP": (2e-3, *MUON_RATES),
    "S2-MLP": (2e-3, *MUON_RATES),
    "S2-MLPv2": (1e-3, 2e-3, *MUON_RATES),
    "ViT": (1e-3, 2e-3, *MUON_RATES),
    "ResNet": (1e-3, 3e-3, 1e-2, 3e-2),
}
TRAIN_IMAGES = 49_000  # what the recipe leaves for training: 2 % are held out
WARM, TIMED = 2, 6  # steps of a turn that are left out, and timed
FORWARD_BATCH = 32  # images at a time in a timed export
WARMUP = 600 / 7656  # share of the steps, as in the recipe


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long the networks are trained."""

    rate_steps: int
    """Steps of a run that only chooses a rate."""
    rate_val_fraction: float = 0.1
    """Share of train on which a rate is chosen."""
    epochs: float
    """Of a run of the first table."""
    second_seeds: int
    """How many of the best networks get a second run."""
    turns: int
    """How often the training speed of all networks is measured; medians count."""
    checked: int
    """Images on which the answers of an export are compared with the model's."""


LENGTHS: dict[Scale, Length] = {
    "small": Length(rate_steps=8, rate_val_fraction=0.02, epochs=0.025, second_seeds=1, turns=2, checked=100),
    "long": Length(rate_steps=703, epochs=5, second_seeds=4, turns=7, checked=1000),  # rates: an epoch of 45,000 images
}


def uses_muon(name: str) -> bool:
    """Whether Muon trains the matrices of a network; AdamW has all else."""
    return has(NETWORKS[name], "hidden_matrices")


def recipe(
    name: str, context: ExperimentContext, rate: float, steps: int, *, seed: int = 0, shipped: bool = False
) -> Recipe:
    """The recipe cifar10 for a network: with torch's operations and without locality and symmetry, unless `shipped`.

    rate: of Muon; of AdamW for ResNet, which declares no hidden matrices.
    """
    local = name == LOCAL
    optim: dict[str, Any] = {"warmup_steps": round(WARMUP * steps), "locality": 3 * local, "mirror": local}
    optim |= {"muon_lr": rate} if uses_muon(name) else {"name": "adamw", "lr": rate}
    base = variant(
        cifar10(),
        "family",
        data={"data_dir": context.data_dir},
        optim=optim,
        run={"steps": steps, "seed": seed, "eval_every": 1.0, "kernels": "auto" if shipped else "torch"},
    )
    return dataclasses.replace(base, model=NETWORKS[name], init=Init() if name in BASELINES else base.init)


def num_steps(length: Length) -> int:
    """Steps of a run of the first table."""
    return max(round(length.epochs * TRAIN_IMAGES / cifar10().run.images_per_step), 1)


def rate_recipe(name: str, context: ExperimentContext, rate: float, length: Length) -> Recipe:
    """A short run that chooses a rate, on images held out of train."""
    short = recipe(name, context, rate, length.rate_steps, seed=context.seed)
    return variant(short, "family-rates", data={"val_fraction": length.rate_val_fraction}, run={"test": False})


def rates_of(name: str) -> tuple[float, ...]:
    """The rates that a network chooses from; the Mixer with locality takes the Mixer's."""
    return () if name == LOCAL else RATES.get(name, MUON_RATES)


def run_name(table: str, name: str, seed: int | None = None) -> str:
    """The folder of a run of a table: "images" or "time"."""
    return f"{table}/{name.replace(' ', '-')}" + ("" if seed is None else f"-{seed}")


def best_rates(context: ExperimentContext, length: Length) -> dict[str, dict[float, float]]:
    """Validation top-1 of each rate of each network."""
    tried = {(name, rate): f"rates/{name}-{rate:g}" for name in NETWORKS for rate in rates_of(name)}
    results = context.train_all({run: rate_recipe(key[0], context, key[1], length) for key, run in tried.items()})
    found: dict[str, dict[float, float]] = {}
    for (name, rate), run in tried.items():
        found.setdefault(name, {})[rate] = results[run].summary["val_top1"]
    return found


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

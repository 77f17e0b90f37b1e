"""The networks of the family, all of one size, and the recipe that trains them alike on CIFAR-10."""

import dataclasses
from dataclasses import dataclass
from typing import Any

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
BESIDE = (LOCAL, *BASELINES)
"""Networks shown beside the all-MLP ones, in tables of their own."""
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
WARMUP = 600 / 7656  # share of the steps, as in the recipe


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long the networks are trained."""

    rate_steps: int
    """Steps of a run that only chooses a rate."""
    rate_val_fraction: float = 0.1
    """Share of train on which a rate is chosen."""
    epochs: float
    """Epochs of a run of the first table."""
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
    """The recipe cifar10 for a network, with plain Muon: with torch's operations, without locality and symmetry, unless
    `shipped`.

    rate: of Muon; of AdamW for ResNet, which declares no hidden matrices.
    """
    local = name == LOCAL
    optim: dict[str, Any] = {"warmup_steps": round(WARMUP * steps), "locality": 3 * local, "mirror": local}
    optim |= {"muon_lr": rate, "muon_beta2": 0.0} if uses_muon(name) else {"name": "adamw", "lr": rate}
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

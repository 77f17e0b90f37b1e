"""The paper's tables 2 and 3 (arXiv:2105.01601), the tasks behind their columns, and a run of other notes. Accuracies
are fractions."""

from dataclasses import dataclass
from typing import Literal

from mlpmixer.training.recipes import bit_hyperrule


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of table 2 or 3."""

    table: Literal[2, 3]
    upstream: str
    """What it was pre-trained on."""
    model: str
    image_px: int | None = None
    epochs: int | None = None
    """Of pre-training."""
    imagenet: float
    real: float | None = None
    avg5: float | None = None
    vtab: float | None = None
    images_per_s_core: int | None = None
    """On a TPUv3."""
    kilo_core_days: float
    """Thousand TPUv3 core-days of pre-training."""
    extrapolated: bool = False
    """Whether the core-days are."""
    weights: str = ""
    """A published file that the row can be made from, a name in published.WEIGHTS."""

    @property
    def is_mixer(self) -> bool:
        return self.model.startswith("Mixer-")


def _share(percent: float | None) -> float | None:
    return None if percent is None else round(percent / 100, 6)


Figures = tuple[str, float, float | None, float | None, float | None, int | None, float, str]


def _two(upstream: str, rows: list[Figures]) -> list[Row]:
    return [
        Row(
            table=2, upstream=upstream, model=model, imagenet=imagenet / 100, real=_share(real), avg5=_share(avg5), vtab=_share(vtab),
            images_per_s_core=speed, kilo_core_days=days, weights=weights, image_px=448 if model.startswith("Mixer-") else None,
        )
        for model, imagenet, real, avg5, vtab, speed, days, weights in rows
    ]  # fmt: skip


TABLE2 = [
    *_two(
        "ImageNet-21k",
        [
            ("HaloNet (H4 base128 Conv-12)", 85.8, None, None, None, 120, 0.10, ""),
            ("Mixer-L/16", 84.15, 87.86, 93.91, 74.95, 105, 0.41, "L/16:imagenet21k"),
            ("ViT-L/16", 85.30, 88.62, 94.39, 72.72, 32, 0.18, ""),
            ("BiT-R152x4", 85.39, None, 94.04, 70.64, 26, 0.94, ""),
        ],
    ),
    *_two(
        "JFT-300M",
        [
            ("NFNet-F4+", 89.2, None, None, None, 46, 1.86, ""),
            ("Mixer-H/14", 87.94, 90.18, 95.71, 75.33, 40, 1.01, ""),
            ("BiT-R152x4", 87.54, 90.54, 95.33, 76.29, 26, 9.90, ""),
            ("ViT-H/14", 88.55, 90.72, 95.97, 77.63, 15, 2.30, ""),
        ],
    ),
    *_two(
        "unlabelled or weakly labelled",
        [
            ("MPL (EffNet-B6-Wide)", 90.0, 91.12, None, None, None, 20.48, ""),
            ("ALIGN (EffNet-L2)", 88.64, None, None, 79.99, 15, 14.82, ""),
        ],
    ),
]


def _three(upstream: str, rows: list[tuple[str, int, int, float, float, float | None, int, float, str]]) -> list[Row]:
    return [
        Row(
            table=3, upstream=upstream, model=model, image_px=px, epochs=epochs, imagenet=imagenet / 100, real=_share(real),
            avg5=_share(avg5), images_per_s_core=speed, kilo_core_days=days, extrapolated=upstream != "JFT-300M", weights=weights,
        )
        for model, px, epochs, imagenet, real, avg5, speed, days, weights in rows
    ]  # fmt: skip


TABLE3 = [
    *_three(
        "ImageNet",
        [
            ("Mixer-B/16", 224, 300, 76.44, 82.36, 88.33, 1384, 0.01, "B/16:imagenet1k"),
            ("ViT-B/16", 224, 300, 79.67, 84.97, 90.79, 861, 0.02, ""),
            ("Mixer-L/16", 224, 300, 71.76, 77.08, 87.25, 419, 0.04, "L/16:imagenet1k"),
            ("ViT-L/16", 224, 300, 76.11, 80.93, 89.66, 280, 0.05, ""),
        ],
    ),
    *_three(
        "ImageNet-21k",
        [
            ("Mixer-B/16", 224, 300, 80.64, 85.80, 92.50, 1384, 0.15, "B/16:imagenet21k"),
            ("ViT-B/16", 224, 300, 84.59, 88.93, 94.16, 861, 0.18, ""),
            ("Mixer-L/16", 224, 300, 82.89, 87.54, 93.63, 419, 0.41, "L/16:imagenet21k"),
            ("ViT-L/16", 224, 300, 84.46, 88.35, 94.49, 280, 0.55, ""),
            ("Mixer-L/16", 448, 300, 83.91, 87.75, 93.86, 105, 0.41, "L/16:imagenet21k"),
        ],
    ),
    *_three(
        "JFT-300M",
        [
            ("Mixer-S/32", 224, 5, 68.70, 75.83, 87.13, 11489, 0.01, ""),
            ("Mixer-B/32", 224, 7, 75.53, 81.94, 90.99, 4208, 0.05, ""),
            ("Mixer-S/16", 224, 5, 73.83, 80.60, 89.50, 3994, 0.03, ""),
            ("BiT-R50x1", 224, 7, 73.69, 81.92, None, 2159, 0.08, ""),
            ("Mixer-B/16", 224, 7, 80.00, 85.56, 92.60, 1384, 0.08, ""),
            ("Mixer-L/32", 224, 7, 80.67, 85.62, 93.24, 1314, 0.12, ""),
            ("BiT-R152x1", 224, 7, 79.12, 86.12, None, 932, 0.14, ""),
            ("BiT-R50x2", 224, 7, 78.92, 86.06, None, 890, 0.14, ""),
            ("BiT-R152x2", 224, 14, 83.34, 88.90, None, 356, 0.58, ""),
            ("Mixer-L/16", 224, 7, 84.05, 88.14, 94.51, 419, 0.23, ""),
            ("Mixer-L/16", 224, 14, 84.82, 88.48, 94.77, 419, 0.45, ""),
            ("ViT-L/16", 224, 14, 85.63, 89.16, 95.21, 280, 0.65, ""),
            ("Mixer-H/14", 224, 14, 86.32, 89.14, 95.49, 194, 1.01, ""),
            ("BiT-R200x3", 224, 14, 84.73, 89.58, None, 141, 1.78, ""),
            ("Mixer-L/16", 448, 14, 86.78, 89.72, 95.13, 105, 0.45, ""),
            ("ViT-H/14", 224, 14, 86.65, 89.56, 95.57, 87, 2.30, ""),
            ("ViT-L/16", 512, 14, 87.76, 90.54, 95.63, 32, 0.65, ""),
        ],
    ),
]


# --- tasks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of Avg5 or of VTAB-1k. The metric is top-1 on the whole test split; the score of a suite is the mean over
    its tasks."""

    name: str
    group: str
    classes: int
    splits: str
    """Images to train on and to choose by, and what is tested on."""
    recipe: str
    """The paper's fine-tuning, a name in RECIPES; `recipes.grid` has its learning rates."""
    steps: int
    image_px: int
    """What the network sees."""


def _avg5(name: str, classes: int, splits: str, recipe: str, steps: int) -> Task:
    return Task(name=name, group="Avg5", classes=classes, splits=splits, recipe=recipe, steps=steps, image_px=224)


AVG5 = [
    _avg5("ImageNet", 1000, "1,281,167, 1 % of them to choose by; 50,000 of validation", "finetune-imagenet", 20_000),
    _avg5("CIFAR-10", 10, "50,000, 2 % of them to choose by; 10,000", "finetune-official", 10_000),
    _avg5("CIFAR-100", 100, "50,000, 2 % of them to choose by; 10,000", "finetune-official", 10_000),
    _avg5("Oxford-IIIT Pets", 37, "3,680, 10 % of them to choose by; 3,669", "finetune-flowers", 500),
    _avg5("Oxford Flowers-102", 102, "2,040, 10 % of them to choose by; 6,149", "finetune-flowers", 500),
]
LARGE = 224 * 224  # of images that are larger than 96 x 96 px, whatever they are


def _vtab(name: str, group: str, classes: int, area_px: int = LARGE) -> Task:
    rule = bit_hyperrule(1000, area_px)
    assert isinstance(rule.model.image_size, int)
    splits = "800, 200 to choose by; the whole test split"
    return Task(
        name=name,
        group=group,
        classes=classes,
        splits=splits,
        recipe="finetune-vtab1k",
        steps=rule.run.steps,
        image_px=rule.model.image_size,
    )


VTAB = [
    _vtab("Caltech101", "natural", 102),
    _vtab("CIFAR-100", "natural", 100, 32 * 32),
    _vtab("DTD", "natural", 47),
    _vtab("Oxford Flowers-102", "natural", 102),
    _vtab("Oxford-IIIT Pets", "natural", 37),
    _vtab("SUN397", "natural", 397),
    _vtab("SVHN", "natural", 10, 32 * 32),
    _vtab("Patch Camelyon", "specialised", 2, 96 * 96),
    _vtab("EuroSAT", "specialised", 10, 64 * 64),
    _vtab("RESISC45", "specialised", 45),
    _vtab("Diabetic Retinopathy (btgraham-300)", "specialised", 5),
    _vtab("CLEVR, count", "structured", 8),
    _vtab("CLEVR, closest object's distance", "structured", 6),
    _vtab("DMLab", "structured", 6),
    _vtab("KITTI, closest vehicle's distance", "structured", 4),
    _vtab("dSprites, x position", "structured", 16, 64 * 64),
    _vtab("dSprites, orientation", "structured", 16, 64 * 64),
    _vtab("SmallNORB, azimuth", "structured", 18, 96 * 96),
    _vtab("SmallNORB, elevation", "structured", 9, 96 * 96),
]


# --- a run of the notes on the paper that this project is made from ---------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Of a training run: means over the steps of an epoch, and validation at its end. Losses are cross-entropies in
    nats."""

    train_top1: float
    train_loss: float
    val_top1: float
    val_loss: float


NOTES_CIFAR10 = [
    Epoch(train_top1=train_top1, train_loss=train_loss, val_top1=val_top1, val_loss=val_loss)
    for train_top1, train_loss, val_top1, val_loss in (
        (0.3285, 1.8335, 0.4216, 1.6007),
        (0.4433, 1.5298, 0.4688, 1.4704),
        (0.4775, 1.4386, 0.4873, 1.4345),
        (0.5002, 1.3820, 0.5071, 1.3591),
        (0.5188, 1.3348, 0.5228, 1.3403),
        (0.5263, 1.3049, 0.5201, 1.3165),
        (0.5412, 1.2732, 0.5390, 1.2793),
        (0.5552, 1.2410, 0.5393, 1.2745),
        (0.5653, 1.2115, 0.5535, 1.2384),
        (0.5779, 1.1851, 0.5562, 1.2237),
    )
]
"""A PyTorch class on CIFAR-10: 782 training and 157 validation batches of 64 an epoch."""

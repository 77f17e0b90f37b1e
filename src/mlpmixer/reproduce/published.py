"""The paper's tables 2 and 3 (arXiv:2105.01601), and the tasks behind their columns. Accuracies are fractions."""

from typing import NamedTuple

from mlpmixer.training.recipes import bit_hyperrule


class Row(NamedTuple):
    """A line of table 2 or 3."""

    table: int
    upstream: str  # the data of pre-training
    model: str
    image_px: int | None
    epochs: int | None  # of pre-training
    imagenet: float
    real: float | None
    avg5: float | None
    vtab: float | None
    images_per_s_core: int | None  # on a TPUv3
    kilo_core_days: float  # thousand TPUv3 core-days of pre-training
    extrapolated: bool  # whether the core-days are
    weights: str  # the published file that the row starts from, a name in WEIGHTS; or nothing

    @property
    def is_mixer(self) -> bool:
        return self.model.startswith("Mixer-")


def cells(text: str) -> list[list[str]]:
    """The cells of a table that is written as lines, with a bar between two cells."""
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]


def _rows(table: int, text: str) -> list[Row]:
    rows = []
    for upstream, model, px, epochs, imagenet, *shares, speed, days, weights in cells(text):
        px_, epochs_, speed_ = (int(number) if number else None for number in (px, epochs, speed))
        top1, (real, avg5, vtab) = _share(imagenet), (_share(share) if share else None for share in shares)
        scores = (top1, real, avg5, vtab)
        extrapolated = table == 3 and upstream != "JFT-300M"
        rows.append(Row(table, upstream, model, px_, epochs_, *scores, speed_, float(days), extrapolated, weights))
    return rows


def _share(percent: str) -> float:
    return round(float(percent) / 100, 6)


# upstream | model | px | epochs | ImageNet | ReaL | Avg5 | VTAB-1k | images/s/core | thousand core-days | weights
TABLE2 = _rows(2, """
ImageNet-21k | HaloNet (H4 base128 Conv-12) |     | | 85.8  |       |       |       | 120 |  0.10 |
ImageNet-21k | Mixer-L/16   | 448 | | 84.15 | 87.86 | 93.91 | 74.95 | 105 |  0.41 | L/16:imagenet21k
ImageNet-21k | ViT-L/16     |     | | 85.30 | 88.62 | 94.39 | 72.72 |  32 |  0.18 |
ImageNet-21k | BiT-R152x4   |     | | 85.39 |       | 94.04 | 70.64 |  26 |  0.94 |
JFT-300M     | NFNet-F4+    |     | | 89.2  |       |       |       |  46 |  1.86 |
JFT-300M     | Mixer-H/14   | 448 | | 87.94 | 90.18 | 95.71 | 75.33 |  40 |  1.01 |
JFT-300M     | BiT-R152x4   |     | | 87.54 | 90.54 | 95.33 | 76.29 |  26 |  9.90 |
JFT-300M     | ViT-H/14     |     | | 88.55 | 90.72 | 95.97 | 77.63 |  15 |  2.30 |
unlabelled or weakly labelled | MPL (EffNet-B6-Wide) |     | | 90.0  | 91.12 |       |       |     | 20.48 |
unlabelled or weakly labelled | ALIGN (EffNet-L2) |     | | 88.64 |       |       | 79.99 |  15 | 14.82 |
""")  # fmt: skip
TABLE3 = _rows(3, """
ImageNet     | Mixer-B/16 | 224 | 300 | 76.44 | 82.36 | 88.33 | |  1384 | 0.01 | B/16:imagenet1k
ImageNet     | ViT-B/16   | 224 | 300 | 79.67 | 84.97 | 90.79 | |   861 | 0.02 |
ImageNet     | Mixer-L/16 | 224 | 300 | 71.76 | 77.08 | 87.25 | |   419 | 0.04 | L/16:imagenet1k
ImageNet     | ViT-L/16   | 224 | 300 | 76.11 | 80.93 | 89.66 | |   280 | 0.05 |
ImageNet-21k | Mixer-B/16 | 224 | 300 | 80.64 | 85.80 | 92.50 | |  1384 | 0.15 | B/16:imagenet21k
ImageNet-21k | ViT-B/16   | 224 | 300 | 84.59 | 88.93 | 94.16 | |   861 | 0.18 |
ImageNet-21k | Mixer-L/16 | 224 | 300 | 82.89 | 87.54 | 93.63 | |   419 | 0.41 | L/16:imagenet21k
ImageNet-21k | ViT-L/16   | 224 | 300 | 84.46 | 88.35 | 94.49 | |   280 | 0.55 |
ImageNet-21k | Mixer-L/16 | 448 | 300 | 83.91 | 87.75 | 93.86 | |   105 | 0.41 | L/16:imagenet21k
JFT-300M     | Mixer-S/32 | 224 |   5 | 68.70 | 75.83 | 87.13 | | 11489 | 0.01 |
JFT-300M     | Mixer-B/32 | 224 |   7 | 75.53 | 81.94 | 90.99 | |  4208 | 0.05 |
JFT-300M     | Mixer-S/16 | 224 |   5 | 73.83 | 80.60 | 89.50 | |  3994 | 0.03 |
JFT-300M     | BiT-R50x1  | 224 |   7 | 73.69 | 81.92 |       | |  2159 | 0.08 |
JFT-300M     | Mixer-B/16 | 224 |   7 | 80.00 | 85.56 | 92.60 | |  1384 | 0.08 |
JFT-300M     | Mixer-L/32 | 224 |   7 | 80.67 | 85.62 | 93.24 | |  1314 | 0.12 |
JFT-300M     | BiT-R152x1 | 224 |   7 | 79.12 | 86.12 |       | |   932 | 0.14 |
JFT-300M     | BiT-R50x2  | 224 |   7 | 78.92 | 86.06 |       | |   890 | 0.14 |
JFT-300M     | BiT-R152x2 | 224 |  14 | 83.34 | 88.90 |       | |   356 | 0.58 |
JFT-300M     | Mixer-L/16 | 224 |   7 | 84.05 | 88.14 | 94.51 | |   419 | 0.23 |
JFT-300M     | Mixer-L/16 | 224 |  14 | 84.82 | 88.48 | 94.77 | |   419 | 0.45 |
JFT-300M     | ViT-L/16   | 224 |  14 | 85.63 | 89.16 | 95.21 | |   280 | 0.65 |
JFT-300M     | Mixer-H/14 | 224 |  14 | 86.32 | 89.14 | 95.49 | |   194 | 1.01 |
JFT-300M     | BiT-R200x3 | 224 |  14 | 84.73 | 89.58 |       | |   141 | 1.78 |
JFT-300M     | Mixer-L/16 | 448 |  14 | 86.78 | 89.72 | 95.13 | |   105 | 0.45 |
JFT-300M     | ViT-H/14   | 224 |  14 | 86.65 | 89.56 | 95.57 | |    87 | 2.30 |
JFT-300M     | ViT-L/16   | 512 |  14 | 87.76 | 90.54 | 95.63 | |    32 | 0.65 |
""")  # fmt: skip


class Task(NamedTuple):
    """A task of Avg5 or VTAB-1k: top-1 on the whole test split. A suite's score is the mean over its tasks."""

    name: str
    group: str
    classes: int
    splits: str  # images to train on and to choose by, and what is tested on
    recipe: str  # the paper's fine-tuning, a name in RECIPES; `recipes.grid` has its learning rates
    steps: int
    image_px: int  # what the network sees


_CIFAR = "50,000, 2 % of them to choose by; 10,000"
_PETS = "3,680, 10 % of them to choose by; 3,669"
_FLOWERS = "2,040, 10 % of them to choose by; 6,149"
_IMAGENET = "1,281,167, 1 % of them to choose by; 50,000 of validation"
AVG5 = [
    Task("ImageNet", "Avg5", 1000, _IMAGENET, "finetune-imagenet", 20_000, 224),
    Task("CIFAR-10", "Avg5", 10, _CIFAR, "finetune-official", 10_000, 224),
    Task("CIFAR-100", "Avg5", 100, _CIFAR, "finetune-official", 10_000, 224),
    Task("Oxford-IIIT Pets", "Avg5", 37, _PETS, "finetune-flowers", 500, 224),
    Task("Oxford Flowers-102", "Avg5", 102, _FLOWERS, "finetune-flowers", 500, 224),
]


def _vtab(name: str, group: str, classes: int, side_px: int = 224) -> Task:
    """side_px: side of a typical image; 224 stands for all that are larger than 96 px."""
    rule = bit_hyperrule(1000, side_px**2)
    assert isinstance(rule.model.image_size, int)
    splits = "800, 200 to choose by; the whole test split"
    return Task(name, group, classes, splits, "finetune-vtab1k", rule.run.steps, rule.model.image_size)


VTAB = [
    _vtab("Caltech101", "natural", 102),
    _vtab("CIFAR-100", "natural", 100, 32),
    _vtab("DTD", "natural", 47),
    _vtab("Oxford Flowers-102", "natural", 102),
    _vtab("Oxford-IIIT Pets", "natural", 37),
    _vtab("SUN397", "natural", 397),
    _vtab("SVHN", "natural", 10, 32),
    _vtab("Patch Camelyon", "specialised", 2, 96),
    _vtab("EuroSAT", "specialised", 10, 64),
    _vtab("RESISC45", "specialised", 45),
    _vtab("Diabetic Retinopathy (btgraham-300)", "specialised", 5),
    _vtab("CLEVR, count", "structured", 8),
    _vtab("CLEVR, closest object's distance", "structured", 6),
    _vtab("DMLab", "structured", 6),
    _vtab("KITTI, closest vehicle's distance", "structured", 4),
    _vtab("dSprites, x position", "structured", 16, 64),
    _vtab("dSprites, orientation", "structured", 16, 64),
    _vtab("SmallNORB, azimuth", "structured", 18, 96),
    _vtab("SmallNORB, elevation", "structured", 9, 96),
]

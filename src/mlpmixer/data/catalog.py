"""The data sets known by name. A new one is an entry here, and a reader in `readers/` if none there fits."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlpmixer.data.image_set import ImageSet, RawSplits
from mlpmixer.data.readers.cifar import CIFAR10, CIFAR100
from mlpmixer.data.readers.files import OriginalFiles
from mlpmixer.data.readers.idx import IDX
from mlpmixer.registry import Registry


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """A data set known by name, and where its images come from: `load`, else the Hub or local files."""

    title: str
    """A description in one line."""
    classes: tuple[str, ...]
    """Names for when the files carry none."""
    channels: int
    """1 grey, 3 RGB."""
    image_size: tuple[int, int]
    """(height, width) of its images, pixels."""
    load: Callable[[], RawSplits] | None = None
    """Opens data that comes with an installed package."""
    repo: str = ""
    """The repository on the Hugging Face Hub that has it as Parquet."""
    files: OriginalFiles | None = None
    """The files it was first published in."""
    folders: tuple[str, ...] = ()
    """Other names of the folder that it is usually kept in; case, - and _ make no difference."""

    @property
    def expected(self) -> str:
        """The files to download, for an error message."""
        parquet = f"the Parquet files of hf.co/datasets/{self.repo} (train-*.parquet, test-*.parquet)"
        return f"{parquet} or {self.files.expected}" if self.files else parquet


def _load_digits() -> RawSplits:
    """scikit-learn's digits; v in 0..16 becomes v * 255 / 16 rounded half up, so 0 -> 0, 8 -> 128, 16 -> 255."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = ((raw.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)
    images = ImageSet.from_arrays("digits", pixels, raw.target, tuple("0123456789"))
    return RawSplits(
        "digits", {"all": images}, ["digits: scikit-learn's load_digits, 8x8, values 0..16 scaled to 0..255"]
    )


_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

DATASETS: Registry[DatasetInfo] = Registry("data set")
DATASETS["digits"] = DatasetInfo(
    title="1,797 handwritten digits of scikit-learn, works offline",
    classes=tuple("0123456789"),
    channels=1,
    image_size=(8, 8),
    load=_load_digits,
)
DATASETS["mnist"] = DatasetInfo(
    title="60,000 + 10,000 handwritten digits",
    classes=tuple("0123456789"),
    channels=1,
    image_size=(28, 28),
    repo="ylecun/mnist",
    files=IDX,
)
DATASETS["fashion-mnist"] = DatasetInfo(
    title="60,000 + 10,000 pieces of clothing",
    classes=_FASHION,
    channels=1,
    image_size=(28, 28),
    repo="zalando-datasets/fashion_mnist",
    files=IDX,
    folders=("fashion",),
)
DATASETS["kmnist"] = DatasetInfo(
    title="60,000 + 10,000 handwritten hiragana (Kuzushiji-MNIST)",
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),  # rois-codh/kmnist; spelt as in torchvision
    channels=1,
    image_size=(28, 28),
    repo="tanganke/kmnist",
    files=IDX,
)
DATASETS["cifar10"] = DatasetInfo(
    title="50,000 + 10,000 photos of 10 kinds of things",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    channels=3,
    image_size=(32, 32),
    repo="uoft-cs/cifar10",
    files=CIFAR10,
    folders=("cifar-10-batches-bin", "cifar-10-batches-py"),
)
DATASETS["cifar100"] = DatasetInfo(
    title="50,000 + 10,000 photos of 100 kinds of things",
    classes=tuple(_CIFAR100_CLASSES.split()),
    channels=3,
    image_size=(32, 32),
    repo="uoft-cs/cifar100",
    files=CIFAR100,
    folders=("cifar-100-binary", "cifar-100-python"),
)

"""Labelled images that are decoded later: what every reader returns and every verb takes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlpmixer.config import require
from mlpmixer.data.images import Source
from mlpmixer.data.paths import TEST, TRAIN, VAL, count

T = TypeVar("T")


class LazySequence(Sequence[T], Generic[T]):
    """n items, of which item(i) is computed when it is asked for."""

    def __init__(self, n: int, item: Callable[[int], T]) -> None:
        self.n, self.item = n, item

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, i: int) -> T: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[T]: ...
    def __getitem__(self, i: int | slice) -> T | Sequence[T]:
        if isinstance(i, slice):
            return Subset(self, np.arange(self.n)[i])
        if not -self.n <= i < self.n:
            raise IndexError(i)
        return self.item(int(i) % self.n)


class Subset(LazySequence[T]):
    """items[indices[i]], without copying."""

    items: Sequence[T]
    indices: np.ndarray

    def __init__(self, items: Sequence[T], indices: np.ndarray) -> None:
        if isinstance(items, Subset):
            indices = items.indices[indices]
            items = items.items
        self.items, self.indices = items, indices
        super().__init__(len(indices), lambda i: items[int(indices[i])])


class ConcatDataset(LazySequence[T]):
    """Several sequences, one after the other."""

    def __init__(self, datasets: Sequence[Sequence[T]]) -> None:
        starts = np.cumsum([0, *map(len, datasets)])

        def item(i: int) -> T:
            at = int(np.searchsorted(starts, i, side="right")) - 1
            return datasets[at][i - int(starts[at])]

        super().__init__(int(starts[-1]), item)


def numbered(prefix: str, n: int) -> Sequence[str]:
    """train[0], train[1], ..."""
    return LazySequence(n, lambda i: f"{prefix}[{i}]")


def array_images(pixels: np.ndarray) -> Sequence[Source]:
    """uint8 (N, H, W) or (N, H, W, 3) as Pillow images."""
    return LazySequence(len(pixels), lambda i: Image.fromarray(pixels[i]))


def multi_hot(numbers: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    """The classes of each of N images, by number and -1 for none, as targets (N,K)."""
    targets = np.zeros((len(numbers), num_classes), dtype=bool)
    for row, own in zip(targets, numbers, strict=True):
        row[[k for k in own if k >= 0]] = True
    return targets


class ImageSet:
    """N images that `decode` takes, with labels into `classes` and a readable name each.

    labels: (N,) int64, the class of each image; or (N,K) bool, whether it has each of the K classes, of which it may
    have several or none (`multi_label`).
    `channels` is what the files hold: 1 for the grey named data sets, else 3.
    """

    def __init__(
        self,
        classes: Sequence[str],
        labels: np.ndarray,
        names: Sequence[str],
        sources: Sequence[Source],
        *,
        channels: int = 3,
    ) -> None:
        self.classes = tuple(classes)
        self.labels: NDArray[Any] = np.asarray(labels, dtype=np.int64 if np.ndim(labels) == 1 else np.bool_)
        self.names = names
        self.sources = sources
        self.channels = channels
        assert len(self.labels) == len(names) == len(sources)
        assert self.labels.shape[1:] in ((), (len(self.classes),))

    @classmethod
    def from_arrays(cls, split: str, pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> "ImageSet":
        """uint8 pixels (N, H, W) or (N, H, W, 3). ValueError for no images and for labels outside of the classes."""
        if not len(labels):
            raise ValueError(f"the {split} files hold no images")
        if labels.min() < 0 or labels.max() >= len(classes):
            raise ValueError(
                f"{split} has labels {labels.min()} to {labels.max()}, expected 0 to {len(classes) - 1}: these are the "
                f"files of another data set"
            )
        channels = 1 if pixels.ndim == 3 else 3
        return cls(classes, labels, numbered(split, len(labels)), array_images(pixels), channels=channels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes, or none."""
        return self.labels.ndim == 2

    def classes_of(self, i: int) -> tuple[str, ...]:
        """The classes of image i."""
        return tuple(
            self.classes[k] for k in (np.flatnonzero(self.labels[i]) if self.multi_label else [self.labels[i]])
        )

    def as_multi_label(self) -> "ImageSet":
        """The same images with labels (N,K)."""
        if self.multi_label:
            return self
        targets = np.arange(len(self.classes)) == self.labels[:, None]
        return ImageSet(self.classes, targets, self.names, self.sources, channels=self.channels)

    def source(self, i: int) -> Source:
        """Image i as a path, bytes or a Pillow image."""
        return self.sources[i]

    def subset(self, indices: np.ndarray | Sequence[int]) -> "ImageSet":
        """The images at `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        names, sources = Subset(self.names, indices), Subset(self.sources, indices)
        return ImageSet(self.classes, self.labels[indices], names, sources, channels=self.channels)

    def labelled(self) -> "ImageSet":
        """Without the images whose label is -1."""
        return self if self.multi_label or (self.labels >= 0).all() else self.subset(np.flatnonzero(self.labels >= 0))

    def spread(self, at_most: int) -> "ImageSet":
        """Up to `at_most` images, evenly spaced over the set."""
        if at_most < 1:
            raise ValueError(f"expected at least 1 image, got {at_most}")
        return self.subset(np.linspace(0, len(self) - 1, min(at_most, len(self))).round().astype(np.int64))

    def counts(self) -> np.ndarray:
        """Images per class (K,)."""
        return self.labels.sum(axis=0) if self.multi_label else np.bincount(self.labels, minlength=len(self.classes))

    def used_classes(self) -> list[str]:
        """The classes that have images."""
        return [c for c, n in zip(self.classes, self.counts(), strict=True) if n]


def chain(sets: Sequence[ImageSet]) -> ImageSet:
    """Several sets of the same classes as one."""
    assert len({s.classes for s in sets}) == 1
    labels = np.concatenate([s.labels for s in sets])
    names, sources = ConcatDataset([s.names for s in sets]), ConcatDataset([s.sources for s in sets])
    return ImageSet(sets[0].classes, labels, names, sources, channels=sets[0].channels)


ENOUGH_TO_JUDGE = 30  # validation images: the 95 % interval around 50 % is then +-17 %


def doubt_of(val: ImageSet, train: ImageSet | None = None) -> str:
    """Why the accuracy on these validation images says little; empty when it does not."""
    if val is train:
        return "val: these are the training images, so that its accuracy says nothing about others"
    if len(val) >= ENOUGH_TO_JUDGE:
        return ""
    z = 1.96
    half = z / 2 / math.sqrt(len(val) + z * z)  # Wilson's interval around one half
    return (
        f"val: {count(len(val), 'image')} cannot tell networks apart: an accuracy of 50 % on so few means "
        f"{50 - 100 * half:.0f} to {50 + 100 * half:.0f} %, and to stop or to choose by it is to choose by chance "
        "(raise data.val_fraction, or give more images)"
    )


@dataclass
class RawSplits:
    """Image sets as read: "train", "val" and "test", as far as they exist, or "all" when nothing tells them apart."""

    name: str
    sets: dict[str, ImageSet]
    notes: list[str] = field(default_factory=list)
    stray: list[tuple[str, str]] = field(default_factory=list)
    """Files that are not images of a class, each with the reason."""

    def __post_init__(self) -> None:
        self.sets = {split: self.sets[split] for split in ("all", TRAIN, VAL, TEST) if split in self.sets}


@dataclass(frozen=True)
class Splits:
    """A data set, opened. `notes` says where it is from, what was cut and what was left out."""

    name: str
    train: ImageSet
    val: ImageSet
    test: ImageSet | None
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    unused: ImageSet | None = None
    """Training images that data.train_fraction leaves out."""

    @property
    def doubt(self) -> str:
        """Why the accuracy on val says little, in a sentence; empty when it does not."""
        return doubt_of(self.val, self.train)


def rename_val(parts: dict[str, Any], name: str) -> str:
    """Call val test, as data.val_is_test asks; the note about it. ValueError for data without val or with test."""
    require(
        VAL in parts and TEST not in parts,
        f"data.val_is_test is for data with val and without test; {name} has {', '.join(parts)}",
    )
    parts[TEST] = parts.pop(VAL)
    return "test: what the data calls val (data.val_is_test)"

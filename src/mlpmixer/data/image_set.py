"""Labelled images that are decoded later: what every reader returns and every verb takes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

import numpy as np
from PIL import Image

from mlpmixer.data.images import Source
from mlpmixer.data.paths import TEST, TRAIN, VAL

T = TypeVar("T")


class LazySequence(Sequence[T], Generic[T]):
    """A sequence that computes item i when it is asked for: subclasses define __len__ and item."""

    def item(self, i: int) -> T:
        raise NotImplementedError

    @overload
    def __getitem__(self, i: int) -> T: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[T]: ...
    def __getitem__(self, i: int | slice) -> T | Sequence[T]:
        if isinstance(i, slice):
            return Subset(self, np.arange(len(self))[i])
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return self.item(int(i) % len(self))


class Subset(LazySequence[T]):
    """items[indices[i]], without copying."""

    def __init__(self, items: Sequence[T], indices: np.ndarray) -> None:
        self.items: Sequence[T] = items.items if isinstance(items, Subset) else items
        self.indices: np.ndarray = items.indices[indices] if isinstance(items, Subset) else indices

    def __len__(self) -> int:
        return len(self.indices)

    def item(self, i: int) -> T:
        return self.items[int(self.indices[i])]


class ConcatDataset(LazySequence[T]):
    """Several sequences, one after the other."""

    def __init__(self, datasets: Sequence[Sequence[T]]) -> None:
        self.datasets = datasets
        self.ends = np.cumsum([len(d) for d in datasets])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def item(self, i: int) -> T:
        at = int(np.searchsorted(self.ends, i, side="right"))
        return self.datasets[at][i - (int(self.ends[at - 1]) if at else 0)]


class Numbered(LazySequence[str]):
    """train[0], train[1], ..."""

    def __init__(self, prefix: str, n: int) -> None:
        self.prefix, self.n = prefix, n

    def __len__(self) -> int:
        return self.n

    def item(self, i: int) -> str:
        return f"{self.prefix}[{i}]"


class ArrayImages(LazySequence[Source]):
    """uint8 (N, H, W) or (N, H, W, 3) as Pillow images."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def item(self, i: int) -> Source:
        return Image.fromarray(self.pixels[i])


class ArrowImages(LazySequence[Source]):
    """The encoded images of an Arrow column, which stay in Arrow's memory until they are asked for.

    A row without bytes but with a path is that file, if it is inside `folder`.
    """

    def __init__(self, content: Any, paths: Any = None, folder: str = ".") -> None:
        self.content, self.paths, self.folder = content, paths, os.path.realpath(folder)

    def __len__(self) -> int:
        return len(self.content)

    def item(self, i: int) -> Source:
        content: bytes | None = self.content[i].as_py()
        if content is None and self.paths is not None and (path := self.paths[i].as_py()):
            full = os.path.realpath(os.path.join(self.folder, path))
            if os.path.commonpath([full, self.folder]) == self.folder:
                return full
        return content or b""


class ImageSet:
    """N images that `decode` takes, with labels (N,) into `classes` and a readable name each.

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
        self.labels = np.asarray(labels, dtype=np.int64)
        self.names = names
        self.sources = sources
        self.channels = channels
        assert len(self.labels) == len(names) == len(sources)

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
        return cls(classes, labels, Numbered(split, len(labels)), ArrayImages(pixels), channels=channels)

    def __len__(self) -> int:
        return len(self.labels)

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
        return self if (self.labels >= 0).all() else self.subset(np.flatnonzero(self.labels >= 0))

    def spread(self, at_most: int) -> "ImageSet":
        """Up to `at_most` images, evenly spaced over the set."""
        if at_most < 1:
            raise ValueError(f"expected at least 1 image, got {at_most}")
        return self.subset(np.linspace(0, len(self) - 1, min(at_most, len(self))).round().astype(np.int64))

    def counts(self) -> np.ndarray:
        """Images per class (K,)."""
        return np.bincount(self.labels, minlength=len(self.classes))


def chain(sets: Sequence[ImageSet]) -> ImageSet:
    """Several sets of the same classes as one."""
    assert len({s.classes for s in sets}) == 1
    labels = np.concatenate([s.labels for s in sets])
    names, sources = ConcatDataset([s.names for s in sets]), ConcatDataset([s.sources for s in sets])
    return ImageSet(sets[0].classes, labels, names, sources, channels=sets[0].channels)


@dataclass
class RawSplits:
    """What a reader found: "train", "val" and "test", as far as they exist, or "all" when nothing tells them apart."""

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

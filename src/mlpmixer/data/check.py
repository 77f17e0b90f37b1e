"""Problems of a data set: broken images, the same image twice, files in the wrong place, classes of few images,
and whatever training refuses."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import cut_splits, open_raw
from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import ImageError, decode, open_image
from mlpmixer.data.paths import TEST, TRAIN, VAL, count
from mlpmixer.data.store import map_indices

Finding = tuple[str, str]
FEW = 0.1  # of the images of the median class


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The findings of `check_data`. Names are paths within the folder, or split[row]."""

    name: str
    broken: tuple[Finding, ...]
    """(name, reason) of images that cannot be read."""
    duplicates: tuple[Finding, ...]
    """(name, name of the first one) of images with the same pixels."""
    few: tuple[Finding, ...]
    """(class, how many): classes with 0 or 1 training images, or with less than the share FEW of the median."""
    refused: str
    """Why `train` refuses the data; empty when it does not."""
    misplaced: tuple[Finding, ...]
    """(name, reason): the same image in two classes or two splits, files that are not images, classes without training
    images, names of classes that differ in case or spaces only."""
    counts: dict[str, dict[str, int]]
    """Images per split and class, the broken ones included."""
    images: dict[str, int]
    """Images per split; they may have several classes, or none."""
    sizes: dict[str, int]
    """Images per size, "width x height", the 20 most frequent."""
    modes: dict[str, int]
    """Images per format and Pillow mode."""
    notes: tuple[str, ...]
    """Where the data is from and what was left out."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not (self.broken or self.duplicates or self.misplaced or self.few or self.refused)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self) | {"ok": self.ok}


def check_data(data: Data) -> CheckReport:
    """Decode every image of `data` and report what is wrong.

    Errors: ValueError only when the data cannot be opened.
    """
    raw = open_raw(data)
    broken: list[Finding] = []
    duplicates: list[Finding] = []
    inside: list[Finding] = []  # duplicates within what the files call one split
    misplaced = list(raw.stray)
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    first: dict[bytes, tuple[str, str, str]] = {}  # hash of the pixels -> name, class, split
    for split, images in raw.sets.items():
        for i, outcome in enumerate(map_indices(partial(_examine, images), len(images), data.workers)):
            name, label = images.names[i], " and ".join(images.classes_of(i)) or "none"
            if isinstance(outcome, str):
                broken.append((name, outcome))
                continue
            digest, size, mode = outcome
            sizes[size] += 1
            modes[mode] += 1
            if digest not in first:
                first[digest] = name, label, split
                continue
            other, other_label, other_split = first[digest]
            duplicates.append((name, other))
            if other_label != label:
                misplaced.append((name, f"class {label!r}, but the same image is {other} in class {other_label!r}"))
            if other_split == split:
                inside.append((name, other))
            else:
                misplaced.append((name, f"in {split}, but the same image is {other} in {other_split}"))
    counts = {split: dict(zip(s.classes, s.counts().tolist(), strict=True)) for split, s in raw.sets.items()}
    for split in counts if TRAIN in counts else ():
        absent = [c for c, n in counts[split].items() if n and not counts[TRAIN][c]]
        misplaced += [(f"{split}: {c}", "a class without any image in train") for c in absent]
    classes = next(iter(counts.values()))
    alike: dict[str, str] = {}
    for name in classes:
        if (other := alike.setdefault("".join(name.casefold().split()), name)) != name:
            misplaced.append((f"class {name!r}", f"there is a class {other!r}, too"))
    refused, notes = "", tuple(raw.notes)
    try:
        splits = cut_splits(raw, data)
    except ValueError as e:
        refused = str(e)
    else:
        notes = splits.notes
        sets = {TRAIN: splits.train, VAL: splits.val, TEST: splits.test}
        places = {name: split for split, s in sets.items() if s and inside for name in s.names}
        for name, other in inside:
            if places[name] != places[other]:
                misplaced.append(
                    (name, f"cut off for {places[name]}, but the same image is {other} in {places[other]}")
                )
    return CheckReport(
        name=raw.name,
        broken=tuple(broken),
        duplicates=tuple(duplicates),
        few=tuple(_few(counts.get(TRAIN, classes))),
        refused=refused,
        misplaced=tuple(misplaced),
        counts=counts,
        images={split: len(s) for split, s in raw.sets.items()},
        sizes=dict(sizes.most_common(20)),
        modes=dict(modes.most_common()),
        notes=notes,
    )


def _few(counts: dict[str, int]) -> Iterator[Finding]:
    """The classes of 0 or 1 images, and those of fewer than FEW of the median."""
    median = float(np.median([n for n in counts.values() if n] or [0]))
    for name, n in counts.items():
        if n <= 1 or n < FEW * median:
            yield name, count(n, "image") + (f", the median class has {median:,.0f}" if median > 1 else "")


def _examine(images: ImageSet, i: int) -> tuple[bytes, str, str] | str:
    """(hash of the pixels, size, format and mode), or the reason why the image cannot be read."""
    try:
        with open_image(images.source(i)) as image:
            size, mode = f"{image.width}x{image.height}", f"{image.format or 'array'} {image.mode}"
            pixels = np.asarray(decode(image, "RGB"))
    except ImageError as e:
        return e.reason
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, key=repr(pixels.shape).encode()).digest(), size, mode

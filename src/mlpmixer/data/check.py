"""What is wrong with a data set: broken images, the same image twice, files in the wrong place."""

import dataclasses
import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_raw
from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import ImageError, decode, open_image
from mlpmixer.data.store import map_indices

Finding = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What `check_data` found. Names are paths within the folder, or split[row]."""

    name: str
    broken: tuple[Finding, ...]
    """(name, reason) of images that cannot be read."""
    duplicates: tuple[Finding, ...]
    """(name, name of the first one) of images with the same pixels."""
    misplaced: tuple[Finding, ...]
    """(name, reason): the same image in two classes or two splits, files that are not images, classes without training
    images."""
    counts: dict[str, dict[str, int]]
    """Images per split and class, the broken ones included."""
    sizes: dict[str, int]
    """Images per size, "width x height", the 20 most frequent."""
    modes: dict[str, int]
    """Images per format and Pillow mode."""
    notes: tuple[str, ...]
    """Where the data is from and what was left out."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not (self.broken or self.duplicates or self.misplaced)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self) | {"ok": self.ok}


def check_data(data: Data) -> CheckReport:
    """Decode every image of `data` and report what is wrong. ValueError only when the data cannot be opened."""
    raw = open_raw(data)
    broken: list[Finding] = []
    duplicates: list[Finding] = []
    misplaced = list(raw.stray)
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    first: dict[bytes, tuple[str, str, str]] = {}  # hash of the pixels -> name, class, split
    for split, images in raw.sets.items():
        for i, outcome in enumerate(map_indices(partial(_examine, images), len(images), data.workers)):
            name, label = images.names[i], images.classes[images.labels[i]]
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
            if other_split != split:
                misplaced.append((name, f"in {split}, but the same image is {other} in {other_split}"))
    counts = {split: dict(zip(s.classes, s.counts().tolist(), strict=True)) for split, s in raw.sets.items()}
    for split in counts if "train" in counts else ():
        absent = [c for c, n in counts[split].items() if n and not counts["train"][c]]
        misplaced += [(f"{split}: {c}", "a class without any image in train") for c in absent]
    return CheckReport(
        name=raw.name,
        broken=tuple(broken),
        duplicates=tuple(duplicates),
        misplaced=tuple(misplaced),
        counts=counts,
        sizes=dict(sizes.most_common(20)),
        modes=dict(modes.most_common()),
        notes=tuple(raw.notes),
    )


def _examine(images: ImageSet, i: int) -> tuple[bytes, str, str] | str:
    """(hash of the pixels, size, format and mode), or the reason why the image cannot be read."""
    try:
        with open_image(images.source(i)) as image:
            size, mode = f"{image.width}x{image.height}", f"{image.format or 'array'} {image.mode}"
            pixels = np.asarray(decode(image, "RGB"))
    except ImageError as e:
        return str(e)
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, key=repr(pixels.shape).encode()).digest(), size, mode

"""What is wrong with a data set: broken images, the same image twice, files in the wrong place."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_raw
from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import ImageError, decode, open_image
from mlpmixer.data.store import in_chunks


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """Every image was decoded in full. Names are paths within the folder, or split[row]."""

    name: str
    broken: tuple[tuple[str, str], ...]
    """(name, reason) of images that cannot be read."""
    duplicates: tuple[tuple[str, str], ...]
    """(name, name of the first one) of images with the same pixels."""
    misplaced: tuple[tuple[str, str], ...]
    """(name, reason): the same image in two classes or two splits, files that are no images, classes without training
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
        """Nothing is broken, doubled or misplaced."""
        return not (self.broken or self.duplicates or self.misplaced)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values. `misplaced` has the key "misplaced" there."""
        values = dataclasses.asdict(self) | {"ok": self.ok}
        return values | {"misplaced": values.pop("misplaced")}


def check_data(data: Data) -> CheckReport:
    """Decode every image of `data` and report what is wrong. ValueError only when the data cannot be opened."""
    raw = open_raw(data)
    broken: list[tuple[str, str]] = []
    duplicates: list[tuple[str, str]] = []
    misplaced = list(raw.stray)
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    first: dict[bytes, tuple[str, str, str]] = {}
    for split, images in raw.sets.items():
        for name, label, outcome in zip(images.names, images.labels, _outcomes(images, data.workers), strict=True):
            if isinstance(outcome, str):
                broken.append((name, outcome))
                continue
            digest, size, mode = outcome
            sizes[size] += 1
            modes[mode] += 1
            here = (name, images.classes[label], split)
            earlier = first.setdefault(digest, here)
            if earlier is here:
                continue
            other, other_class, other_split = earlier
            duplicates.append((name, other))
            if other_class != here[1]:
                misplaced.append((name, f"class {here[1]!r}, but the same image is {other} in class {other_class!r}"))
            if other_split != split:
                misplaced.append((name, f"in {split}, but the same image is {other} in {other_split}"))
    counts = {
        split: dict(zip(images.classes, images.counts().tolist(), strict=True)) for split, images in raw.sets.items()
    }
    if "train" in counts:
        for split in counts.keys() - {"train"}:
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


Outcome = tuple[bytes, str, str] | str


def _outcomes(images: ImageSet, workers: int) -> Iterator[Outcome]:
    """For each image (hash of its pixels, size, format and mode), or the reason why it cannot be read."""

    def look(span: range) -> list[Outcome]:
        return [_look(images, i) for i in span]

    for outcomes in in_chunks(look, len(images), workers):
        yield from outcomes


def _look(images: ImageSet, i: int) -> Outcome:
    try:
        with open_image(images.source(i)) as image:
            size, mode = f"{image.width}x{image.height}", f"{image.format or 'array'} {image.mode}"
            pixels = np.asarray(decode(image, "RGB"))
    except ImageError as e:
        return str(e)
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, key=repr(pixels.shape).encode()).digest(), size, mode

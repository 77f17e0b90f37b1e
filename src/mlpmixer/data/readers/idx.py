"""IDX, the format of MNIST's original files."""

import re
from collections.abc import Sequence

import numpy as np

from mlpmixer.data.image_set import TEST, TRAIN, ArrayImages, ImageSet, Numbered, RawSplits
from mlpmixer.data.readers.files import Files


def _idx(files: Files, stem: str, kind: str, dims: int) -> np.ndarray:
    names = [f"{stem}-{kind}{dot}idx{dims}-ubyte" for dot in "-."]
    name = next((n for n in names if n in files), None)
    if name is None:
        raise ValueError(f"{names[0]} is missing (also looked for as {names[1]}, .gz and .xz)")
    content = files[name]()
    header = 4 + 4 * dims
    if len(content) < header or content[:4] != bytes([0, 0, 8, dims]):
        raise ValueError(f"{name} is not an IDX file of {dims} dimensions of bytes")
    shape = [int.from_bytes(content[4 + 4 * d : 8 + 4 * d], "big") for d in range(dims)]
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise ValueError(
            f"{name} has {len(content)} bytes, its header says {expected}: it is cut short or damaged, fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_idx(files: Files, name: str, classes: Sequence[str]) -> RawSplits | None:
    """MNIST's layout; None when the folder has no such file."""
    if not any(re.match(r"(train|t10k)-(images|labels)[-.]idx", f) for f in files):
        return None
    sets = {}
    for split, stem in ((TRAIN, "train"), (TEST, "t10k")):
        pixels, labels = _idx(files, stem, "images", 3), _idx(files, stem, "labels", 1)
        if len(pixels) != len(labels):
            raise ValueError(f"{name}: {len(pixels)} {split} images but {len(labels)} labels")
        sets[split] = from_arrays(split, pixels, labels, classes, 1)
    return RawSplits(name, sets)


def from_arrays(split: str, pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str], channels: int) -> ImageSet:
    if not len(labels):
        raise ValueError(f"the {split} files hold no images")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"{split} has a label {labels.max()}, but there are {len(classes)} classes: these are the files of another "
            f"data set"
        )
    return ImageSet(classes, labels, Numbered(split, len(labels)), ArrayImages(pixels), channels=channels)

"""IDX, the format of MNIST and the data sets made after it."""

import re
from collections.abc import Sequence

import numpy as np

from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.paths import TEST, TRAIN
from mlpmixer.data.readers.files import Files, OriginalFiles


def read_idx(files: Files, classes: Sequence[str]) -> dict[str, ImageSet]:
    """Train and test. ValueError, which names the file, when one is missing or damaged."""
    sets = {}
    for split, stem in ((TRAIN, "train"), (TEST, "t10k")):
        pixels, labels = _array(files, f"{stem}-images", 3), _array(files, f"{stem}-labels", 1)
        if len(pixels) != len(labels):
            raise ValueError(f"{len(pixels)} images in {stem}-images but {len(labels)} labels in {stem}-labels")
        sets[split] = ImageSet.from_arrays(split, pixels, labels, classes)
    return sets


def _array(files: Files, stem: str, dims: int) -> np.ndarray:
    names = [f"{stem}{dot}idx{dims}-ubyte" for dot in "-."]
    name = next((n for n in names if n in files), None)
    if name is None:
        raise ValueError(f"{names[0]} is missing (also looked for as {names[1]}, .gz and .xz)")
    content = files[name]()
    header = 4 + 4 * dims
    if len(content) < header or content[:4] != bytes([0, 0, 8, dims]):
        raise ValueError(f"{name} is not an IDX file of bytes in {dims} dimensions")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise ValueError(f"{name} has {len(content)} bytes, its header says {expected}: download it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


IDX = OriginalFiles(
    expected="train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte "
    "(plain, .gz or .xz)",
    names=re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte"),
    read=read_idx,
)

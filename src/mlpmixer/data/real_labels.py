"""ReaL: all that people see in ImageNet's validation images (Beyer et al. 2020, "Are we done with ImageNet?").

The file is real.json of google-research/reassessed-imagenet: 50,000 lists of class numbers 0..999, the first for the
image ILSVRC2012_val_00000001. An empty list means that people found none of the classes; such images are left out.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from mlpmixer.config import parse_json

NUM_IMAGES = 50_000
NUM_CLASSES = 1000
NAME = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")

Labels = frozenset[int]


def real_labels(file: str | os.PathLike[str], names: Sequence[str]) -> list[Labels]:
    """The ReaL labels, as ImageNet's class numbers, of the images with these names, in their order.

    Raises ValueError when the file is not that one, and when a name does not hold ILSVRC2012_val_ and a number from 1
    to 50,000.
    """
    labels = read_real(file)
    numbers = [int(found[1]) if (found := NAME.search(name)) else 0 for name in map(str, names)]
    unknown = [name for name, number in zip(names, numbers, strict=True) if not 1 <= number <= NUM_IMAGES]
    if unknown:
        raise ValueError(
            f"ReaL labels belong to ImageNet's validation images, by the number in their file names: expected "
            f"ILSVRC2012_val_00000001 to ILSVRC2012_val_00050000, got {unknown[0]!r}"
            f"{f' and {len(unknown) - 1:,} more' if len(unknown) > 1 else ''} of {len(names):,} images"
        )
    return [labels[number - 1] for number in numbers]


def read_real(file: str | os.PathLike[str]) -> list[Labels]:
    """All 50,000 sets of labels. ValueError when the file is not there or holds anything else."""
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"no file {path}: expected real.json of google-research/reassessed-imagenet")
    try:
        lists = parse_json(path.read_bytes())
    except ValueError as e:
        raise ValueError(f"{path} is not the ReaL labels: {e}") from e
    if not isinstance(lists, list) or len(lists) != NUM_IMAGES or not all(map(_is_labels, lists)):
        got = f"{len(lists):,} of something" if isinstance(lists, list) else f"a {type(lists).__name__}"
        expected = f"{NUM_IMAGES:,} lists of class numbers 0..{NUM_CLASSES - 1}"
        raise ValueError(f"{path} is not the ReaL labels: expected {expected}, got {got}")
    return [frozenset(numbers) for numbers in lists]


def _is_labels(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < NUM_CLASSES for v in value)

"""How other code names and stores the weights of a network: one explicit table a form, read and written by
`weights.formats`."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from mlpmixer.config import one_if_square, pair

Form = Literal["same", "transposed", "stem_hwio", "stem_oihw", "flat"]
Arrays = Mapping[str, np.ndarray]
Known = Mapping[str, Any]
"""Fields of the config that whoever loads weights knows, such as image_size, taken where the weights don't tell."""
Replacement = str | Callable[[re.Match[str]], str]


class WeightsError(ValueError):
    """A weight file that is damaged, hostile, or not of a known network; the message says what is wrong with it."""


@dataclass(frozen=True)
class Row:
    """One line of a name table: a parameter of ours, its name and shape over there, and how the two are stored."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    form: Form = "same"
    our_shape: tuple[int, ...] | None = None
    """Shape here, of the same numbers in the same order; None: that of the form."""


def renamed_rows(
    state: Mapping[str, Any], names: Sequence[tuple[str, Replacement]], shapes: Mapping[str, tuple[int, ...]]
) -> list[Row]:
    """A row for every tensor of a state dict: its name over there by regular expressions, applied in order, and its
    shape there where that is another one of the same numbers."""
    rows = []
    for ours, tensor in state.items():
        theirs = ours
        for pattern, replacement in names:
            theirs = re.sub(pattern, replacement, theirs)
        shape = tuple(tensor.shape)
        rows.append(Row(ours, theirs, shapes.get(ours, shape), our_shape=shape))
    return rows


def numbered(arrays: Arrays, pattern: str) -> int:
    """How many different numbers the first group of a regular expression finds at the start of names."""
    return len({found[1] for name in arrays if (found := re.match(pattern, name))})


def unchanged(arrays: Arrays) -> dict[str, np.ndarray]:
    return dict(arrays)


@dataclass(frozen=True)
class NameTable:
    """One form in which others store the weights of a network."""

    form: str
    """official: by the authors; timm: by timm; own: the state dict of the module here."""
    suffix: Literal[".npz", ".safetensors"]
    """Suffix of the files written; a state dict of torch is read from .pth, .pt and .bin, too."""
    marker: str
    """An array that files of this form have, and no other."""
    rows: Callable[[Any], list[Row]]
    """Every array of the file, by the config."""
    config: Callable[[Arrays, Known, str], Any]
    """(arrays, what is known of what they leave open, where they are from) -> the config of the network they are of."""
    activation: str = ""
    """The activation that this form's code computes, where it is not part of the file."""
    preprocess: str = "timm"
    """Name of the evaluation preprocessing that goes with it, see `data.preprocess.create_preprocess`; "": as after
    training here, but for mean and deviation, which are 0.5."""
    left_open: tuple[str, ...] = ()
    """Fields of the config that the arrays say nothing about."""
    current: Callable[[Arrays], dict[str, np.ndarray]] = unchanged
    """Arrays of any public variant under the names of `rows`."""


def to_ours(array: np.ndarray, row: Row) -> np.ndarray:
    """A view of a foreign array in our shape; our stem is a matrix over patches in (channel, row, column) order."""
    form = row.form
    if row.our_shape is not None:
        return array.reshape(row.our_shape)
    if form == "transposed":
        return array.T
    if form == "stem_hwio":
        array = array.transpose(3, 2, 0, 1)
    if form == "flat":
        return array.reshape(-1)
    return array.reshape(len(array), -1) if form != "same" else array


def to_theirs(array: np.ndarray, row: Row) -> np.ndarray:
    """The reverse of `to_ours`."""
    if row.form == "transposed":
        return array.T
    if row.form == "stem_hwio":
        p, q, channels, c = row.shape
        return array.reshape(c, channels, p, q).transpose(2, 3, 1, 0)
    return array.reshape(row.shape)


def printable(name: str) -> str:
    return name if re.fullmatch(r"[\w./-]{1,200}", name) else repr(name[:200])


def with_stem_as_convolution(arrays: Arrays) -> dict[str, np.ndarray]:
    """A state dict of ours with its stem, (C, in_channels*P*P), as the convolution that it is: (C, in_channels, P, P).

    For square patches of images of 1 or 3 channels, which the number of inputs tells apart; WeightsError for others.
    """
    stem = arrays.get("stem.weight")
    if stem is None or stem.ndim != 2 or not any(name.startswith("blocks.0.token_mixing.") for name in arrays):
        return dict(arrays)
    for channels in (1, 3):
        side = math.isqrt(stem.shape[1] // channels)
        if channels * side * side == stem.shape[1]:
            return {**arrays, "stem.weight": stem.reshape(len(stem), channels, side, side)}
    raise WeightsError(
        f"a stem of {stem.shape[1]} inputs reads no square patch of 1 or 3 channels: load these weights into the "
        "network in Python, and store it with mlpmixer.weights.model_file.save_model"
    )


def shape_of(arrays: Arrays, name: str, ndim: int, where: str) -> tuple[int, ...]:
    shape = arrays[name].shape if name in arrays else None
    if shape is None or len(shape) != ndim:
        found = "is missing" if shape is None else f"has shape {shape}"
        some = ", ".join(printable(n) for n in sorted(arrays)[:5])
        raise WeightsError(f"{where} holds no weights of this network: {name} {found}; it has: {some or 'nothing'}")
    return cast(tuple[int, ...], shape)


def classes_of(arrays: Arrays, where: str) -> int:
    """K, the rows of the head; 0 without one."""
    return shape_of(arrays, "head.weight", 2, where)[0] if any(name.startswith("head.") for name in arrays) else 0


def image_size_of(num_patches: int, p: int, q: int, known: Known, where: str) -> int | tuple[int, int]:
    """The size of images of so many patches of p x q px: the known one if it has as many, or else a square of
    patches."""
    image_size: int | tuple[int, int] | None = known.get("image_size")
    side = math.isqrt(num_patches)
    have = 0 if image_size is None else (pair(image_size)[0] // p) * (pair(image_size)[1] // q)
    if image_size is not None and have == num_patches:
        return image_size
    if side * side == num_patches:
        return one_if_square(side * p, side * q)
    if image_size is not None:
        raise WeightsError(
            f"{where} has {num_patches} patches of {p}x{q} px; image_size {image_size} would have {have}"
        )
    raise WeightsError(f"{where} has {num_patches} patches, which is not a square: say image_size=(height, width)")

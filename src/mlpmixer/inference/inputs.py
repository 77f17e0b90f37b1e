"""Inputs of `Classifier.predict`: images in many forms, one or several, found, named and brought to one form.

Imports no torch. B images of H x W pixels with C channels. An array of numpy has its channels last, a tensor of torch
has them first, as images have in either; the type decides, whatever the sizes.
"""

import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mlpmixer.data.images import Source
from mlpmixer.registry import shortened

if TYPE_CHECKING:
    from torch import Tensor

    from mlpmixer.inference.prediction import Failure

    ImageLike = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | NDArray[Any] | Tensor

EXPECTED = (
    "a path, folder or pattern, the bytes of a file or an open file, a Pillow image, a numpy array (H,W), (H,W,C) or "
    "(B,H,W,C), a torch tensor (C,H,W) or (B,C,H,W), or a list of these"
)


def named_images(images: Any, *, allow_urls: bool) -> "Iterator[str | Failure | tuple[str, Any]]":
    """One image or several, of any form, as `files.predict_files` takes them.

    Folders and patterns become their files, as `find_images` finds them; batches become their images; an image without
    a name is called image[i], counted over all.
    """
    from mlpmixer.inference.files import find_images

    count = 0
    for item in images if _is_several(images) else [images]:
        found: Iterable[Any]
        if isinstance(item, str | os.PathLike):
            found = find_images(item, allow_urls=allow_urls)
        elif isinstance(item, np.ndarray) or _is_tensor(item):
            rows = enumerate(item if item.ndim == 4 else [item], start=count)
            found = ((f"image[{i}]", _for_threads(row)) for i, row in rows)
        else:
            found = [(_name(item) or f"image[{count}]", _for_threads(item))]
        for image in found:
            count += 1
            yield image


def as_source(image: "ImageLike", channels: int) -> Source | NDArray[np.uint8]:
    """One image, of any form but an address, as `Preprocess.array` takes it.

    channels: of the model. Floats are pixels in 0..1, and are rounded to 8 bits.
    Errors: ValueError, which says what came, for another type, another shape of a tensor, and other values.
    """
    if isinstance(image, str | os.PathLike | bytes | Image.Image):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, np.ndarray):
        return _eight_bit(image)
    if _is_tensor(image):
        return _eight_bit(_channels_last(image, channels))
    if hasattr(image, "read"):
        return _content(image)
    raise ValueError(f"{_kind(image)} is not an image: expected {EXPECTED}")


def _is_several(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.dtype.kind in "UO" and images.ndim > 0  # of paths
    one = isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, Mapping))
    return isinstance(images, Iterable) and not (one or _is_tensor(images) or hasattr(images, "read"))


def _is_tensor(value: Any) -> "TypeGuard[Tensor]":
    torch = sys.modules.get("torch")  # where it is not imported, nothing is a tensor
    return torch is not None and isinstance(value, torch.Tensor)


def _name(item: Any) -> str:
    """The name of the file behind a Pillow image or an open file; "" where there is none."""
    name = getattr(item, "filename", None) or getattr(item, "name", None)
    return name if isinstance(name, str) else ""


def _for_threads(item: Any) -> Any:
    """A copy that another thread may read while the caller reuses or changes the original: the frames of
    a video may come in one array, those of a GIF in one Pillow image."""
    if isinstance(item, np.ndarray):
        return item.copy()
    if _is_tensor(item):
        return item.detach().clone()
    if isinstance(item, Image.Image):
        with suppress(Exception):  # the decoder says what is wrong with it
            return ImageOps.exif_transpose(item)  # a copy
    elif hasattr(item, "read"):
        with suppress(OSError, ValueError):
            return _content(item)
    return item


def _content(file: Any) -> bytes:
    """All of an open file, from its start if it can go there, as Pillow reads it."""
    if isinstance(file, io.TextIOBase):
        raise ValueError("a file opened for text: expected one opened for bytes, open(path, 'rb')")
    if getattr(file, "seekable", lambda: False)():
        file.seek(0)
    content = file.read()
    if not isinstance(content, bytes):
        raise ValueError(
            f"expected a file opened for bytes, open(path, 'rb'), got one whose read() gives {_kind(content)}"
        )
    return content


def _channels_last(tensor: "Tensor", channels: int) -> NDArray[Any]:
    shape, allowed = tuple(tensor.shape), (1, 3, 4) if channels in (1, 3) else (channels,)
    if len(shape) != 3 or shape[0] not in allowed:
        raise ValueError(
            f"expected tensors (C,H,W) or (B,C,H,W) with C = {' or '.join(map(str, allowed))}, got an image of shape "
            f"{shape}; with channels last: tensor.permute(2, 0, 1), or tensor.numpy()"
        )
    try:
        values = tensor.detach().cpu()
        array: NDArray[Any] = (values.float() if values.is_floating_point() else values).permute(1, 2, 0).numpy()
    except (TypeError, RuntimeError) as e:  # sparse, quantised, or on the meta device
        raise ValueError(f"expected a tensor whose pixels numpy can hold: {shortened(e)}") from e
    return array


def _eight_bit(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Values of another type than uint8 are floats in 0..1."""
    half = 0.5 / 255  # of a step of 8 bits: by less than that a resize may leave 0..1
    if pixels.dtype.kind == "f" and pixels.size and pixels.min() > -half and pixels.max() < 1 + half:  # false for NaN
        pixels = np.rint(pixels * 255).clip(0, 255).astype(np.uint8)
    if pixels.dtype == np.uint8:
        return pixels
    values = f" from {pixels.min():g} to {pixels.max():g}" if pixels.dtype.kind in "iuf" and pixels.size else ""
    raise ValueError(
        f"expected pixels in uint8 (0 to 255) or floats (0 to 1), not yet normalised; got {pixels.dtype}{values} of "
        f"shape {pixels.shape}"
    )


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"

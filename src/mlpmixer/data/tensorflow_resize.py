"""How the official code resizes an image for evaluation: filters that Pillow does not have.

Sources: google-research/vision_transformer @ c6de1e5 (input_pipeline) and google-research/big_vision @ 0127fb6
(preprocessing ops), both on TensorFlow's `tf.image.resize` with antialias off. Letters: (h, w, C) the given uint8
pixels, (H, W) the model's size.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.images import MAX_PIXELS, ImageError, Pixels

Size = tuple[int, int]


def size_before_crop(size: Size) -> Size:
    """256 for 224, as in big_vision and timm, and in proportion for other sizes, rounded down."""
    return size[0] * 8 // 7, size[1] * 8 // 7


def require_size_limit(resized: Size) -> None:
    """ImageError for a strip so long that, with its short side resized, it exceeds the limit for images."""
    if resized[0] * resized[1] > MAX_PIXELS:
        raise ImageError(
            f"too long and narrow: resized to {resized[1]}x{resized[0]} px it is over the limit of {MAX_PIXELS:,} px"
        )


def vit_jax_eval(pixels: NDArray[np.uint8], size: Size) -> Pixels:
    """(h, w, C) -> float32 (H, W, C) in 0..255: squashed, bilinear, not rounded (vision_transformer's fine-tuning)."""
    return bilinear(pixels, size)


def bv_resize_crop(pixels: NDArray[np.uint8], size: Size) -> Pixels:
    """(h, w, C) -> uint8 (H, W, C): squashed, bilinear, truncated, centre cut (big_vision's few-shot evaluation)."""
    larger = bilinear(pixels, size_before_crop(size)).astype(np.uint8)
    top, left = ((have - want) // 2 for have, want in zip(larger.shape, size, strict=False))
    return larger[top : top + size[0], left : left + size[1]].copy()


def bv_resmall_crop(pixels: NDArray[np.uint8], size: Size) -> Pixels:
    """(h, w, C) -> uint8 (H, W, C): covered, "area", truncated, centre cut (big_vision's ImageNet evaluation)."""
    sides = [np.float32(n) for n in pixels.shape[:2]]  # the official sizes come from float32
    ratio = max(np.float32(wanted) / n for wanted, n in zip(size_before_crop(size), sides, strict=True))
    resized = int(np.rint(sides[0] * ratio)), int(np.rint(sides[1] * ratio))
    require_size_limit(resized)
    return area_centre(pixels, resized, size)


RULES: dict[str, Callable[[NDArray[np.uint8], Size], Pixels]] = {
    "vit_jax_eval": vit_jax_eval,
    "bv_resmall_crop": bv_resmall_crop,
    "bv_resize_crop": bv_resize_crop,
}


def bilinear(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.float32]:
    """(h, w, C) -> float32 (H, W, C) with half-pixel centres and without antialiasing.

    The order and the precision are TensorFlow's, since truncation shows the last bit.
    """
    (upper, lower, down), (left, right, across) = (_neighbours(n, m) for n, m in zip(pixels.shape, size, strict=False))
    above, below = (_lerp(rows[:, left], rows[:, right], across[:, None]) for rows in (pixels[upper], pixels[lower]))
    return _lerp(above, below, down[:, None, None])


def _neighbours(n: int, m: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each of m new pixels over n old ones: the two old pixels around its centre, and its place between them."""
    centres = (np.arange(m, dtype=np.float32) + np.float32(0.5)) * (np.float32(n) / np.float32(m)) - np.float32(0.5)
    centres = centres.clip(0, n - 1)
    first = np.floor(centres)
    return first.astype(np.intp), np.ceil(centres).astype(np.intp), centres - first


def _lerp(a: NDArray[Any], b: NDArray[Any], share: NDArray[np.float32]) -> NDArray[np.float32]:
    start = a.astype(np.float32)
    return start + (b.astype(np.float32) - start) * share


def area_centre(pixels: NDArray[np.uint8], resized: Size, size: Size) -> NDArray[np.uint8]:
    """(h, w, C) -> uint8 (H, W, C): the centre of the image resized to `resized` by a box filter, truncated.

    Each new pixel is the mean over its rectangle of the old image, where parts of pixels count as parts. The order and
    the precision are TensorFlow's: where the weights add up to just under 1, a flat area loses one level.
    """
    (rows, down, tall), (columns, across, wide) = (
        _boxes(*sizes) for sizes in zip(pixels.shape, resized, size, strict=False)
    )
    top, bottom = rows.min(), rows.max() + 1
    narrow = _weighted_sum(pixels[top:bottom].swapaxes(0, 1), columns, across).swapaxes(0, 1)  # (needed rows, W, C)
    return (_weighted_sum(narrow, rows - top, down) * (np.float32(1) / (tall * wide))).astype(np.uint8)


def _boxes(n: int, m: int, kept: int) -> tuple[NDArray[np.intp], NDArray[np.float32], np.float32]:
    """The middle `kept` of m new pixels over n old ones: (old pixels, their shares), both (kept, most), and n / m."""
    scale = np.float32(n) / np.float32(m)
    new = np.arange((m - kept) // 2, (m - kept) // 2 + kept)[:, None]
    start, end = new.astype(np.float32) * scale, (new + 1).astype(np.float32) * scale
    first, last = np.floor(start), np.ceil(end)
    old = first + np.arange((last - first).max(), dtype=np.float32)
    inside = np.where(
        old < start, np.where(old + 1 > end, scale, old + 1 - start), np.where(old + 1 > end, end - old, np.float32(1))
    )
    return old.clip(max=n - 1).astype(np.intp), np.where(old < last, inside, np.float32(0)), scale


def _weighted_sum(values: NDArray[Any], picked: NDArray[np.intp], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, other, C) -> float32 (kept, other, C): the sum of weights[:, k] times values[picked[:, k]], k after k."""
    total = np.zeros((len(picked), *values.shape[1:]), np.float32)
    for k in range(picked.shape[1]):
        total += values[picked[:, k]].astype(np.float32) * weights[:, k, None, None]
    return total

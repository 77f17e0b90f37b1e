"""RandAugment and TrivialAugment on batches: each operation is applied once, to all images that drew it.

Letters: n images, C channels, h, w pixels. Images are (n,C,h,w) uint8 on any device; values are (n,) float64 on the CPU
or on the images' device, in the unit of the operation. Operations that Pillow has equal Pillow's to one grey level.
Warps take the nearest pixel, as all the sources do.

RandAugment: Cubuk et al. 2020, arXiv:1909.13719. TrivialAugment: Mueller and Hutter 2021, arXiv:2103.10158. Neither
paper says in full what an operation does at which magnitude: torchvision's transforms/autoaugment.py is one form,
big_vision's pp/autoaugment.py another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mlpmixer.training.batches import RowRange, row_range

Form = Literal["torchvision", "big_vision"]
Source = torch.Generator | torch.device
"""Where random numbers come from: a generator, or the global generator of a device, which puts them there."""

BINS = 30  # steps of magnitude: torchvision's num_magnitude_bins less one; TrivialAugment's 31 strengths
BIG_VISION_SCALE = 10  # its _MAX_LEVEL, a unit and not a maximum: the published runs have 10, 15 and 20
BIG_VISION_PX = 224  # the size of all of them; what is in pixels there is that share of the side here
BIG_VISION_GREY = 196  # 224 * 224 / 256: its contrast divides the number of pixels, not their sum (its issue 109)


@dataclass(frozen=True)
class Op:
    """An operation and its value: linear from `start` at level 0 to `end` at level 1; if signed, either way."""

    apply: Callable[..., Tensor]
    start: float = 0.0
    end: float = 0.0
    signed: bool = False
    placed: bool = False
    """Whether it takes a place, (n,2) uniform in 0..1."""


def device_of(source: Source) -> torch.device:
    return source if isinstance(source, torch.device) else source.device


def draw(function: Callable[..., Tensor], args: tuple[object, ...], source: Source, **kwargs: object) -> Tensor:
    """function(*args) of torch.rand, torch.randn or torch.randint with the numbers of `source`, on its device."""
    if isinstance(source, torch.Generator):
        kwargs["generator"] = source
    return function(*args, device=device_of(source), **kwargs)


def randaugment(
    images: Tensor, layers: int, magnitude: int, form: Form, source: Source, rows: RowRange | None = None
) -> Tensor:
    """`layers` operations on each image, one after the other, of magnitude 0..30 (torchvision) or 0..20 (big_vision).

    rows: the images are those rows of a larger batch, each with the operations that it has there.
    """
    h, w = images.shape[2:]
    if form == "big_vision":
        ops, level = big_vision_ops(h, w), magnitude / BIG_VISION_SCALE
    else:  # ranges of torchvision.transforms.RandAugment; 150 / 331: AutoAugment's 150 px at NASNet's 331
        ops = torchvision_ops(
            shear=0.3, down_px=150 / 331 * h, right_px=150 / 331 * w, rotate_deg=30, enhance=0.9, bits=4
        )
        level = magnitude / BINS
    for _ in range(layers):
        levels = torch.full((len(images),), level, dtype=torch.float64, device=device_of(source))
        images = one_of(ops, images, levels, source, rows)
    return images


def trivialaugment(images: Tensor, source: Source, rows: RowRange | None = None) -> Tensor:
    """One operation of random strength on each image: the paper's Wide space, with shifts of up to 32 px."""
    # torchvision's TrivialAugmentWide
    ops = torchvision_ops(shear=0.99, down_px=32, right_px=32, rotate_deg=135, enhance=0.99, bits=2)
    rows = rows or row_range(len(images))
    levels = rows.take(draw(torch.randint, (BINS + 1, (rows.batch_size,)), source)).double() / BINS
    return one_of(ops, images, levels, source, rows)


def one_of(ops: dict[str, Op], images: Tensor, levels: Tensor, source: Source, rows: RowRange | None = None) -> Tensor:
    """Each image after one of `ops` at its level (n,). What an image draws does not depend on the others."""
    rows = rows or row_range(len(images))
    which = rows.take(draw(torch.randint, (len(ops), (rows.batch_size,)), source))
    sign = 2 * rows.take(draw(torch.randint, (2, (rows.batch_size,)), source)) - 1
    place = rows.take(draw(torch.rand, ((rows.batch_size, 2),), source))
    return (for_all if isinstance(source, torch.device) else for_some)(ops, images, which, levels, sign, place)


def for_some(ops: dict[str, Op], images: Tensor, which: Tensor, levels: Tensor, sign: Tensor, place: Tensor) -> Tensor:
    """Apply each operation to the images that drew it. The numbers (n,) are on the CPU, which has to count them."""
    images = images.clone()
    for k, op in enumerate(ops.values()):
        at = (which == k).nonzero()[:, 0]
        if len(at):
            values = op.start + levels[at] * (sign[at] if op.signed else 1) * (op.end - op.start)
            here = at.to(images.device)
            images.index_copy_(0, here, op.apply(images[here], values, *([place[at]] if op.placed else [])))
    return images


def for_all(ops: dict[str, Op], images: Tensor, which: Tensor, levels: Tensor, sign: Tensor, place: Tensor) -> Tensor:
    """The same without waiting for the device: each operation is applied to all images, most results unused."""
    for k, op in enumerate(ops.values()):
        values = op.start + levels * (sign if op.signed else 1) * (op.end - op.start)
        changed = op.apply(images, values, *([place] if op.placed else []))
        images = torch.where((which == k)[:, None, None, None], changed, images)
    return images


def torchvision_ops(
    *, shear: float, down_px: float, right_px: float, rotate_deg: float, enhance: float, bits: int
) -> dict[str, Op]:
    """The 14 operations of torchvision's RandAugment and TrivialAugmentWide by their largest values; fill is black."""
    return {
        "identity": Op(lambda images, _: images),
        "shear_x": Op(shear_x, 0, shear, signed=True),
        "shear_y": Op(shear_y, 0, shear, signed=True),
        "translate_x": Op(translate_x, 0, right_px, signed=True),
        "translate_y": Op(translate_y, 0, down_px, signed=True),
        "rotate": Op(rotate, 0, rotate_deg, signed=True),
        "brightness": Op(brightness, 1, 1 + enhance, signed=True),
        "color": Op(color, 1, 1 + enhance, signed=True),
        "contrast": Op(contrast, 1, 1 + enhance, signed=True),
        "sharpness": Op(sharpness, 1, 1 + enhance, signed=True),
        "posterize": Op(lambda images, kept: posterize(images, kept.round()), 8, bits),
        "solarize": Op(solarize, 255, 0),
        "autocontrast": Op(autocontrast),
        "equalize": Op(equalize),
    }


def big_vision_ops(h: int, w: int) -> dict[str, Op]:
    """The 16 operations of big_vision's RandAugment with their quirks; fill is grey.

    Posterize keeps more bits at larger magnitudes (one bit at 0, 6 bits at 15). The threshold of solarize grows as well
    and wraps at 256: 128 at magnitude 15, while at 0, 10 and 20 the whole image is inverted. Contrast pulls towards a
    constant. Enhancements are not signed: factor 0.1 at magnitude 0, 1 at 5, 2.8 at 15. Shifts at 15: 150 of 224 px.
    """
    grey = 128  # replace_value there; the 100 and 40 below are translate_const and cutout_const
    return {
        "autocontrast": Op(autocontrast),
        "equalize": Op(equalize),
        "invert": Op(lambda images, _: 255 - images),
        "rotate": Op(partial(rotate, fill=grey), 0, 30, signed=True),
        "posterize": Op(lambda images, bits: posterize(images, bits.floor().clamp(min=1)), 0, 4),  # TF shifts by <= 7
        "solarize": Op(lambda images, limit: solarize(images, limit.floor() % 256), 0, 256),  # its issue 110
        "color": Op(color, 0.1, 1.9),
        "contrast": Op(partial(contrast, grey=BIG_VISION_GREY), 0.1, 1.9),
        "brightness": Op(brightness, 0.1, 1.9),
        "sharpness": Op(sharpness, 0.1, 1.9),
        "shear_x": Op(partial(shear_x, fill=grey), 0, 0.3, signed=True),
        "shear_y": Op(partial(shear_y, fill=grey), 0, 0.3, signed=True),
        "translate_x": Op(partial(translate_x, fill=grey), 0, 100 * w / BIG_VISION_PX, signed=True),
        "translate_y": Op(partial(translate_y, fill=grey), 0, 100 * h / BIG_VISION_PX, signed=True),
        "cutout": Op(partial(cutout, fill=grey), 0, 40 * min(h, w) / BIG_VISION_PX, placed=True),
        "solarize_add": Op(lambda images, more: solarize_add(images, more.floor()), 0, 110),
    }


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel so that its darkest pixel is 0 and its lightest 255: Pillow's ImageOps.autocontrast."""
    levels, flat = _levels(images), images.flatten(2).int()  # torch.compile has amin of uint8 wrong on a CPU (2.13)
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)  # (n,C,1)
    stretched = (levels - low) * 255 // (high - low).clamp(min=1)
    return _look_up(images, torch.where(high > low, stretched.clamp(0, 255), levels))


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Flatten each channel's histogram: Pillow's ImageOps.equalize."""
    n, channels = images.shape[:2]
    levels, index = _levels(images), images.flatten(2).long()
    counts = torch.zeros((n, channels, 256), dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, index, torch.ones((), dtype=torch.int32, device=images.device).expand_as(index))
    lightest = images.flatten(2).amax(2, keepdim=True).long()
    step = (index.shape[2] - counts.gather(2, lightest)) // 255  # (n,C,1)
    below = counts.cumsum(2, dtype=torch.int32) - counts
    flat = (below + step // 2) // step.clamp(min=1)
    return _look_up(images, torch.where(step > 0, flat.clamp(max=255), levels))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits` (n,), whole numbers in 0..8, of every value: Pillow's ImageOps.posterize."""
    return images & _each(256 - 2 ** (8 - bits), images, torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert values from `threshold` (n,), in 0..255, on: Pillow's ImageOps.solarize."""
    return torch.where(images < _each(threshold.ceil(), images, torch.uint8), images, 255 - images)


def solarize_add(images: Tensor, more: Tensor) -> Tensor:
    """Add `more` (n,), in 0..255, to the dark half of the values, below 128."""
    added = (_each(more, images, torch.int16) + images).clamp_(max=255).to(torch.uint8)
    return torch.where(images < 128, added, images)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Pillow's ImageEnhance.Brightness by `factor` (n,): from black."""
    return _blend(torch.zeros((), device=images.device), images, factor)


def contrast(images: Tensor, factor: Tensor, grey: int | None = None) -> Tensor:
    """Pillow's ImageEnhance.Contrast by `factor` (n,): from the mean grey level, or from `grey`."""
    mean = (_grey(images).float().mean((2, 3), keepdim=True) + 0.5).floor()  # (n,1,1,1)
    return _blend(mean if grey is None else torch.full_like(mean, grey), images, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Pillow's ImageEnhance.Color by `factor` (n,): from the grey image. Only for three channels."""
    return _blend(_grey(images).float(), images, factor) if images.shape[1] == 3 else images


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Pillow's ImageEnhance.Sharpness by `factor` (n,): from the smoothed image, whose border is not smoothed."""
    smooth = images.float()
    middle = smooth[:, :, 1:-1, 1:-1]
    rows = smooth[..., :-2] + smooth[..., 1:-1] + smooth[..., 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * middle  # Pillow's SMOOTH: ones around a five
    middle.copy_(box.div_(13).add_(0.5).floor_())
    return _blend(smooth, images, factor)


def shear_x(images: Tensor, tangent: Tensor, fill: int = 0) -> Tensor:
    """Rows slide by `tangent` (n,) times their distance from the top."""
    return _warp(images, _matrix(tangent, xy=tangent), fill)


def shear_y(images: Tensor, tangent: Tensor, fill: int = 0) -> Tensor:
    """Columns slide by `tangent` (n,) times their distance from the left."""
    return _warp(images, _matrix(tangent, yx=tangent), fill)


def translate_x(images: Tensor, px: Tensor, fill: int = 0) -> Tensor:
    """Shift by `px` (n,) cut to whole pixels, to the left if positive."""
    return _warp(images, _matrix(px, x=px.trunc()), fill)


def translate_y(images: Tensor, px: Tensor, fill: int = 0) -> Tensor:
    """Shift by `px` (n,) cut to whole pixels, up if positive."""
    return _warp(images, _matrix(px, y=px.trunc()), fill)


def rotate(images: Tensor, degrees: Tensor, fill: int = 0) -> Tensor:
    """Turn counter-clockwise about the centre by `degrees` (n,): Pillow's image.rotate."""
    h, w = images.shape[2:]
    cos, sin = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    x, y = w / 2 - cos * w / 2 + sin * h / 2, h / 2 - sin * w / 2 - cos * h / 2  # so that the centre stays
    return _warp(images, _matrix(degrees, xx=cos, xy=-sin, x=x, yx=sin, yy=cos, y=y), fill)


def cutout(images: Tensor, half_px: Tensor, place: Tensor, fill: int = 0) -> Tensor:
    """Overwrite a square of twice `half_px` (n,), centred at `place` (n,2) in 0..1 (DeVries and Taylor 2017)."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for axis, side in enumerate(images.shape[2:]):
        centre, pad = (place[:, axis] * side).floor(), half_px.floor()
        low, high = (_each(bound, images, torch.int32) for bound in (centre - pad, centre + pad))
        at = torch.arange(side, dtype=torch.int32, device=images.device).view(-1, *[1] * (1 - axis))
        inside = inside & (at >= low) & (at < high)
    return images.masked_fill(inside, fill)


def _warp(images: Tensor, matrices: Tensor, fill: int) -> Tensor:
    """Pillow's image.transform(AFFINE, NEAREST): matrices (n,2,3) map an output place (x, y, 1) to the input's."""
    n, channels, h, w = images.shape
    device = images.device
    y, x = torch.arange(h, device=device)[:, None] + 0.5, torch.arange(w, device=device)[None, :] + 0.5
    to_x, to_y = matrices.to(device, torch.float32)[..., None, None].unbind(1)  # (n,3,1,1)
    column, row = ((m[:, 0] * x + m[:, 1] * y + m[:, 2]).floor() for m in (to_x, to_y))  # (n,h,w)
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    index = (row * w + column).long().masked_fill_(~inside, 0).view(n, 1, h * w).expand(n, channels, h * w)
    return images.flatten(2).gather(2, index).view_as(images).masked_fill_(~inside[:, None], fill)


def _matrix(like: Tensor, *, xx: Tensor | float = 1, xy: Tensor | float = 0, x: Tensor | float = 0,
            yx: Tensor | float = 0, yy: Tensor | float = 1, y: Tensor | float = 0) -> Tensor:  # fmt: skip
    return torch.stack([torch.zeros_like(like) + part for part in (xx, xy, x, yx, yy, y)], 1).view(-1, 2, 3)


def _blend(start: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """start + factor * (images - start), clipped and cut to whole levels as Pillow does."""
    return (images - start).mul_(_each(factor, images, torch.float32)).add_(start).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """(n,C,h,w) -> (n,1,h,w) int32: Pillow's convert("L") for three channels, else their mean."""
    if images.shape[1] != 3:
        return images.float().mean(1, keepdim=True).round().int()
    red, green, blue = images.int()[:, :, None].unbind(1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16  # ITU-R 601-2 in 16 bits


def _levels(images: Tensor) -> Tensor:
    return torch.arange(256, dtype=torch.int32, device=images.device)


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Every value replaced by its entry in its channel's table (n,C,256)."""
    return tables.to(torch.uint8).gather(2, images.flatten(2).long()).view_as(images)


def _each(values: Tensor, images: Tensor, dtype: torch.dtype) -> Tensor:
    """(n,) on the CPU -> (n,1,1,1) beside the images."""
    return values.to(dtype).to(images.device)[:, None, None, None]

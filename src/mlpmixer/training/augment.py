"""Augmentation of whole batches: `augment` changes single images, `mix` mixes pairs.

Both draw random parameters and pass them to functions that have no randomness of their own.

Letters: B batch, H, W stored height, width, h, w the model's, C channels, K classes. Pixels are 0..255 throughout.
Boxes are rows of (top, left, height, width) in pixels. Nothing loops over images, and pixels stay on their device.
Random numbers come from a CPU generator, so that a batch is a function of its seed and not of the device. On CUDA,
`augment` draws from the device's global generator instead: other numbers, and nothing that the host would wait for.
"""

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mlpmixer.data.preprocess import Preprocess, standardise
from mlpmixer.training.batches import RowRange, row_range
from mlpmixer.training.device_store import to_device
from mlpmixer.training.randaugment import Source, device_of, draw, randaugment, trivialaugment
from mlpmixer.training.recipe import Augment

Size = tuple[int, int]
PadMode = Literal["reflect", "constant"]

ATTEMPTS = 10  # boxes drawn per image, the first that fits is taken: torchvision's RandomResizedCrop and RandomErasing
CROP_ASPECT = (3 / 4, 4 / 3)  # Inception crop, Szegedy et al. 2015, section 6
ERASING_AREA = (0.02, 0.33)  # torchvision and timm; Zhong et al. 2017 use 0.02 to 0.4
ERASING_ASPECT = (0.3, 1 / 0.3)  # Zhong et al. 2017, section 4
GREY = (0.299, 0.587, 0.114)  # ITU-R 601-2, Pillow's convert("L")


def augment(images: Tensor, cfg: Augment, size: Size, source: Source, rows: RowRange | None = None) -> Tensor:
    """Training images (B,H,W,C) -> float32 (B,C,h,w) in 0..255, by the fields of `cfg` in their order, mixing left out.

    Images come as uint8, or as float32 in 0..255. A field that is off draws nothing and does nothing. Stored images may
    be larger than `size`: an Inception crop is resampled from the whole of them; otherwise a window of `size` is cut at
    a random place (`pad_crop_px` widens the range of places by that border). RandAugment and TrivialAugment round to
    whole levels first. With everything off and images of `size`, the result is exactly the images.

    source: a CPU generator, or the images' device. Drawing from a device makes the host wait for nothing, and can be
    compiled as a whole.
    rows: the images are those rows of a larger batch; each becomes what it is there.

    Errors: ValueError for other shapes, and for images smaller than `size` that no Inception crop enlarges.
    """
    if images.ndim != 4:
        raise ValueError(f"expected images (B,H,W,C), got {tuple(images.shape)}")
    images = images.permute(0, 3, 1, 2)  # (B,C,H,W), a view
    rows = rows or row_range(len(images))
    n = rows.batch_size

    if cfg.inception_crop:
        images = resized_crop(
            images, rows.take(draw_crop_boxes(n, _size(images), size, cfg.inception_crop, source)), size
        )

    larger = [stored - wanted for stored, wanted in zip(_size(images), size, strict=True)]
    if min(larger) < 0:
        raise ValueError(
            f"stored images of {images.shape[2]}x{images.shape[3]} px are smaller than the model's {size[0]}x{size[1]} "
            "px; store them at least that large (data.train_scale=1) or set augment.inception_crop"
        )
    free = [px + 2 * cfg.pad_crop_px for px in larger]
    if any(free) or cfg.flip:
        still = torch.zeros(n, dtype=torch.int64, device=device_of(source))
        top, left = (rows.take(_integers(n, space + 1, source) if space else still) for space in free)
        mirror = rows.take(draw(torch.rand, (n,), source)) < 0.5 if cfg.flip else None
        images = crop(images, top, left, size, mirror=mirror, pad_px=cfg.pad_crop_px, pad_mode=cfg.pad_mode)
    if cfg.randaugment_layers or cfg.trivialaugment:
        images = (images.round().clamp(0, 255) if images.is_floating_point() else images).to(torch.uint8)
    if cfg.randaugment_layers:
        images = randaugment(
            images, cfg.randaugment_layers, cfg.randaugment_magnitude, cfg.randaugment_form, source, rows
        )
    if cfg.trivialaugment:
        images = trivialaugment(images, source, rows)
    if not (cfg.inception_crop and images.is_floating_point()):  # floats of our own making
        images = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)  # (B,C,h,w)

    if cfg.rotate_deg or cfg.zoom or cfg.zoom_out or cfg.shear:
        matrices = draw_affine(n, cfg.rotate_deg, cfg.zoom, cfg.shear, source, zoom_out=cfg.zoom_out)
        images = affine(images, rows.take(matrices), cfg.pad_mode)
    if cfg.invert:
        images = negative(images, rows.take(draw(torch.rand, (n,), source)) < cfg.invert)
    if cfg.color_jitter:
        low = max(0.0, 1 - cfg.color_jitter)
        images = jitter(images, *(rows.take(_uniform(n, low, 1 + cfg.color_jitter, source)) for _ in range(3)))
    if cfg.noise:
        images = add_noise(images, rows.take(draw(torch.randn, (n, *images.shape[1:]), source)), cfg.noise)
    if cfg.erasing:
        struck = draw(torch.rand, (n,), source) < cfg.erasing
        if isinstance(source, torch.device):  # asking how many were struck would wait for the device
            boxes = draw_erasing_boxes(n, size, source) * struck[:, None]
            fill = draw(torch.randint, (0, 256, (n, *images.shape[1:])), source, dtype=torch.uint8)
            return erase(images, rows.take(boxes), rows.take(fill))
        boxes = draw_erasing_boxes(int(struck.sum()), size, source)
        fill = draw(torch.randint, (0, 256, (len(boxes), *images.shape[1:])), source, dtype=torch.uint8)
        chosen = rows.take(struck).nonzero()[:, 0]
        drawn = rows.take(struck.cumsum(0) - 1)[chosen]  # the boxes of the images here
        chosen = chosen.to(images.device)
        images.index_copy_(0, chosen, erase(images[chosen], boxes[drawn], fill[drawn]))
    return images


def mix(
    images: Tensor, targets: Tensor, cfg: Augment, generator: torch.Generator, rows: RowRange | None = None
) -> tuple[Tensor, Tensor]:
    """Images (B,C,h,w) and targets (B,K) after mixup or CutMix, or as they are; with `rows`, only the local ones.

    Every image draws a proportion; its partner is the next of the batch, and the first for the last. So `rows` must go
    on to the partner of the last local row. `generator` is on the CPU.
    """
    if len(images) != len(targets):
        raise ValueError(f"expected as many images as targets, got {len(images)} and {len(targets)}")
    rows = rows or row_range(len(images))
    local = rows.num_local
    if not ((cfg.mixup or cfg.cutmix) and float(torch.rand((), generator=generator)) < cfg.mix_probability):
        return images[:local], targets[:local]
    takes_mixup = not cfg.cutmix or bool(cfg.mixup and float(torch.rand((), generator=generator)) < 0.5)
    partner = torch.arange(1, local + 1, device=images.device) % len(images)
    share = _beta(rows.batch_size, cfg.mixup if takes_mixup else cfg.cutmix, generator)
    if takes_mixup:
        return mixup(images, targets, to_device(rows.take(share)[:local], images.device), partner)
    boxes = draw_cutmix_boxes(share, _size(images), generator)
    return cutmix(images, targets, to_device(rows.take(boxes)[:local], images.device), partner)


def prepare_eval(images: Tensor) -> Tensor:
    """(B,H,W,C) uint8 or float32 -> float32 (B,C,H,W), contiguous, still 0..255."""
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def resize(images: Tensor, size: Size) -> Tensor:
    """(B,C,H,W) float -> (B,C,h,w), antialiased bilinear as in Pillow, but not rounded; unchanged if of that size."""
    return images if _size(images) == size else F.interpolate(images, size, mode="bilinear", antialias=True)


def normalise(images: Tensor, preprocess: Preprocess) -> Tensor:
    """(B,C,h,w) in 0..255 -> (x / 255 - mean) / std per channel, a new tensor.

    Errors: ValueError when `preprocess` has another number of channels, and more than one.
    """
    return standardise(images, *statistics(preprocess, images.shape[1], images.device))


def statistics(preprocess: Preprocess, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(mean, std) of `preprocess` as `standardise` takes them, on the device. Errors as in `normalise`."""
    if preprocess.in_channels not in (1, channels):
        raise ValueError(f"the preprocessing is for {preprocess.in_channels} channels, but the images have {channels}")
    mean, std = (to_device(torch.from_numpy(values), device) for values in preprocess.statistics)
    return mean, std


def crop(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    size: Size,
    *,
    mirror: Tensor | None = None,
    pad_px: int = 0,
    pad_mode: PadMode = "reflect",
) -> Tensor:
    """(B,C,H,W) -> windows (B,C,h,w), any dtype: pad by `pad_px`, cut at (top, left) of the padded image, mirror some.

    Padding is numpy.pad's reflect, or constant 0 (black). `top`, `left` are (B,) integers, `mirror` is (B,) bool. One
    gather does it all.
    """
    (h, w), device = size, images.device
    if pad_px and pad_mode == "constant":
        images, pad_px = F.pad(images, (pad_px,) * 4), 0
    n, channels, height, width = images.shape
    ys, xs = torch.arange(h, device=device), torch.arange(w, device=device)
    rows = _reflect(top[:, None].to(device) + ys - pad_px, height)  # (B,h)
    xs = xs if mirror is None else torch.where(mirror[:, None].to(device), w - 1 - xs, xs)
    columns = _reflect(left[:, None].to(device) + xs - pad_px, width)  # (B,w)
    index = rows[:, :, None] * width + columns[:, None, :]  # (B,h,w)
    index = index.reshape(n, 1, h * w).expand(n, channels, h * w)
    return images.reshape(n, channels, height * width).gather(2, index).view(n, channels, h, w)


def resized_crop(images: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """(B,C,H,W) -> float32 (B,C,h,w): each image's box, resampled to `size` with an antialiased bilinear filter.

    Equals Pillow's `image.resize((w, h), BILINEAR, box=...)` without its rounding: boxes (B,4) may have fractions, and
    a box larger than `size` is averaged over (the filter widens with the scale). The filter is separable: two batched
    matrix products.
    """
    n, channels, height, width = images.shape
    (h, w), boxes = size, boxes.to(images.device, torch.float32)
    by_rows = images.permute(0, 2, 3, 1).reshape(n, height, width * channels).float()
    tall = torch.bmm(_triangle(boxes[:, 0], boxes[:, 2], height, h), by_rows).view(n, h, width, channels)
    across = _triangle(boxes[:, 1], boxes[:, 3], width, w)  # (B,w,W)
    return torch.bmm(tall.permute(0, 3, 1, 2).reshape(n, channels * h, width), across.transpose(1, 2)).view(
        n, channels, h, w
    )


def affine(images: Tensor, matrices: Tensor, pad_mode: PadMode = "reflect") -> Tensor:
    """(B,C,h,w) float -> the same shape, bilinear. Not antialiased: meant for mild zooms.

    `matrices` (B,2,2) map an output pixel's (x, y) offset from the centre to the input's. What lies outside the image
    is reflected about the border, or 0 for constant.
    """
    h, w = _size(images)
    (xx, xy), (yx, yy) = (row.unbind(1) for row in matrices.to(images.device, torch.float32).unbind(1))
    theta = torch.stack([xx, xy * (h / w), yx * (w / h), yy], 1)  # grid_sample counts in half widths and half heights
    theta = F.pad(theta.view(-1, 2, 2), (0, 1))  # (B,2,3), no shift
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    outside = "reflection" if pad_mode == "reflect" else "zeros"
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=False)


def negative(images: Tensor, struck: Tensor) -> Tensor:
    """255 - x where `struck` (B,) is true."""
    return torch.where(struck.to(images.device)[:, None, None, None], 255 - images, images)


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Brightness, then contrast, then saturation by factors (B,): Pillow's ImageEnhance without its rounding.

    Each is clipped to 0..255. Contrast scales the distance to the image's mean grey level, saturation that to the
    pixel's grey level. Grey is Pillow's L for 3 channels, otherwise the mean of the channels. Saturation needs 3
    channels, and does nothing with another number.
    """
    b, c, s = (f.to(images.device, images.dtype)[:, None, None, None] for f in (brightness, contrast, saturation))
    images = (images * b).clamp_(0, 255)
    mean = _grey(images).mean((2, 3), keepdim=True)  # (B,1,1,1)
    images = torch.lerp(mean, images, c).clamp_(0, 255)
    if images.shape[1] == 3:
        images = torch.lerp(_grey(images), images, s).clamp_(0, 255)
    return images


def add_noise(images: Tensor, standard_normal: Tensor, deviation: float) -> Tensor:
    """Images plus noise of standard deviation `deviation` * 255, clipped to 0..255."""
    return torch.add(images, standard_normal.to(images.device), alpha=255 * deviation).clamp_(0, 255)


def erase(images: Tensor, boxes: Tensor, fill: Tensor) -> Tensor:
    """(B,C,h,w) with each image's box (B,4) overwritten by that place of `fill` (B,C,h,w); an empty box erases none."""
    return torch.where(_inside(boxes, images)[:, None], fill.to(images.device, images.dtype), images)


def mixup(images: Tensor, targets: Tensor, share: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """share * x + (1 - share) * x[partner], for images and targets. Zhang et al. 2018, equation (1).

    `share`, `partner` are (b,): the first b of the B images are mixed and returned.
    """
    partner, weight = partner.to(images.device), share.to(images.device, images.dtype)[:, None, None, None]
    return torch.lerp(images[partner], images[: len(partner)], weight), _mix_targets(targets, share, partner)


def cutmix(images: Tensor, targets: Tensor, boxes: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Each image with a box from its partner, and targets mixed by the pixels pasted. Yun et al. 2019, equation (1).

    `boxes` are (b,4), `partner` is (b,): the first b of the B images are mixed and returned. Boxes that reach over the
    border are clipped, and the share is counted after that.
    """
    partner, inside = partner.to(images.device), _inside(boxes, images)
    share = (~inside).sum((1, 2)) / inside[0].numel()
    return torch.where(inside[:, None], images[partner], images[: len(partner)]), _mix_targets(targets, share, partner)


def draw_crop_boxes(n: int, stored: Size, size: Size, min_share: float, source: Source) -> Tensor:
    """Boxes (n,4) in images of `stored` pixels: area share uniform in [min_share, 1], aspect log-uniform in 3/4 .. 4/3.

    The aspect is relative to that of `size`: it is the distortion of the crop. Where none of 10 draws fits, the box is
    the largest centred one of an allowed aspect.
    """
    height, width = stored
    ratio = size[1] / size[0]
    area = _uniform((n, ATTEMPTS), min_share, 1, source) * height * width
    aspect = ratio * _log_uniform((n, ATTEMPTS), *CROP_ASPECT, source)
    h, w = (area / aspect).sqrt(), (area * aspect).sqrt()
    fits = (h <= height) & (w <= width)
    pick = fits.int().argmax(1, keepdim=True)  # the first that fits
    largest = min(height, width / (ratio * CROP_ASPECT[0])), min(width, height * ratio * CROP_ASPECT[1])
    found = fits.any(1)
    h, w = (torch.where(found, side.gather(1, pick)[:, 0], limit) for side, limit in zip((h, w), largest, strict=True))
    y, x = draw(torch.rand, (2, n), source)
    y, x = (torch.where(found, place, 0.5) for place in (y, x))
    return torch.stack([y * (height - h), x * (width - w), h, w], 1)


def draw_affine(
    n: int, rotate_deg: float, zoom: float, shear: float, source: Source, *, zoom_out: float = 0.0
) -> Tensor:
    """Matrices (n,2,2) for `affine` that turn the content counter-clockwise, then zoom it, then shear it."""
    eye = torch.eye(2, device=device_of(source))
    matrices = eye.expand(n, 2, 2)  # output -> input: the inverse steps, the last one applied to the output first
    if rotate_deg:
        angle = torch.deg2rad(_uniform(n, -rotate_deg, rotate_deg, source))
        cos, sin = angle.cos(), angle.sin()
        matrices = torch.stack([cos, -sin, sin, cos], 1).view(n, 2, 2)
    if zoom:
        matrices = matrices * _uniform((n, 1, 2), -zoom, zoom, source).exp()
    if zoom_out:
        matrices = matrices * _uniform((n, 1, 1), 0, zoom_out, source).exp()
    if shear:
        lean = F.pad(_uniform((n, 1, 1), -shear, shear, source), (1, 0, 0, 1))  # (n,2,2), only (0,1) is not 0
        matrices = matrices @ (eye + lean)
    return matrices


def draw_erasing_boxes(n: int, size: Size, source: Source) -> Tensor:
    """Integer boxes (n,4): area share uniform in 2-33 %, aspect log-uniform in 0.3 .. 1/0.3; empty if no draw fits."""
    h, w = size
    area = _uniform((n, ATTEMPTS), *ERASING_AREA, source) * h * w
    aspect = _log_uniform((n, ATTEMPTS), *ERASING_ASPECT, source)
    tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    share = tall * wide / (h * w)
    fits = (tall <= h) & (wide <= w) & (share >= ERASING_AREA[0]) & (share <= ERASING_AREA[1])
    pick = fits.int().argmax(1, keepdim=True)
    tall, wide = (torch.where(fits.any(1), side.gather(1, pick)[:, 0], 0) for side in (tall, wide))
    y, x = draw(torch.rand, (2, n), source)
    top, left = (y * (h - tall + 1)).floor().clamp(max=h - 1), (x * (w - wide + 1)).floor().clamp(max=w - 1)
    return torch.stack([top, left, tall, wide], 1).long()


def draw_cutmix_boxes(share: Tensor, size: Size, generator: torch.Generator) -> Tensor:
    """Integer boxes (n,4) of area share 1 - `share` and the images' aspect, centred anywhere, across the border too."""
    h, w = size
    side = (1 - share).sqrt()
    tall, wide = (side * h).round().long(), (side * w).round().long()
    top = _integers(len(share), h, generator) - tall // 2
    left = _integers(len(share), w, generator) - wide // 2
    return torch.stack([top, left, tall, wide], 1)


def _size(images: Tensor) -> Size:
    return images.shape[2], images.shape[3]


def _reflect(index: Tensor, length: int) -> Tensor:
    """Any integer -> 0..length-1, mirrored about the first and last pixel as often as needed (numpy.pad's reflect)."""
    period = max(2 * length - 2, 1)
    index = index % period
    return torch.minimum(index, period - index) if length > 1 else torch.zeros_like(index)


def _triangle(start: Tensor, extent: Tensor, stored: int, wanted: int) -> Tensor:
    """Weights (B,wanted,stored) of an antialiased bilinear resize of [start, start + extent) along one axis."""
    scale = (extent / wanted)[:, None, None]
    device = start.device
    centre = start[:, None, None] + (torch.arange(wanted, device=device) + 0.5)[None, :, None] * scale
    distance = (torch.arange(stored, device=device) + 0.5 - centre).abs_().div_(scale.clamp(min=1))
    weights = distance.neg_().add_(1).clamp_(min=0)
    return weights.div_(weights.sum(2, keepdim=True))


def _grey(images: Tensor) -> Tensor:
    """(B,C,h,w) -> (B,1,h,w)."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def _inside(boxes: Tensor, images: Tensor) -> Tensor:
    """(b,h,w) bool: the pixels of the first b of (B,C,h,w) images that lie in their boxes (b,4)."""
    h, w = _size(images)
    top, left, tall, wide = boxes.to(images.device)[:, :, None].unbind(1)  # (B,1) each
    y, x = torch.arange(h, device=images.device), torch.arange(w, device=images.device)
    return ((y >= top) & (y < top + tall))[:, :, None] & ((x >= left) & (x < left + wide))[:, None, :]


def _mix_targets(targets: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    share = share.to(targets.device, targets.dtype)[:, None]
    return share * targets[: len(partner)] + (1 - share) * targets[partner.to(targets.device)]


def _uniform(shape: int | tuple[int, ...], low: float, high: float, source: Source) -> Tensor:
    return draw(torch.rand, (shape,), source) * (high - low) + low


def _log_uniform(shape: int | tuple[int, ...], low: float, high: float, source: Source) -> Tensor:
    return _uniform(shape, math.log(low), math.log(high), source).exp()


def _integers(n: int, end: int, source: Source) -> Tensor:
    return draw(torch.randint, (end, (n,)), source)


def _beta(n: int, a: float, generator: torch.Generator) -> Tensor:
    """(n,) from Beta(a, a). Torch draws it from its global generator only: numpy does, seeded by a draw of ours."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(a, a, n)).float()

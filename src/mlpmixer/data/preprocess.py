"""The one evaluation preprocessing: any image -> pixels of the model's size -> float. It is stored with the model."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlpmixer.config import Config, pair, require
from mlpmixer.data.config import Fit
from mlpmixer.data.images import Pixels, Source, decode
from mlpmixer.data.tensorflow_resize import RULES, require_size_limit, size_before_crop
from mlpmixer.models.configs import MAX_CHANNELS, MAX_INPUT_PIXELS
from mlpmixer.registry import Registry, shown

if TYPE_CHECKING:
    from torch import Tensor

Values = TypeVar("Values", np.ndarray, "Tensor")

MOST = 1e6  # of mean and std, and of 1 / std: float32 holds what comes of it
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB pixels in 0..1
GREY = 128  # what "pad" fills with: close to the mean of the 0..255 range


@dataclass(frozen=True, kw_only=True)
class Preprocess(Config, owner="preprocess"):
    """decode -> fit and resize -> (x / 255 - mean) / std."""

    image_size: tuple[int, int]
    """(height, width) in pixels."""
    in_channels: int = 3
    """1 for grey, 3 for RGB; with other numbers only arrays are read, not files."""
    fit: Fit = "crop"
    """Ours are antialiased, and leave an image of the model's size as it is: crop covers the rectangle and crops the
    centre, pad puts the whole image inside with grey around it, squash changes its shape. Those of published weights:
    short_side_crop resizes the short side to 256/224 of the size, antialiased, and cuts the centre (timm, torchvision);
    vit_jax_eval, bv_resmall_crop, bv_resize_crop: `mlpmixer.data.tensorflow_resize`."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel, in the 0..1 range."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel, in the 0..1 range."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """The filter of the antialiased resize; the official rules have their own."""

    def validate(self) -> None:
        require(min(self.image_size) >= 1, f"image_size must be positive, got {self.image_size}")
        height, width = self.image_size
        most = f"image_size must be at most {MAX_INPUT_PIXELS:,} px in all, got {self.image_size}"
        require(height * width <= MAX_INPUT_PIXELS, most)
        require(
            1 <= self.in_channels <= MAX_CHANNELS,
            f"in_channels must be in 1..{MAX_CHANNELS:,}, got {self.in_channels}",
        )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.in_channels:
                require(len(set(values)) == 1, f"{name} has {len(values)} values for {self.in_channels} channels")
                object.__setattr__(self, name, values[:1] * self.in_channels)
        fits = min(self.std) >= 1 / MOST and max(self.std) <= MOST
        require(fits, f"std must be in {1 / MOST:g}..{MOST:g}, got {shown(self.std)}")
        require(max(map(abs, self.mean)) <= MOST, f"mean must be in {-MOST:g}..{MOST:g}, got {shown(self.mean)}")
        require(
            self.fit not in RULES or self.interpolation == "bilinear",
            f"fit={self.fit!r} has its own filter: leave interpolation at 'bilinear', got {self.interpolation!r}",
        )

    @property
    def dtype(self) -> "np.dtype[np.uint8 | np.float32]":
        """Type of `array`: float32 where the rule never rounds (vit_jax_eval), else uint8."""
        return np.dtype(np.float32 if self.fit == "vit_jax_eval" else np.uint8)

    def array(self, source: Source | np.ndarray) -> Pixels:
        """One image, uint8 (h, w) or (h, w, c) if an array -> (H, W, C) of `dtype`, 0..255. Raises ImageError."""
        if isinstance(source, np.ndarray):
            return self._from_array(source)
        if self.in_channels not in (1, 3):
            channels = self.in_channels
            raise ValueError(
                f"files hold 1 or 3 channels, the model has {channels}: pass uint8 arrays (h, w, {channels})"
            )
        image = decode(source, "RGB" if self.in_channels == 3 else "L")
        return self._fitted(image).reshape(*self.image_size, self.in_channels)

    def _from_array(self, pixels: np.ndarray) -> Pixels:
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or not pixels.size:
            raise ValueError(f"expected uint8 pixels (h, w) or (h, w, c), got {pixels.dtype} of shape {pixels.shape}")
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        if self.in_channels in (1, 3) and channels in (1, 3, 4):
            return self.array(
                Image.fromarray(pixels.reshape(*pixels.shape[:2], -1)[..., 0] if channels == 1 else pixels)
            )
        if channels != self.in_channels:
            raise ValueError(
                f"expected {self.in_channels} channels, the last axis of (h, w, {self.in_channels}), got shape "
                f"{pixels.shape}"
            )
        return np.dstack([self._fitted(Image.fromarray(plane)) for plane in np.moveaxis(pixels, 2, 0)])

    def _fitted(self, image: Image.Image) -> Pixels:
        """(H, W), (H, W, 1) or (H, W, 3)."""
        if self.fit in RULES:
            return RULES[self.fit](np.atleast_3d(np.asarray(image)), self.image_size)
        resample = Image.Resampling[self.interpolation.upper()]
        if self.fit == "short_side_crop":
            return np.array(_short_side_crop(image, self.image_size, resample))
        (height, width), (w, h) = self.image_size, image.size
        if (w, h) == (width, height):
            return np.array(image)
        if self.fit == "squash":
            return np.array(image.resize((width, height), resample))
        if self.fit == "crop":
            scale = max(width / w, height / h)
            dx, dy = max(w - width / scale, 0) / 2, max(h - height / scale, 0) / 2
            return np.array(image.resize((width, height), resample, box=(dx, dy, w - dx, h - dy)))
        scale = min(width / w, height / h)
        inner_w, inner_h = min(max(round(w * scale), 1), width), min(max(round(h * scale), 1), height)
        canvas = Image.new(image.mode, (width, height), GREY if image.mode == "L" else (GREY,) * 3)
        canvas.paste(image.resize((inner_w, inner_h), resample), ((width - inner_w) // 2, (height - inner_h) // 2))
        return np.array(canvas)

    def normalise(self, images: Pixels) -> np.ndarray:
        """(B, H, W, C) in 0..255 -> float32 (B, C, H, W), a new array."""
        return standardise(np.array(images.transpose(0, 3, 1, 2), dtype=np.float32, order="C"), *self.statistics)

    @property
    def statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """mean and std (C, 1, 1), as `standardise` takes them."""
        return np.array(self.mean, np.float32)[:, None, None], np.array(self.std, np.float32)[:, None, None]

    def scaled(self, factor: float) -> "Preprocess":
        """The same at `factor` times the size, as training keeps its images."""
        height, width = self.image_size
        return dataclasses.replace(self, image_size=(round(height * factor), round(width * factor)))


def standardise(pixels: Values, mean: Values, std: Values) -> Values:
    """(B, C, H, W) float32 in 0..255 -> (x / 255 - mean) / std, a new array, or a new tensor of a tensor.

    The one normalisation: evaluation, training and the graph of an export call it.
    """
    x = pixels / 255
    x -= mean
    x /= std
    return x


def _short_side_crop(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """timm's evaluation transform: resize to cover `size_before_crop`, cut the centre, its border rounded half to even.

    For a square the long side is rounded down (torchvision's Resize), for other shapes both sides are rounded to the
    nearest (timm's ResizeKeepRatio).
    """
    (height, width), (w, h), larger = size, image.size, size_before_crop(size)
    if height == width:
        resized = (larger[1] * w // h, larger[0]) if w >= h else (larger[1], larger[0] * h // w)
    else:
        ratio = min(w / larger[1], h / larger[0])
        resized = round(w / ratio), round(h / ratio)
    require_size_limit((resized[1], resized[0]))
    left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    return image.resize(resized, resample).crop((left, top, left + width, top + height))


def _imagenet(
    image_size: tuple[int, int], in_channels: int, fit: Fit, interpolation: Literal["bilinear", "bicubic"]
) -> Preprocess:
    """A copy with the mean and deviation of ImageNet's pixels; of other than three channels, the average of theirs."""
    mean, std = (
        values if in_channels == 3 else (sum(values) / 3,) * in_channels for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return Preprocess(
        image_size=image_size, in_channels=in_channels, fit=fit, interpolation=interpolation, mean=mean, std=std
    )


PREPROCESSINGS: Registry[Callable[..., Preprocess]] = Registry("preprocessing")
"""The evaluation preprocessing of published weights, by name. mean = std = 0.5, that is -1..1, unless stated."""
PREPROCESSINGS |= {
    "vit_jax_eval": partial(Preprocess, fit="vit_jax_eval"),
    "bv_resmall_crop": partial(Preprocess, fit="bv_resmall_crop"),
    "bv_resize_crop": partial(Preprocess, fit="bv_resize_crop"),
    # the default_cfg of timm's mixers (crop_pct 0.875), and of its miil_in21k tags
    "timm": partial(Preprocess, fit="short_side_crop", interpolation="bicubic"),
    "miil": partial(Preprocess, fit="short_side_crop", mean=(0.0,), std=(1.0,)),
    # timm's ResMLPs, AS-MLP, and ViP-Large; ViP's smaller ones and the official ResMLPs cut 0.9 instead of 0.875
    "timm_imagenet": partial(_imagenet, fit="short_side_crop", interpolation="bicubic"),
    # RepMLPNet: the short side is resized to the size itself
    "imagenet_crop": partial(_imagenet, fit="crop", interpolation="bilinear"),
}


def create_preprocess(name: str, *, image_size: int | tuple[int, int], in_channels: int = 3) -> Preprocess:
    """The evaluation preprocessing of published weights, for a model of this size (pixels; one number means square).

    Only 224 is published; at other sizes too the image is resized to 256/224 of the size, rounded down, before its
    centre is cut. ValueError for an unknown name, with the nearest right one.
    """
    return PREPROCESSINGS[name](image_size=pair(image_size), in_channels=in_channels)

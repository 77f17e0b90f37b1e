"""The one evaluation preprocessing: any image -> uint8 of the model's size -> float. It is stored with the model."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from mlpmixer.config import Fit
from mlpmixer.data.images import Source, decode

GREY = 128  # what "pad" fills with: close to the mean of the 0..255 range
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """decode -> fit -> resize (antialiased) -> (x / 255 - mean) / std."""

    image_size: tuple[int, int]
    """(height, width) in pixels."""
    in_channels: int = 3
    """1 grey, 3 RGB; other numbers take arrays only, not files."""
    fit: Fit = "crop"
    """crop: cover the rectangle and cut its centre; pad: the whole image inside, grey around it; squash."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel, of the 0..1 range."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel, of the 0..1 range."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Of the resize."""

    def __post_init__(self) -> None:
        if min(self.image_size) < 1 or self.in_channels < 1:
            raise ValueError(f"image_size {self.image_size} and in_channels {self.in_channels} must be positive")
        for name in ("mean", "std"):
            values = tuple(getattr(self, name))
            if len(values) != self.in_channels:
                if len(set(values)) != 1:
                    raise ValueError(f"{name} has {len(values)} values for {self.in_channels} channels")
                values = values[:1] * self.in_channels
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    def array(self, source: Source | np.ndarray) -> np.ndarray:
        """uint8 (H, W, C) of a path, the bytes of a file, a Pillow image or a uint8 array (h, w) or (h, w, c).

        An image that already has the model's size comes back bit for bit. Raises ImageError when it cannot be read.
        """
        if isinstance(source, np.ndarray):
            return self._from_array(source)
        if self.in_channels not in (1, 3):
            raise ValueError(f"files hold 1 or 3 channels, the model has {self.in_channels}: pass uint8 arrays (h, w, {self.in_channels})")
        image = decode(source, "RGB" if self.in_channels == 3 else "L", max_px=0 if self.fit == "squash" else max(self.image_size))
        return np.array(self._fitted(image)).reshape(*self.image_size, self.in_channels)

    def _from_array(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or not pixels.size:
            raise ValueError(f"expected uint8 pixels (h, w) or (h, w, c), got {pixels.dtype} of shape {pixels.shape}")
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        if self.in_channels in (1, 3) and channels in (1, 3, 4):
            return self.array(Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.ndim == 3 and channels == 1 else pixels)))
        if channels != self.in_channels:
            raise ValueError(f"expected {self.in_channels} channels (h, w, {self.in_channels}), got shape {pixels.shape}")
        planes = [self._fitted(Image.fromarray(np.ascontiguousarray(pixels[..., c]))) for c in range(channels)]
        return np.stack([np.asarray(p) for p in planes], axis=-1)

    def _fitted(self, image: Image.Image) -> Image.Image:
        (height, width), (w, h) = self.image_size, image.size
        if (w, h) == (width, height):
            return image
        resample = _FILTERS[self.interpolation]
        if self.fit == "squash":
            return image.resize((width, height), resample)
        if self.fit == "crop":
            scale = max(width / w, height / h)
            dx, dy = max(w - width / scale, 0) / 2, max(h - height / scale, 0) / 2
            return image.resize((width, height), resample, box=(dx, dy, w - dx, h - dy))
        scale = min(width / w, height / h)
        inner_w, inner_h = min(max(round(w * scale), 1), width), min(max(round(h * scale), 1), height)
        canvas = Image.new(image.mode, (width, height), GREY if image.mode == "L" else (GREY,) * 3)
        canvas.paste(image.resize((inner_w, inner_h), resample), ((width - inner_w) // 2, (height - inner_h) // 2))
        return canvas

    def normalise(self, images_u8: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, C) -> float32 (B, C, H, W)."""
        x = np.ascontiguousarray(images_u8.transpose(0, 3, 1, 2), dtype=np.float32)
        x /= 255
        x -= np.asarray(self.mean, np.float32)[:, None, None]
        x /= np.asarray(self.std, np.float32)[:, None, None]
        return x

    def scaled(self, factor: float) -> "Preprocess":
        """The same for copies `factor` times as large, as training keeps them."""
        height, width = self.image_size
        return dataclasses.replace(self, image_size=(round(height * factor), round(width * factor)))

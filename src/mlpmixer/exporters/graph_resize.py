"""Resize and fit inside the graph: Pillow's antialiased resize as two matrix products, for images of any size.

N images of h x w pixels with C channels -> H x W. A resize is linear in the pixels along each axis, so it is a matrix
(W,w) and then a matrix (H,h), each row of which holds the filter around one new pixel: the rule of Pillow's
src/libImaging/Resample.c.
"""

import torch
from torch import Tensor, nn

from mlpmixer.data.preprocess import GREY, Preprocess


class Fitted(nn.Module):
    """uint8 (N,h,w,C) -> float32 (N,C,H,W), integers in 0..255.

    The same as `Preprocess.array`, except that the rounding after each of the two axes may differ by one level.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.fit, self.size = preprocess.fit, preprocess.image_size

    def forward(self, images: Tensor) -> Tensor:
        (height, width), (h, w) = self.size, (length(images, 1), length(images, 2))
        zero = torch.zeros((), dtype=torch.float64)
        y0, x0, box_h, box_w = zero, zero, h, w  # the part of the image that is used, pixels
        top, left, inner_h, inner_w = zero, zero, zero + height, zero + width  # its place in the result
        if self.fit == "crop":
            scale = torch.maximum(width / w, height / h)
            x0, y0 = (w - width / scale).clamp(min=0) / 2, (h - height / scale).clamp(min=0) / 2
            box_w, box_h = w - 2 * x0, h - 2 * y0
        if self.fit == "pad":
            scale = torch.minimum(width / w, height / h)
            inner_w, inner_h = (w * scale).round().clamp(1, width), (h * scale).round().clamp(1, height)
            left, top = ((width - inner_w) / 2).floor(), ((height - inner_h) / 2).floor()
        across, covered_w = self.resampling(images.shape[2], width, x0, box_w, left, inner_w)
        down, covered_h = self.resampling(images.shape[1], height, y0, box_h, top, inner_h)
        x = images.permute(0, 3, 1, 2).float()  # (N, C, h, w)
        x = whole(x @ across.T)  # (N, C, h, W)
        x = whole(down @ x)  # (N, C, H, W)
        return torch.where(covered_h[:, None] & covered_w, x, float(GREY)) if self.fit == "pad" else x

    def resampling(
        self, old: int, new: int, start: Tensor, box: Tensor, first: Tensor, inner: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The matrix (new, old) from `box` old pixels at `start` to `inner` new ones at `first`; and which rows (new,)
        those are."""
        scale = box / inner
        row = torch.arange(new, dtype=torch.float64) - first
        centre = start + (row + 0.5) * scale
        at = (torch.arange(old, dtype=torch.float64) + 0.5 - centre[:, None]) / scale.clamp(
            min=1
        )  # wider when it shrinks: antialiased
        weights = (1 - at.abs()).clamp(min=0)  # bilinear
        covered = (row >= 0) & (row < inner)
        weights = torch.where(covered[:, None], weights, 0.0)
        return (weights / torch.where(covered, weights.sum(1), 1.0)[:, None]).float(), covered


def length(images: Tensor, axis: int) -> Tensor:
    """A side in pixels as a number of the graph, float64."""
    return torch.full((), images.shape[axis], dtype=torch.float64)


def whole(x: Tensor) -> Tensor:
    """To the nearest level of 0..255, as Pillow does after each axis."""
    return (x + 0.5).floor().clamp(0, 255)

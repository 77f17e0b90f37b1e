"""Convolutions that learn beside a fully-connected layer and fold into it: what both versions of RepMLP share.

Paper: Ding et al., "RepMLP: Re-parameterizing Convolutions into Fully-connected Layers for Image Recognition",
arXiv:2105.01883, section 3.2.

Letters: I and O channels before and after, h x w places of a tile, k and l height and width of a kernel.
"""

import functools
from collections import OrderedDict
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FoldingConvolutions(nn.Module):
    """A block with a convolution and a BatchNorm, `repconvK`, for each size in `kernels`: none once it is folded."""

    kernels: tuple[int, ...]

    def add_convolutions(self, kernels: tuple[int, ...], in_channels: int, out_channels: int, groups: int) -> None:
        self.kernels = kernels
        for k in kernels:
            conv = nn.Conv2d(in_channels, out_channels, k, padding=k // 2, groups=groups, bias=False)
            self.add_module(f"repconv{k}", nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels))))

    def convolutions(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        branches = [cast(nn.Sequential, self.get_submodule(f"repconv{k}")) for k in self.kernels]
        return [(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm)) for conv, norm in branches]

    def take_convolutions(self, h: int, w: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Remove each convolution with its norm, as a matrix over h x w places (O, h*w, I, h*w) and a bias (O,)."""
        for conv, norm in self.convolutions():
            scale, shift = scale_and_shift(norm)
            yield kernel_matrix(conv.weight * scale[:, None, None, None], h, w), shift
        for k in self.kernels:
            delattr(self, f"repconv{k}")
        self.kernels = ()


def scale_and_shift(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A BatchNorm in evaluation, as a factor and a summand for each channel."""
    scale = norm.weight / torch.sqrt(cast(Tensor, norm.running_var) + norm.eps)
    return scale, norm.bias - cast(Tensor, norm.running_mean) * scale


def kernel_matrix(kernel: Tensor, h: int, w: int) -> Tensor:
    """Kernels (O, I, k, l) as matrices over an h x w grid with zeros around it: (O, h*w, I, h*w), row (y, x), column
    (y', x')."""
    k, n = kernel.shape[-2:]
    identity = torch.eye(h * w, dtype=kernel.dtype, device=kernel.device).view(h * w, 1, h, w)
    moves = F.unfold(identity, (k, n), padding=(k // 2, n // 2))
    return torch.einsum("oik,qkp->opiq", kernel.flatten(2), moves)


def convolved(maps: Tensor, kernel: Tensor, h: int, w: int) -> Tensor:
    """Depth-wise convolution with zeros around: maps (S, h*w, N), kernels (S, 1, k, k) -> (S, h*w, N).

    A row of a kernel is a w x w matrix over a row of a map, so this is k batched products: on a CPU several times as
    fast as a convolution of so few channels.
    """
    s, _, k, _ = kernel.shape
    rows, up = maps.view(s, h, w, -1), k // 2
    bands = kernel_matrix(kernel.reshape(s * k, 1, 1, k), 1, w).view(s, k, 1, w, w)
    inside = range(max(0, up - h + 1), min(k, up + h))  # rows of a large kernel may lie outside a small map
    moved = [F.pad(bands[:, i] @ rows, (0, 0, 0, 0, up - i, i - up)) for i in inside]
    return functools.reduce(torch.add, moved).view(maps.shape)

"""Layers that several networks share, how they start, and how images become patches."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.models.configs import Activation, NetworkConfig, PatchConfig

TRUNCATED_STD = (
    0.87962566103423978  # standard deviation of a unit normal cut at +-2: official lecun_normal divides by it
)


class Mlp(nn.Module):
    """W2 gelu(W1 x) over the last axis: (..., dim) -> (..., out_dim), which is dim unless it is given.

    linear: the class of both layers.
    """

    def __init__(
        self,
        dim: int,
        mlp_dim: int,
        activation: Activation = "gelu_erf",
        dropout: float = 0.0,
        out_dim: int = 0,
        linear: type[nn.Linear] = nn.Linear,
    ) -> None:
        super().__init__()
        self.fc1 = linear(dim, mlp_dim)
        self.fc2 = linear(mlp_dim, out_dim or dim)
        self.dropout = nn.Dropout(dropout)
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"  # tanh: Flax's default

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.gelu(self.fc1(x), approximate=self.approximate))
        return cast(Tensor, self.dropout(self.fc2(x)))


class TokenLinear(nn.Linear):
    """A linear layer over the tokens, the same for every channel: (B, S, C) -> (B, S, C).

    A product for each image, so that no map is copied to turn it. A traced graph has the layer itself between two
    transpositions, with its weight where int8 looks for one.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().forward(x.mT).mT
        return torch.baddbmm(self.bias[:, None], self.weight.expand(x.shape[0], -1, -1), x)


class MapLinear(nn.Linear):
    """A linear layer over the channels of maps: (B, H, W, C) -> (B, H, W, C').

    On a CPU a 1x1 convolution over the same memory, in float32 with few channels up to twice as fast as the library's
    matrix product. A traced graph has the layer itself, for int8.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not x.is_cpu:
            return super().forward(x)
        return F.conv2d(x.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)


class DropPath(nn.Module):
    """Stochastic depth: a branch (B, ...) is left out for a sample with probability `rate`, and scaled by 1 / (1 -
    rate) otherwise. In evaluation nothing changes."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return branch
        mask = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * (mask / (1 - self.rate))


def linear_stem(cfg: PatchConfig, dim: int, bias: bool = True) -> nn.Linear:
    """Patches (B, S, in_channels*P*P) -> (B, S, dim): a convolution of size and stride P, with values of torch's
    default start."""
    return nn.Linear(cfg.in_channels * math.prod(cfg.patch), dim, bias=bias)


def linear_head(cfg: NetworkConfig) -> nn.Module:
    """(B, D) -> (B, K), with values of torch's default start; nothing to do without classes."""
    return nn.Linear(cfg.num_features, cfg.num_classes) if cfg.num_classes else nn.Identity()


def lecun_normal(layer: nn.Linear) -> None:
    """A linear layer starts from a truncated normal of deviation 1/sqrt(inputs), cut at two of the untruncated one's,
    with zero biases."""
    std = layer.in_features**-0.5 / TRUNCATED_STD
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)


def truncated_normal(*layers: nn.Module) -> None:
    """Linear layers start from a truncated normal of deviation 0.02, with zero biases."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def cells(x: Tensor, n: int) -> Tensor:
    """Cells of n x n places side by side, a cell as a convolution reads it: (B, H, W, C) -> (B, H/n, W/n, C*n*n)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // n, n, w // n, n, c).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(b, h // n, w // n, c * n * n)


def require_size(images: Tensor, cfg: NetworkConfig) -> None:
    """ValueError on any other size than the network's: nothing is padded or cut."""
    h, w = pair(cfg.image_size)
    if images.ndim != 4 or images.shape[1:] != (cfg.in_channels, h, w):
        raise ValueError(
            f"expected images of shape (B, {cfg.in_channels}, {h}, {w}), got {tuple(images.shape)}; "
            f"{cfg.architecture} works at the image size it was made for"
        )


def cut_patches(images: Tensor, cfg: PatchConfig) -> Tensor:
    """(B, in_channels, H, W) -> (B, S, in_channels*P*P), row-major. ValueError on any other size."""
    require_size(images, cfg)
    (h, w), (p, q) = pair(cfg.image_size), pair(cfg.patch_size)
    rows, cols = h // p, w // q
    x = images.reshape(-1, cfg.in_channels, rows, p, cols, q)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, cfg.num_patches, cfg.in_channels * p * q)  # (B, S, in*P*P)

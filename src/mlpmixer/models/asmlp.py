"""AS-MLP, the whole architecture on one page.

Paper: Lian et al., "AS-MLP: An Axial Shifted MLP Architecture for Vision", arXiv:2107.08391, section 3. Official code:
svip-lab/AS-MLP, models/as_mlp.py.

Letters: B batch, H, W places down and across, C hidden_dim, s shift_size, K num_classes. What differs from equation (1)
of the Mixer: nothing is learnt across patches. Chunks of channels move along rows in one branch and along columns in
another, with zeros at the border, and linear layers over the channels follow.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import gelu

from mlpmixer.models.configs import ASMLPConfig
from mlpmixer.models.layers import DropPath, MapLinear, Mlp, linear_head, linear_stem, truncated_normal
from mlpmixer.models.patch_networks import StagedNetwork


class MapNorm(nn.Module):
    """GroupNorm of one group: over channels and places of a sample together, (B, H, W, C) -> (B, H, W, C).

    The paper calls it a LayerNorm; the code normalises over the whole map.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        maps = x.permute(0, 3, 1, 2)  # (B, C, H, W) over the same memory, torch's channels_last
        if x.requires_grad or not torch.is_grad_enabled() or torch.compiler.is_exporting():
            return F.group_norm(maps, 1, self.weight, self.bias, self.eps).permute(0, 2, 3, 1)
        # after frozen layers: torch 2.13 crashes in the gradient of the weight in this layout where the input has none
        return F.group_norm(maps, 1, eps=self.eps).permute(0, 2, 3, 1) * self.weight + self.bias


def shift(x: Tensor, size: int, axis: int) -> Tensor:
    """(B, H, W, C): `size` chunks of ceil(C/size) channels, chunk g moved by g - size // 2 places along an axis, with
    zeros where nothing comes from. The last chunk may be smaller, and there may be fewer than `size`."""
    n, moved = x.shape[axis], []
    for g, chunk in enumerate(torch.split(x, -(-x.shape[-1] // size), dim=-1)):
        by = max(-n, min(n, g - size // 2))
        zeros = chunk.new_zeros(*chunk.shape[:axis], abs(by), *chunk.shape[axis + 1 :])
        if by > 0:
            chunk = torch.cat((zeros, chunk.narrow(axis, 0, n - by)), dim=axis)
        elif by < 0:
            chunk = torch.cat((chunk.narrow(axis, -by, n + by), zeros), dim=axis)
        moved.append(chunk)
    return torch.cat(moved, dim=-1)


class AxialShift(nn.Module):
    """Section 3.3: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, shift_size: int) -> None:
        super().__init__()
        self.shift_size = shift_size
        self.fc1 = MapLinear(dim, dim)
        self.fc_rows = MapLinear(dim, dim)
        self.fc_columns = MapLinear(dim, dim)
        self.fc3 = MapLinear(dim, dim)
        self.norm1 = MapNorm(dim)
        self.norm2 = MapNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        u = gelu(self.norm1(self.fc1(x)))
        along_rows = gelu(self.fc_rows(shift(u, self.shift_size, 2)))  # from left and right
        along_columns = gelu(self.fc_columns(shift(u, self.shift_size, 1)))  # from above and below
        return cast(Tensor, self.fc3(self.norm2(along_rows + along_columns)))


class ASMLPBlock(nn.Module):
    """One block, figure 2: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, cfg: ASMLPConfig, dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = MapNorm(dim)
        self.axial_shift = AxialShift(dim, cfg.shift_size)
        self.norm2 = MapNorm(dim)
        self.channel_mixing = Mlp(dim, cfg.mlp_ratio * dim, linear=MapLinear)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.drop_path(self.axial_shift(self.norm1(x)))
        return cast(Tensor, y + self.drop_path(self.channel_mixing(self.norm2(y))))


class PatchMerging(nn.Module):
    """Cells of 2x2 places, their channels next to each other, normalised and reduced: (B, H, W, C) -> (B, H/2, W/2,
    C')."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = MapNorm(4 * dim)
        self.reduction = MapLinear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        cells = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])  # (B, H/2, W/2, C) each
        return cast(Tensor, self.reduction(self.norm(torch.cat(cells, dim=-1))))


class ASMLP(StagedNetwork):
    """Images to logits: (B, in_channels, H, W) -> (B, K), or pre-logits (B, C) when num_classes is 0.

    Weights start as in the official code: the head from a truncated normal of deviation 0.02, all others as layers of
    torch do.
    """

    cfg: ASMLPConfig

    def __init__(self, cfg: ASMLPConfig) -> None:
        super().__init__()
        self.cfg = cfg
        dims = cfg.hidden_dims
        self.stem = linear_stem(cfg, dims[0])
        self.merges = nn.ModuleList(
            PatchMerging(dims[i - 1], c) if i else MapNorm(c)  # the first: the norm of the stem
            for i, c in enumerate(dims)
        )
        self.stages = self.make_stages(lambda stage, dim, drop_path: ASMLPBlock(cfg, dim, drop_path))
        self.norm = MapNorm(cfg.num_features)
        self.head = linear_head(cfg)
        self.start_head()

    def start_head(self) -> None:
        """As the other linear layers start."""
        truncated_normal(self.head)

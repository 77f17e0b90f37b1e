"""S2-MLP and S2-MLPv2, both whole architectures on one page.

Papers: Yu et al., "S2-MLP: Spatial-Shift MLP Architecture for Vision", arXiv:2106.07477, section 3; "S2-MLPv2: Improved
Spatial-Shift MLP Architecture for Vision", arXiv:2108.01072, section 3. There is no official PyTorch code.

Letters: B batch, H, W places down and across, C hidden_dim (c), K num_classes. What differs from equation (1) of the
Mixer: nothing is learnt across patches. Groups of channels move by one place, and the linear layers over the channels
after that see the neighbours.
"""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from mlpmixer.models.configs import S2MLPConfig, S2MLPv2Config
from mlpmixer.models.network import DropPath, Mlp, StagedNetwork, TokenNetwork, linear_head, truncated_normal
from mlpmixer.models.resmlp import Affine


def shift(x: Tensor, first: int = 1, second: int = 2) -> Tensor:
    """Algorithm 1 of both papers, (B, H, W, C): four groups of channels move by +1 and -1 along the axis `first`, and
    by +1 and -1 along `second`. The border that nothing moves into keeps what it had: neither zeros nor wrapped.

    Written from the input into a new tensor. The papers' own slices, taken literally, overlap in one tensor and read
    what they have just written.
    """
    cuts = [i * x.shape[-1] // 4 for i in range(5)]
    # at once: the gradient of each of four slices would be a whole map
    groups = torch.split(x, [b - a for a, b in pairwise(cuts)], dim=-1)
    moved = []
    for group, axis, forward in zip(groups, (first, first, second, second), (True, False, True, False), strict=True):
        n = group.shape[axis]
        if forward:
            parts = (group.narrow(axis, 0, 1), group.narrow(axis, 0, n - 1))
        else:
            parts = (group.narrow(axis, 1, n - 1), group.narrow(axis, n - 1, 1))
        moved.append(torch.cat(parts, dim=axis))
    return torch.cat(moved, dim=-1)


NORMS = {"layer": nn.LayerNorm, "affine": Affine}

# --- version 1 --------------------------------------------------------------------------------------------------------


class S2MLPBlock(nn.Module):
    """One block, equations (5) to (9): (B, H, W, C) -> (B, H, W, C). The norm ends each branch."""

    def __init__(self, cfg: S2MLPConfig) -> None:
        super().__init__()
        c, norm = cfg.hidden_dim, NORMS[cfg.norm]
        self.fc1 = nn.Linear(c, c)
        self.fc2 = nn.Linear(c, c)
        self.norm1 = norm(c)
        self.channel_mixing = Mlp(c, cfg.channels_mlp_dim)
        self.norm2 = norm(c)
        self.drop_path = DropPath(cfg.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.drop_path(self.norm1(self.fc2(shift(gelu(self.fc1(x))))))
        return cast(Tensor, y + self.drop_path(self.norm2(self.channel_mixing(y))))


class S2MLP(TokenNetwork):
    """Images to logits: (B, in_channels, H, W) -> (B, K), or pre-logits (B, C) when num_classes is 0.

    Linear layers start from a truncated normal of deviation 0.02, which the paper leaves open, and the head at zero:
    every branch ends in a norm, so the sum before the head grows with the depth.
    """

    cfg: S2MLPConfig

    def __init__(self, cfg: S2MLPConfig) -> None:
        super().__init__()
        self.cfg = cfg
        (p, q), c = cfg.cell, cfg.hidden_dim
        self.stem = nn.Linear(cfg.in_channels * p * q, c)
        self.stem_norm = NORMS[cfg.norm](c)
        self.blocks = nn.ModuleList(S2MLPBlock(cfg) for _ in range(cfg.num_blocks))
        self.norm = nn.Identity()
        self.head = linear_head(cfg)
        truncated_normal(*self.blocks.modules())
        self.start_head()

    def layers(self) -> list[list[nn.Module]]:
        """From the stem with its norm to the head."""
        _, *others = super().layers()
        return [[self.stem, self.stem_norm], *others]

    def embed(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, H/P, W/P, C), normalised."""
        x: Tensor = self.stem_norm(super().embed(images))
        return x.view(x.shape[0], *self.cfg.grid, -1)

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens (B, S, C), before pooling; no norm comes before the head."""
        return super().tokens(images).flatten(1, 2)


# --- version 2 --------------------------------------------------------------------------------------------------------


class SplitAttention(nn.Module):
    """Equations (8) to (10): parts (B, H, W, 3, C) -> their weighed sum (B, H, W, C).

    The weights come from the *sum* over parts and places, so another number of places gives other weights.
    """

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim // reduction, bias=False)
        self.fc2 = nn.Linear(dim // reduction, 3 * dim, bias=False)

    def forward(self, parts: list[Tensor]) -> Tensor:
        a = sum(part.sum(dim=(1, 2)) for part in parts)  # (B, C)
        a = self.fc2(gelu(self.fc1(a))).view(parts[0].shape[0], 3, -1).softmax(dim=1)  # (B, 3, C), part by part
        weights = a[:, :, None, None].unbind(1)
        return cast(Tensor, sum(part * weight for part, weight in zip(parts, weights, strict=True)))


class S2MLPv2Block(nn.Module):
    """One block, equations (4) to (7): (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, cfg: S2MLPv2Config, dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mlp1 = nn.Linear(dim, 3 * dim)
        self.split_attention = SplitAttention(dim, cfg.reduction)
        self.mlp2 = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mixing = Mlp(dim, cfg.mlp_ratio * dim)
        self.drop_path = DropPath(drop_path)

    def component(self, x: Tensor) -> Tensor:
        x1, x2, x3 = self.mlp1(x).chunk(3, dim=-1)
        return cast(Tensor, self.mlp2(self.split_attention([shift(x1), shift(x2, 2, 1), x3])))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.drop_path(self.component(self.norm1(x)))
        return cast(Tensor, y + self.drop_path(self.channel_mixing(self.norm2(y))))


class S2MLPv2(StagedNetwork):
    """Images to logits: (B, in_channels, H, W) -> (B, K), or pre-logits (B, C) when num_classes is 0.

    Linear layers start from a truncated normal of deviation 0.02, which the paper leaves open.
    """

    cfg: S2MLPv2Config

    def __init__(self, cfg: S2MLPv2Config) -> None:
        super().__init__()
        self.cfg = cfg
        (p, q), c = cfg.patch, cfg.hidden_dims[0]
        self.stem = nn.Linear(cfg.in_channels * p * q, c)
        self.merges = self.make_merges()
        self.stages = self.make_stages(lambda stage, dim, drop_path: S2MLPv2Block(cfg, dim, drop_path))
        self.norm = nn.LayerNorm(cfg.num_features)
        self.head = linear_head(cfg)
        truncated_normal(*self.stages.modules())
        self.start_head()

    def start_head(self) -> None:
        """As the other linear layers start."""
        truncated_normal(self.head)

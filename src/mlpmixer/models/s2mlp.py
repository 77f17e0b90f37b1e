"""S2-MLP, the whole architecture on one page.

Paper: Yu et al., "S2-MLP: Spatial-Shift MLP Architecture for Vision", arXiv:2106.07477, section 3. There is no official
PyTorch code.

Letters: B batch, H, W places down and across, C hidden_dim (c), K num_classes. What differs from equation (1) of the
Mixer: nothing is learnt across patches. Groups of channels move by one place, and the linear layers over the channels
after that see the neighbours.
"""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from mlpmixer.models.configs import S2MLPConfig
from mlpmixer.models.layers import DropPath, Mlp, linear_head, linear_stem, truncated_normal
from mlpmixer.models.patch_networks import TokenNetwork
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
        c = cfg.hidden_dim
        self.stem = linear_stem(cfg, c)
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

"""S2-MLPv2, the whole architecture on one page.

Paper: Yu et al., "S2-MLPv2: Improved Spatial-Shift MLP Architecture for Vision", arXiv:2108.01072, section 3. There is
no official PyTorch code.

Letters: B batch, H, W places down and across, C hidden_dim (c), K num_classes. What differs from equation (1) of the
Mixer: nothing is learnt across patches. Of three parts of the channels one is shifted as in S2-MLP, one with rows and
columns exchanged, and one stays; their sum is weighed by the image.
"""

from typing import cast

from torch import Tensor, nn
from torch.nn.functional import gelu

from mlpmixer.models.configs import S2MLPv2Config
from mlpmixer.models.layers import DropPath, Mlp, linear_head, linear_stem, truncated_normal
from mlpmixer.models.patch_networks import StagedNetwork
from mlpmixer.models.s2mlp import shift


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
        self.stem = linear_stem(cfg, cfg.hidden_dims[0])
        self.merges = self.make_merges()
        self.stages = self.make_stages(lambda stage, dim, drop_path: S2MLPv2Block(cfg, dim, drop_path))
        self.norm = nn.LayerNorm(cfg.num_features)
        self.head = linear_head(cfg)
        truncated_normal(*self.stages.modules())
        self.start_head()

    def start_head(self) -> None:
        """As the other linear layers start."""
        truncated_normal(self.head)

"""gMLP, the whole architecture on one page.

Paper: Liu et al., "Pay Attention to MLPs", arXiv:2105.08050, section 2. There is no official PyTorch code; timm's
form, with mean pooling, is the reference.

Letters: B batch, S num_patches, C hidden_dim (d_model), F channels_mlp_dim (d_ffn), K num_classes. What differs from
equation (1) of the Mixer: one branch a block instead of two, and the patches are mixed inside the channel MLP, by a
gate.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from mlpmixer.config import one_if_square
from mlpmixer.models.configs import GMLPConfig
from mlpmixer.models.layers import DropPath, TokenLinear, lecun_normal, linear_head, linear_stem
from mlpmixer.models.name_table import (
    Arrays,
    Known,
    NameTable,
    Row,
    classes_of,
    image_size_of,
    numbered,
    renamed_rows,
    shape_of,
)
from mlpmixer.models.patch_networks import TokenNetwork


class SpatialGating(nn.Module):
    """Equation (2): one half of the channels, mixed over the patches, times the other: (B, S, F) -> (B, S, F/2)."""

    def __init__(self, num_patches: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim // 2)  # eps 1e-5, unlike the other norms
        self.proj = TokenLinear(num_patches, num_patches)
        nn.init.normal_(self.proj.weight, std=1e-6)  # starts as u alone
        nn.init.ones_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        return u * cast(Tensor, self.proj(self.norm(v)))


class GMLPBlock(nn.Module):
    """One layer, equation (1): (B, S, C) -> (B, S, C)."""

    def __init__(self, cfg: GMLPConfig) -> None:
        super().__init__()
        c, f = cfg.hidden_dim, cfg.channels_mlp_dim
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.fc1 = nn.Linear(c, f)
        self.gate = SpatialGating(cfg.num_patches, f)
        self.fc2 = nn.Linear(f // 2, c)
        self.drop_path = DropPath(cfg.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        # Z = gelu(X U),  Z~ = Z1 * (W norm(Z2) + b),  Y = Z~ V
        return x + cast(Tensor, self.drop_path(self.fc2(self.gate(gelu(self.fc1(self.norm(x)))))))


class GMLP(TokenNetwork):
    """Images to logits: (B, in_channels, H, W) -> (B, K), or pre-logits (B, C) when num_classes is 0.

    Weights start as in timm: stem LeCun normal, blocks Xavier uniform with biases of deviation 1e-6, head zero; the
    gate's matrix with deviation 1e-6 and its bias at 1 (section 2.1), so that no block begins by mixing patches.
    """

    cfg: GMLPConfig

    def __init__(self, cfg: GMLPConfig) -> None:
        super().__init__()
        self.cfg = cfg
        c = cfg.hidden_dim
        self.stem = linear_stem(cfg, c)
        lecun_normal(self.stem)
        self.blocks = nn.ModuleList(GMLPBlock(cfg) for _ in range(cfg.num_blocks))
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.head = linear_head(cfg)
        for block in self.blocks:
            for layer in (cast(GMLPBlock, block).fc1, cast(GMLPBlock, block).fc2):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=1e-6)
        self.start_head()


# --- names in other homes ---------------------------------------------------------------------------------------------

TIMM = ((r"^stem\.", "stem.proj."), (r"\.(fc1|fc2|gate)\.", r".mlp_channels.\1."))


def _rows(cfg: GMLPConfig) -> list[Row]:
    with torch.device("meta"):
        state = GMLP(cfg).state_dict()
    return renamed_rows(state, TIMM, {"stem.weight": (cfg.hidden_dim, cfg.in_channels, *cfg.cell)})


def _config(arrays: Arrays, known: Known, where: str) -> GMLPConfig:
    c, channels, p, q = shape_of(arrays, "stem.proj.weight", 4, where)
    s, _ = shape_of(arrays, "blocks.0.mlp_channels.gate.proj.weight", 2, where)
    return GMLPConfig(
        image_size=image_size_of(s, p, q, known, where),
        patch_size=one_if_square(p, q),
        in_channels=channels,
        num_classes=classes_of(arrays, where),
        num_blocks=numbered(arrays, r"blocks\.(\d+)\."),
        hidden_dim=c,
        channels_mlp_dim=shape_of(arrays, "blocks.0.mlp_channels.fc1.weight", 2, where)[0],
    )


TABLES = (
    NameTable(
        form="timm",
        suffix=".safetensors",
        marker="blocks.0.mlp_channels.gate.proj.weight",
        rows=_rows,
        config=_config,
    ),
)

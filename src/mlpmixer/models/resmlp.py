"""ResMLP, the whole architecture on one page.

Paper: Touvron et al., "ResMLP: Feedforward networks for image classification with data-efficient training",
arXiv:2105.03404, section 2. Official code: facebookresearch/deit, resmlp_models.py.

Letters: B batch, S num_patches, C hidden_dim, K num_classes. What differs from equation (1) of the Mixer: token mixing
is one S x S matrix instead of an MLP, an affine map per channel stands in the place of LayerNorm, and each branch is
scaled per channel before it is added.
"""

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from mlpmixer.config import one_if_square
from mlpmixer.models.configs import ResMLPConfig
from mlpmixer.models.layers import DropPath, Mlp, TokenLinear, linear_head, linear_stem, truncated_normal
from mlpmixer.models.name_table import (
    Arrays,
    Known,
    NameTable,
    Row,
    classes_of,
    image_size_of,
    numbered,
    shape_of,
    unchanged,
    with_stem_as_convolution,
)
from mlpmixer.models.patch_networks import TokenNetwork


class Affine(nn.Module):
    """alpha * x + beta, per channel: (..., C) -> (..., C). Section 2, equation (1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x + self.beta


class ResMLPBlock(nn.Module):
    """One layer, equations (2) and (3): (B, S, C) -> (B, S, C)."""

    def __init__(self, cfg: ResMLPConfig) -> None:
        super().__init__()
        c = cfg.hidden_dim
        self.norm1 = Affine(c)
        self.token_mixing = TokenLinear(cfg.num_patches, cfg.num_patches)
        self.gamma_1 = nn.Parameter(torch.full((c,), cfg.layer_scale))
        self.norm2 = Affine(c)
        self.channel_mixing = Mlp(c, cfg.channels_mlp_dim)
        self.gamma_2 = nn.Parameter(torch.full((c,), cfg.layer_scale))
        self.drop_path = DropPath(cfg.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        # Z = X + gamma_1 (A Aff(X)^T)^T          mixes patches
        z = x + self.drop_path(self.gamma_1 * self.token_mixing(self.norm1(x)))
        # Y = Z + gamma_2 C gelu(B Aff(Z))        mixes channels
        return cast(Tensor, z + self.drop_path(self.gamma_2 * self.channel_mixing(self.norm2(z))))


class ResMLP(TokenNetwork):
    """Images to logits: (B, in_channels, H, W) -> (B, K), or pre-logits (B, C) when num_classes is 0.

    Weights start as in the official code: truncated normal of deviation 0.02, zero biases; the stem as a convolution of
    torch does.
    """

    cfg: ResMLPConfig

    def __init__(self, cfg: ResMLPConfig) -> None:
        super().__init__()
        self.cfg = cfg
        c = cfg.hidden_dim
        self.stem = linear_stem(cfg, c)
        self.blocks = nn.ModuleList(ResMLPBlock(cfg) for _ in range(cfg.num_blocks))
        self.norm = Affine(c)
        self.head = linear_head(cfg)
        truncated_normal(*self.blocks.modules())
        self.start_head()

    def start_head(self) -> None:
        """As the other linear layers start."""
        truncated_normal(self.head)


# --- names in other homes ---------------------------------------------------------------------------------------------

OWN = tuple((name, name) for name in ("stem.", "token_mixing.", "channel_mixing."))
OFFICIAL = (("stem.", "patch_embed.proj."), ("token_mixing.", "attn."), ("channel_mixing.", "mlp."))
TIMM = (
    ("stem.", "stem.proj."), ("token_mixing.", "linear_tokens."), ("channel_mixing.", "mlp_channels."), ("gamma_", "ls")
)  # fmt: skip


def _rows(cfg: ResMLPConfig, names: tuple[tuple[str, str], ...]) -> list[Row]:
    """Every parameter, its name there and its shape: a convolution as stem, and in timm affine maps of shape (1, 1,
    C)."""
    with torch.device("meta"):
        ours = {name: tuple(p.shape) for name, p in ResMLP(cfg).named_parameters()}
    rows = []
    for name, shape in ours.items():
        theirs = name
        for mine, other in names:
            theirs = theirs.replace(mine, other)
        if name == "stem.weight":
            rows.append(Row(name, theirs, (shape[0], cfg.in_channels, *cfg.cell), "stem_oihw"))
        elif names is TIMM and name.endswith((".alpha", ".beta")):
            rows.append(Row(name, theirs, (1, 1, *shape), "flat"))
        else:
            rows.append(Row(name, theirs, shape))
    return rows


def _config(arrays: Arrays, known: Known, where: str, names: tuple[tuple[str, str], ...]) -> ResMLPConfig:
    """The architecture that these arrays are of."""
    (_, stem), (_, mixing), (_, mlp), *_ = names
    c, channels, p, q = shape_of(arrays, f"{stem}weight", 4, where)
    s, _ = shape_of(arrays, f"blocks.0.{mixing}weight", 2, where)
    num_blocks = numbered(arrays, r"blocks\.(\d+)\.")
    return ResMLPConfig(
        image_size=image_size_of(s, p, q, known, where),
        patch_size=one_if_square(p, q),
        in_channels=channels,
        num_classes=classes_of(arrays, where),
        num_blocks=num_blocks,
        hidden_dim=c,
        channels_mlp_dim=shape_of(arrays, f"blocks.0.{mlp}fc1.weight", 2, where)[0],
        layer_scale=0.1 if num_blocks <= 18 else 1e-5 if num_blocks <= 24 else 1e-6,
    )


TABLES = tuple(
    NameTable(
        form=form,
        suffix=".safetensors",
        marker=f"blocks.0.{names[1][1]}weight",
        rows=partial(_rows, names=names),
        config=partial(_config, names=names),
        preprocess="" if names is OWN else "timm_imagenet",
        current=with_stem_as_convolution if names is OWN else unchanged,
    )
    for form, names in (("official", OFFICIAL), ("timm", TIMM), ("own", OWN))
)

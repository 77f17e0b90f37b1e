"""MLP-Mixer, the whole architecture on one page.

Paper: Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", arXiv:2105.01601, section 2.

Letters (paper -> code), used as shape comments throughout this file:
  B batch          H, W image height, width        P patch_size
  S num_patches = (H/P)*(W/P)                      C hidden_dim
  DS tokens_mlp_dim    DC channels_mlp_dim         N num_blocks       K num_classes
"""

import dataclasses
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlpmixer.config import pair
from mlpmixer.models import names
from mlpmixer.models.configs import MixerConfig

EPS = 1e-6  # official Flax LayerNorm; PyTorch's default is 1e-5
TRUNCATED_STD = (
    0.87962566103423978  # standard deviation of a unit normal cut at +-2: official lecun_normal divides by it
)


class Mlp(nn.Module):
    """W2 gelu(W1 x) over the last axis: (..., dim) -> (..., dim)."""

    def __init__(self, dim: int, mlp_dim: int, cfg: MixerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)
        self.dropout = nn.Dropout(cfg.dropout)
        self.approximate = (
            "tanh" if cfg.activation == "gelu_tanh" else "none"
        )  # tanh: Flax's default, what the official weights saw

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.gelu(self.fc1(x), approximate=self.approximate))
        return cast(Tensor, self.dropout(self.fc2(x)))


class MixerBlock(nn.Module):
    """One Mixer layer, equation (1): (B, S, C) -> (B, S, C)."""

    def __init__(self, cfg: MixerConfig, drop_path: float) -> None:
        super().__init__()
        self.parts, self.part_grid = pair(cfg.parts), cfg.part_grid
        self.norm1 = nn.LayerNorm(cfg.hidden_dim, eps=EPS)
        self.token_mixing = Mlp(self.part_grid[0] * self.part_grid[1], cfg.tokens_mlp_dim, cfg)
        self.norm2 = nn.LayerNorm(cfg.hidden_dim, eps=EPS)
        self.channel_mixing = Mlp(cfg.hidden_dim, cfg.channels_mlp_dim, cfg)
        self.drop_path, self.rescale = drop_path, cfg.drop_path_form == "rescaled"

    def mix_tokens(self, x: Tensor) -> Tensor:
        # U[:,i] = X[:,i] + W2 gelu(W1 LayerNorm(X)[:,i]),  i = 1..C     mixes patches; the same MLP for every channel
        return x + self.drop(self.rows(self.token_mixing(self.columns(self.norm1(x)))))

    def columns(self, x: Tensor) -> Tensor:
        """What token mixing sees: (B, S, C) -> (B * parts, C, S / parts); with one part a transposed view."""
        (k, m), (h, w), c = self.parts, self.part_grid, x.shape[2]
        return x.reshape(-1, k, h, m, w, c).permute(0, 1, 3, 5, 2, 4).reshape(-1, c, h * w)

    def rows(self, x: Tensor) -> Tensor:
        """The way back: (B * parts, C, S / parts) -> (B, S, C)."""
        (k, m), (h, w), c = self.parts, self.part_grid, x.shape[1]
        return x.reshape(-1, k, m, c, h, w).permute(0, 1, 4, 2, 5, 3).reshape(-1, k * h * m * w, c)

    def mix_channels(self, u: Tensor) -> Tensor:
        # Y[j,:] = U[j,:] + W4 gelu(W3 LayerNorm(U)[j,:]),  j = 1..S     mixes channels; the same MLP for every patch
        return u + self.drop(self.channel_mixing(self.norm2(u)))

    def drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth: zero the whole branch of a sample, drawn anew for each branch (big_vision's
        mlp_mixer.py)."""
        kept = self.kept(branch)
        return branch if kept is None else branch * kept

    def kept(self, x: Tensor) -> Tensor | None:
        """What a branch of each sample is multiplied by, (B, 1, 1); None where no branch is dropped."""
        if self.drop_path == 0 or not self.training:
            return None
        mask = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.drop_path)
        return mask / (1 - self.drop_path) if self.rescale else mask

    def forward(self, x: Tensor) -> Tensor:
        return self.mix_channels(self.mix_tokens(x))


class Mixer(nn.Module):
    """Images to logits: (B, in_channels, H, W) -> (B, K), or pre-logits (B, C) when num_classes is 0.

    Weights start as in the official code: truncated LeCun normal, zero biases, zero head.
    Set `checkpointing = True` to recompute each block in the backward pass instead of storing its activations.
    """

    def __init__(self, cfg: MixerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.checkpointing = False
        (p, q), c = pair(cfg.patch_size), cfg.hidden_dim
        last = max(cfg.num_blocks - 1, 1)
        self.stem = nn.Linear(cfg.in_channels * p * q, c)  # "per-patch fully-connected", figure 1
        self.blocks = nn.ModuleList(MixerBlock(cfg, cfg.drop_path * i / last) for i in range(cfg.num_blocks))
        self.norm = nn.LayerNorm(c, eps=EPS)
        self.head = nn.Linear(c, cfg.num_classes) if cfg.num_classes else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Official initialisation (Flax defaults; the head's kernel is zero), from torch's global generator."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                std = layer.in_features**-0.5 / TRUNCATED_STD
                nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(layer.bias)
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)

    def patches(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, S, in_channels*P*P), row-major. ValueError on any other size: nothing is padded
        or cut."""
        cfg, (h, w), (p, q), (rows, cols) = (
            self.cfg,
            pair(self.cfg.image_size),
            pair(self.cfg.patch_size),
            self.cfg.grid,
        )
        if images.ndim != 4 or images.shape[1:] != (cfg.in_channels, h, w):
            raise ValueError(
                f"expected images of shape (B, {cfg.in_channels}, {h}, {w}), got {tuple(images.shape)}; "
                "a Mixer works at the image size it was made for"
            )
        x = images.reshape(-1, cfg.in_channels, rows, p, cols, q)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, cfg.num_patches, cfg.in_channels * p * q)  # (B, S, in*P*P)

    def features(self, images: Tensor) -> Tensor:
        """Normalised tokens (B, S, C), before pooling."""
        x = self.stem(self.patches(images))  # (B, S, C), contiguous, and so is every residual sum after it
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
        return cast(Tensor, self.norm(x))

    def pre_logits(self, images: Tensor) -> Tensor:
        """Features for a linear classifier: (B, C), the mean over the patches."""
        return self.features(images).mean(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.pre_logits(images)))

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:
        """Everything on the way: stem and block_0..block_{N-1} (B, S, C), pre_logits (B, C), logits (B, K)."""
        x = self.stem(self.patches(images))
        out = {"stem": x}
        for i, block in enumerate(self.blocks):
            x = out[f"block_{i}"] = block(x)
        out["pre_logits"] = self.norm(x).mean(dim=1)
        return out | {"logits": self.head(out["pre_logits"])}


def configured(model: str | MixerConfig, **fields: Any) -> MixerConfig:
    """The architecture of a name ("S/16", see `zoo.MODELS`) or config, with fields replaced: `num_classes=10`,
    `image_size=64`.

    Errors: ValueError for an unknown name or field (with the nearest right one) and for sizes that do not fit together.
    """
    known = [f.name for f in dataclasses.fields(MixerConfig)]
    for name in fields:
        if name not in known:
            raise ValueError(f"a Mixer has no {name!r}; {names.suggest(name, known)}")
    return dataclasses.replace(names.MODELS[model] if isinstance(model, str) else model, **fields)


def create_model(model: str | MixerConfig, **fields: Any) -> Mixer:
    """A fresh Mixer by name or config, see `configured`. (`mlpmixer.create_model` also knows trained weights.)"""
    return Mixer(configured(model, **fields))


def count_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())

"""MLP-Mixer, the whole architecture on one page.

Paper: Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", arXiv:2105.01601, section 2.

Letters (paper -> code), used as shape comments throughout this file:
  B batch          H, W image height, width        P patch_size
  S num_patches = (H/P)*(W/P)                      C hidden_dim
  DS tokens_mlp_dim    DC channels_mlp_dim         N num_blocks       K num_classes
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.layers import Mlp, lecun_normal, linear_head
from mlpmixer.models.patch_networks import TokenNetwork

EPS = 1e-6  # official Flax LayerNorm; PyTorch's default is 1e-5


class MixerBlock(nn.Module):
    """One Mixer layer, equation (1): (B, S, C) -> (B, S, C)."""

    kernels: "Callable[[MixerBlock, Tensor], Tensor] | None" = None
    """Computes the same function faster, see the folder `kernels`; a graph that is traced has the operations."""

    def __init__(self, cfg: MixerConfig, drop_path: float) -> None:
        super().__init__()
        self.parts, self.part_grid = pair(cfg.parts), cfg.part_grid
        self.norm1 = nn.LayerNorm(cfg.hidden_dim, eps=EPS)
        self.token_mixing = Mlp(self.part_grid[0] * self.part_grid[1], cfg.tokens_mlp_dim, cfg.activation, cfg.dropout)
        self.norm2 = nn.LayerNorm(cfg.hidden_dim, eps=EPS)
        self.channel_mixing = Mlp(cfg.hidden_dim, cfg.channels_mlp_dim, cfg.activation, cfg.dropout)
        self.drop_path, self.rescale = drop_path, cfg.drop_path_form != "unscaled"

    def mix_tokens(self, x: Tensor) -> Tensor:
        # U[:,i] = X[:,i] + W2 gelu(W1 LayerNorm(X)[:,i]),  i = 1..C     mixes patches; the same MLP for every channel
        return x + self.drop(self.rows(self.token_mixing(self.columns(self.norm1(x)))))

    def columns(self, x: Tensor) -> Tensor:
        """Input of token mixing: (B, S, C) -> (B * parts, C, S / parts)."""
        if self.parts == (1, 1):
            return x.transpose(1, 2)
        (k, m), (h, w), c = self.parts, self.part_grid, x.shape[2]
        return x.reshape(-1, k, h, m, w, c).permute(0, 1, 3, 5, 2, 4).reshape(-1, c, h * w)

    def rows(self, x: Tensor) -> Tensor:
        """The way back: (B * parts, C, S / parts) -> (B, S, C)."""
        if self.parts == (1, 1):
            return x.transpose(1, 2)
        (k, m), (h, w), c = self.parts, self.part_grid, x.shape[1]
        return x.reshape(-1, k, m, c, h, w).permute(0, 1, 4, 2, 5, 3).reshape(-1, k * h * m * w, c)

    def mix_channels(self, u: Tensor) -> Tensor:
        # Y[j,:] = U[j,:] + W4 gelu(W3 LayerNorm(U)[j,:]),  j = 1..S     mixes channels; the same MLP for every patch
        return u + self.drop(self.channel_mixing(self.norm2(u)))

    def drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth: zero the whole branch of a sample, drawn anew for each branch (big_vision's
        mlp_mixer.py)."""
        mask = self.drop_path_mask(branch)
        return branch if mask is None else branch * mask

    def drop_path_mask(self, x: Tensor) -> Tensor | None:
        """Factors of the branches of each sample, (B, 1, 1); None where no branch is dropped."""
        if self.drop_path == 0 or not self.training:
            return None
        mask = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.drop_path)
        return mask / (1 - self.drop_path) if self.rescale else mask

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or self.kernels is None:
            return self.mix_channels(self.mix_tokens(x))
        return self.kernels(self, x)


class Mixer(TokenNetwork):
    """Images to logits: (B, in_channels, H, W) -> (B, K), or pre-logits (B, C) when num_classes is 0.

    Weights start as in the official code: truncated LeCun normal, zero biases, zero head.
    """

    cfg: MixerConfig

    def __init__(self, cfg: MixerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        (p, q), c = pair(cfg.patch_size), cfg.hidden_dim
        last, constant = max(cfg.num_blocks - 1, 1), cfg.drop_path_form == "constant"
        self.stem = nn.Linear(cfg.in_channels * p * q, c)  # "per-patch fully-connected", figure 1
        self.blocks = nn.ModuleList(
            MixerBlock(cfg, cfg.drop_path * (1 if constant else i / last)) for i in range(cfg.num_blocks)
        )
        self.norm = nn.LayerNorm(c, eps=EPS)
        self.head = linear_head(cfg)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Official initialisation (Flax defaults; the head's kernel is zero), from torch's global generator."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                lecun_normal(layer)
        self.start_head()

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:
        """Everything on the way: stem and block_0..block_{N-1} (B, S, C), pre_logits (B, C), logits (B, K)."""
        x = self.stem(self.patches(images))
        out = {"stem": x}
        for i, block in enumerate(self.blocks):
            x = out[f"block_{i}"] = block(x)
        out["pre_logits"] = self.norm(x).mean(dim=1)
        return out | {"logits": self.head(out["pre_logits"])}

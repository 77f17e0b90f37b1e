"""Networks over patches: blocks of one width, or stages of blocks over maps that become smaller and wider."""

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.models.checkpointing import recomputed
from mlpmixer.models.configs import PatchConfig, StagesConfig
from mlpmixer.models.layers import cells, cut_patches
from mlpmixer.models.network import Network


class PatchNetwork(Network):
    """A linear stem over patches, blocks, a norm, the mean over the tokens, and a linear head."""

    cfg: PatchConfig
    stem: nn.Linear
    norm: nn.Module
    checkpointing = False

    def patches(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, S, in_channels*P*P), what the stem reads."""
        return cut_patches(images, self.cfg)

    def tokens(self, images: Tensor) -> Tensor:
        """Normalised tokens (B, S, C), before pooling."""
        raise NotImplementedError

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised tokens (B, S, C), before pooling."""
        return self.tokens(images)

    def pool(self, features: Tensor) -> Tensor:
        """The mean over the tokens: (B, S, C) -> (B, C)."""
        return features.mean(dim=1)

    def through(self, blocks: nn.Module, x: Tensor) -> Tensor:
        """`x` after all blocks of a list, recomputed in the backward pass if `checkpointing` says so."""
        for block in cast(nn.ModuleList, blocks):
            x = recomputed(block, x) if self.checkpointing and self.training else block(x)
        return x


class TokenNetwork(PatchNetwork):
    """Blocks of one width over tokens (B, S, C)."""

    blocks: nn.ModuleList

    def embed(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, S, C), what the blocks read."""
        return cast(Tensor, self.stem(self.patches(images)))  # contiguous, and so is every residual sum after it

    def tokens(self, images: Tensor) -> Tensor:
        """Normalised tokens (B, S, C), before pooling."""
        return cast(Tensor, self.norm(self.through(self.blocks, self.embed(images))))

    def layers(self) -> list[list[nn.Module]]:
        """From the stem to the head, for rates that fall with depth and for layers that stay frozen."""
        return [[self.stem], *([block] for block in self.blocks), [self.norm, self.head]]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices of every block."""
        return [p for p in self.blocks.parameters() if p.ndim == 2]


class Merge(nn.Module):
    """A convolution of size and stride 2 over a map, or 1 where only the width changes: (B, H, W, C) -> (B, H/2, W/2,
    C').

    Its weight is the convolution's, (C', C, 2, 2), as a matrix.
    """

    def __init__(self, dim: int, out_dim: int, size: int = 2) -> None:
        super().__init__()
        self.size = size
        self.linear = nn.Linear(dim * size * size, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(cells(x, self.size)))


class StagedNetwork(PatchNetwork):
    """Stages of blocks over maps (B, H, W, C), with a merge before all but the first; tokens are the places of the
    last."""

    cfg: StagesConfig
    merges: nn.ModuleList
    """One a stage: what comes before it; nn.Identity() where nothing does."""
    stages: nn.ModuleList

    def make_stages(self, block: Callable[[int, int, float], nn.Module]) -> nn.ModuleList:
        """block: (stage, its width, rate of stochastic depth, linear over all blocks) -> a block."""
        cfg, most = self.cfg, max(sum(self.cfg.depths) - 1, 1)
        rates = iter([cfg.drop_path * i / most for i in range(sum(cfg.depths))])
        return nn.ModuleList(
            nn.ModuleList(block(i, c, next(rates)) for _ in range(depth))
            for i, (c, depth) in enumerate(zip(cfg.hidden_dims, cfg.depths, strict=True))
        )

    def make_merges(self) -> nn.ModuleList:
        cfg, dims = self.cfg, self.cfg.hidden_dims
        return nn.ModuleList(
            Merge(dims[i - 1], c, 2 if cfg.merged[i] else 1)
            if i and (cfg.merged[i] or c != dims[i - 1])
            else nn.Identity()
            for i, c in enumerate(dims)
        )

    def embed(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> the map of the first stage (B, H/P, W/P, C)."""
        (h, w), (p, q) = images.shape[-2:], pair(self.cfg.patch_size)
        x: Tensor = self.stem(self.patches(images))
        return x.view(x.shape[0], h // p, w // q, -1)  # len() would fix the batch in a traced graph

    def tokens(self, images: Tensor) -> Tensor:
        """Normalised places of the last stage (B, S, C), before pooling."""
        x = self.embed(images)
        for merge, blocks in zip(self.merges, self.stages, strict=True):
            x = self.through(blocks, merge(x))
        return cast(Tensor, self.norm(x)).flatten(1, 2)

    def layers(self) -> list[list[nn.Module]]:
        """From the stem to the head, for rates that fall with depth and for layers that stay frozen."""
        blocks = [
            [merge, block] if j == 0 else [block]
            for merge, stage in zip(self.merges, self.stages, strict=True)
            for j, block in enumerate(cast(nn.ModuleList, stage))
        ]
        return [[self.stem], *blocks, [self.norm, self.head]]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices of every block; (S, m, n) is S of them."""
        return [p for p in self.stages.parameters() if p.ndim in (2, 3) and min(p.shape[-2:]) > 1]

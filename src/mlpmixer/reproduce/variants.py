"""Appendix A.1: other ways to mix tokens. Each one builds a network for `train(recipe, network=...)`, which is a Mixer
in everything else.

Letters: B images, S patches, C hidden_dim, DS tokens_mlp_dim, G groups of channels, k the factor of a pyramid.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from mlpmixer.config import Config, pair
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.layers import Mlp
from mlpmixer.models.mixer import Mixer, MixerBlock


class PerChannel(nn.Linear):
    """C linear maps in one product, each for its own channel: (B, C, in) -> (B, C, out).

    Their weights are one matrix (C * out, in), which starts and decays by the rule of the one map that they replace.
    """

    def __init__(self, channels: int, dim: int, out_dim: int) -> None:
        super().__init__(dim, channels * out_dim)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.view(self.channels, -1, self.in_features), self.bias.view(self.channels, 1, -1)
        return torch.baddbmm(bias, x.transpose(0, 1), weight.mT).transpose(0, 1)  # C products of (B, in) and (in, out)


class UntiedBlock(MixerBlock):
    """C separate token-mixing MLPs, one for each channel, instead of one for all."""

    def __init__(self, cfg: MixerConfig, drop_path: float) -> None:
        super().__init__(cfg, drop_path)
        c, s, ds = cfg.hidden_dim, self.token_mixing.fc1.in_features, cfg.tokens_mlp_dim
        self.token_mixing.fc1, self.token_mixing.fc2 = PerChannel(c, s, ds), PerChannel(c, ds, s)


class GroupedBlock(MixerBlock):
    """Token mixing sees G neighbouring channels at once: a table of (S * G) x (C / G), with the same D_S."""

    def __init__(self, cfg: MixerConfig, drop_path: float, groups: int) -> None:
        if groups < 1 or cfg.hidden_dim % groups:
            raise ValueError(
                f"expected a number of neighbouring channels that divides hidden_dim={cfg.hidden_dim}, got {groups}"
            )
        super().__init__(cfg, drop_path)
        self.groups = groups
        self.token_mixing = Mlp(
            groups * self.token_mixing.fc1.in_features, cfg.tokens_mlp_dim, cfg.activation, cfg.dropout
        )

    def columns(self, x: Tensor) -> Tensor:
        x = super().columns(x)
        return x.reshape(len(x), -1, self.groups * x.shape[2])  # (B, C / G, G * S)

    def rows(self, x: Tensor) -> Tensor:
        return super().rows(x.reshape(len(x), -1, x.shape[2] // self.groups))


class ViewsBlock(GroupedBlock):
    """Token mixing sees at once a feature of each of G learnt linear views C -> C / G of a token, not G neighbours."""

    def __init__(self, cfg: MixerConfig, drop_path: float, groups: int) -> None:
        super().__init__(cfg, drop_path, groups)
        self.views = nn.Linear(
            cfg.hidden_dim, cfg.hidden_dim
        )  # its outputs j * G ... j * G + G - 1 are feature j of the G views

    def columns(self, x: Tensor) -> Tensor:
        return super().columns(self.views(x))


class PyramidBlock(MixerBlock):
    """Token mixing maps S tokens to S' = S / k^2: (B, S, C) -> (B, S', C). Its skip connection is the mean over k x k
    patches."""

    def __init__(self, cfg: MixerConfig, drop_path: float, factor: int) -> None:
        super().__init__(cfg, drop_path)
        self.factor = factor
        self.token_mixing.fc2 = nn.Linear(cfg.tokens_mlp_dim, cfg.num_patches // factor**2)

    def mix_tokens(self, x: Tensor) -> Tensor:
        mixed = self.token_mixing(self.columns(self.norm1(x)))  # (B, C, S')
        return self.pooled(x) + self.drop(mixed.transpose(1, 2))

    def pooled(self, x: Tensor) -> Tensor:
        (rows, cols), k = self.part_grid, self.factor
        return x.reshape(len(x), rows // k, k, cols // k, k, -1).mean(dim=(2, 4)).flatten(1, 2)  # (B, S', C)


def with_blocks(cfg: MixerConfig, block: Callable[[int, float], MixerBlock]) -> Mixer:
    """A Mixer of other blocks, made from their number and their drop_path; weights start by the official rule."""
    model = Mixer(cfg)
    for i, plain in enumerate(model.blocks):
        assert isinstance(plain, MixerBlock)
        model.blocks[i] = block(i, plain.drop_path)
    model.reset_parameters()
    return model


def untied(cfg: MixerConfig) -> Mixer:
    """C separate token-mixing MLPs in every block."""
    return with_blocks(cfg, lambda i, drop_path: UntiedBlock(cfg, drop_path))


@dataclass(frozen=True)
class Grouped(Config):
    """G neighbouring channels mixed together in every block. ValueError when G does not divide C."""

    groups: int
    block: ClassVar[type[GroupedBlock]] = GroupedBlock

    def __call__(self, cfg: MixerConfig) -> Mixer:
        return with_blocks(cfg, lambda i, drop_path: self.block(cfg, drop_path, self.groups))


class Views(Grouped):
    """G learnt views of the channels mixed together in every block. ValueError when G does not divide C."""

    block = ViewsBlock


@dataclass(frozen=True)
class Pyramid(Config):
    """1 / k^2 of the tokens, from the middle block on.

    ValueError when k does not divide the grid of patches, or when the grid is in parts."""

    factor: int

    def __call__(self, cfg: MixerConfig) -> Mixer:
        (h, w), (rows, cols), k = pair(cfg.image_size), cfg.grid, self.factor
        if k < 1 or rows % k or cols % k or cfg.part_grid != cfg.grid:
            raise ValueError(f"expected a factor that divides a grid of {rows} x {cols} patches, mixed as one, got {k}")
        small, middle = replace(cfg, image_size=(h // k, w // k)), cfg.num_blocks // 2

        def block(i: int, drop_path: float) -> MixerBlock:
            if i == middle:
                return PyramidBlock(cfg, drop_path, k)
            return MixerBlock(cfg if i < middle else small, drop_path)

        return with_blocks(cfg, block)

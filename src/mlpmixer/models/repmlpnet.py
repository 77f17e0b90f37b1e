"""RepMLPNet, the whole architecture on one page.

Paper: Ding et al., "RepMLPNet: Hierarchical Vision MLP with Re-parameterized Locality", arXiv:2112.11081, section 3.
Official code: DingXiaoH/RepMLP, repmlpnet.py.

Letters: B batch, C channels, H x W places, h x w places of a tile, S share-sets, K num_classes. What differs from
equation (1) of the Mixer: token mixing is one linear layer, C/S channels sharing a matrix; it learns next to
convolutions that fold into the matrix; a gate per channel multiplies it; and BatchNorm stands in the place of
LayerNorm.
"""

import copy
import dataclasses
import math
from collections import OrderedDict
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpmixer.models.configs import RepMLPNetConfig
from mlpmixer.models.folding_convolutions import FoldingConvolutions, convolved, scale_and_shift
from mlpmixer.models.layers import DropPath, cells, linear_head, linear_stem
from mlpmixer.models.patch_networks import StagedNetwork


class MapBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the last axis: (..., C) -> (..., C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, x.shape[-1])).view(x.shape)


class NormedLinear(nn.Sequential):
    """A linear layer without bias, and BatchNorm: (..., C) -> (..., C')."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Linear(dim, out_dim, bias=False)
        self.bn = MapBatchNorm(out_dim)


class ShareSets(nn.Module):
    """A linear layer over the places of a tile for each share-set: maps (S, h*w, N) -> (S, h*w, N)."""

    def __init__(self, share_sets: int, places: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(share_sets, places, places))
        self.bias = nn.Parameter(torch.empty(share_sets, places, 1)) if bias else None
        for p in self.parameters():  # as torch starts a linear layer
            nn.init.uniform_(p, -1 / math.sqrt(places), 1 / math.sqrt(places))

    def forward(self, maps: Tensor) -> Tensor:
        y = torch.bmm(self.weight, maps)
        return y if self.bias is None else y + self.bias


class RepBlock(FoldingConvolutions):
    """Section 3.1: maps (B, H, W, C) -> (B, H, W, C); tiles of h x w places, each mixed on its own.

    Channel c uses share-set c mod S. With several tiles and S < C the official code mixes tiles and channels up; here
    every tile stays on its own.
    folded: without the convolutions, which are then in `fc3`.
    """

    def __init__(
        self, dim: int, h: int, w: int, share_sets: int, kernels: tuple[int, ...], reduction: int, folded: bool = False
    ) -> None:
        super().__init__()
        self.h, self.w, self.share_sets = h, w, share_sets
        inner = dim // reduction
        self.gp = nn.Sequential(OrderedDict(fc1=nn.Linear(dim, inner), relu=nn.ReLU(), fc2=nn.Linear(inner, dim)))
        self.fc3 = ShareSets(share_sets, h * w, bias=folded)
        if not folded:
            self.fc3_bn = nn.BatchNorm2d(share_sets)
        self.add_convolutions(() if folded else kernels, share_sets, share_sets, groups=share_sets)

    def forward(self, x: Tensor) -> Tensor:
        (b, rows, cols, c), (h, w, s) = x.shape, (self.h, self.w, self.share_sets)
        gate = torch.sigmoid(self.gp(x.mean(dim=(1, 2))))  # (B, C)
        # (B, H/h, h, W/w, w, C/S, S) -> (S, h w, B H/h W/w C/S): a column is a map of a tile
        tiles = x.reshape(b, rows // h, h, cols // w, w, c // s, s).permute(6, 2, 4, 0, 1, 3, 5)
        maps = tiles.reshape(s, h * w, -1)
        y: Tensor = self.fc3(maps)
        if self.fc3.bias is None:
            y = self.fc3_bn(y[None])[0]
            for conv, norm in self.convolutions():
                y = y + norm(convolved(maps, conv.weight, h, w)[None])[0]
        y = y.reshape(tiles.shape).permute(3, 4, 1, 5, 2, 6, 0).reshape(b, rows, cols, c)
        return y * gate[:, None, None]

    @torch.no_grad()
    def fold(self) -> None:
        """Put BatchNorm and convolutions into `fc3`, in place: the same function in evaluation. (Section 3.2.)"""
        h, w = self.h, self.w
        scale, bias = scale_and_shift(self.fc3_bn)
        matrix = self.fc3.weight * scale[:, None, None]
        for convolution, shift in self.take_convolutions(h, w):
            matrix, bias = matrix + convolution[:, :, 0], bias + shift
        del self.fc3_bn
        self.fc3.weight = nn.Parameter(matrix)
        self.fc3.bias = nn.Parameter(bias[:, None, None].repeat(1, h * w, 1))


class RepUnit(nn.Module):
    """One unit, figure 2: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, cfg: RepMLPNetConfig, stage: int, dim: int, drop_path: float) -> None:
        super().__init__()
        h, w = cfg.grids[stage]
        self.repmlp_block = RepBlock(dim, h, w, cfg.share_sets[stage], cfg.kernels, cfg.reduction, cfg.folded)
        fc1, fc2 = NormedLinear(dim, cfg.mlp_ratio * dim), NormedLinear(cfg.mlp_ratio * dim, dim)
        self.ffn_block = nn.Sequential(OrderedDict(ffn_fc1=fc1, gelu=nn.GELU(), ffn_fc2=fc2))
        self.prebn1 = MapBatchNorm(dim)
        self.prebn2 = MapBatchNorm(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.drop_path(self.repmlp_block(self.prebn1(x)))
        return cast(Tensor, y + self.drop_path(self.ffn_block(self.prebn2(y))))


class NormedMerge(NormedLinear):
    """A convolution of size and stride 2 without bias, as a linear layer over cells, BatchNorm and ReLU: (B, H, W, C)
    -> (B, H/2, W/2, C')."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__(4 * dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(cells(x, 2))))


class RepMLPNet(StagedNetwork):
    """Images to logits: (B, in_channels, H, W) -> (B, K), or pre-logits (B, C) when num_classes is 0.

    Weights start as layers of torch do. `folded(network)` is the same function without convolutions.
    """

    cfg: RepMLPNetConfig

    def __init__(self, cfg: RepMLPNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        dims = cfg.hidden_dims
        self.stem = linear_stem(cfg, dims[0], bias=False)
        self.stem_bn = MapBatchNorm(dims[0])
        self.merges = nn.ModuleList(NormedMerge(dims[i - 1], c) if i else nn.Identity() for i, c in enumerate(dims))
        self.stages = self.make_stages(lambda stage, dim, drop_path: RepUnit(cfg, stage, dim, drop_path))
        self.norm = MapBatchNorm(cfg.num_features)
        self.head = linear_head(cfg)

    def start_head(self) -> None:
        """As torch starts a linear layer."""
        if isinstance(self.head, nn.Linear):
            self.head.reset_parameters()

    def layers(self) -> list[list[nn.Module]]:
        """From the stem with its norm to the head."""
        _, *others = super().layers()
        return [[self.stem, self.stem_bn], *others]

    def embed(self, images: Tensor) -> Tensor:
        return F.relu(self.stem_bn(super().embed(images)))


def folded(model: RepMLPNet) -> RepMLPNet:
    """A new network of MLPs alone that is the same function as `model` in evaluation; `model` itself if it is one."""
    if model.cfg.folded:
        return model
    model = copy.deepcopy(model)
    for block in model.modules():
        if isinstance(block, RepBlock):
            block.fold()
    model.cfg = dataclasses.replace(model.cfg, folded=True)
    return model

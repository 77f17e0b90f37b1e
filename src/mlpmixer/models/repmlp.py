"""The block RepMLP of version 1.

Paper: Ding et al., "RepMLP: Re-parameterizing Convolutions into Fully-connected Layers for Image Recognition",
arXiv:2105.01883, section 3. Official code: DingXiaoH/RepMLP, repmlp.py at commit 55c7677.

Letters: B batch, C and O channels before and after, H x W places, h x w places of a tile. `repmlpnet` is the network of
version 2.
"""

from collections import OrderedDict
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpmixer.models.folding_convolutions import FoldingConvolutions, scale_and_shift


class RepMLP(FoldingConvolutions):
    """RepMLP over maps (B, C, H, W) -> (B, O, H, W): the block of version 1, for the stages of a ResNet (section 3).

    in_channels, out_channels: C and O, channels before and after.
    image_size: (H, W), height and width of the maps, in places of the map rather than pixels of the image.
    tile: (h, w) in places, which divides image_size. Each tile is mixed on its own, by a matrix of O h w x C h w.
    kernels: odd sizes of the convolutions beside that matrix, which `fold()` puts into it; (): none.
    reduction: what the width of the global perceptron is divided by. It lets tiles know of each other, and is there
        where there are several.
    groups: of channels, which divide C and O; each is mixed on its own.

    Errors: ValueError for sizes that do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        image_size: tuple[int, int],
        tile: tuple[int, int],
        kernels: tuple[int, ...] = (),
        reduction: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        (rows, cols), (h, w) = image_size, tile
        if min(in_channels, out_channels, rows, cols, h, w, reduction, groups) < 1:
            raise ValueError(
                "in_channels, out_channels, image_size, tile, reduction and groups must be positive, got "
                f"{in_channels}, {out_channels}, {image_size}, {tile}, {reduction} and {groups}"
            )
        if rows % h or cols % w:
            raise ValueError(f"tile must divide image_size {image_size}, got {tile}")
        if any(k < 1 or k % 2 == 0 for k in kernels):
            raise ValueError(f"kernels must be odd, got {kernels}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups must divide {in_channels} and {out_channels} channels, got {groups}")
        self.image_size, self.tile, self.groups = image_size, tile, groups
        self.in_channels, self.out_channels = in_channels, out_channels
        tiles = (rows // h) * (cols // w)
        self.fc1_fc2: nn.ModuleDict | None = None
        if tiles > 1:
            inner = in_channels * tiles // reduction
            if not inner:
                raise ValueError(
                    f"reduction must be at most {in_channels * tiles} (channels times tiles), got {reduction}"
                )
            self.fc1_fc2 = nn.ModuleDict(
                {"fc1": nn.Linear(in_channels * tiles, inner), "fc2": nn.Linear(inner, in_channels * tiles)}
            )
            self.avg = nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(in_channels)))
        self.fc3 = nn.Conv2d(in_channels * h * w, out_channels * h * w, 1, bias=False, groups=groups)
        self.fc3_bn = nn.BatchNorm1d(out_channels * h * w)
        self.add_convolutions(kernels, in_channels, out_channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) -> (B, O, H, W). ValueError for another C, H or W."""
        (rows, cols), (h, w), c, o = self.image_size, self.tile, self.in_channels, self.out_channels
        if x.shape[1:] != (c, rows, cols):
            raise ValueError(f"expected maps of shape (B, {c}, {rows}, {cols}), got {tuple(x.shape)}")
        b, down, across = x.shape[0], rows // h, cols // w
        if self.fc1_fc2 is not None:
            v = F.avg_pool2d(x, (h, w))  # (B, C, H/h, W/w)
            v = self.avg(v) if hasattr(self, "avg") else v
            v = self.fc1_fc2["fc2"](F.relu(self.fc1_fc2["fc1"](v.flatten(1)))).view(b, c, down, 1, across, 1)
            x = (x.view(b, c, down, h, across, w) + v).view(x.shape)
        tiles = x.reshape(b, c, down, h, across, w).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, h, w)
        y: Tensor = self.fc3(tiles.reshape(-1, c * h * w, 1, 1)).flatten(1)
        y = self.fc3_bn(y) if hasattr(self, "fc3_bn") else y
        y = y.view(-1, o, h, w)
        for conv, norm in self.convolutions():
            y = y + norm(conv(tiles))
        return y.view(b, down, across, o, h, w).permute(0, 3, 1, 4, 2, 5).reshape(b, o, rows, cols)

    @torch.no_grad()
    def fold(self) -> None:
        """Put BatchNorm and convolutions into the fully-connected layers, in place (section 3.2): fewer layers, and in
        evaluation the same function, also where C and O differ (the official conversion is right for C = O only)."""
        (h, w), c, o, g = self.tile, self.in_channels, self.out_channels, self.groups
        if self.fc1_fc2 is not None:
            fc1 = cast(nn.Linear, self.fc1_fc2["fc1"])
            norm = cast(nn.BatchNorm2d, self.avg.bn)
            factor, summand = (v.repeat_interleave(fc1.in_features // c) for v in scale_and_shift(norm))
            fc1.bias.add_(fc1.weight @ summand)
            fc1.weight.mul_(factor)
            del self.avg
        scale, bias = scale_and_shift(self.fc3_bn)
        matrix = (self.fc3.weight.flatten(1) * scale[:, None]).view(o, h * w, c // g, h * w)
        for convolution, shift in self.take_convolutions(h, w):
            matrix = matrix + convolution
            bias = bias + shift.repeat_interleave(h * w)
        del self.fc3_bn
        self.fc3.weight, self.fc3.bias = nn.Parameter(matrix.reshape(self.fc3.weight.shape)), nn.Parameter(bias)

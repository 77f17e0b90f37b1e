"""The config of RepMLPNet. No torch."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from mlpmixer.config import pair, require
from mlpmixer.models.configs.network import Layer, Size, StagesConfig
from mlpmixer.registry import shown


@dataclass(frozen=True, kw_only=True)
class RepMLPNetConfig(StagesConfig):
    """RepMLPNet (Ding et al. 2022, arXiv:2112.11081): token mixing is one matrix for each share-set of channels, beside
    convolutions that fold into it when training is over. Trained weights work only at the size they were made for."""

    architecture: ClassVar[str] = "repmlpnet"
    title: ClassVar[str] = "RepMLPNet"
    arxiv: ClassVar[str] = "2112.11081"

    patch_size: Size = 4
    """P in pixels; one number means square."""
    hidden_dims: tuple[int, ...] = (64, 128, 256, 512)
    """C, channels of a place, in each stage."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Units of each stage, each of a RepMLP block and an FFN."""
    share_sets: tuple[int, ...] = (1, 4, 16, 128)
    """S of each stage, the number of matrices over its places: channel c uses matrix c mod S. Divides C."""
    kernels: tuple[int, ...] = (1, 3)
    """Odd sizes of the convolutions next to each matrix."""
    reduction: int = 4
    """Divisor of C that gives the hidden width of the global perceptron, which gates the channels."""
    mlp_ratio: int = 4
    """Hidden width of the FFN, in multiples of C."""
    folded: bool = False
    """Whether the convolutions are folded into the matrices. False: with convolutions, to train; True: MLPs alone, to
    use."""

    def deployed(self) -> "RepMLPNetConfig":
        return dataclasses.replace(self, folded=True)

    def layers(self) -> list[Layer]:
        (h, w), c = self.grids[0], self.hidden_dims[0]
        stem = self.in_channels * math.prod(pair(self.patch_size)) * c
        lines = [
            Layer("images", (self.in_channels, *pair(self.image_size)), 0, 0),
            Layer("stem", (c, h, w), stem + 2 * c, 2 * h * w * stem),
        ]
        for i, (depth, c, (h, w)) in enumerate(zip(self.depths, self.hidden_dims, self.grids, strict=True)):
            s, m, r, sets = h * w, self.mlp_ratio * c, c // self.reduction, self.share_sets[i]
            local = sum(k * k for k in self.kernels)
            mix = sets * s * s + (sets * s if self.folded else 2 * sets + sets * (local + 2 * len(self.kernels)))
            flops = 2 * c * s * s + (0 if self.folded else 2 * c * s * local) + 4 * c * r
            if i:
                before = self.hidden_dims[i - 1]
                lines.append(Layer(f"merges.{i}", (c, h, w), 4 * before * c + 2 * c, 8 * s * before * c))
            for j in range(depth):
                lines += [
                    Layer(f"stages.{i}.{j}.norm1", (c, h, w), 2 * c, 0),
                    Layer(f"stages.{i}.{j}.rep", (c, h, w), mix + 2 * c * r + r + c, flops),
                    Layer(f"stages.{i}.{j}.norm2", (c, h, w), 2 * c, 0),
                    Layer(f"stages.{i}.{j}.ffn", (c, h, w), 2 * c * m + 2 * m + 2 * c, 4 * s * c * m),
                ]
        return [*lines, *self.ending()]

    def validate(self) -> None:
        super().validate()
        self.require_range(1, 64, "mlp_ratio", "reduction")
        require(
            len(self.share_sets) == len(self.depths)
            and all(n >= 1 and c % n == 0 for n, c in zip(self.share_sets, self.hidden_dims, strict=True)),
            f"share_sets must have an entry for each stage, which divides its hidden_dims {shown(self.hidden_dims)}; "
            f"got {shown(self.share_sets)}",
        )
        odd = all(k >= 1 and k % 2 == 1 for k in self.kernels) and len(set(self.kernels)) == len(self.kernels)
        require(odd and len(self.kernels) <= 8, f"kernels must be different odd numbers, got {shown(self.kernels)}")
        require(
            min(self.hidden_dims) >= self.reduction,
            f"hidden_dims must be at least reduction, {self.reduction}, got {shown(self.hidden_dims)}",
        )

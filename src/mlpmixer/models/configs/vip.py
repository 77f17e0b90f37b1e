"""The config of the Vision Permutator. No torch."""

from dataclasses import dataclass
from typing import ClassVar

from mlpmixer.config import pair, require
from mlpmixer.models.configs.network import Layer, Size, StagesConfig
from mlpmixer.registry import shown

MAX_SIDE = 8192  # places that are tried for a hint, as many as the pixels of the largest square image


@dataclass(frozen=True, kw_only=True)
class ViPConfig(StagesConfig):
    """Vision Permutator (Hou et al. 2021, arXiv:2106.12368): rows, columns and channels are each mixed by a linear
    layer, and the three are weighted by the content of the image. Square images only, with a segment of channels for
    every row and column. Trained weights work only at the size they were made for."""

    architecture: ClassVar[str] = "vip"
    title: ClassVar[str] = "Vision Permutator"
    arxiv: ClassVar[str] = "2106.12368"

    patch_size: Size = 7
    """P in pixels; one number means square."""
    hidden_dims: tuple[int, ...] = (192, 384, 384, 384)
    """C, channels of a place, in each group of blocks."""
    depths: tuple[int, ...] = (4, 3, 8, 3)
    """Blocks of each group, as the official code groups them: the names of its weights count the groups."""
    strides: tuple[int, ...] = (2, 1, 1)
    """Divisor of the resolution after each group but the last: 2, or 1 to keep it."""
    mlp_ratio: int = 3
    """Hidden width of the MLPs, in multiples of C."""
    bias: bool = False
    """Whether the layers over rows, columns and channels have biases; no published network has them."""

    @property
    def merged(self) -> tuple[bool, ...]:
        return (False, *(stride == 2 for stride in self.strides))

    def layers(self) -> list[Layer]:
        lines = self.staged_stem()
        for i, (depth, c, (h, w)) in enumerate(zip(self.depths, self.hidden_dims, self.grids, strict=True)):
            s, m, r = h * w, self.mlp_ratio * c, c // 4
            mix = 4 * c * c + c + 3 * c * self.bias + (c * r + r) + (r * 3 * c + 3 * c)
            lines += self.merge(i)
            for j in range(depth):
                lines += [
                    Layer(f"stages.{i}.{j}.norm1", (h, w, c), 2 * c, 0),
                    Layer(f"stages.{i}.{j}.permute_mlp", (h, w, c), mix, 8 * s * c * c + 8 * c * r),
                    Layer(f"stages.{i}.{j}.norm2", (h, w, c), 2 * c, 0),
                    Layer(f"stages.{i}.{j}.channel_mixing", (h, w, c), 2 * c * m + m + c, 4 * s * c * m),
                ]
        return [*lines, *self.ending()]

    def validate(self) -> None:
        require(
            len(self.strides) == len(self.depths) - 1 and set(self.strides) <= {1, 2},
            f"strides must be 1 or 2, one for each entry of depths but the last; got {shown(self.strides)} and depths "
            f"{shown(self.depths)}",
        )
        super().validate()
        self.require_range(1, 64, "mlp_ratio")
        for c, (h, w) in zip(self.hidden_dims, self.grids, strict=True):
            require(c >= 4, f"hidden_dims must be at least 4 each, got {shown(self.hidden_dims)}")
            if h != w or c % h:
                a, b = self.nearest_size()
                raise ValueError(
                    f"vip needs as many places down as across, and hidden_dims that are multiples of that; image_size "
                    f"{shown(self.image_size)} and patch_size {shown(self.patch_size)} make {h}x{w} places for {c} "
                    "channels" + f"; nearest image_size that fits: {a}x{b}" * ((a, b) != pair(self.image_size))
                )

    def nearest_size(self) -> tuple[int, int]:
        """Height and width nearest to image_size whose square grids divide all hidden_dims, where there are any."""
        (h, _), (p, q), merges = pair(self.image_size), self.cell, sum(self.merged)
        finer = [2 ** (merges - sum(self.merged[: i + 1])) for i in range(len(self.depths))]
        most = min(2 * h // p, *self.hidden_dims, MAX_SIDE)
        widths = list(zip(self.hidden_dims, finer, strict=True))
        sides = [n for n in range(1, most + 1) if all(c % (n * more) == 0 for c, more in widths)]
        if not sides:
            return super().nearest_size()
        n = min(sides, key=lambda n: abs(n * p - h))
        return n * p, n * q

"""The config of AS-MLP. No torch."""

from dataclasses import dataclass
from typing import ClassVar

from mlpmixer.config import require
from mlpmixer.models.configs.network import Layer, Size, StagesConfig


@dataclass(frozen=True, kw_only=True)
class ASMLPConfig(StagesConfig):
    """AS-MLP (Lian et al. 2021, arXiv:2107.08391): chunks of channels are shifted along rows and along columns, with
    zeros at the border. The same weights work at any image size that patches and merges divide."""

    architecture: ClassVar[str] = "as-mlp"
    any_size: ClassVar[bool] = True
    title: ClassVar[str] = "AS-MLP"
    arxiv: ClassVar[str] = "2107.08391"

    patch_size: Size = 4
    """P in pixels; one number means square."""
    hidden_dims: tuple[int, ...] = (96, 192, 384, 768)
    """C, channels of a place, in each stage; the published networks double it from stage to stage."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each stage."""
    shift_size: int = 5
    """Number of chunks into which the channels are cut, each shifted by another number of places: -2 to 2 for 5. Odd; 1
    is no shift."""
    mlp_ratio: int = 4
    """Hidden width of the MLPs, in multiples of C."""

    def layers(self) -> list[Layer]:
        first = self.hidden_dims[0]
        lines = [*self.staged_stem(), Layer("stem_norm", (*self.grids[0], first), 2 * first, 0)]
        for i, (depth, c, (h, w)) in enumerate(zip(self.depths, self.hidden_dims, self.grids, strict=True)):
            s, m = h * w, self.mlp_ratio * c
            if i:
                before = 4 * self.hidden_dims[i - 1]
                lines.append(Layer(f"merges.{i}", (h, w, c), 2 * before + before * c, 2 * s * before * c))
            for j in range(depth):
                lines += [
                    Layer(f"stages.{i}.{j}.norm1", (h, w, c), 2 * c, 0),
                    Layer(f"stages.{i}.{j}.axial_shift", (h, w, c), 4 * (c * c + c) + 4 * c, 8 * s * c * c),
                    Layer(f"stages.{i}.{j}.norm2", (h, w, c), 2 * c, 0),
                    Layer(f"stages.{i}.{j}.channel_mixing", (h, w, c), 2 * c * m + m + c, 4 * s * c * m),
                ]
        return [*lines, *self.ending()]

    def validate(self) -> None:
        super().validate()
        self.require_range(1, 64, "mlp_ratio", "shift_size")
        require(self.shift_size % 2 == 1, f"shift_size must be odd, got {self.shift_size}")

"""The configs of S2-MLP and S2-MLPv2. No torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mlpmixer.config import pair, require
from mlpmixer.models.configs.network import MAX_BLOCKS, MAX_WIDTH, Layer, PatchConfig, Size, StagesConfig
from mlpmixer.registry import shown


@dataclass(frozen=True, kw_only=True)
class S2MLPConfig(PatchConfig):
    """S2-MLP (Yu et al. 2021, arXiv:2106.07477): patches are mixed by shifting four groups of channels by one place,
    without weights. The same weights work at any image size that the patches divide."""

    architecture: ClassVar[str] = "s2-mlp"
    any_size: ClassVar[bool] = True
    title: ClassVar[str] = "S2-MLP"
    arxiv: ClassVar[str] = "2106.07477"
    weight_free: ClassVar[tuple[str, ...]] = ("drop_path",)

    num_blocks: int = 12
    """N, blocks."""
    hidden_dim: int = 768
    """c, channels of a token."""
    channels_mlp_dim: int = 3072
    """Hidden width of the channel-mixing MLP; 4 c in the paper."""
    norm: Literal["layer", "affine"] = "layer"
    """Norm at the end of every branch: LayerNorm (wide), or ResMLP's affine map per channel (deep)."""
    drop_path: float = 0.0
    """Stochastic depth, the same in every block."""

    @property
    def num_features(self) -> int:
        return self.hidden_dim

    def layers(self) -> list[Layer]:
        s, c, m = self.num_patches, self.hidden_dim, self.channels_mlp_dim
        lines = [*self.stem(c), Layer("stem_norm", (s, c), 2 * c, 0)]
        for i in range(self.num_blocks):
            lines += [
                Layer(f"blocks.{i}.shift_mixing", (s, c), 2 * (c * c + c), 4 * s * c * c),
                Layer(f"blocks.{i}.norm1", (s, c), 2 * c, 0),
                Layer(f"blocks.{i}.channel_mixing", (s, c), 2 * c * m + m + c, 4 * s * c * m),
                Layer(f"blocks.{i}.norm2", (s, c), 2 * c, 0),
            ]
        return [*lines, Layer("mean over patches", (c,), 0, 0), *self.head()]

    def validate(self) -> None:
        super().validate()
        self.require_range(1, MAX_BLOCKS, "num_blocks")
        self.require_range(1, MAX_WIDTH, "hidden_dim", "channels_mlp_dim")
        self.require_rates("drop_path")


@dataclass(frozen=True, kw_only=True)
class S2MLPv2Config(StagesConfig):
    """S2-MLPv2 (Yu et al. 2021, arXiv:2108.01072): two orders of shifts and no shift, weighted by the content of the
    image. The same weights work at any image size that patches and merges divide; but the shares of the three come from
    a sum over the places, so they change with the size."""

    architecture: ClassVar[str] = "s2-mlpv2"
    any_size: ClassVar[bool] = True
    title: ClassVar[str] = "S2-MLPv2"
    arxiv: ClassVar[str] = "2108.01072"

    patch_size: Size = 7
    """P in pixels; one number means square."""
    mlp_ratio: int = 3
    """Hidden width of the MLPs, in multiples of c."""
    reduction: int = 4
    """Divisor of c that gives the hidden width of the split attention. The paper does not name it; 4 gives its
    parameter counts."""

    def note_at(self, image_size: Size) -> str:
        if pair(image_size) == pair(self.image_size):
            return ""
        return (
            f"the split attention of {self.architecture} sums over the places, so at image_size {shown(image_size)} "
            f"its weights differ from those at {shown(self.image_size)}, where it was trained"
        )

    def layers(self) -> list[Layer]:
        lines = self.staged_stem()
        for i, (depth, c, (h, w)) in enumerate(zip(self.depths, self.hidden_dims, self.grids, strict=True)):
            s, m, r = h * w, self.mlp_ratio * c, c // self.reduction
            mix = (3 * c * c + 3 * c) + 4 * c * r + (c * c + c)
            lines += self.merge(i)
            for j in range(depth):
                lines += [
                    Layer(f"stages.{i}.{j}.norm1", (h, w, c), 2 * c, 0),
                    Layer(f"stages.{i}.{j}.shift_mixing", (h, w, c), mix, 8 * s * c * c + 8 * c * r),
                    Layer(f"stages.{i}.{j}.norm2", (h, w, c), 2 * c, 0),
                    Layer(f"stages.{i}.{j}.channel_mixing", (h, w, c), 2 * c * m + m + c, 4 * s * c * m),
                ]
        return [*lines, *self.ending()]

    def validate(self) -> None:
        super().validate()
        self.require_range(1, 64, "mlp_ratio", "reduction")
        require(
            min(self.hidden_dims) >= self.reduction,
            f"hidden_dims must be at least reduction, {self.reduction}, got {shown(self.hidden_dims)}",
        )

"""The config of gMLP. No torch."""

from dataclasses import dataclass
from typing import ClassVar

from mlpmixer.config import require
from mlpmixer.models.configs.network import MAX_BLOCKS, MAX_WIDTH, Layer, PatchConfig


@dataclass(frozen=True, kw_only=True)
class GMLPConfig(PatchConfig):
    """gMLP (Liu et al. 2021, arXiv:2105.08050): one branch per block, in which half of the channels, mixed over the
    patches, gates the other half."""

    architecture: ClassVar[str] = "gmlp"
    title: ClassVar[str] = "gMLP"
    arxiv: ClassVar[str] = "2105.08050"
    weight_free: ClassVar[tuple[str, ...]] = ("drop_path",)

    num_blocks: int = 30
    """L, blocks of one branch each."""
    hidden_dim: int = 256
    """d_model, channels of a token."""
    channels_mlp_dim: int = 1536
    """d_ffn, width before the gate halves it; 6 d_model in the paper. Even."""
    drop_path: float = 0.0
    """Stochastic depth, the same in every block."""

    @property
    def num_features(self) -> int:
        return self.hidden_dim

    def layers(self) -> list[Layer]:
        s, c, f = self.num_patches, self.hidden_dim, self.channels_mlp_dim
        lines = self.stem(c)
        for i in range(self.num_blocks):
            lines += [
                Layer(f"blocks.{i}.norm", (s, c), 2 * c, 0),
                Layer(f"blocks.{i}.fc1", (s, f), c * f + f, 2 * s * c * f),
                Layer(f"blocks.{i}.gate", (s, f // 2), f + s * s + s, s * s * f),
                Layer(f"blocks.{i}.fc2", (s, c), f // 2 * c + c, s * c * f),
            ]
        return [*lines, Layer("norm", (s, c), 2 * c, 0), Layer("mean over patches", (c,), 0, 0), *self.head()]

    def validate(self) -> None:
        super().validate()
        self.require_range(1, MAX_BLOCKS, "num_blocks")
        self.require_range(1, MAX_WIDTH, "hidden_dim", "channels_mlp_dim")
        self.require_rates("drop_path")
        even = self.channels_mlp_dim % 2 == 0
        require(even, f"channels_mlp_dim must be even, since its halves gate each other; got {self.channels_mlp_dim}")

"""The config of EAMLP. No torch."""

from dataclasses import dataclass
from typing import ClassVar

from mlpmixer.config import require
from mlpmixer.models.configs.network import MAX_BLOCKS, MAX_WIDTH, Layer, PatchConfig


@dataclass(frozen=True, kw_only=True)
class EAMLPConfig(PatchConfig):
    """EAMLP blocks (Guo et al. 2021, arXiv:2105.02358: multi-head external attention) between a linear stem over
    patches and mean pooling: an all-MLP network for small images. The same weights work at any image size that the
    patches divide."""

    architecture: ClassVar[str] = "eamlp"
    any_size: ClassVar[bool] = True
    title: ClassVar[str] = "EAMLP"
    arxiv: ClassVar[str] = "2105.02358"
    weight_free: ClassVar[tuple[str, ...]] = ("drop_path",)

    num_blocks: int = 5
    """Blocks, each of external attention and an MLP."""
    hidden_dim: int = 128
    """C, channels of a token."""
    num_heads: int = 4
    """Heads as the official code counts them; inside there are four times as many, of C / num_heads channels."""
    num_slots: int = 64
    """M, slots of the memory that tokens read from, shared by all images and heads; 64 in the official code."""
    channels_mlp_dim: int = 384
    """Hidden width of the MLP."""
    drop_path: float = 0.0
    """Stochastic depth of the last block; linear from 0 at the first."""

    @property
    def num_features(self) -> int:
        return self.hidden_dim

    def layers(self) -> list[Layer]:
        s, c, m, k = self.num_patches, self.hidden_dim, self.channels_mlp_dim, self.num_slots
        d = c // self.num_heads
        attention = (4 * c * c + 4 * c) + (d * k + k) + (k * d + d) + (4 * c * c + c)
        flops = 16 * s * c * c + 16 * s * c * k  # into 4 C channels and back; every head to the slots and back
        lines = self.stem(c)
        for i in range(self.num_blocks):
            lines += [
                Layer(f"blocks.{i}.norm1", (s, c), 2 * c, 0),
                Layer(f"blocks.{i}.attention", (s, c), attention, flops),
                Layer(f"blocks.{i}.norm2", (s, c), 2 * c, 0),
                Layer(f"blocks.{i}.channel_mixing", (s, c), 2 * c * m + m + c, 4 * s * c * m),
            ]
        return [*lines, Layer("norm", (s, c), 2 * c, 0), Layer("mean over patches", (c,), 0, 0), *self.head()]

    def validate(self) -> None:
        super().validate()
        self.require_range(1, MAX_BLOCKS, "num_blocks")
        self.require_range(1, MAX_WIDTH, "hidden_dim", "channels_mlp_dim", "num_heads", "num_slots")
        self.require_rates("drop_path")
        require(
            self.hidden_dim % self.num_heads == 0,
            f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}",
        )

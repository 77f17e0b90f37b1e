"""The config of ResMLP. No torch."""

from dataclasses import dataclass
from typing import ClassVar

from mlpmixer.config import require
from mlpmixer.models.configs.network import MAX_BLOCKS, MAX_WIDTH, Layer, PatchConfig


@dataclass(frozen=True, kw_only=True)
class ResMLPConfig(PatchConfig):
    """ResMLP (Touvron et al. 2021, arXiv:2105.03404): token mixing is one linear layer, and an affine map per channel
    replaces LayerNorm."""

    architecture: ClassVar[str] = "resmlp"
    title: ClassVar[str] = "ResMLP"
    arxiv: ClassVar[str] = "2105.03404"
    weight_free: ClassVar[tuple[str, ...]] = ("drop_path", "layer_scale")

    num_blocks: int = 12
    """Layers, each of token mixing and an MLP over the channels."""
    hidden_dim: int = 384
    """d, channels of a token."""
    channels_mlp_dim: int = 1536
    """Hidden width of the channel-mixing MLP; 4 d in the paper."""
    layer_scale: float = 0.1
    """Initial factor of each branch, per channel: 0.1 for 12 layers, 1e-5 for 24, 1e-6 for 36."""
    drop_path: float = 0.0
    """Stochastic depth, the same in every block."""

    @property
    def num_features(self) -> int:
        return self.hidden_dim

    def layers(self) -> list[Layer]:
        s, c, dc = self.num_patches, self.hidden_dim, self.channels_mlp_dim
        lines = self.stem(c)
        for i in range(self.num_blocks):
            lines += [
                Layer(f"blocks.{i}.norm1", (s, c), 2 * c, 0),
                Layer(f"blocks.{i}.token_mixing", (s, c), s * s + s + c, 2 * s * s * c),
                Layer(f"blocks.{i}.norm2", (s, c), 2 * c, 0),
                Layer(f"blocks.{i}.channel_mixing", (s, c), 2 * c * dc + dc + c + c, 4 * s * c * dc),
            ]
        return [*lines, Layer("norm", (s, c), 2 * c, 0), Layer("mean over patches", (c,), 0, 0), *self.head()]

    def validate(self) -> None:
        super().validate()
        self.require_range(1, MAX_BLOCKS, "num_blocks")
        self.require_range(1, MAX_WIDTH, "hidden_dim", "channels_mlp_dim")
        self.require_rates("drop_path")
        require(self.layer_scale > 0, f"layer_scale must be positive, got {self.layer_scale}")

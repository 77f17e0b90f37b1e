"""The config of the Mixer. No torch."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from mlpmixer.config import checked, one_if_square, pair, require
from mlpmixer.models.configs.network import MAX_BLOCKS, MAX_WIDTH, Activation, Layer, Method, PatchConfig, Size
from mlpmixer.registry import shown


@dataclass(frozen=True, kw_only=True)
class MixerConfig(PatchConfig):
    """MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601): an MLP over the patches and one over the channels, in
    turn. The fields are a column of the paper's table 1, and the sizes of input and output."""

    architecture: ClassVar[str] = "mixer"
    title: ClassVar[str] = "MLP-Mixer"
    arxiv: ClassVar[str] = "2105.01601"
    weight_free: ClassVar[tuple[str, ...]] = ("dropout", "drop_path", "drop_path_form", "activation")

    parts: int | tuple[int, int] = 1
    """Equal parts, down and across, that the patch grid is cut into: each mixes its own patches only, all with the same
    weights (paper, appendix C, with the block of its block-diagonal matrices stored once). 1 is the plain Mixer."""
    num_blocks: int = 12
    """N, Mixer layers."""
    hidden_dim: int = 768
    """C, channels of a token."""
    tokens_mlp_dim: int = 384
    """D_S, hidden width of the token-mixing MLP."""
    channels_mlp_dim: int = 3072
    """D_C, hidden width of the channel-mixing MLP."""
    activation: Activation = "gelu_tanh"
    """gelu_tanh is the official code's GELU; timm's copies of the weights use gelu_erf."""
    dropout: float = 0.0
    """Probability after each GELU and each MLP output (figure 1 names dropout as an ingredient)."""
    drop_path: float = 0.0
    """Stochastic depth of the last block; linear from 0 at the first, unless the form is constant."""
    drop_path_form: Literal["unscaled", "rescaled", "constant"] = "unscaled"
    """unscaled is big_vision's (no 1/(1-p)); rescaled keeps the expected value of each branch. So does constant,
    timm's form: one rate for all blocks."""

    @property
    def num_features(self) -> int:
        return self.hidden_dim

    @property
    def part_grid(self) -> tuple[int, int]:
        """Patches down and across that one token-mixing MLP sees: the whole grid unless there are parts."""
        (rows, cols), (down, across) = self.grid, pair(self.parts)
        return rows // down, cols // across

    def adapted(
        self,
        *,
        num_classes: int | None = None,
        image_size: Size | None = None,
        patch_size: Size | None = None,
        in_channels: int | None = None,
        method: Method = "bicubic",
    ) -> "MixerConfig":
        """The architecture that `mixer_resize.resize` makes of this one; its docstring has the arguments and errors."""
        checked(Method, method, "method")
        (rows, cols), (down, across), (p, q) = self.grid, pair(self.parts), pair(patch_size or self.patch_size)
        if image_size is None:
            image_size = self.image_size if patch_size is None else one_if_square(rows * p, cols * q)
        new = dataclasses.replace(
            self,
            image_size=image_size,
            patch_size=self.patch_size if patch_size is None else patch_size,
            in_channels=self.in_channels if in_channels is None else in_channels,
            num_classes=self.num_classes if num_classes is None else num_classes,
            parts=1,
        )
        new_rows, new_cols = new.grid
        if method not in ("blocks", "parts"):
            return dataclasses.replace(new, parts=self.parts)
        require(
            new_rows % rows == 0 and new_cols % cols == 0,
            f"method {method!r} makes grids that are a whole number of times {rows}x{cols} patches, got "
            f"{new_rows}x{new_cols}; for any other grid use method='bicubic'",
        )
        down, across = down * new_rows // rows, across * new_cols // cols
        if method == "blocks":
            return dataclasses.replace(new, tokens_mlp_dim=down * across * self.tokens_mlp_dim)
        return dataclasses.replace(new, parts=one_if_square(down, across))

    def layers(self) -> list[Layer]:
        s, c, ds, dc = self.num_patches, self.hidden_dim, self.tokens_mlp_dim, self.channels_mlp_dim
        mixed = self.part_grid[0] * self.part_grid[1]  # S unless there are parts
        lines = self.stem(c)
        for i in range(self.num_blocks):
            lines += [
                Layer(f"blocks.{i}.norm1", (s, c), 2 * c, 0),
                Layer(f"blocks.{i}.token_mixing", (s, c), 2 * mixed * ds + ds + mixed, 4 * s * ds * c),
                Layer(f"blocks.{i}.norm2", (s, c), 2 * c, 0),
                Layer(f"blocks.{i}.channel_mixing", (s, c), 2 * c * dc + dc + c, 4 * s * c * dc),
            ]
        return [*lines, Layer("norm", (s, c), 2 * c, 0), Layer("mean over patches", (c,), 0, 0), *self.head()]

    def validate(self) -> None:
        super().validate()
        self.require_range(1, MAX_BLOCKS, "num_blocks")
        self.require_range(1, MAX_WIDTH, "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")
        self.require_rates("dropout", "drop_path")
        (rows, cols), (down, across) = self.grid, pair(self.parts)
        most, wrong = max(rows, cols), shown(self.parts)
        require(min(down, across) >= 1 and max(down, across) <= most, f"parts must be 1 to {most}, got {wrong}")
        require(
            rows % down == 0 and cols % across == 0,
            f"a grid of {rows}x{cols} patches cannot be cut into {down}x{across} equal parts",
        )

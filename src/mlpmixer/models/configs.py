"""The configs of all networks: frozen, in the paper's words, each able to list its own layers. No torch.

Widths are absolute (paper: D_S, D_C), sizes are pixels. A config is the architecture and nothing else: it is saved with every model.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from mlpmixer.config import Config, checked, one_if_square, pair, require

Activation = Literal["gelu_tanh", "gelu_erf"]
Method = Literal["bicubic", "bilinear", "nearest", "blocks", "parts"]  # of `transfer.adapt`, which explains them


@dataclass(frozen=True, kw_only=True)
class MixerConfig(Config):
    """The architecture: one column of the paper's Table 1, plus the sizes of input and output."""

    image_size: int | tuple[int, int] = 224
    """H, W in pixels; one number means square."""
    patch_size: int | tuple[int, int] = 16
    """P in pixels; one number means square."""
    parts: int | tuple[int, int] = 1
    """Equal parts, down and across, that the patch grid is cut into: each mixes its own patches only, all with the same
    weights (paper, appendix C, with the block of its block-diagonal matrices stored once). 1 is the plain Mixer."""
    in_channels: int = 3
    """1 grey, 3 RGB, any other number for multispectral arrays."""
    num_classes: int = 1000
    """K; 0 means no head: the output is pre_logits."""
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
    """Stochastic depth of the last block; linear from 0 at the first."""
    drop_path_form: Literal["unscaled", "rescaled"] = "unscaled"
    """unscaled is big_vision's (no 1/(1-p)); rescaled keeps the expected value of each branch."""

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        (h, w), (p, q) = pair(self.image_size), pair(self.patch_size)
        return h // p, w // q

    @property
    def num_patches(self) -> int:
        """S."""
        return self.grid[0] * self.grid[1]

    @property
    def part_grid(self) -> tuple[int, int]:
        """Patches down and across that one token-mixing MLP sees: the whole grid unless there are parts."""
        (rows, cols), (down, across) = self.grid, pair(self.parts)
        return rows // down, cols // across

    def adapted(
        self,
        *,
        num_classes: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
        in_channels: int | None = None,
        method: Method = "bicubic",
    ) -> "MixerConfig":
        """The architecture that `transfer.adapt` makes of this one; its docstring has the arguments and errors."""
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
            f"{new_rows}x{new_cols}; "
            "for any other grid use method='bicubic'",
        )
        down, across = down * new_rows // rows, across * new_cols // cols
        if method == "blocks":
            return dataclasses.replace(new, tokens_mlp_dim=down * across * self.tokens_mlp_dim)
        return dataclasses.replace(new, parts=one_if_square(down, across))

    def validate(self) -> None:
        (h, w), (p, q), (down, across) = pair(self.image_size), pair(self.patch_size), pair(self.parts)
        for name in ("in_channels", "num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(self.num_classes >= 0, f"num_classes must be 0 (no head) or more, got {self.num_classes}")
        require(min(h, w, p, q) >= 1, f"image_size {h}x{w} and patch_size {p}x{q} must be positive")
        require(
            h % p == 0 and w % q == 0,
            f"image_size {h}x{w} px is not a multiple of patch_size {p}x{q} px; "
            f"nearest that is: {max(round(h / p), 1) * p}x{max(round(w / q), 1) * q}",
        )
        require(
            min(down, across) >= 1 and self.grid[0] % down == 0 and self.grid[1] % across == 0,
            f"a grid of {h // p}x{w // q} patches cannot be cut into {down}x{across} equal parts",
        )
        for name in ("dropout", "drop_path"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")

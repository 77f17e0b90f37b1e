"""The configs of all networks: frozen, in the paper's words, each able to list its own layers. No torch.

Widths are absolute (paper: D_S, D_C), sizes are pixels. A config is the architecture and nothing else: it is saved with
every model, and its JSON says which architecture it is of.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mlpmixer.config import Config, checked, one_if_square, pair, require
from mlpmixer.registry import shown

Activation = Literal["gelu_tanh", "gelu_erf"]
Method = Literal["bicubic", "bilinear", "nearest", "blocks", "parts"]  # of `mixer_resize.resize`, which explains them
Size = int | tuple[int, int]

MAX_INPUT_PIXELS = 2**26  # of the input, 8192 x 8192
MAX_CHANNELS = 10_000  # satellites have hundreds
MAX_CLASSES = 1_000_000
MAX_BLOCKS = 10_000
MAX_WIDTH = 2**20


@dataclass(frozen=True)
class Layer:
    """One line of a model's summary. Shapes are without the batch; FLOPs are per image, 2 per multiply-add, matrix
    products and convolutions only."""

    name: str
    output: tuple[int, ...]
    params: int
    flops: int


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Config, owner="model"):
    """What every network has: the sizes of its input and its output."""

    architecture: ClassVar[str] = ""
    """Its row in `architecture.ARCHITECTURES`, and the key in JSON that says so."""
    title: ClassVar[str] = ""
    """Its name in print, and below the number of its paper: model cards have both."""
    arxiv: ClassVar[str] = ""
    global_pool: ClassVar[str] = "avg"
    """timm's word for what makes pre-logits of features."""
    weight_free: ClassVar[tuple[str, ...]] = ()
    """Fields that no weight depends on, such as dropout: a trained network takes those it is asked for."""

    image_size: Size = 224
    """H, W in pixels; one number means square."""
    in_channels: int = 3
    """1 grey, 3 RGB, any other number for multispectral arrays."""
    num_classes: int = 1000
    """K; 0 means no head: the output is pre_logits."""

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width, in pixels, of one cell of `grid`."""
        raise NotImplementedError

    @property
    def grid(self) -> tuple[int, int]:
        """Cells down and across that an explanation speaks of: patches, or places of the last feature map."""
        (h, w), (p, q) = pair(self.image_size), self.cell
        return max(h // p, 1), max(w // q, 1)

    @property
    def num_features(self) -> int:
        """Width of pre_logits."""
        raise NotImplementedError

    def layers(self) -> list[Layer]:
        """The network line by line, from the images to the logits, worked out from the config alone."""
        raise NotImplementedError

    @property
    def num_params(self) -> int:
        return sum(layer.params for layer in self.layers())

    def differences(self, wanted: "NetworkConfig", but: Iterable[str] = ()) -> list[str]:
        """The fields other than `but` in which this is not what is wanted: ["hidden_dim 48 instead of 64"]."""
        if type(self) is not type(wanted):
            return [f"{self.architecture} instead of {wanted.architecture}"]
        pairs = {f.name: (getattr(self, f.name), getattr(wanted, f.name)) for f in dataclasses.fields(self)}
        return [f"{name} {a} instead of {b}" for name, (a, b) in pairs.items() if a != b and name not in but]

    def adapted(
        self,
        *,
        num_classes: int | None = None,
        image_size: Size | None = None,
        patch_size: Size | None = None,
        in_channels: int | None = None,
        method: Method = "bicubic",
    ) -> Any:
        """The architecture that `weights.adapt.adapt` makes of this one. An architecture whose trained weights come to
        other sizes overrides this; ValueError for the others."""
        asked = {"image_size": image_size, "patch_size": patch_size, "in_channels": in_channels}
        for name, value in asked.items():
            have = getattr(self, name, None)
            if value is not None and (have is None or pair(value) != pair(have)):
                raise ValueError(
                    f"trained weights of {self.architecture} work at the {name} they were made for, {have}, "
                    f"and not at {value}"
                )
        return self if num_classes is None else dataclasses.replace(self, num_classes=num_classes)

    def tag(self) -> dict[str, str]:
        return {"architecture": self.architecture}

    @classmethod
    def untagged(cls, values: dict[str, Any]) -> tuple[type[Any], dict[str, Any]]:
        """Files without a tag are from before there was a second architecture: they hold Mixers."""
        from mlpmixer.models.architecture import ARCHITECTURES

        fields = {key: value for key, value in values.items() if key != "architecture"}
        name = values.get("architecture", cls.architecture or "mixer")
        require(isinstance(name, str), f"architecture: expected a name, got {shown(name)}")
        found = ARCHITECTURES[name].config
        require(issubclass(found, cls), f"architecture: expected {cls.architecture}, got {name}")
        return found, fields

    def validate(self) -> None:
        require(min(pair(self.image_size)) >= 1, f"image_size must be positive, got {self.image_size}")
        pixels = math.prod(pair(self.image_size))
        require(
            pixels <= MAX_INPUT_PIXELS,
            f"image_size must be at most {MAX_INPUT_PIXELS:,} px in all, got {self.image_size}",
        )
        self.require_range(1, MAX_CHANNELS, "in_channels")
        require(self.num_classes >= 0, f"num_classes must be 0 (no head) or more, got {self.num_classes}")
        self.require_range(0, MAX_CLASSES, "num_classes")

    def require_range(self, least: int, most: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            require(value >= least, f"{name} must be at least {least}, got {value}")
            require(value <= most, f"{name} must be at most {most:,}, got {value}")

    def require_rates(self, *names: str) -> None:
        for name in names:
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")

    def head(self) -> list[Layer]:
        """The last line of `layers`, if there are classes."""
        d, k = self.num_features, self.num_classes
        return [Layer("head", (k,), d * k + k, 2 * d * k)] if k else []


@dataclass(frozen=True, kw_only=True)
class PatchConfig(NetworkConfig):
    """What every network that cuts the image into equal patches has."""

    patch_size: Size = 16
    """P in pixels; one number means square."""

    @property
    def cell(self) -> tuple[int, int]:
        return pair(self.patch_size)

    @property
    def num_patches(self) -> int:
        """S."""
        return self.grid[0] * self.grid[1]

    def validate(self) -> None:
        super().validate()
        (h, w), (p, q) = pair(self.image_size), pair(self.patch_size)
        require(min(p, q) >= 1, f"patch_size must be positive, got {p}x{q}")
        require(
            h % p == 0 and w % q == 0,
            f"image_size {h}x{w} px is not a multiple of patch_size {p}x{q} px; "
            f"nearest that is: {max((2 * h + p - 1) // (2 * p), 1) * p}x{max((2 * w + q - 1) // (2 * q), 1) * q}",
        )

    def stem(self, dim: int) -> list[Layer]:
        """The first lines of `layers`: images, patches, and one linear layer for all of them."""
        s, (p, q) = self.num_patches, self.cell
        patch = self.in_channels * p * q
        return [
            Layer("images", (self.in_channels, *pair(self.image_size)), 0, 0),
            Layer("patches", (s, patch), 0, 0),
            Layer("stem", (s, dim), patch * dim + dim, 2 * s * patch * dim),
        ]


@dataclass(frozen=True, kw_only=True)
class MixerConfig(PatchConfig):
    """The architecture: one column of the paper's Table 1, plus the sizes of input and output."""

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
        require(
            min(down, across) >= 1 and rows % down == 0 and cols % across == 0,
            f"a grid of {rows}x{cols} patches cannot be cut into {down}x{across} equal parts",
        )


@dataclass(frozen=True, kw_only=True)
class ResMLPConfig(PatchConfig):
    """ResMLP (Touvron et al. 2021, arXiv:2105.03404): token mixing is one linear layer, and an affine map per channel
    stands in the place of LayerNorm."""

    architecture: ClassVar[str] = "resmlp"
    weight_free: ClassVar[tuple[str, ...]] = ("drop_path", "layer_scale")

    num_blocks: int = 12
    """Layers."""
    hidden_dim: int = 384
    """d, channels of a token."""
    channels_mlp_dim: int = 1536
    """Hidden width of the channel-mixing MLP; 4 d in the paper."""
    layer_scale: float = 0.1
    """What a branch is multiplied by at the start, per channel: 0.1 for 12 layers, 1e-5 for 24, 1e-6 for 36."""
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


@dataclass(frozen=True, kw_only=True)
class ViTConfig(PatchConfig):
    """A Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929): a class token, learnt positions, pre-norm
    blocks. Computed by the library transformers."""

    architecture: ClassVar[str] = "vit"
    title: ClassVar[str] = "Vision Transformer"
    arxiv: ClassVar[str] = "2010.11929"
    global_pool: ClassVar[str] = "token"

    num_blocks: int = 12
    """L, encoder blocks."""
    hidden_dim: int = 384
    """D, channels of a token."""
    num_heads: int = 6
    """Attention heads of a block."""
    mlp_dim: int = 1536
    """Hidden width of the MLPs."""

    @property
    def num_features(self) -> int:
        return self.hidden_dim

    def layers(self) -> list[Layer]:
        s, d, m = self.num_patches + 1, self.hidden_dim, self.mlp_dim
        lines = [*self.stem(d), Layer("class token and positions", (s, d), d + s * d, 0)]
        for i in range(self.num_blocks):
            lines += [
                Layer(f"blocks.{i}.attention", (s, d), 2 * d + 4 * (d * d + d), 8 * s * d * d + 4 * s * s * d),
                Layer(f"blocks.{i}.mlp", (s, d), 2 * d + 2 * d * m + m + d, 4 * s * d * m),
            ]
        return [*lines, Layer("norm", (s, d), 2 * d, 0), Layer("class token", (d,), 0, 0), *self.head()]

    def validate(self) -> None:
        super().validate()
        self.require_range(1, MAX_BLOCKS, "num_blocks")
        self.require_range(1, MAX_WIDTH, "hidden_dim", "num_heads", "mlp_dim")
        require(
            self.hidden_dim % self.num_heads == 0,
            f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}",
        )


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(NetworkConfig):
    """A ResNet (He et al. 2016, arXiv:1512.03385), with batch normalisation. Computed by the library transformers."""

    architecture: ClassVar[str] = "resnet"
    title: ClassVar[str] = "ResNet"
    arxiv: ClassVar[str] = "1512.03385"

    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Layers of each stage; a stage has twice the channels of the one before, at half its resolution."""
    width: int = 64
    """Channels of the first stage (times 4 with bottlenecks)."""
    bottleneck: bool = True
    """Blocks of 1x1, 3x3 and 1x1 convolutions instead of two of 3x3."""
    small_images: bool = False
    """A stem of one 3x3 convolution at full resolution, as for 32 px (section 4.2 there), instead of 7x7 and pooling at
    a quarter."""

    @property
    def channels(self) -> list[int]:
        """Channels of the output of each stage."""
        return [self.width * (4 if self.bottleneck else 1) * 2**i for i in range(len(self.depths))]

    @property
    def cell(self) -> tuple[int, int]:
        stride = (1 if self.small_images else 4) * 2 ** (len(self.depths) - 1)
        h, w = pair(self.image_size)
        return min(stride, h), min(stride, w)

    @property
    def num_features(self) -> int:
        return self.channels[-1]

    def layers(self) -> list[Layer]:
        """Convolutions with their batch normalisation, two parameters a channel."""
        (h, w), k = pair(self.image_size), 3 if self.small_images else 7

        def halved(n: int) -> int:
            return (n + 1) // 2

        def conv(name: str, size: tuple[int, int], c_in: int, c_out: int, kernel: int) -> Layer:
            weights = kernel * kernel * c_in * c_out
            return Layer(name, (c_out, *size), weights + 2 * c_out, 2 * weights * size[0] * size[1])

        lines = [Layer("images", (self.in_channels, h, w), 0, 0)]
        size = (h, w) if self.small_images else (halved(h), halved(w))
        lines.append(conv("stem", size, self.in_channels, self.width, k))
        if not self.small_images:
            size = halved(size[0]), halved(size[1])
        before = self.width
        for stage, (depth, after) in enumerate(zip(self.depths, self.channels, strict=True)):
            for i in range(depth):
                larger, name = size, f"stages.{stage}.{i}"
                if stage and not i:
                    size = halved(size[0]), halved(size[1])
                if before != after or larger != size:
                    lines.append(conv(f"{name}.shortcut", size, before, after, 1))
                if self.bottleneck:
                    inner = after // 4
                    lines += [
                        conv(f"{name}.conv1", larger, before, inner, 1),
                        conv(f"{name}.conv2", size, inner, inner, 3),
                    ]
                    lines.append(conv(f"{name}.conv3", size, inner, after, 1))
                else:
                    lines += [
                        conv(f"{name}.conv1", size, before, after, 3),
                        conv(f"{name}.conv2", size, after, after, 3),
                    ]
                before = after
        return [*lines, Layer("mean over places", (before,), 0, 0), *self.head()]

    def validate(self) -> None:
        super().validate()
        self.require_range(1, MAX_WIDTH, "width")
        require(bool(self.depths) and min(self.depths) >= 1, f"depths must be positive, got {shown(self.depths)}")
        most = len(self.depths) <= 16 and sum(self.depths) <= MAX_BLOCKS
        require(most, f"depths must be at most 16 stages of {MAX_BLOCKS:,} layers, got {shown(self.depths)}")

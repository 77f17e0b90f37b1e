"""The configs of what the all-MLP networks are compared with: ViT and ResNet. No torch."""

from dataclasses import dataclass
from typing import ClassVar

from mlpmixer.config import pair, require
from mlpmixer.models.configs.network import MAX_BLOCKS, MAX_WIDTH, Layer, NetworkConfig, PatchConfig
from mlpmixer.registry import shown


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
    """A stem of one 3x3 convolution at full resolution, as for 32 px (section 4.2 of the paper), instead of a 7x7 one
    and pooling to a quarter."""

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

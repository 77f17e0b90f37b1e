"""What the config of every network has: sizes of input and output, patches, stages. No torch."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mlpmixer.config import Config, pair, require
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

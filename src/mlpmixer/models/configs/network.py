"""The bases of all network configs: sizes of input and output, patches, stages. No torch."""

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
    """Base of all network configs: the sizes of input and output."""

    architecture: ClassVar[str] = ""
    """Name of its row in `architecture.ARCHITECTURES`, which its JSON also states."""
    title: ClassVar[str] = ""
    """Its name in print, as on model cards."""
    arxiv: ClassVar[str] = ""
    """arXiv number of its paper, for model cards."""
    global_pool: ClassVar[str] = "avg"
    """timm's word for how pre-logits are made of features."""
    weight_free: ClassVar[tuple[str, ...]] = ()
    """Fields that no weight depends on, such as dropout: a trained network takes those it is asked for."""
    any_size: ClassVar[bool] = False
    """Whether no weight depends on the number of places, so that the same weights work at another image size."""

    image_size: Size = 224
    """H, W in pixels; one number means square."""
    in_channels: int = 3
    """Image channels: 1 for grey, 3 for RGB, any other number for multispectral arrays."""
    num_classes: int = 1000
    """K, classes. 0 means no head: the output is pre_logits."""

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
        """Parameters of the network: weights and biases, without running statistics."""
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
        asked: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "in_channels": in_channels}
        new: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        if self.any_size and asked["image_size"] is not None:
            new["image_size"] = asked.pop("image_size")
        for name, value in asked.items():
            if value is None:
                continue
            have = getattr(self, name, None)
            require(have is not None, f"{self.architecture} has no {name}, got {value}: leave it out")
            require(
                pair(value) == pair(have or value),
                f"trained weights of {self.architecture} work at the {name} they were made for, {have}, "
                f"and not at {value}",
            )
        require(
            method == "bicubic",
            f"resize={method} is how the token mixing of a Mixer adapts to another grid; {self.architecture} has no "
            "choice of methods: leave it out",
        )
        return dataclasses.replace(self, **new)

    def note_at(self, image_size: Size) -> str:
        """Warning about trained weights at another image size, where they compute something else; "" for none."""
        return ""

    def deployed(self) -> Any:
        """The config of the network that training leaves: without structure that folds away."""
        return self

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
        require(min(pair(self.image_size)) >= 1, f"image_size must be positive, got {shown(self.image_size)}")
        pixels = math.prod(pair(self.image_size))
        require(
            pixels <= MAX_INPUT_PIXELS,
            f"image_size must be at most {MAX_INPUT_PIXELS:,} px in all, got {shown(self.image_size)}",
        )
        self.require_range(1, MAX_CHANNELS, "in_channels")
        require(self.num_classes >= 0, f"num_classes must be 0 (no head) or more, got {shown(self.num_classes)}")
        self.require_range(0, MAX_CLASSES, "num_classes")

    def require_range(self, least: int, most: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            require(value >= least, f"{name} must be at least {least}, got {shown(value)}")
            require(value <= most, f"{name} must be at most {most:,}, got {shown(value)}")

    def require_rates(self, *names: str) -> None:
        for name in names:
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")

    def head(self) -> list[Layer]:
        """The last line of `layers`, if there are classes."""
        d, k = self.num_features, self.num_classes
        return [Layer("head", (k,), d * k + k, 2 * d * k)] if k else []


@dataclass(frozen=True, kw_only=True)
class PatchConfig(NetworkConfig):
    """Base config of networks that cut the image into equal patches."""

    patch_size: Size = 16
    """P in pixels; one number means square."""

    @property
    def cell(self) -> tuple[int, int]:
        return pair(self.patch_size)

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch in pixels, what the stem reads."""
        return pair(self.patch_size)

    @property
    def num_patches(self) -> int:
        """S."""
        (h, w), (p, q) = pair(self.image_size), self.patch
        return (h // p) * (w // q)

    def validate(self) -> None:
        super().validate()
        p, q = self.patch
        require(min(p, q) >= 1, f"patch_size must be positive, got {shown(self.patch_size)}")
        most = f"patch_size must be at most {MAX_INPUT_PIXELS:,} px, got {shown(self.patch_size)}"
        require(max(p, q) <= MAX_INPUT_PIXELS, most)
        (h, w), (p, q) = pair(self.image_size), self.cell
        what = "patch_size" if self.cell == self.patch else f"patch_size {shown(self.patch_size)} px and merges,"
        require(
            h % p == 0 and w % q == 0,
            f"image_size {h}x{w} px is not a multiple of {what} {p}x{q} px; nearest that is: "
            + "x".join(map(str, self.nearest_size())),
        )

    def nearest_size(self) -> tuple[int, int]:
        """Height and width nearest to image_size that patches and merges divide."""
        (h, w), (p, q) = pair(self.image_size), self.cell
        return max((2 * h + p - 1) // (2 * p), 1) * p, max((2 * w + q - 1) // (2 * q), 1) * q

    def stem(self, dim: int) -> list[Layer]:
        """The first lines of `layers`: images, patches, and one linear layer for all of them."""
        s, (p, q) = self.num_patches, self.patch
        patch = self.in_channels * p * q
        return [
            Layer("images", (self.in_channels, *pair(self.image_size)), 0, 0),
            Layer("patches", (s, patch), 0, 0),
            Layer("stem", (s, dim), patch * dim + dim, 2 * s * patch * dim),
        ]


@dataclass(frozen=True, kw_only=True)
class StagesConfig(PatchConfig):
    """Base config of networks of several stages, each of one width, with a merge of 2x2 places between some."""

    weight_free: ClassVar[tuple[str, ...]] = ("drop_path",)

    hidden_dims: tuple[int, ...] = (192, 384)
    """C, channels of a place, in each stage."""
    depths: tuple[int, ...] = (4, 14)
    """Blocks of each stage."""
    drop_path: float = 0.0
    """Stochastic depth of the last block; linear from 0 at the first, over all stages."""

    @property
    def merged(self) -> tuple[bool, ...]:
        """Whether the resolution is halved before each stage; never before the first, whose places are patches."""
        return (False,) + (True,) * (len(self.depths) - 1)

    @property
    def cell(self) -> tuple[int, int]:
        """Pixels of one place of the last stage."""
        p, q = pair(self.patch_size)
        return p * 2 ** sum(self.merged), q * 2 ** sum(self.merged)

    @property
    def grids(self) -> list[tuple[int, int]]:
        """Places down and across, of each stage."""
        (h, w), (p, q) = pair(self.image_size), pair(self.patch_size)
        halved = [sum(self.merged[: i + 1]) for i in range(len(self.depths))]
        return [(h // p // 2**n, w // q // 2**n) for n in halved]

    @property
    def num_features(self) -> int:
        return self.hidden_dims[-1]

    def validate(self) -> None:
        require(
            len(self.hidden_dims) == len(self.depths) >= 1,
            f"hidden_dims and depths must have an entry for each stage, got {shown(self.hidden_dims)} and "
            f"{shown(self.depths)}",
        )
        require(len(self.depths) <= 16, f"there must be at most 16 stages, got {len(self.depths)}")
        super().validate()
        for name, most in (("hidden_dims", MAX_WIDTH), ("depths", MAX_BLOCKS)):
            values = getattr(self, name)
            require(min(values) >= 1 and max(values) <= most, f"{name} must be 1 to {most:,} each, got {shown(values)}")
        require(sum(self.depths) <= MAX_BLOCKS, f"depths must be at most {MAX_BLOCKS:,} in all, got {sum(self.depths)}")
        self.require_rates("drop_path")

    def staged_stem(self) -> list[Layer]:
        """The first lines of `layers`: images, patches, and one linear layer for all of them."""
        return self.stem(self.hidden_dims[0])

    def merge(self, stage: int) -> list[Layer]:
        """The line of the merge before a stage: a 2x2 convolution of stride 2."""
        if not stage or (not self.merged[stage] and self.hidden_dims[stage] == self.hidden_dims[stage - 1]):
            return []
        (h, w), c, before = self.grids[stage], self.hidden_dims[stage], self.hidden_dims[stage - 1]
        weights = (4 if self.merged[stage] else 1) * before * c
        return [Layer(f"merges.{stage}", (h, w, c), weights + c, 2 * h * w * weights)]

    def ending(self) -> list[Layer]:
        """The last lines of `layers`: a norm, the mean, and the head."""
        (h, w), c = self.grids[-1], self.num_features
        return [Layer("norm", (h, w, c), 2 * c, 0), Layer("mean over places", (c,), 0, 0), *self.head()]

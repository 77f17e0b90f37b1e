"""Configuration as frozen dataclasses, to and from JSON. No torch, nothing of ours.

`MixerConfig` is the architecture and nothing else: it is saved with every model. `Recipe` is everything else that a
training run needs, nested by owner. Widths are absolute (paper: D_S, D_C), sizes are pixels, metrics are fractions.
"""

import dataclasses
import difflib
import itertools
import math
import re
import types
import typing
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")

Activation = Literal["gelu_tanh", "gelu_erf"]
Method = Literal["bicubic", "bilinear", "nearest", "blocks", "parts"]  # of `transfer.adapt`, which explains them
Fit = Literal["crop", "pad", "squash", "short_side_crop", "vit_jax_eval", "bv_resmall_crop", "bv_resize_crop"]


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or as (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def one_if_square(height: int, width: int) -> int | tuple[int, int]:
    """The other way round: the shortest form of a size."""
    return height if height == width else (height, width)


def require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


class Config:
    """Base of the frozen dataclasses that a user fills in: the constructor checks every field against its type.

    `owner` is what a user writes before the name of a field: `class Optim(Config, owner="optim")` has `optim.lr`.
    """

    _owner: typing.ClassVar[str] = ""

    def __init_subclass__(cls, *, owner: str = "") -> None:
        super().__init_subclass__()
        cls._owner = owner or cls._owner

    def __post_init__(self) -> None:
        for name, hint in field_types(type(self)).items():
            value = getattr(self, name)
            right = checked(hint, value, f"{self._owner}.{name}" if self._owner else name)
            if right is not value:
                object.__setattr__(self, name, right)
        self.validate()

    def validate(self) -> None:
        """Ranges, and fields that must fit together. Raises ValueError; the types are right by then."""


_FIELD_TYPES: dict[type, dict[str, Any]] = {}


def field_types(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass, worked out once."""
    if cls not in _FIELD_TYPES:
        hints = typing.get_type_hints(cls)
        _FIELD_TYPES[cls] = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    return _FIELD_TYPES[cls]


def checked(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type `hint` has it, or ValueError, which calls it `path`.

    An int becomes a float, a list a tuple, a scalar of numpy or torch the Python value that it holds, and a dict the
    dataclass that `to_json` made it of. A float must be finite, and a bool is not an int.
    """
    if hint is Any or (type(value) is hint and hint is not float):
        return value
    if getattr(value, "shape", None) == ():
        value = value.item()
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_json(typing.cast(type[Any], hint), value, path)
    if origin is Literal:
        if value in args:
            return value
        raise ValueError(f"{path}={_shown(value)} is not one of {', '.join(map(str, args))}{did_you_mean(value, args)}")
    if origin in (typing.Union, types.UnionType):
        for option in args:
            with suppress(ValueError):
                return checked(option, value, path)
    elif origin is tuple and isinstance(value, list | tuple):
        hints = args[:1] * len(value) if args[-1] is Ellipsis else args
        require(len(hints) == len(value), f"{path}={_shown(value)}: expected {len(hints)} values, got {len(value)}")
        return tuple(checked(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(hints, value, strict=True)))
    elif origin is dict and isinstance(value, dict):
        key, content = args
        return {checked(key, k, f"a key of {path}"): checked(content, v, f"{path}[{k!r}]") for k, v in value.items()}
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
        raise ValueError(f"{path}={_shown(value)}: expected a finite number")
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    expected = hint.__name__ if isinstance(hint, type) and origin is None else hint
    raise ValueError(f"{path}={_shown(value)}: expected {expected}, got {type(value).__name__}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """The end of a message: the nearest right word, if there is one."""
    close = difflib.get_close_matches(value, known, 1, 0.5) if isinstance(value, str) else []
    return f"; did you mean {close[0]}?" if close else ""


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON values (tuples become lists)."""
    return {
        f.name: to_json(v) if dataclasses.is_dataclass(v) else list(v) if isinstance(v, tuple) else v
        for f in dataclasses.fields(config)
        for v in [getattr(config, f.name)]
    }


def from_json(cls: type[T], values: Any, where: str = "") -> T:
    """The config that `to_json` wrote. ValueError for a wrong value, and an unknown field with the nearest name."""
    require(isinstance(values, dict), f"{where or cls.__name__}: expected an object, got {type(values).__name__}")
    hints, fields = field_types(cls), {}
    for name, value in values.items():
        path = f"{where}.{name}" if where else name
        if name not in hints:
            raise ValueError(f"{cls.__name__} has no field {path!r}{did_you_mean(name, hints)}")
        fields[name] = checked(hints[name], value, path)
    return cls(**fields)


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


@dataclass(frozen=True, kw_only=True)
class Data(Config, owner="data"):
    """Which images, how they are split, and how they become arrays of the model's size."""

    name: str = "digits"
    """A named data set, a path (folder or parquet), or hf:owner/name."""
    data_dir: str | None = None
    """Where the files of a named data set are (DIR or DIR/NAME)."""
    fit: Fit = "crop"
    """What to do with images of another shape: crop the centre, pad to the shape, or squash; or as published weights
    are evaluated (short_side_crop: timm; vit_jax_eval, bv_resmall_crop, bv_resize_crop: the official code)."""
    val_fraction: float = 0.1
    """Share of train cut off, stratified, as validation when the data has none."""
    test_fraction: float = 0.2
    """Share cut off, stratified, as test when the data has none (digits, plain folders)."""
    train_fraction: float = 1.0
    """Share of train that is kept, of each class, once val and test are cut. A smaller share is part of a larger
    one."""
    split_seed: int = 0
    """Seed of all cuts."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs the loss by inverse class frequency."""
    train_scale: float = 1.0
    """Training images are kept this much larger than the model's input, so that random crops stay sharp."""
    max_bad_share: float = 0.25
    """A run stops at the start when a larger share of the images cannot be read."""
    cache_mib: int = 4096
    """Decoded images up to this size stay in memory (uint8; float32 for vit_jax_eval); larger sets are decoded for each
    batch."""
    workers: int = 0
    """Decoding threads; 0 means one per CPU core. Batches do not depend on it."""
    stream: bool = False
    """Read training images from shards while training, for data larger than memory and disk; tar shards and web
    addresses always are."""
    lanes: int = 16
    """Places in the shards that a streamed batch is drawn from, part of the order of the images. As many processes as
    divide it read each shard once between them."""
    buffer: int = 8192
    """Streamed images held in memory as they are stored; those of a lane are shuffled among buffer / (2 lanes)
    neighbours."""
    classes: str = ""
    """Names of the classes of shards that do not tell: a file with one a line, or just how many there are."""

    def validate(self) -> None:
        require(1 <= self.lanes <= 1024, f"data.lanes must be in 1..1024, got {self.lanes}")
        require(self.buffer >= 1, f"data.buffer must be at least 1, got {self.buffer}")
        require(0 < self.val_fraction < 1, f"data.val_fraction must be in (0, 1), got {self.val_fraction}")
        require(0 < self.test_fraction < 1, f"data.test_fraction must be in (0, 1), got {self.test_fraction}")
        require(0 < self.train_fraction <= 1, f"data.train_fraction must be in (0, 1], got {self.train_fraction}")
        require(self.train_scale >= 1, f"data.train_scale must be at least 1, got {self.train_scale}")


@dataclass(frozen=True, kw_only=True)
class Init(Config, owner="init"):
    """Where the weights start."""

    weights: str = ""
    """Trained weights: a run, a file, hf:owner/name, or a name of `mlpmixer list weights`; without, from scratch."""
    resize: Method = "bicubic"
    """How token mixing of trained weights comes to another grid of patches, see `transfer.adapt`."""
    magnified: bool = False
    """Images at the new size are enlargements and show no more than the old ones did; see `transfer.adapt`."""
    stem: Literal["lecun", "whitened"] = "lecun"
    """lecun is the official start; whitened fits the stem to the training patches, so that its outputs are
    uncorrelated."""
    head_bias: float = 0.0
    """Of the classifier. big_vision's pre-training takes -6.9 = -ln 1000: with sigmoid losses every class starts out
    improbable."""

    def validate(self) -> None:
        require(
            not (self.weights and self.stem == "whitened"),
            "init.stem=whitened would undo the stem of init.weights; leave one out",
        )
        plain = self.resize == "bicubic" and not self.magnified
        require(
            bool(self.weights) or plain,
            "init.resize and init.magnified are about init.weights (--init), and there are none",
        )


@dataclass(frozen=True, kw_only=True)
class Augment(Config, owner="augment"):
    """What training images go through, in the order of the fields. 0 means off."""

    inception_crop: float = 0.0
    """Smallest area share of a random resized crop (aspect 3/4 to 4/3); 0.08 or 0.05 are usual."""
    pad_crop_px: int = 0
    """Pad by this many pixels on each side, then crop at random (CIFAR: 4)."""
    pad_mode: Literal["reflect", "constant"] = "reflect"
    """How pad_crop fills the border."""
    flip: bool = False
    """Mirror left-right with probability 1/2."""
    randaugment_layers: int = 0
    """RandAugment (Cubuk et al. 2020): operations on each image, one after the other, each drawn at random; 2 is
    usual."""
    randaugment_magnitude: int = 9
    """How strong they are: 0-30 (torchvision; 9 is usual), 0-20 (big_vision; published models have 10, 15 and 20)."""
    randaugment_form: Literal["torchvision", "big_vision"] = "torchvision"
    """torchvision is the clean form; big_vision's is what Google's Mixers saw, with its quirks, three times as strong
    and more."""
    trivialaugment: bool = False
    """TrivialAugment (Mueller and Hutter 2021, Wide): one operation on each image, its strength drawn too."""
    rotate_deg: float = 0.0
    """Rotation, uniform in +- this many degrees."""
    zoom: float = 0.0
    """Log-uniform scaling of each axis by up to exp(+-zoom)."""
    shear: float = 0.0
    """Horizontal shear, uniform in +- this tangent."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation factors, uniform in 1 +- this."""
    noise: float = 0.0
    """Standard deviation of added Gaussian noise, as a share of the 0-255 range."""
    erasing: float = 0.0
    """Probability of random erasing (one rectangle, 2-33 % of the area, Zhong et al. 2017)."""
    mixup: float = 0.0
    """Beta(a, a) of mixup (Zhang et al. 2018)."""
    cutmix: float = 0.0
    """Beta(a, a) of CutMix (Yun et al. 2019); with mixup also on, each batch takes one of the two."""
    mix_probability: float = 1.0
    """Share of the batches that mixup or CutMix touch."""

    def validate(self) -> None:
        for name in ("inception_crop", "erasing", "mix_probability"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name} must be in [0, 1], got {getattr(self, name)}")
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            require(isinstance(value, str) or value >= 0, f"augment.{f.name} must not be negative, got {value}")
        most = 20 if self.randaugment_form == "big_vision" else 30
        require(
            self.randaugment_magnitude <= most,
            f"augment.randaugment_magnitude goes up to {most} in the form {self.randaugment_form}, got "
            f"{self.randaugment_magnitude}",
        )


@dataclass(frozen=True, kw_only=True)
class Optim(Config, owner="optim"):
    """The step rule."""

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    """muon: Muon on the matrices of the blocks, AdamW on everything else."""
    lr: float = 1e-3
    """Peak learning rate (of AdamW or SGD)."""
    muon_lr: float = 3e-3
    """Peak learning rate of Muon's matrices, in AdamW's units (match_rms_adamw)."""
    weight_decay: float = 0.05
    """Decoupled, times the learning rate, on matrices only (SGD: added to the gradient)."""
    momentum: float = 0.9
    """Of SGD."""
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    """How SGD keeps its momentum. bfloat16 is the official fine-tuning rule: half the memory, and 0.9 becomes
    0.8984375, as there."""
    muon_momentum: float = 0.95
    """Of Muon."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After the warm-up, down to `lr_end`."""
    lr_end: float = 0.0
    """Where the schedule ends, as a share of the peak (big_vision: 1e-5)."""
    warmup_steps: int = 0
    """Linear warm-up; at most half of the run."""
    warmup_from: Literal["one", "zero"] = "one"
    """What the warm-up counts its first step as. zero is the official code's: its first step has the rate 0 and changes
    no weight."""
    layer_decay: float = 1.0
    """Rate of each layer (the stem, every block) as a share of the next one's; the final norm and the head have the
    full rate."""
    frozen_layers: int = 0
    """Layers that keep their weights, from the input: 1 is the stem, 1 + k the stem and the first k blocks."""
    head_steps: int = 0
    """In this many first steps only the head learns: a linear probe, then fine-tuning (Kumar et al. 2022,
    arXiv:2202.10054)."""
    sam_rho: float = 0.0
    """Sharpness-aware minimisation (Foret et al. 2021; of Mixers: Chen et al. 2022, arXiv:2106.01548): the gradient is
    taken this far up the slope, at w + rho g / |g|. A step costs two passes and a copy of the weights. 0 means off."""
    locality: int = 0
    """Size (odd) of the kernels over the patch grid that W1 and W2 learn through; the saved model has them folded in. 0
    means off."""
    mirror: bool = False
    """Keep the network symmetric from its start: the logits of an image and of its mirror image are the same, by the
    weights alone. For images whose class a mirror does not change: a step then learns from each image and its mirror
    image."""
    clip_norm: float = 0.0
    """Largest global gradient norm; 0 means no clipping."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Cross-entropy; sigmoid sums over the classes."""
    ema_decay: float = 0.0
    """Exponential moving average of the weights, used for evaluation and saved as the model; 0 means off."""
    average_last: float = 0.0
    """Instead, the plain mean of the weights after each step of this last share of the run (Izmailov et al. 2018,
    "SWA", arXiv:1803.05407). They differ enough to be worth a mean where the rate stays up: schedule=constant, or an
    lr_end. 0 means off."""

    def validate(self) -> None:
        for name in ("lr", "muon_lr"):
            require(getattr(self, name) > 0, f"optim.{name} must be positive, got {getattr(self, name)}")
        require(0 < self.layer_decay <= 1, f"optim.layer_decay must be in (0, 1], got {self.layer_decay}")
        for name in ("ema_decay", "label_smoothing", "momentum", "muon_momentum", "lr_end"):
            require(0 <= getattr(self, name) < 1, f"optim.{name} must be in [0, 1), got {getattr(self, name)}")
        require(
            0 <= self.average_last <= 1,
            f"optim.average_last is a share of the steps, from 0 to 1, got {self.average_last}",
        )
        require(
            not (self.ema_decay and self.average_last),
            "optim.ema_decay and optim.average_last are two averages; set one of them to 0",
        )
        for name in ("weight_decay", "warmup_steps", "sam_rho", "clip_norm", "frozen_layers", "head_steps"):
            require(getattr(self, name) >= 0, f"optim.{name} must not be negative, got {getattr(self, name)}")
        require(
            self.locality == 0 or (self.locality > 0 and self.locality % 2 == 1),
            f"optim.locality must be an odd kernel size such as 3, or 0 for none, got {self.locality}",
        )


@dataclass(frozen=True, kw_only=True)
class Distill(Config, owner="distill"):
    """A teacher to learn from beside the labels."""

    teacher: str = ""
    """A run, a weight file or name as for init.weights, a classifier FILE.onnx, or logits: FILE.npy, or FILE.npz with
    an array "logits", a row for each training image. A network sees each image as the student does, augmented and
    mixed; stored logits are of the image as it is, mixed as labels are. Empty: none."""
    alpha: float = 0.5
    """The teacher's share of the loss; the labels have the rest."""
    temperature: float = 1.0
    """Divides both logits in the teacher's share, which is multiplied by its square (Hinton et al. 2015)."""
    hard: bool = False
    """Learn the teacher's likeliest class instead of all probabilities (DeiT's hard distillation, without its second
    token)."""

    def validate(self) -> None:
        require(0 < self.alpha <= 1, f"distill.alpha must be in (0, 1], got {self.alpha}")
        require(self.temperature > 0, f"distill.temperature must be positive, got {self.temperature}")
        require(not self.hard or self.temperature == 1, "distill.hard has no temperature: leave one of the two out")


@dataclass(frozen=True, kw_only=True)
class Run(Config, owner="run"):
    """How long, how large, on what."""

    epochs: float = 10.0
    """Passes over the training images."""
    steps: int = 0
    """Optimizer steps instead of epochs; 0 means: epochs decide."""
    time: str = ""
    """A budget such as 30m or 2h instead: a short measurement fixes the number of steps, which is saved."""
    progressive: str = ""
    """Start with smaller images, and grow: 16:0.3,24:0.6 means 16 px until 0.3 of the steps, 24 px until 0.6, then
    model.image_size. 16x24 is height x width. The patch stays, so the steps get cheaper; token mixing is resized as for
    other data (docs/training.md)."""
    batch_size: int = 128
    """Images per step, over all accumulation parts and processes."""
    repeats: int = 1
    """Repeated augmentation (Hoffer et al. 2020, arXiv:1901.09335): each step takes batch_size / repeats images, and
    augments each this many times. A step costs the same, and an epoch has as many, so that it sees so many times fewer
    of the images."""
    accumulate: int = 1
    """Parts a batch is computed in, to save memory."""
    seed: int = 0
    """Of initialisation, order and augmentation."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps. Of several processes each takes its own GPU."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 is autocast; auto takes it where the hardware computes in it."""
    eval_every: float = 1.0
    """Epochs between evaluations on the validation split."""
    patience: int = 0
    """Stop after this many evaluations without a better validation accuracy; 0 means never."""
    save_every_s: float = 60.0
    """Seconds between checkpoints."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time (docs/training.md)."""
    compile: bool = False
    """torch.compile the network, and on CUDA the augmentation."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """How: reduce-overhead replays the network as CUDA graphs, for small networks; the max-autotune pair looks for
    faster kernels, for minutes, and may find others after a resume, which is then not bit-identical."""
    kernels: Literal["auto", "compiled", "torch"] = "auto"
    """What a block runs on, on a CPU: kernels that the C compiler makes here, or torch's operations alone; auto takes
    the former where they can be had, and the run says which it took."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    test: bool = True
    """Score the test split at the end; off while a recipe is being chosen, so that the choice rests on validation
    alone."""

    @property
    def stages(self) -> tuple[tuple[int | tuple[int, int], float], ...]:
        """`progressive` as (image size, share of the steps after which it ends), ..."""
        parts = self.progressive.split(",") if self.progressive else []
        found = [re.fullmatch(r"(\d+)(?:x(\d+))?:(\d*\.?\d+)", part.strip()) for part in parts]
        stages = tuple((one_if_square(int(m[1]), int(m[2] or m[1])), float(m[3])) for m in found if m)
        ends = [0.0, *(end for _, end in stages), 1.0]
        require(
            all(found) and all(a < b for a, b in itertools.pairwise(ends)),
            f"run.progressive={self.progressive!r}: expected sizes and the shares of the steps after which they end, "
            f"growing and less than "
            "1, such as 16:0.3,24:0.6",
        )
        return stages

    def validate(self) -> None:
        require(
            not (self.stages and self.patience),
            "run.patience compares evaluations, and those of run.progressive are of images of different sizes; leave "
            "one of the two out",
        )
        require(self.epochs > 0, f"run.epochs must be positive, got {self.epochs}")
        require(self.batch_size >= 1, f"run.batch_size must be at least 1, got {self.batch_size}")
        require(
            self.accumulate >= 1 and self.batch_size % self.accumulate == 0,
            f"run.accumulate={self.accumulate} must divide run.batch_size={self.batch_size}",
        )
        require(
            self.repeats >= 1 and self.batch_size % self.repeats == 0,
            f"run.repeats={self.repeats} must divide run.batch_size={self.batch_size}",
        )
        require(self.eval_every > 0 and self.log_every >= 1, "run.eval_every and run.log_every must be positive")
        require(self.steps >= 0 and self.patience >= 0, "run.steps and run.patience must not be negative")


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """One training run, whole. `model.num_classes` is set from the data when training starts."""

    name: str = "custom"
    network: str = ""
    """Written by `train(recipe, network=...)`: what it trained instead of a Mixer. Of `model` then only the sizes of
    the images count."""
    model: MixerConfig = field(default_factory=MixerConfig)
    data: Data = field(default_factory=Data)
    init: Init = field(default_factory=Init)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    distill: Distill = field(default_factory=Distill)
    run: Run = field(default_factory=Run)

    def validate(self) -> None:
        sizes = [*(size for size, _ in self.run.stages), self.model.image_size]
        for (h, w), (next_h, next_w) in itertools.pairwise(map(pair, sizes)):
            require(
                h <= next_h and w <= next_w and (h, w) != (next_h, next_w),
                f"run.progressive={self.run.progressive!r}: images grow, up to model.image_size: not {next_h}x{next_w} "
                f"after {h}x{w} px",
            )
            self.model.adapted(image_size=(h, w))  # its patches must fit

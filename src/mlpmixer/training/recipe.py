"""A recipe: everything that a training run needs, nested by owner. No torch.

Sizes are pixels, metrics are fractions.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlpmixer.clock import parse_duration
from mlpmixer.config import Config, from_json, one_if_square, pair, require
from mlpmixer.data.config import Data
from mlpmixer.models.configs import Method, MixerConfig, NetworkConfig, Size
from mlpmixer.weights.run_folder import FOLDS_FILE, is_cross_validation, read_cross_validation, read_recipe_json

GROWING = ((0.5, 0.3), (0.75, 0.6))
"""run.progressive=auto: shares of model.image_size, and the shares of the steps after which they end."""


@dataclass(frozen=True, kw_only=True)
class Init(Config, owner="init"):
    """The initial weights."""

    weights: str = ""
    """Trained weights to start from: a run, a file, hf:owner/name, or a name in `mlpmixer list weights`. Empty: from
    scratch."""
    resize: Method = "bicubic"
    """Method that brings trained weights to another grid of patches (docs/how-to/transfer.md)."""
    magnified: bool = False
    """Images at the new size are enlargements that show no more detail than the old ones (docs/how-to/transfer.md)."""
    stem: Literal["lecun", "whitened"] = "lecun"
    """lecun is the official initialisation; whitened fits the stem to the training patches, so that its outputs are
    uncorrelated."""
    head_bias: float = 0.0
    """Initial bias of the classifier. -6.9 = -ln 1000 in big_vision's pre-training: with sigmoid losses every class
    starts out improbable."""

    def validate(self) -> None:
        require(
            not (self.weights and self.stem == "whitened"),
            "init.stem=whitened would overwrite the stem of init.weights; leave one out",
        )
        plain = self.resize == "bicubic" and not self.magnified
        require(bool(self.weights) or plain, "init.resize and init.magnified need init.weights")


@dataclass(frozen=True, kw_only=True)
class Augment(Config, owner="augment"):
    """Augmentation of the training images, in the order of the fields. 0 means off."""

    inception_crop: float = 0.0
    """Smallest area of a random resized crop, as a share of the image (aspect 3/4 to 4/3); usually 0.08 or 0.05."""
    pad_crop_px: int = 0
    """Pad by this many pixels on each side, then crop at random (CIFAR: 4)."""
    pad_mode: Literal["reflect", "constant"] = "reflect"
    """How the border that pad_crop_px, rotate_deg, zoom, zoom_out or shear bring into the image is filled."""
    flip: bool = False
    """Mirror left to right with probability 1/2."""
    randaugment_layers: int = 0
    """RandAugment (Cubuk et al. 2020): number of random operations on each image, one after the other; usually 2."""
    randaugment_magnitude: int = 9
    """Strength of RandAugment: 0-30 (torchvision, usually 9) or 0-20 (big_vision, 10 to 20 in published models)."""
    randaugment_form: Literal["torchvision", "big_vision"] = "torchvision"
    """torchvision is the clean form; big_vision is what Google's Mixers were trained with, with its quirks and at least
    three times as strong."""
    trivialaugment: bool = False
    """TrivialAugment (Mueller and Hutter 2021, Wide): one random operation of random strength on each image."""
    rotate_deg: float = 0.0
    """Largest rotation, degrees."""
    zoom: float = 0.0
    """Log-uniform scaling of each axis by up to exp(+-zoom)."""
    zoom_out: float = 0.0
    """Log-uniform shrinking of the whole image, by up to exp(-zoom_out), with the border filled as by pad_mode."""
    shear: float = 0.0
    """Largest horizontal shear, as a tangent."""
    invert: float = 0.0
    """Probability of inverting the image: white becomes black."""
    color_jitter: float = 0.0
    """Largest change of brightness, contrast and saturation, as a factor 1 +- this."""
    noise: float = 0.0
    """Standard deviation of added Gaussian noise, as a share of the 0-255 range."""
    erasing: float = 0.0
    """Probability of random erasing (one rectangle, 2-33 % of the area, Zhong et al. 2017)."""
    mixup: float = 0.0
    """Parameter a of mixup's Beta(a, a) (Zhang et al. 2018)."""
    cutmix: float = 0.0
    """Parameter a of CutMix's Beta(a, a) (Yun et al. 2019); if mixup is also on, each batch uses one of the two."""
    mix_probability: float = 1.0
    """Share of the batches to which mixup or CutMix is applied."""

    @property
    def fills(self) -> bool:
        """Whether anything moves the border into the image, which pad_mode fills."""
        return any((self.pad_crop_px, self.rotate_deg, self.zoom, self.zoom_out, self.shear))

    def validate(self) -> None:
        for name in ("inception_crop", "invert", "erasing", "mix_probability"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name} must be in [0, 1], got {getattr(self, name)}")
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            require(isinstance(value, str) or value >= 0, f"augment.{f.name} must not be negative, got {value}")
        for name, limit in (("pad_crop_px", 1000), ("randaugment_layers", 100)):
            value = getattr(self, name)
            require(value <= limit, f"augment.{name} must be at most {limit:,}, got {value}")
        most = 20 if self.randaugment_form == "big_vision" else 30
        require(
            self.randaugment_magnitude <= most,
            f"augment.randaugment_magnitude is at most {most} with randaugment_form={self.randaugment_form}, got "
            f"{self.randaugment_magnitude}",
        )


@dataclass(frozen=True, kw_only=True)
class Optim(Config, owner="optim"):
    """Optimizer, learning rate, loss and weight averaging."""

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    """Optimizer. muon: Muon for the hidden matrices, AdamW for everything else."""
    lr: float = 1e-3
    """Peak learning rate of AdamW or SGD."""
    muon_lr: float = 3e-3
    """Peak learning rate of Muon, in AdamW's units (match_rms_adamw)."""
    weight_decay: float = 0.05
    """Weight decay of matrices and convolutions: decoupled, times the learning rate (SGD: added to the gradient)."""
    momentum: float = 0.9
    """SGD momentum."""
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the SGD momentum. bfloat16 is the official fine-tuning rule: half the memory, and a momentum of 0.9
    becomes 0.8984375."""
    muon_momentum: float = 0.95
    """Muon momentum."""
    muon_beta2: float = 0.0
    """Decay of Muon's second moment. Muon divides its momentum by the root of that before orthogonalising it
    (PolarAdamW, Zhang 2026, arXiv:2605.07067). 0 means off."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule after the warm-up, down to lr_end."""
    lr_end: float = 0.0
    """Final learning rate, as a share of the peak (big_vision: 1e-5)."""
    warmup_steps: int = 0
    """Steps of linear warm-up; at most half of the run."""
    warmup_from: Literal["one", "zero"] = "one"
    """Number that the warm-up gives to the first step. zero is the official code's: the first step has rate 0 and
    changes no weight."""
    layer_decay: float = 1.0
    """Learning rate of each layer (stem, blocks) as a share of the next layer's; the head has the full rate."""
    frozen_layers: int = 0
    """Layers to freeze, counted from the input: 1 is the stem, 1 + k the stem and the first k blocks."""
    head_steps: int = 0
    """Steps at the start in which only the head learns: linear probing, then fine-tuning (Kumar et al. 2022,
    arXiv:2202.10054)."""
    sam_rho: float = 0.0
    """Radius of sharpness-aware minimisation (Foret et al. 2021; Mixers: Chen et al. 2022, arXiv:2106.01548): the
    gradient is taken at w + rho g / |g|. A step costs two passes and a copy of the weights. 0 means off."""
    locality: int = 0
    """Size (odd) of the convolutions over the patch grid through which token mixing learns; they are folded into the
    saved model. 0 means off."""
    mirror: bool = False
    """Keep the network mirror-symmetric: an image and its mirror image have the same logits, by the weights alone, and
    each step learns from both. For images whose class mirroring does not change."""
    clip_norm: float = 0.0
    """Largest global gradient norm; 0 means no clipping."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes."""
    loss: Literal["auto", "softmax", "sigmoid"] = "auto"
    """Cross-entropy over the classes, or the sum of a sigmoid cross-entropy for each class. auto: sigmoid where an
    image may have several classes, else softmax."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, which is evaluated and saved; 0 means off."""
    average_last: float = 0.0
    """Share of the steps, at the end, over which the mean of the weights is taken; it is evaluated and saved (SWA,
    Izmailov et al. 2018, arXiv:1803.05407). Instead of ema_decay, and worth it where the rate stays up:
    schedule=constant, or an lr_end. 0 means off."""

    def validate(self) -> None:
        for name in ("lr", "muon_lr"):
            require(getattr(self, name) > 0, f"optim.{name} must be positive, got {getattr(self, name)}")
        require(0 < self.layer_decay <= 1, f"optim.layer_decay must be in (0, 1], got {self.layer_decay}")
        for name in ("ema_decay", "label_smoothing", "momentum", "muon_momentum", "muon_beta2", "lr_end"):
            require(0 <= getattr(self, name) < 1, f"optim.{name} must be in [0, 1), got {getattr(self, name)}")
        share = self.average_last
        require(0 <= share <= 1, f"optim.average_last is a share of the steps, from 0 to 1, got {share}")
        both = bool(self.ema_decay and share)
        require(not both, "optim.ema_decay and optim.average_last are two averages; set one of them to 0")
        for name in ("weight_decay", "warmup_steps", "sam_rho", "clip_norm", "frozen_layers", "head_steps"):
            require(getattr(self, name) >= 0, f"optim.{name} must not be negative, got {getattr(self, name)}")
        require(
            self.locality == 0 or (self.locality > 0 and self.locality % 2 == 1),
            f"optim.locality must be an odd kernel size such as 3, or 0 for none, got {self.locality}",
        )


@dataclass(frozen=True, kw_only=True)
class Distill(Config, owner="distill"):
    """Distillation: a teacher to learn from besides the labels."""

    teacher: str = ""
    """Teacher: a run or weights as for init.weights, a classifier FILE.onnx, or stored logits of the training images:
    FILE.npz with arrays "logits" and "hashes", which identify the image of each row, or FILE.npy with rows in the order
    of the images. A network sees each image as the student does, augmented and mixed; stored logits are of the original
    image, and are mixed as labels are. Empty: none."""
    alpha: float = 0.5
    """The teacher's share of the loss; the labels have the rest."""
    temperature: float = 1.0
    """Divisor of the student's and the teacher's logits in the teacher's share of the loss, which is multiplied by its
    square (Hinton et al. 2015)."""
    hard: bool = False
    """Learn the teacher's most likely class instead of its probabilities (DeiT's hard distillation without the second
    token)."""

    def validate(self) -> None:
        require(0 < self.alpha <= 1, f"distill.alpha must be in (0, 1], got {self.alpha}")
        require(self.temperature > 0, f"distill.temperature must be positive, got {self.temperature}")
        require(not self.hard or self.temperature == 1, "distill.hard has no temperature; leave one of the two out")


MOST = {
    "epochs": 1_000_000,
    "steps": 10**9,
    "batch_size": 2**20,
    "eval_every": 1_000_000,
    "threads": 1024,
}  # of Run: a slip beyond it


@dataclass(frozen=True, kw_only=True)
class Run(Config, owner="run"):
    """Duration, batches, device, and what is logged and saved."""

    epochs: float = 10.0
    """Passes over the training images."""
    steps: int = 0
    """Optimizer steps instead of epochs; 0: epochs decide."""
    time: str = ""
    """Time budget instead of epochs, such as 30m or 2h: a short measurement fixes the number of steps, which is
    saved."""
    progressive: str = ""
    """Start with smaller images and grow: 16:0.3,24:0.6 means 16 px until 0.3 of the steps, 24 px until 0.6, then
    model.image_size. 16x24 is height x width. Small images have few patches and are cheap (docs/how-to/training.md).
    auto: half of model.image_size until 0.3, three quarters until 0.6, each to whole patches; but the full size alone
    with patience, from trained weights, and for networks that cannot change their size."""
    batch_size: int | Literal["auto"] = 128
    """Images per step, over all accumulation parts and processes. auto: measured when the run starts, by speed and
    memory, and saved as a number; the learning rate does not change."""
    repeats: int = 1
    """Repeated augmentation (Hoffer et al. 2020, arXiv:1901.09335): a batch has batch_size / repeats images, each
    augmented this many times. An epoch has as many steps, at the same cost, so it sees fewer images."""
    accumulate: int = 1
    """Number of parts in which a batch is computed, to save memory."""
    seed: int = 0
    """Random seed for initialisation, order and augmentation."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps. With several processes, cuda gives each its own GPU."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the computation. bfloat16 is autocast; auto uses it where the hardware multiplies in bfloat16."""
    eval_every: float = 1.0
    """Epochs between evaluations on the validation split."""
    patience: int = 0
    """Stop after this many evaluations without a better validation accuracy; 0 means never."""
    keep: Literal["auto", "last", "best"] = "auto"
    """Which weights become model.safetensors: the last, or those with the best validation accuracy; the others are kept
    beside them. auto: the best with patience, otherwise the last; if validation is too small to judge, the last."""
    save_every_s: float = 60.0
    """Seconds between checkpoints."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time (docs/how-to/training.md)."""
    compile: bool = False
    """Use torch.compile for the network, and on CUDA for the augmentation."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """Mode of torch.compile. reduce-overhead replays small networks as CUDA graphs. The max-autotune modes search for
    faster kernels, which takes minutes and may end differently after a resume, which is then not bit-identical."""
    kernels: Literal["auto", "compiled", "torch"] = "auto"
    """How blocks are computed on a CPU: by kernels compiled on this machine, or by torch. auto uses the kernels
    where they are available, and the run says which it used."""
    threads: int = 0
    """CPU threads. 0: measured when the run starts (fewer than the cores where they would hinder each other), and saved
    as a number, on which the last bits of the result depend."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    test: bool = True
    """Score the test split at the end. Switch it off while choosing a recipe, so that only validation decides."""

    @property
    def images_per_step(self) -> int:
        """`batch_size`, which is a number once the run has started. ValueError while it is auto."""
        if self.batch_size == "auto":
            raise ValueError("run.batch_size=auto is measured by train; give a number here")
        return self.batch_size

    @property
    def stages(self) -> tuple[tuple[int | tuple[int, int], float], ...]:
        """`progressive` as (image size, share of the steps after which it ends), ...; none of auto."""
        parts = self.progressive.split(",") if self.progressive not in ("", "auto") else []
        found = [re.fullmatch(r"(\d+)(?:x(\d+))?:(\d*\.?\d+)", part.strip()) for part in parts]
        stages = tuple((one_if_square(int(m[1]), int(m[2] or m[1])), float(m[3])) for m in found if m)
        ends = [0.0, *(end for _, end in stages), 1.0]
        require(
            all(found) and all(a < b for a, b in itertools.pairwise(ends)),
            f"run.progressive={self.progressive!r}: expected sizes and the shares of the steps after which they end, "
            "growing and less than 1, such as 16:0.3,24:0.6, or auto",
        )
        return stages

    def validate(self) -> None:
        require(
            not (self.stages and self.patience),
            "run.patience compares evaluations, but with run.progressive they are of images of different sizes; leave "
            "one of the two out",
        )
        require(0 <= self.seed < 2**63, f"run.seed must be in [0, 2^63), got {self.seed}")
        require(self.epochs > 0, f"run.epochs must be positive, got {self.epochs}")
        is_auto = self.batch_size == "auto"
        require(
            is_auto or self.images_per_step >= 1, f"run.batch_size must be at least 1, or auto, got {self.batch_size}"
        )
        for name, most in MOST.items():
            value = getattr(self, name)
            require(value == "auto" or value <= most, f"run.{name} must be at most {most:,}, got {value}")
        if self.time:
            parse_duration(self.time)
        for name in ("accumulate", "repeats"):
            parts = getattr(self, name)
            divides = parts >= 1 and (is_auto or self.images_per_step % parts == 0)
            require(divides, f"run.{name}={parts} must divide run.batch_size={self.batch_size}")
        require(self.eval_every > 0 and self.log_every >= 1, "run.eval_every and run.log_every must be positive")
        require(self.steps >= 0 and self.patience >= 0, "run.steps and run.patience must not be negative")
        require(self.threads >= 0, f"run.threads must be at least 0 (measured), got {self.threads}")


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """A whole training run. `model.num_classes` is set from the data when training starts."""

    name: str = "custom"
    """Name of the recipe, as in the run's folder and report."""
    network: str = ""
    """Function that builds the network, written by `train(recipe, network=...)`. Of `model`, only the sizes of input
    and output then count."""
    model: NetworkConfig = field(default_factory=MixerConfig)
    data: Data = field(default_factory=Data)
    init: Init = field(default_factory=Init)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    distill: Distill = field(default_factory=Distill)
    run: Run = field(default_factory=Run)

    @property
    def stages(self) -> tuple[tuple[Size, float], ...]:
        """(image size in pixels, the share of the steps after which it ends) of each stage of `run.progressive`; the
        last has the recipe's own size."""
        return (*(self._growing() if self.run.progressive == "auto" else self.run.stages), (self.model.image_size, 1.0))

    def _growing(self) -> Iterator[tuple[Size, float]]:
        """The stages of auto before the last: each as large as its share of the image allows, and not much less."""
        if self.run.patience or self.init.weights or self.network:
            return
        height, width = pair(self.model.image_size)
        whole, before = math.gcd(height, width), 0
        for share, end in GROWING:
            most = int(share * whole)
            for part in range(most, max(before, most * 3 // 4), -1):
                size = one_if_square(height * part // whole, width * part // whole)
                with suppress(ValueError):
                    self.model.adapted(image_size=size)
                    yield size, end
                    before = part
                    break

    def validate(self) -> None:
        sizes = [size for size, _ in self.stages]
        for (h, w), (next_h, next_w) in itertools.pairwise(map(pair, sizes)):
            require(
                h <= next_h and w <= next_w and (h, w) != (next_h, next_w),
                f"run.progressive={self.run.progressive!r}: images must grow up to model.image_size, not be "
                f"{next_h}x{next_w} after {h}x{w} px",
            )
            self.model.adapted(image_size=(h, w))  # its patches must fit


def variant(recipe: Recipe, name: str = "", **parts: Any) -> Recipe:
    """The recipe with parts replaced, whole or field by field.

    variant(cifar10(), "mine", augment=Augment(flip=True), optim={"lr": 1e-3}, run={"epochs": 5})
    """
    changed = {
        owner: dataclasses.replace(getattr(recipe, owner), **part) if isinstance(part, dict) else part
        for owner, part in parts.items()
    }
    return dataclasses.replace(recipe, name=name or recipe.name, **changed)


def read_recipe(folder: Path) -> Recipe:
    """The resolved recipe of a run or of a cross-validation. ValueError when the folder is neither."""
    by_folds = is_cross_validation(folder)
    values = read_cross_validation(folder)["recipe"] if by_folds else read_recipe_json(folder)
    try:
        return from_json(Recipe, values)
    except ValueError as e:
        raise ValueError(f"{folder / (FOLDS_FILE if by_folds else 'recipe.json')}: {e}") from e

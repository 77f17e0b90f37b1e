"""A recipe: everything but the architecture that a training run needs, nested by owner. No torch.

Sizes are pixels, metrics are fractions.
"""

import dataclasses
import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mlpmixer.config import Config, from_json, one_if_square, pair, require
from mlpmixer.data.config import Data
from mlpmixer.models.configs import Method, MixerConfig, NetworkConfig
from mlpmixer.weights.run_folder import read_recipe_json


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
    """Initial bias of the classifier. big_vision's pre-training takes -6.9 = -ln 1000: with sigmoid losses every class
    starts out improbable."""

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
    """SGD momentum."""
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    """How SGD keeps its momentum. bfloat16 is the official fine-tuning rule: half the memory, and 0.9 becomes
    0.8984375, as there."""
    muon_momentum: float = 0.95
    """Muon momentum."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas."""
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
    """Random seed for initialisation, order and augmentation."""
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
            f"growing and less than 1, such as 16:0.3,24:0.6",
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
    """What the run's folder and its report call it."""
    network: str = ""
    """Written by `train(recipe, network=...)`: the function that builds the network. Of `model` then only the sizes of
    input and output count."""
    model: NetworkConfig = field(default_factory=MixerConfig)
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


def read_recipe(run: Path) -> Recipe:
    """The resolved recipe of a run. ValueError when `run` is not a run directory."""
    values = read_recipe_json(run)
    try:
        return from_json(Recipe, values)
    except ValueError as e:
        raise ValueError(f"{run / 'recipe.json'}: {e}") from e

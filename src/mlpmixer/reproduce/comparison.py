"""Networks of one size, trained alike on CIFAR-10: same images, steps and augmentation, each with a learning rate of
its own."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mlpmixer.config import pair
from mlpmixer.data.config import Data
from mlpmixer.evaluation.significance import wilson
from mlpmixer.models.architecture import Build, build, count_params
from mlpmixer.models.configs import MixerConfig, NetworkConfig, ResNetConfig, ViTConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.models.names import MIXERS
from mlpmixer.reproduce.experiment import Lab, Scale
from mlpmixer.reproduce.page import Cells
from mlpmixer.training.batches import steps_per_epoch
from mlpmixer.training.recipe import Augment, Optim, Recipe, Run

# Our choice: from well below to well above what AdamW usually takes with such networks; the page says where the best
# is at an end.
RATES: dict[str, tuple[float, ...]] = {
    "Mixer": (1e-3, 3e-3, 6e-3),
    "ViT": (5e-4, 1e-3, 3e-3),
    "ResNet": (3e-3, 1e-2, 3e-2),
}
COLOURS = {"Mixer": "tab:blue", "ViT": "tab:orange", "ResNet": "tab:green"}


@dataclass(frozen=True, kw_only=True)
class Sized:
    """A network for the images and classes of another one's config."""

    of: NetworkConfig

    def __call__(self, cfg: NetworkConfig) -> nn.Module:
        same = {name: getattr(cfg, name) for name in ("image_size", "in_channels", "num_classes")}
        return build(dataclasses.replace(self.of, **same))


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Who is compared, and the training that each of them gets."""

    mixer: MixerConfig
    vit: ViTConfig
    resnet: ResNetConfig
    steps: int
    """Of each run."""
    rate_steps: int
    """Of each run that only chooses a learning rate."""
    rates: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=lambda: RATES)
    batch_size: int = 128
    seeds: int = 1
    evaluations: int = 10
    """On validation images, in a run."""
    variants: dict[str, Build | None] = dataclasses.field(default_factory=dict)
    """Others, by name."""

    def network(self, name: str) -> Build | None:
        """What `train` takes as the network; None for the Mixer."""
        return ({"Mixer": None, "ViT": Sized(of=self.vit), "ResNet": Sized(of=self.resnet)} | self.variants)[name]

    def data(self, lab: Lab) -> Data:
        return Data(name="cifar10", data_dir=lab.data_dir, val_fraction=0.05)  # 2,500 images to choose by

    def recipe(self, data: Data, train_images: int, lr: float, seed: int) -> Recipe:
        """The paper's rule of pre-training (appendix B: Adam, linear warm-up and decay, clipping at 1), at this
        size."""
        evaluations = self.steps / self.evaluations / steps_per_epoch(train_images, self.batch_size)
        return Recipe(
            model=self.mixer,
            data=data,
            augment=Augment(pad_crop_px=4, flip=True),
            optim=Optim(lr=lr, weight_decay=0.1, schedule="linear", warmup_steps=self.steps // 10, clip_norm=1.0),
            run=Run(steps=self.steps, batch_size=self.batch_size, seed=seed, eval_every=evaluations, log_every=25),
        )


def nano(num_blocks: int, hidden_dim: int, tokens_mlp_dim: int) -> MixerConfig:
    """Nano/4, 32 px in patches of 4, with other widths; channel mixing is four times as wide as the tokens."""
    cfg = dataclasses.replace(MIXERS["Nano/4"], num_blocks=num_blocks, hidden_dim=hidden_dim)
    return dataclasses.replace(cfg, tokens_mlp_dim=tokens_mlp_dim, channels_mlp_dim=4 * hidden_dim)


def _contest(mixer: tuple[int, int, int], vit: tuple[int, int], width: int, **training: Any) -> Contest:
    """Of Nano/4 with (num_blocks, hidden_dim, tokens_mlp_dim), a ViT of (num_blocks, hidden_dim), a ResNet of that
    width."""
    return Contest(
        mixer=nano(*mixer),
        vit=ViTConfig(patch_size=4, num_blocks=vit[0], hidden_dim=vit[1], num_heads=vit[1] // 32, mlp_dim=4 * vit[1]),
        resnet=ResNetConfig(depths=(1, 1, 1, 1), width=width, bottleneck=False, small_images=True),
        **training,
    )


CONTESTS: dict[Scale, Contest] = {  # parameters and FLOPs within a quarter of each other; a test counts them
    "small": _contest((4, 64, 32), (3, 64), 12, steps=400, rate_steps=100, evaluations=5),
    "long": _contest((4, 64, 32), (3, 64), 12, steps=1000, rate_steps=150),
    "full": _contest((8, 256, 128), (6, 256), 60, steps=20_000, rate_steps=2000, seeds=3, batch_size=512),
}


def size_of(contest: Contest, name: str) -> dict[str, int]:
    """Parameters, and FLOPs of one image forward (2 for each multiply-add), as torch counts them."""
    with torch.device("meta"):
        model = (contest.network(name) or Mixer)(contest.mixer).eval()
        image = torch.zeros(1, contest.mixer.in_channels, *pair(contest.mixer.image_size))
    with FlopCounterMode(display=False) as flops:
        model(image)
    return {"params": count_params(model), "flops": flops.get_total_flops()}


def sizes(contest: Contest, names: Sequence[str]) -> tuple[dict[str, dict[str, int]], str]:
    """Of each, and a sentence that says it."""
    found = {name: size_of(contest, name) for name in names}
    parts = [f"{name} {size['params']:,} and {size['flops'] / 1e6:.0f}" for name, size in found.items()]
    return found, f"Of nearly one size, parameters and MFLOPs an image forward: {', '.join(parts)}."


def best_rates(
    lab: Lab, contest: Contest, names: Sequence[str], data: Data, train_images: int
) -> tuple[dict[str, float], Cells]:
    """The rate of each that is best on validation images after `rate_steps`, test images unseen; and what was tried."""
    short = dataclasses.replace(contest, steps=contest.rate_steps, evaluations=1)
    best, rows = {}, []
    for name in names:
        scores = {}
        for lr in contest.rates[name]:
            recipe = short.recipe(data, train_images, lr, lab.seed)
            recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, test=False))
            scores[lr] = lab.train(f"rates/{name}-{lr:g}", recipe, contest.network(name)).summary["val_top1"]
        best[name] = max(scores, key=lambda lr: scores[lr])
        end = "" if min(scores) < best[name] < max(scores) or len(scores) == 1 else " (an end of what was tried)"
        rows.append(
            (name, ", ".join(f"{lr:g}: {100 * top1:.1f} %" for lr, top1 in scores.items()), f"{best[name]:g}{end}")
        )
    title = f"Learning rates: validation top-1 after {contest.rate_steps:,} steps"
    return best, Cells(title=title, header=("network", "tried", "taken"), rows=tuple(rows))


# --- chance -------------------------------------------------------------------------------------------------------


DRAW = (
    "A draw: 0 lies within the 95 % interval of the difference (Newcombe 1998), which is from the number of test "
    "images alone; another "
    "seed would differ, too."
)


def draw(a: float, b: float, n: int) -> bool:
    """Whether two accuracies, each on `n` images, are within what chance alone would do: 0 is in Newcombe's 95 %
    interval of a - b."""
    (low_a, high_a), (low_b, high_b) = wilson(round(a * n), n), wilson(round(b * n), n)
    return a - b - math.hypot(a - low_a, high_b - b) <= 0 <= a - b + math.hypot(high_a - a, b - low_b)


def against(first: str, a: float, second: str, b: float, n: int) -> str:
    """The result of a comparison, in words and points."""
    points = f"{100 * a:.1f} % against {100 * b:.1f} %, on {n:,} images"
    return (
        f"{first} and {second}: a draw ({points})"
        if draw(a, b, n)
        else f"{first} {'above' if a > b else 'below'} {second} ({points})"
    )


def spread(values: Sequence[float]) -> str:
    """Mean, and range of several seeds, in percent."""
    mean = f"{100 * sum(values) / len(values):.2f} %"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.2f}-{100 * max(values):.2f})"


def interval(share: float, n: int) -> str:
    """Wilson's 95 % interval of an accuracy on `n` images, in percent."""
    low, high = wilson(round(share * n), n)
    return f"{100 * low:.1f}-{100 * high:.1f}"

"""Networks of one size trained alike on CIFAR-10: same images, steps and augmentation, each at its best rate."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mlpmixer.config import pair
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data
from mlpmixer.models.architecture import Build, build, configured, count_params
from mlpmixer.models.configs import MixerConfig, NetworkConfig, ResNetConfig, ViTConfig
from mlpmixer.models.names import MIXERS
from mlpmixer.reproduce.experiment import ExperimentContext, Scale
from mlpmixer.reproduce.page import Table, make_table, percent
from mlpmixer.training.batches import steps_per_epoch
from mlpmixer.training.recipe import Augment, Optim, Recipe, Run
from mlpmixer.weights.run_folder import read_metrics

if TYPE_CHECKING:
    from mlpmixer.training.run import RunResult

# Our choice: from well below to well above what AdamW usually takes with such networks. The page says so when the best
# rate is the lowest or the highest.
RATES = {"Mixer": (1e-3, 3e-3, 6e-3), "ViT": (5e-4, 1e-3, 3e-3), "ResNet": (3e-3, 1e-2, 3e-2)}
COLOURS = {"Mixer": "tab:blue", "ViT": "tab:orange", "ResNet": "tab:green"}


@dataclass(frozen=True)
class Trial:
    """A training run of a comparison, repeated for each seed."""

    name: str
    """The network, which has a learning rate of its own."""
    data: Data
    build: Build | None = None
    """Builds it from its config, in another way than `build`."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of Run that differ from the comparison's."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Networks, and the training that each of them gets."""

    networks: Mapping[str, NetworkConfig]
    builds: Mapping[str, Build | None] = field(default_factory=dict)
    """Builds a network from its config, where `build` does not."""
    rates: Mapping[str, Sequence[float]] = field(default_factory=lambda: RATES)
    """The learning rates that each network chooses from, on validation images."""
    steps: int
    """Steps of a run."""
    rate_steps: int
    """Steps of a run that only chooses a learning rate."""
    batch_size: int = 128
    seeds: int = 1
    evaluations: int = 10
    """Evaluations on validation images in a run."""

    def only(self, *names: str) -> "Comparison":
        """The same comparison of fewer networks."""
        return dataclasses.replace(self, networks={name: self.networks[name] for name in names})

    def recipe(self, name: str, data: Data, train_images: int, lr: float, seed: int) -> Recipe:
        """The paper's pre-training (appendix B: Adam, linear warm-up and decay, clipping at 1), at this size."""
        evaluations = self.steps / self.evaluations / steps_per_epoch(train_images, self.batch_size)
        return Recipe(
            model=self.networks[name],
            data=data,
            augment=Augment(pad_crop_px=4, flip=True),
            optim=Optim(lr=lr, weight_decay=0.1, schedule="linear", warmup_steps=self.steps // 10, clip_norm=1.0),
            run=Run(steps=self.steps, batch_size=self.batch_size, seed=seed, eval_every=evaluations, log_every=25),
        )

    def train(
        self, context: ExperimentContext, trials: Mapping[str, Trial], further_parts: int = 0
    ) -> tuple[dict[str, list["RunResult"]], dict[str, float], Table]:
        """Choose the learning rate of each network, then run each trial once for each seed.

        further_parts: calls of `context.measure` that follow. Returns the results of each trial, the rate of each
        network, and a table of the rates tried.
        """
        num_rate_runs = sum(len(self.rates[name]) for name in self.networks)
        context.num_parts = num_rate_runs + len(trials) * self.seeds + further_parts
        rates, tried = self._best_rates(context)
        images = {data: len(open_data(data).train) for data in {trial.data for trial in trials.values()}}
        results: dict[str, list[RunResult]] = {key: [] for key in trials}
        for seed in context.seeds(self.seeds):
            for key, trial in trials.items():
                recipe = self.recipe(trial.name, trial.data, images[trial.data], rates[trial.name], seed)
                recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, **trial.changes))
                results[key].append(context.train(f"{key}-{seed}", recipe, trial.build))
        return results, rates, tried

    def _best_rates(self, context: ExperimentContext) -> tuple[dict[str, float], Table]:
        """The rate of each network that is best on validation images after `rate_steps`, and a table of all rates."""
        short, data = dataclasses.replace(self, steps=self.rate_steps, evaluations=1), cifar10(context)
        train_images = len(open_data(data).train)
        best, rows = {}, []
        for name in self.networks:
            tried = {}
            for lr in self.rates[name]:
                recipe = short.recipe(name, data, train_images, lr, context.seed)
                recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, test=False))
                result = context.train(f"rates/{name}-{lr:g}", recipe, self.builds.get(name))
                tried[lr] = result.summary["val_top1"]
            best[name] = best_rate(tried)
            rows.append({"network": name, **rate_cells(tried)})
        return best, make_table(f"Learning rates: validation top-1 after {short.steps:,} steps", rows)

    def size_of(self, name: str) -> dict[str, int]:
        """Parameters, and FLOPs of one forward pass of an image (2 for each multiply-add), as torch counts them."""
        cfg = self.networks[name]
        with torch.device("meta"):
            model = (self.builds.get(name) or build)(cfg).eval()
            image = torch.zeros(1, cfg.in_channels, *pair(cfg.image_size))
        with FlopCounterMode(display=False) as flops:
            model(image)
        return {"params": count_params(model), "flops": flops.get_total_flops()}

    def sizes(self) -> dict[str, dict[str, int]]:
        """The size of each network."""
        return {name: self.size_of(name) for name in self.networks}


def best_rate(tried: Mapping[float, float]) -> float:
    """The learning rate of the best accuracy."""
    return max(tried, key=lambda rate: tried[rate])


def is_end(rate: float, tried: Collection[float]) -> bool:
    """Whether a rate is the lowest or the highest of several: there may be a better one beyond it."""
    return len(tried) > 1 and rate in (min(tried), max(tried))


def rate_cells(tried: Mapping[float, float]) -> dict[str, object]:
    """The cells of a table of learning rates: those tried, with their accuracies, and the one taken."""
    best = best_rate(tried)
    end = " (an end of what was tried)" if is_end(best, tried) else ""
    shown = ", ".join(f"{rate:g}: {percent(top1)}" for rate, top1 in tried.items())
    return {"tried": shown, "taken": f"{best:g}{end}"}


def cifar10(context: ExperimentContext) -> Data:
    """CIFAR-10 with 2,500 of its training images for validation."""
    return Data(name="cifar10", data_dir=context.data_dir, val_fraction=0.05)


def nano(num_blocks: int, hidden_dim: int, tokens_mlp_dim: int) -> MixerConfig:
    """Nano/4 (32 px in patches of 4) with other widths; channel mixing is four times as wide as the tokens."""
    cfg = dataclasses.replace(MIXERS["Nano/4"], num_blocks=num_blocks, hidden_dim=hidden_dim)
    return dataclasses.replace(cfg, tokens_mlp_dim=tokens_mlp_dim, channels_mlp_dim=4 * hidden_dim)


def _comparison(mixer: tuple[int, int, int], vit: tuple[int, int], width: int, **training: Any) -> Comparison:
    """Nano/4 with (num_blocks, hidden_dim, tokens_mlp_dim), a ViT of (num_blocks, hidden_dim), a ResNet of a width."""
    blocks, dim = vit
    networks: dict[str, NetworkConfig] = {
        "Mixer": nano(*mixer),
        "ViT": ViTConfig(patch_size=4, num_blocks=blocks, hidden_dim=dim, num_heads=dim // 32, mlp_dim=4 * dim),
        "ResNet": ResNetConfig(depths=(1, 1, 1, 1), width=width, bottleneck=False, small_images=True),
    }
    networks = {name: configured(cfg, image_size=32, num_classes=10) for name, cfg in networks.items()}
    return Comparison(networks=networks, **training)


COMPARISONS: dict[Scale, Comparison] = {  # parameters and FLOPs are within a quarter of each other; a test counts them
    "small": _comparison((4, 64, 32), (3, 64), 12, steps=400, rate_steps=100, evaluations=5),
    "long": _comparison((4, 64, 32), (3, 64), 12, steps=1000, rate_steps=150),
    "full": _comparison((8, 256, 128), (6, 256), 60, steps=20_000, rate_steps=2000, seeds=3, batch_size=512),
}


def validation_curve(run: "RunResult") -> list[tuple[int, float]]:
    """(step, top-1) of each evaluation in a finished run."""
    lines = read_metrics(run.path / "metrics.jsonl")
    return [(line["step"], line["top1"]) for line in lines if line["kind"] == "eval"]

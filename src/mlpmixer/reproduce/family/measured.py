"""Measurements of the family, and the figures that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mlpmixer.models.configs import NetworkConfig
from mlpmixer.reproduce.comparison import best_rate
from mlpmixer.reproduce.family.recipes import LOCAL
from mlpmixer.training.recipes import cifar10

BATCH = cifar10().run.images_per_step


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measurements of each network that the page shows."""

    tried: dict[str, dict[float, float]]
    """Validation top-1 of each rate; none for the Mixer with locality."""
    equal: dict[str, list[dict[str, Any]]]
    """Summaries of the runs of equally many images, one for each seed."""
    speeds: dict[str, dict[str, float]]
    """Training images/s with operations of "torch" and as "shipped"."""
    timed: dict[str, dict[str, Any]]
    """The summary of the run of equal time."""
    exported: dict[str, dict[str, Any]]
    """Result of `export_both`."""
    forward: dict[str, dict[str, float]]
    """Images/s of the exports, in "float32" and "int8"."""

    @property
    def rates(self) -> dict[str, float]:
        return best_rates(self.tried)

    @property
    def num_test(self) -> int:
        n: int = self.equal["Mixer"][0]["test"]["n"]
        return n

    @property
    def images(self) -> int:
        """Images of a run of equally many."""
        steps: int = self.equal["Mixer"][0]["steps"]
        return steps * BATCH

    @property
    def minutes(self) -> dict[str, float]:
        """Training time for `images`, with torch's operations."""
        return {name: self.images / speed["torch"] / 60 for name, speed in self.speeds.items()}

    @property
    def budget_s(self) -> float:
        """The equal time: what `images` take a Mixer as shipped."""
        return self.images / self.speeds["Mixer"]["shipped"]

    @property
    def images_in_time(self) -> dict[str, int]:
        return {name: run["steps"] * BATCH for name, run in self.timed.items()}

    @property
    def top1(self) -> dict[str, float]:
        """On test images after equally many images, the mean over seeds."""
        return {name: fmean(self.of_seeds(name, "top1")) for name in self.equal}

    @property
    def top1_in_time(self) -> dict[str, float]:
        return {name: run["top1"] for name, run in self.timed.items()}

    @property
    def seeds_differ(self) -> float:
        """The largest difference of test top-1 between two seeds of one network."""
        return max(max(top1) - min(top1) for top1 in (self.of_seeds(name, "top1") for name in self.equal))

    @property
    def pairs(self) -> list[str]:
        """Networks with more than one seed."""
        return [name for name, runs in self.equal.items() if len(runs) > 1]

    def of_seeds(self, name: str, what: str) -> list[float]:
        """A figure of the runs of equally many images, for each seed."""
        return [run[what] for run in self.equal[name]]

    def forward_of(self, form: str) -> dict[str, float]:
        """Images/s of the exports in "float32" or "int8", without those that were refused."""
        return {name: speeds[form] for name, speeds in self.forward.items() if form in speeds}


def best_rates(tried: Mapping[str, Mapping[float, float]]) -> dict[str, float]:
    """The best rate of each network; the Mixer with locality takes the Mixer's."""
    rates = {name: best_rate(scores) for name, scores in tried.items()}
    return rates | {LOCAL: rates["Mixer"]}


def deployed_size(cfg: NetworkConfig) -> dict[str, int]:
    """Parameters and FLOPs (2 for each multiply-add) of an image, as the config counts them; RepMLPNet folded."""
    folded = cfg.deployed()
    return {"params": folded.num_params, "flops": sum(layer.flops for layer in folded.layers())}

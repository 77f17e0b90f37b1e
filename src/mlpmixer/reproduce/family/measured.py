"""What was measured of the family, from which its page is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mlpmixer.reproduce.family.recipes import LOCAL, NETWORKS


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the page is made of, for each network."""

    tried: dict[str, dict[float, float]]
    """Validation top-1 of each rate; none for the Mixer with locality."""
    equal: dict[str, list[dict[str, Any]]]
    """Summaries of the runs of equally many images, one for each seed."""
    speeds: dict[str, dict[str, float]]
    """Training images/s with operations of "torch" and as "shipped"."""
    timed: dict[str, dict[str, Any]]
    """The summary of the run of equal time."""
    exported: dict[str, dict[str, Any]]
    """What `export_both` found."""
    forward: dict[str, dict[str, float]]
    """Images/s of the exports, in "float32" and "int8"."""

    @property
    def rates(self) -> dict[str, float]:
        """The best rate of each network; the Mixer with locality takes the Mixer's."""
        return best_of(self.tried)

    @property
    def num_test(self) -> int:
        n: int = self.equal["Mixer"][0]["test"]["n"]
        return n

    @property
    def seeds_differ(self) -> float:
        """The largest difference of test top-1 between two seeds of one network."""
        return max(max(top1) - min(top1) for top1 in map(tops, self.equal.values()))

    @property
    def pairs(self) -> list[str]:
        """Networks with more than one seed."""
        return [name for name, runs in self.equal.items() if len(runs) > 1]


def best_of(tried: Mapping[str, Mapping[float, float]]) -> dict[str, float]:
    rates = {name: max(found, key=lambda rate: found[rate]) for name, found in tried.items()}
    return rates | {LOCAL: rates["Mixer"]}


def tops(runs: Sequence[Mapping[str, Any]], what: str = "top1") -> list[float]:
    return [run[what] for run in runs]


def means(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    return {name: fmean(tops(of)) for name, of in runs.items()}


def deployed_size(name: str) -> dict[str, int]:
    """Parameters and FLOPs (2 for each multiply-add) of an image, as the config counts them; RepMLPNet folded."""
    cfg = NETWORKS[name].deployed()
    return {"params": cfg.num_params, "flops": sum(layer.flops for layer in cfg.layers())}


def of_form(found: Measured, form: str) -> dict[str, float]:
    return {name: of[form] for name, of in found.forward.items() if form in of}

"""The frame of all experiments: their names and scales, where their files go, runs that are resumed, and the time a
piece may take."""

import dataclasses
import json
import math
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mlpmixer.models.architecture import require_library
from mlpmixer.models.configs import ViTConfig
from mlpmixer.registry import Registry, suggest
from mlpmixer.reproduce.page import Page, write
from mlpmixer.training.recipe import Recipe
from mlpmixer.weights import run_folder

if TYPE_CHECKING:
    from mlpmixer.models.architecture import Build
    from mlpmixer.training.run import RunResult
    from mlpmixer.training.step import Kept

Report = Callable[[dict[str, Any]], None]
Scale = Literal["small", "long", "full"]
"""small: minutes on two CPU cores; long: an hour or more on them; full: one GPU, in pieces."""
SAVE_S = 10.0  # of a piece's time: to save, and to end


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A claim of the paper, or of notes on it, that can be tried. Its code is `run(lab)` in the module of that name
    beside this one."""

    title: str
    """What it shows, in a line."""
    source: str
    """Where the paper says so."""
    scales: dict[Scale, str]
    """How it can be run, and what that takes, in words."""
    module: str
    data: str = ""
    """The data set whose files it needs."""
    rivals: bool = False
    """Whether it needs the extra `rivals`."""


EXPERIMENTS: Registry[Experiment] = Registry("experiment")
EXPERIMENTS["table1"] = Experiment(
    title="the seven sizes: layers, widths, patches, parameters to the unit, FLOPs, memory",
    source="table 1",
    scales={"small": "seconds", "full": "the same"},
    module="table1",
)
EXPERIMENTS["cost"] = Experiment(
    title="what a Mixer, a ViT and a ResNet of one size cost from 49 to 3,136 patches: speed, FLOPs, memory, fitted exponents",
    source="abstract and section 2: linear in the number of patches, unlike ViT's quadratic",
    scales={"small": "about 8 min", "full": "one GPU, minutes"},
    module="cost",
    rivals=True,
)
EXPERIMENTS["permutation"] = Experiment(
    title="a Mixer and a ResNet on images as they are, with patches and pixels in them shuffled, with all pixels shuffled",
    source="figure 4",
    scales={"small": "about 22 min", "long": "about 40 min", "full": "one GPU, in pieces"},
    module="permutation",
    data="cifar10",
    rivals=True,
)
EXPERIMENTS["data-scaling"] = Experiment(
    title="a Mixer, a ViT and a ResNet on 3, 10, 30 and 100 % of the images, in equally many steps: accuracy, 5-shot",
    source="figure 2, right",
    scales={"small": "about 22 min", "long": "about an hour", "full": "one GPU, in pieces"},
    module="data_scaling",
    data="cifar10",
    rivals=True,
)
EXPERIMENTS["transfer"] = Experiment(
    title="tables 2 and 3, the tasks of Avg5 and VTAB-1k, and what published weights allow to be run",
    source="tables 2 and 3",
    scales={"small": "seconds, nothing is trained", "full": "the rows whose weight files are there, one GPU"},
    module="transfer",
)
EXPERIMENTS["frontier"] = Experiment(
    title="accuracy against training time and against throughput, over sizes of one family",
    source="figures 2 (left) and 3, table 3",
    scales={"small": "about 24 min", "long": "about 45 min", "full": "one GPU, in pieces"},
    module="frontier",
    data="cifar10",
)
EXPERIMENTS["weights"] = Experiment(
    title="what token mixing and the stem look for: hidden units and filters, trained with and without augmentation, beside their start",
    source="figures 5, 6 and 7, appendix D",
    scales={"small": "about 13 min", "long": "an hour or two", "full": "one GPU, in pieces"},
    module="weights",
    data="cifar10",
)
EXPERIMENTS["seed-cifar10"] = Experiment(
    title="a small Mixer on CIFAR-10, 10 epochs, beside the run of the notes that this project is made from, epoch by epoch",
    source="no part of the paper: a run in notes on it",
    scales={"small": "about 13 min, a smaller network than the recipe's", "long": "half an hour, the recipe cifar10"},
    module="seed",
    data="cifar10",
)
EXPERIMENTS["seed-mnist"] = Experiment(
    title="a small Mixer on MNIST, epoch by epoch; the notes that this project is made from name such a demo, without figures",
    source="no part of the paper: a link in notes on it",
    scales={"small": "about 13 min, a smaller network than the recipe's", "long": "half an hour, the recipe mnist"},
    module="seed",
    data="mnist",
)
EXPERIMENTS["ablation"] = Experiment(
    title="token mixing untied, over grouped channels, over learnt views, in a pyramid; what tying its weights saves",
    source="appendix A.1, section 2",
    scales={"small": "about 13 min", "long": "about an hour", "full": "one GPU, in pieces"},
    module="ablation",
    data="cifar10",
)


class OutOfTime(Exception):
    """The time that was given is over. Everything is saved, and the same call goes on."""

    def __init__(self, finished: int, total: int, out: Path) -> None:
        super().__init__(f"the time is over; {finished} of {total} parts are finished in {out}")


@dataclass(kw_only=True)
class Lab:
    """What an experiment works with. It trains and measures through `train` and `measure`, which find again what is
    finished in `out`."""

    name: str
    scale: Scale
    out: Path
    data_dir: str | None = None
    """Where the files of the data set are; None: the Hugging Face Hub."""
    weights_dir: str | None = None
    """Where published weight files are, of experiments that take them; None: the cache."""
    device: str = "auto"
    seed: int = 0
    """Of the first run; others, where there are any, have the next ones."""
    until: float = math.inf
    """When to stop, by time.monotonic()."""
    report: Report | None = None
    """Receives {"kind": "row", "row", "number", "of"} before each part, and what `train` reports."""
    parts: int = 0
    """How many calls of `train` and `measure` there will be, told by the experiment."""
    finished: int = field(default=0, init=False)
    _kept: "Kept | None" = field(default=None, init=False)

    def train(self, name: str, recipe: Recipe, network: "Build | None" = None) -> "RunResult":
        """Train in out/runs/NAME, or read what is finished there, or go on with it. `data_dir` and `device` become the
        lab's.

        network: as in `train`, another network than a Mixer.

        Errors: OutOfTime, after saving; whatever `train` raises.
        """
        from mlpmixer.training.run import Interrupted, train
        from mlpmixer.training.step import Kept

        self._kept = self._kept or Kept()
        recipe = dataclasses.replace(
            recipe,
            name=name,
            data=dataclasses.replace(recipe.data, data_dir=self.data_dir),
            run=dataclasses.replace(recipe.run, device=self.device),
        )
        run = self.out / "runs" / name
        if not (run / "summary.json").exists():
            self._begin(name)
        left = None if math.isinf(self.until) else self.until - time.monotonic()
        try:
            result = train(
                recipe, out=run, resume=True, report=self.report, stop_after_s=left, network=network, kept=self._kept
            )
        except Interrupted as e:
            if time.monotonic() < self.until:
                raise
            raise self.out_of_time() from e
        self.finished += 1
        return result

    def measure(self, name: str, function: Callable[[], Any]) -> Any:
        """What `function` gave (plain JSON values), now or when it was last called for this name in `out`. Errors:
        OutOfTime."""
        path = self.out / "measured" / f"{name}.json"
        if not path.exists():
            self._begin(name)
            value = function()
            path.parent.mkdir(parents=True, exist_ok=True)
            run_folder.write_json(path, value)
        self.finished += 1
        return json.loads(path.read_text(encoding="utf-8"))

    def _begin(self, name: str) -> None:
        if time.monotonic() >= self.until:
            raise self.out_of_time()
        if self.report:
            self.report({"kind": "row", "row": name, "number": self.finished + 1, "of": self.parts})

    def out_of_time(self) -> OutOfTime:
        return OutOfTime(self.finished, self.parts, self.out)

    @property
    def command(self) -> str:
        """What gives the page again; folders are called DIR."""
        words = ["mlpmixer", "reproduce", self.name, "--scale", self.scale]
        words += ["--data-dir", "DIR"] if self.data_dir is not None else []
        words += ["--weights-dir", "DIR"] if self.weights_dir is not None else []
        words += ["--device", self.device] if self.device != "auto" else []
        words += ["--seed", str(self.seed)] if self.seed else []
        return shlex.join(words)


def run(
    name: str,
    scale: str = "small",
    *,
    out: str | os.PathLike[str] | None = None,
    data_dir: str | None = None,
    weights_dir: str | None = None,
    device: str = "auto",
    seed: int = 0,
    max_minutes: float = 0.0,
    report: Report | None = None,
) -> tuple[Page, Path]:
    """Run the experiment `name` and write its page; the page, and the path of README.md.

    out: default results/NAME/SCALE. Finished parts are found again there, so that the same call goes on.
    max_minutes: stop cleanly by then, what comes after the last step of a run not cut short; 0: when everything is
    done.

    Errors: UnknownName; ValueError for a scale that the experiment does not have, a missing extra, data that are not
    there, and an `out` that holds runs of other settings; OutOfTime; whatever `train` raises.
    """
    experiment = EXPERIMENTS[name]
    if scale not in experiment.scales:
        close = suggest(scale, get_args(Scale)) if scale not in get_args(Scale) else ""
        raise ValueError(
            f"{name} has no scale {scale!r}; it has: {', '.join(experiment.scales)}" + (f" ({close})" if close else "")
        )
    if max_minutes < 0:
        raise ValueError(f"max_minutes must be positive, or 0 for no limit, got {max_minutes:g}")
    if experiment.rivals:
        require_library(ViTConfig())
    lab = Lab(
        name=name,
        scale=scale,
        out=Path(out) if out is not None else Path("results") / name / scale,
        data_dir=data_dir,
        weights_dir=weights_dir,
        device=device,
        seed=seed,
        until=time.monotonic() + max(60 * max_minutes - SAVE_S, 0.0) if max_minutes else math.inf,
        report=report,
    )
    page: Page = import_module(f"mlpmixer.reproduce.{experiment.module}").run(lab)
    return page, write(page, experiment.title, lab.out, lab.command, lab.device)

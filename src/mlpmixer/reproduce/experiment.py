"""The frame that every experiment runs in: names and scales, folders, runs that can be resumed, and a time limit."""

import dataclasses
import json
import math
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, get_args

from mlpmixer.config import Config
from mlpmixer.download import Report
from mlpmixer.durable import write_json
from mlpmixer.exporters.job import require_packages
from mlpmixer.models.architecture import require_library
from mlpmixer.models.configs import ViTConfig
from mlpmixer.registry import Registry, suggest
from mlpmixer.reproduce.page import Page, write
from mlpmixer.training.recipe import Recipe
from mlpmixer.weights.run_folder import InUse, is_locked, locked

if TYPE_CHECKING:
    from mlpmixer.models.architecture import Build
    from mlpmixer.training.inputs import ImageCache
    from mlpmixer.training.run import RunResult

Scale = Literal["small", "long", "full"]
"""small: minutes on two CPU cores; long: an hour or more on them; full: one GPU, in pieces."""
WAIT_S = 2.0  # between looks at what another process is working on
SAVE_S = 10.0  # kept back at the end of max_minutes, for saving


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A claim that can be tested."""

    title: str
    """The subject, in one line."""
    source: str
    """Where the claim is made."""
    scales: dict[Scale, str]
    """The scales it can run at, each with what it takes. The first is the default."""
    function: str
    """MODULE:FUNCTION of this room, from an ExperimentContext to a Page."""
    data: str = ""
    """The data set whose files it needs."""
    extras: tuple[str, ...] = ()
    """The extras of the package that it needs: rivals, onnx."""
    overrides: bool = False
    """Whether it trains by published settings, of which `Overrides` can change some."""


EXPERIMENTS: Registry[Experiment] = Registry("experiment")
EXPERIMENTS["table1"] = Experiment(
    title="the seven sizes: layers, widths, patches, parameters to the unit, FLOPs, memory",
    source="table 1",
    scales={"small": "seconds", "full": "the same"},
    function="table1:count_sizes",
)
EXPERIMENTS["cost"] = Experiment(
    title="the cost of a Mixer, a ViT and a ResNet from 49 to 3,136 patches: speed, FLOPs, memory, exponents",
    source="abstract and section 2: linear in the number of patches, unlike ViT's quadratic",
    scales={"small": "about 8 min", "full": "one GPU, minutes"},
    function="cost:measure_cost",
    extras=("rivals",),
)
EXPERIMENTS["permutation"] = Experiment(
    title="a Mixer and a ResNet on original images, with patches and their pixels shuffled, with all pixels shuffled",
    source="figure 4",
    scales={"small": "about 22 min", "long": "about 40 min", "full": "one GPU, in pieces"},
    function="permutation:train_on_shuffled_pixels",
    data="cifar10",
    extras=("rivals",),
)
EXPERIMENTS["data-scaling"] = Experiment(
    title="a Mixer, a ViT and a ResNet on 3, 10, 30 and 100 % of the images, in equally many steps: accuracy, 5-shot",
    source="figure 2, right",
    scales={"small": "about 22 min", "long": "about an hour", "full": "one GPU, in pieces"},
    function="data_scaling:train_on_shares",
    data="cifar10",
    extras=("rivals",),
)
EXPERIMENTS["transfer"] = Experiment(
    title="tables 2 and 3, the tasks of Avg5 and VTAB-1k, and which rows can be run from published weights",
    source="tables 2 and 3",
    scales={"small": "seconds, nothing is trained", "full": "the rows whose weight files are there, one GPU"},
    function="transfer:tabulate_transfer",
)
EXPERIMENTS["cifar10-transfer"] = Experiment(
    title="CIFAR-10 after fine-tuning published weights at 224 px by the official rule",
    source="google-research/vision_transformer @ c6de1e5, README.md; settings: vit_jax/configs/common.py",
    scales={"full": "four rows, one GPU; --check says what they take"},
    function="cifar10_transfer:fine_tune_published",
    data="cifar10",
    overrides=True,
)
EXPERIMENTS["pretraining"] = Experiment(
    title="Mixers pre-trained on 45,000 photos and tried on others: few-shot, linear probe, fine-tuning, from scratch",
    source="tables 2 and 3, figure 2, at a small scale",
    scales={"small": "about 50 min, from our stored weights", "long": "about 5 hours, pre-training included"},
    function="pretraining:pretrain_and_transfer",
    data="flowers89, trashnet and cifar10; for long tiny-imagenet, too",
)
EXPERIMENTS["frontier"] = Experiment(
    title="accuracy against training time and against throughput, over sizes of one family",
    source="figures 2 (left) and 3, table 3",
    scales={"small": "about 24 min", "long": "about 45 min", "full": "one GPU, in pieces"},
    function="frontier:trace_frontier",
    data="cifar10",
)
EXPERIMENTS["weights"] = Experiment(
    title="hidden units of token mixing and filters of the stem, with and without augmentation, and before training",
    source="figures 5, 6 and 7, appendix D",
    scales={"small": "about 13 min", "long": "an hour or two", "full": "one GPU, in pieces"},
    function="weights:inspect_weights",
    data="cifar10",
)
EXPERIMENTS["seed-cifar10"] = Experiment(
    title="a small Mixer on CIFAR-10, 10 epochs, beside the run in the project's first notes, epoch by epoch",
    source="not in the paper: a run in the project's first notes",
    scales={"small": "about 13 min, a smaller network than the recipe's", "long": "half an hour, the recipe cifar10"},
    function="seed:train_plain_and_recipe",
    data="cifar10",
)
EXPERIMENTS["seed-mnist"] = Experiment(
    title="a small Mixer on MNIST, epoch by epoch; the project's first notes name such a demo, without figures",
    source="not in the paper: a link in the project's first notes",
    scales={"small": "about 13 min, a smaller network than the recipe's", "long": "half an hour, the recipe mnist"},
    function="seed:train_plain_and_recipe",
    data="mnist",
)
EXPERIMENTS["ablation"] = Experiment(
    title="token mixing untied, over grouped channels, over learnt views, in a pyramid; what tying its weights saves",
    source="appendix A.1, section 2",
    scales={"small": "about 13 min", "long": "about an hour", "full": "one GPU, in pieces"},
    function="ablation:compare_variants",
    data="cifar10",
)
EXPERIMENTS["family"] = Experiment(
    title="nine all-MLP networks of one size on CIFAR-10, for equally many images and for equal time",
    source="not in the papers, which compare themselves by published figures of other recipes",
    scales={"small": "about 10 min, a check of the pipeline and no result", "long": "about 5 hours"},
    function="family.compare:compare_relatives",
    data="cifar10",
    extras=("rivals", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class Overrides(Config):
    """Changes to published settings, for a trial or to save memory. The defaults change nothing."""

    rows: tuple[str, ...] = ()
    """Run these rows only."""
    steps: int = 0
    """Fewer steps."""
    batch_size: int = 0
    """Fewer images in a step."""
    accumulate: int = 0
    """Parts that a batch is computed in; 0: parts no larger than published."""

    @property
    def reduced(self) -> bool:
        """Whether the result is not comparable with the published one."""
        return bool(self.steps or self.batch_size)


class OutOfTime(Exception):
    """The time limit is reached. Everything is saved; the same call continues."""

    def __init__(self, finished: int, total: int, out: Path) -> None:
        super().__init__(f"time limit reached; {finished} of {total} parts are finished in {out}")


@dataclass(kw_only=True)
class ExperimentContext:
    """Options and tools of an experiment. `train` and `measure` find finished parts in `out` again.

    Errors: UnknownName; ValueError for a scale or overrides that the experiment does not have, or a missing extra.
    """

    name: str
    scale: Any = ""
    """A Scale; by default the first that the experiment has."""
    out: Any = None
    """Path of the folder of page, runs and measurements; by default results/NAME/SCALE, or results/NAME/SCALE-reduced
    with fewer steps or smaller batches."""
    data_dir: str | None = None
    """Where the files of the data set are; None: the Hugging Face Hub."""
    weights_dir: str | None = None
    """Where published weight files are, as FOLDER/FILE of their addresses or side by side; None: the cache."""
    device: str = "auto"
    seed: int = 0
    """Seed of the first run; further runs have the next ones."""
    overrides: Overrides = Overrides()
    max_minutes: float = 0.0
    """Stop cleanly by then (what follows the last step of a run is not cut short); 0: no limit."""
    report: Report | None = None
    """Receives {"kind": "row", "row", "number", "of"} before each part, and what `train` reports."""
    num_parts: int = field(default=0, init=False)
    """How many calls of `train` and `measure` there will be; the experiment sets it."""
    finished: int = field(default=0, init=False)
    _image_cache: "ImageCache | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        experiment = EXPERIMENTS[self.name]
        self.scale = self.scale or next(iter(experiment.scales))
        if self.scale not in experiment.scales:
            close = f" ({suggest(self.scale, get_args(Scale))})" if self.scale not in get_args(Scale) else ""
            known = ", ".join(experiment.scales)
            raise ValueError(f"{self.name} has no scale {self.scale!r}; it has: {known}{close}")
        if self.max_minutes < 0:
            raise ValueError(f"max_minutes must be positive, or 0 for no limit, got {self.max_minutes:g}")
        if self.overrides != Overrides() and not experiment.overrides:
            raise ValueError(f"{self.name} has no published settings: rows, steps, batch_size, accumulate do not apply")
        if "rivals" in experiment.extras:
            require_library(ViTConfig())
        if "onnx" in experiment.extras:
            require_packages("ONNX", "onnx", "onnx", "onnxscript", "onnxruntime")
        folder = f"{self.scale}-reduced" if self.overrides.reduced else self.scale
        self.out = Path("results", self.name, folder) if self.out is None else Path(self.out)
        limit = max(60 * self.max_minutes - SAVE_S, 0.0) if self.max_minutes else math.inf
        self._deadline = time.monotonic() + limit

    def train(self, name: str, recipe: Recipe, network: "Build | None" = None) -> "RunResult":
        """Train in out/runs/NAME, or read what is finished there, or resume it.

        recipe: `data_dir` and `device` are replaced by the context's. network: as in `train`.

        Errors: OutOfTime, after saving; whatever `train` raises.
        """
        from mlpmixer.training.inputs import ImageCache
        from mlpmixer.training.loop import Interrupted
        from mlpmixer.training.run import train

        self._image_cache = self._image_cache or ImageCache()
        data = dataclasses.replace(recipe.data, data_dir=self.data_dir)
        recipe = dataclasses.replace(
            recipe, name=name, data=data, run=dataclasses.replace(recipe.run, device=self.device)
        )
        run = self.out / "runs" / name
        if not (run / "summary.json").exists():
            self._begin(name)
        left = None if math.isinf(self._deadline) else self._deadline - time.monotonic()
        try:
            result = train(
                recipe,
                out=run,
                resume=True,
                report=self.report,
                stop_after_s=left,
                network=network,
                image_cache=self._image_cache,
            )
        except Interrupted as e:
            if time.monotonic() < self._deadline:
                raise
            raise self._out_of_time() from e
        self.finished += 1
        return result

    def train_all(self, recipes: Mapping[str, Recipe]) -> dict[str, "RunResult"]:
        """Train each of them as `train` does, in this order.

        A run that another process of the same command is busy with is left to it: so several share the work.
        """
        results: dict[str, RunResult] = {}
        while len(results) < len(recipes):
            before = len(results)
            for name, recipe in recipes.items():
                if name not in results and not is_locked(self.out / "runs" / name):
                    with suppress(InUse):  # another process was quicker
                        results[name] = self.train(name, recipe)
            if len(results) == before:
                self._wait()
        return {name: results[name] for name in recipes}

    def measure(self, name: str, function: Callable[[], Any]) -> Any:
        """The plain JSON value of `function`, from out/measured if it has been called for this name before.

        While another process of the same command measures it, this one waits.

        Errors: OutOfTime.
        """
        path = self.out / "measured" / f"{name}.json"
        while not _is_json(path):
            try:
                with locked(path.with_suffix("")):
                    if not _is_json(path):
                        self._begin(name)
                        write_json(path, function())
            except InUse:
                self._wait()
        self.finished += 1
        return json.loads(path.read_bytes())

    def seeds(self, number: int) -> range:
        """The seeds of so many runs."""
        return range(self.seed, self.seed + number)

    def write(self, page: Page) -> Path:
        """Write the page into `out`; the path of README.md."""
        return write(page, EXPERIMENTS[self.name].title, self.out, self.command, self.device)

    def _wait(self) -> None:
        """For another process, before another look at what it has finished."""
        self._require_time()
        time.sleep(WAIT_S)

    def _require_time(self) -> None:
        if time.monotonic() >= self._deadline:
            raise self._out_of_time()

    def _begin(self, name: str) -> None:
        self._require_time()
        if self.report:
            self.report({"kind": "row", "row": name, "number": self.finished + 1, "of": self.num_parts})

    def _out_of_time(self) -> OutOfTime:
        return OutOfTime(self.finished, self.num_parts, self.out)

    @property
    def command(self) -> str:
        """The command that writes the page again; folders are called DIR."""
        rows, changes = self.overrides.rows, dataclasses.asdict(self.overrides) | {"rows": ()}
        folders = {name: "DIR" for name in ("data_dir", "weights_dir") if getattr(self, name) is not None}
        options = changes | folders | {"device": "" if self.device == "auto" else self.device, "seed": self.seed}
        words = ["mlpmixer", "reproduce", self.name, "--scale", self.scale]
        words += [word for row in rows for word in ("--row", row)]
        words += [w for name, v in options.items() if v for w in (f"--{name.replace('_', '-')}", str(v))]
        return shlex.join(words)


def _is_json(path: Path) -> bool:
    """Whether a value has been measured, and its file is not damaged."""
    try:
        json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True


def run(name: str, scale: str = "", **settings: Any) -> tuple[Page, Path]:
    """Run an experiment and write its page, or continue it; the page, and the path of its README.md.

    settings: further fields of ExperimentContext.

    Errors: those of ExperimentContext; ValueError for data that are not there, and for an `out` that holds runs of
    other settings; OutOfTime; whatever `train` raises.
    """
    context = ExperimentContext(name=name, scale=scale, **settings)
    page: Page = resolve_name(f"mlpmixer.reproduce.{EXPERIMENTS[name].function}")(context)
    return page, context.write(page)

"""Commands that start from data: train, lr-find, data check, data preview, data shards."""

import dataclasses
import re
import typing
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import Positional, arg

from mlpmixer.cli.arguments import (
    Flag,
    Line,
    parse_line,
    ranks_here,
    read,
    restarts_by_itself,
    start_from,
    with_data,
    with_short,
)
from mlpmixer.cli.printing import (
    MAX_ROWS,
    between,
    duration,
    let_another_speak,
    percent,
    print_error,
    print_json,
    print_table,
)
from mlpmixer.cli.progress import reporter
from mlpmixer.config import pair
from mlpmixer.data.config import Data
from mlpmixer.evaluation.significance import wilson
from mlpmixer.training.recipe import Recipe

if TYPE_CHECKING:
    from mlpmixer.data.check import CheckReport

RUNS = Path("runs")
LATEST = "latest"


class OnData:
    """DATA and a recipe that names the same data: what `train`, `lr-find` and `data preview` share."""

    data: str
    config: Recipe

    def __post_init__(self) -> None:
        if self.data is not tyro.MISSING and self.data != self.config.data.name:
            raise ValueError(f"DATA is {self.data}, and the recipe is for {self.config.data.name}")


D = TypeVar("D", bound=OnData)


def _with_start(line: Line[D], **more: Any) -> D:
    """The command of the line, with its options over the recipe that it starts from."""
    config = start_from(line)
    data = tyro.MISSING if line.asks_for_help else config.data.name
    default = typing.cast(Any, line.command)(data=data, config=config, **more)
    return parse_line(line, description=with_short(line.command), default=default)


@dataclass(frozen=True, kw_only=True)
class Train(OnData):
    """Train a network on DATA. The recipe sets everything, options override it: `mlpmixer train cifar10 --epochs 5 --lr
    3e-4`."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """A data set's name (mlpmixer list datasets), a folder with a folder for each class, a Parquet file or folder, or
    hf:owner/name. Shards are streamed: a folder of WebDataset tars, https://HOST/FOLDER, 'DIR/train-{000..146}.tar',
    Parquet and hf: with --data.stream."""
    recipe: Annotated[str, arg(metavar="NAME")] = ""
    """Where to start from (mlpmixer list recipes); the default fits the data."""
    model: Annotated[str, arg(metavar="NAME")] = ""
    """An architecture (mlpmixer list models) instead of the recipe's."""
    augreg: Annotated[str, arg(metavar="LEVEL")] = ""
    """RandAugment and mixup of AugReg instead of the recipe's: none, light1, light2, medium1, medium2, strong1,
    strong2."""
    out: Annotated[str, arg(metavar="DIR")] = ""
    """The run's folder; default: a new one under runs/."""
    resume: Annotated[str, arg(metavar="[DIR]")] = ""
    """Go on with the run in DIR, or with the latest unfinished one. Beside --out: go on with that run if it is there,
    else start it."""
    peer_timeout: Annotated[str, arg(metavar="TIME")] = "10m"
    """Of several processes (torchrun): how long one waits for another before it gives up."""
    quiet: Flag = False
    """Print the result only."""
    json: Flag = False
    """Print one JSON object a line."""
    tensorboard: Flag = False
    """Write the curves for TensorBoard, too, into the run's folder. Beside --resume: of a run from its start, also of
    one that is over."""
    config: Annotated[Recipe, arg(name="")] = field(default_factory=Recipe)

    @classmethod
    def parse(cls, args: Sequence[str]) -> "Train":
        line = with_data(read(cls, "mlpmixer train", args, without_value={"--resume": LATEST}))
        if line.asks_for_help:
            return _with_start(line)
        resume, out = line.value("--resume"), line.value("--out")
        if restarts_by_itself() and not resume:
            raise ValueError(
                "torchrun --max-restarts starts the command again after a failure; to go on then, it needs --out DIR "
                "--resume"
            )
        if resume == LATEST and out:
            resume = out
        in_out = bool(resume) and resume == out
        if not resume or (in_out and (line.words or not (Path(out) / "recipe.json").exists())):
            return dataclasses.replace(_with_start(line), resume=resume)
        from mlpmixer.training.recipe import read_recipe

        run = latest_unfinished() if resume == LATEST else Path(resume)
        config = read_recipe(run)
        as_started = f"a run goes on as it was started; leave the other options out: mlpmixer train --resume {run}"
        if line.words not in ((), (config.data.name,)):
            raise ValueError(as_started)
        line = dataclasses.replace(line, words=(config.data.name,))
        parsed = parse_line(line, default=cls(data=config.data.name, config=config))
        start = parsed.recipe or parsed.model or parsed.augreg
        if parsed.config != config or start or parsed.out not in ("", str(run)):
            raise ValueError(as_started)
        return dataclasses.replace(parsed, resume=str(run), out="")

    def __call__(self) -> int:
        from mlpmixer.clock import parse_duration
        from mlpmixer.data.streaming.shards import ShardError
        from mlpmixer.training.distributed import FailedElsewhere, Lost, Ranks, joined
        from mlpmixer.training.run import Diverged, Interrupted, train
        from mlpmixer.training.tensorboard import curves
        from mlpmixer.weights.model_file import last_state
        from mlpmixer.weights.run_folder import free_directory

        ranks = Ranks(**ranks_here())
        out = self.resume or self.out
        try:
            with (
                joined(ranks, parse_duration(self.peer_timeout)),
                reporter(quiet=self.quiet or not ranks.leads, as_json=self.json and ranks.leads) as show,
                ExitStack() as stack,
            ):
                out = out or str(ranks.lead(lambda: free_directory(RUNS / run_name(self.config))))
                drawn = curves(out, show) if self.tensorboard and ranks.leads else nullcontext(show)
                report = ranks.together(lambda: stack.enter_context(drawn))
                result = train(self.config, out=out, resume=bool(self.resume), report=report, ranks=ranks)
        except (Interrupted, Diverged) as e:  # on all ranks alike
            if ranks.leads and isinstance(e, Interrupted):
                print_error(f"stopped after step {e.step:,}, saved; to go on: mlpmixer train --resume {e.path}")
            elif ranks.leads:
                print_error(str(e))
            return 130 if isinstance(e, Interrupted) else 1
        except ShardError as e:
            saved = last_state(Path(out)) is not None
            print_error(
                str(e) + (f"; the run is saved, and goes on with: mlpmixer train --resume {out}" if saved else "")
            )
            return 1
        except Lost as e:
            print_error(f"{e}; to go on from the last checkpoint: --resume {out}")
            return 1
        except FailedElsewhere:
            let_another_speak()
            return 2
        if ranks.leads and not self.json:
            print_result(result.path, result.summary)
            if self.tensorboard:
                print(f"curves  tensorboard --logdir {result.path}")
        return 0


@dataclass(frozen=True, kw_only=True)
class LrFind(OnData):
    """Look for a learning rate for DATA: train a throw-away copy while the rate grows, and see where the loss stops
    falling.

    The options of train change the recipe; its schedule plays no part. With Muon both rates grow by the same factor.
    The suggestion is a tenth of the rate with the lowest loss: a place to start from, to be compared with its
    neighbours on validation images.
    """

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """A data set's name, a folder with a folder for each class, a Parquet file or folder, or hf:owner/name."""
    recipe: Annotated[str, arg(metavar="NAME")] = ""
    """Where to start from (mlpmixer list recipes); the default fits the data."""
    model: Annotated[str, arg(metavar="NAME")] = ""
    """An architecture (mlpmixer list models) instead of the recipe's."""
    out: Annotated[str, arg(metavar="FILE")] = "lr-find.png"
    """The plot to write, a PNG file."""
    sweep_steps: int = 100
    """Steps from the lowest to the highest rate."""
    low: float = 1e-5
    """The first rate."""
    high: float = 10.0
    """The last rate; the sweep ends earlier when the loss has blown up."""
    json: Flag = False
    """Print all numbers as JSON."""
    config: Annotated[Recipe, arg(name="")] = field(default_factory=Recipe)

    @classmethod
    def parse(cls, args: Sequence[str]) -> "LrFind":
        return _with_start(with_data(read(cls, "mlpmixer lr-find", args)))

    def __call__(self) -> int:
        from mlpmixer.training.lr_finder import find_lr, plot

        with reporter() as report:
            sweep = find_lr(self.config, steps=self.sweep_steps, low=self.low, high=self.high, report=report)
        path = plot(sweep, self.out)
        if self.json:
            print_json(sweep.to_json())
            return 0
        muon = f" --optim.muon-lr {sweep.suggested * sweep.muon_per_lr:.2g}" if sweep.muon_per_lr else ""
        print(f"lowest loss at a rate of {sweep.lowest:.2g}, after {len(sweep.lr)} of {self.sweep_steps} steps")
        print(f"try     --lr {sweep.suggested:.2g}{muon}")
        print(f"plot    {path}")
        return 0


def run_name(recipe: Recipe) -> str:
    data = Path(recipe.data.name).name.removeprefix("hf:") or "data"
    return re.sub(r"[^\w.-]+", "-", data if recipe.name == data else f"{data}-{recipe.name}")


def latest_unfinished() -> Path:
    runs = [p.parent for p in RUNS.glob("*/recipe.json") if not p.with_name("summary.json").exists()]
    if not runs:
        raise ValueError(
            f"nothing to resume: no unfinished run under {RUNS}/; name the run: mlpmixer train --resume DIR"
        )
    return max(runs, key=lambda run: run.stat().st_mtime)


def print_result(path: Path, summary: dict[str, Any]) -> None:
    measured = (("test", summary.get("test")), ("validation", summary.get("val")))
    scores = [
        f"{split} top-1 {percent(m['top1'])} {between(wilson(round(m['top1'] * m['n']), m['n']))}"
        for split, m in measured
        if m
    ]
    peak = f", at most {summary['peak_mib']:,.0f} MiB" if summary.get("peak_mib") else ""
    bad = summary.get("bad_images") or []
    print(f"{', '.join(scores)} after {summary['steps']:,} steps in {duration(summary['train_s'])}{peak}")
    if bad:
        print(f"{len(bad)} unreadable images were left out; they are named in {path / 'summary.json'}")
    print(f"model   {path / 'model.safetensors'}")
    print(f"report  {path / 'report.html'}")
    print(f"next    mlpmixer predict {path} IMAGE...")


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """Look for broken, duplicate and mislaid images in DATA, and count its classes. The exit code is 1 when something
    is found."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """A data set's name, a folder with a folder for each class, a Parquet file or folder, or hf:owner/name."""
    data_dir: Annotated[str, arg(metavar="DIR")] = ""
    """Where the files of a named data set are."""
    json: Flag = False
    """Print everything as JSON."""

    def __call__(self) -> int:
        from mlpmixer.data.check import check_data

        report = check_data(Data(name=self.data, data_dir=self.data_dir or None))
        if self.json:
            print_json(report.to_json())
        else:
            print_check(report)
        return 0 if report.ok else 1


def print_check(report: "CheckReport") -> None:
    splits = list(report.counts)
    classes = list(dict.fromkeys(name for counts in report.counts.values() for name in counts))
    rows = [(name, *(f"{report.counts[split].get(name, 0):,}" for split in splits)) for name in classes]
    shown = rows if len(rows) <= MAX_ROWS else rows[: MAX_ROWS // 2]
    print_table(
        ("class", *splits), [*shown, ("all", *(f"{sum(counts.values()):,}" for counts in report.counts.values()))]
    )
    if len(shown) < len(rows):
        print(f"(the first {len(shown)} of {len(rows)} classes; all of them: --json)")
    print(f"\nsizes  {', '.join(f'{size} ({n:,})' for size, n in list(report.sizes.items())[:5])}")
    print(f"kinds  {', '.join(f'{mode} ({n:,})' for mode, n in report.modes.items())}")
    for note in report.notes:
        print(f"note   {note}")
    findings = {
        "cannot be read": [f"{name}: {reason}" for name, reason in report.broken],
        "same pixels as another": [f"{name} = {other}" for name, other in report.duplicates],
        "in the wrong place": [f"{name}: {reason}" for name, reason in report.mislaid],
    }
    for title, lines in findings.items():
        if lines:
            print("\n".join([f"\n{len(lines):,} {title}", *(f"  {line}" for line in lines[:10])]))
            if len(lines) > 10:
                print(f"  and {len(lines) - 10:,} more: --json")
    if report.ok:
        print("\nnothing wrong was found")


@dataclass(frozen=True, kw_only=True)
class DataShards:
    """Write the images of DATA as shards in OUT, each split in a random order: what `train` streams when data outgrows
    a machine."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """A data set's name, a folder with a folder for each class, a Parquet file or folder, or hf:owner/name."""
    out: Annotated[Positional[str], arg(metavar="OUT")]
    """A new folder."""
    format: Literal["tar", "parquet"] = "tar"
    """WebDataset tar files, or Parquet files as on the Hugging Face Hub."""
    per_shard: int = 1000
    """Images in a file; 100 MB to 1 GB a file serve well."""
    seed: int = 0
    """Of the order."""
    data_dir: Annotated[str, arg(metavar="DIR")] = ""
    """Where the files of a named data set are."""

    def __call__(self) -> int:
        from mlpmixer.data.datasets import open_data
        from mlpmixer.data.streaming.shards import write_shards

        splits = open_data(Data(name=self.data, data_dir=self.data_dir or None))
        sets = {"train": splits.train, "val": splits.val} | ({"test": splits.test} if splits.test is not None else {})
        counts, bad = write_shards(sets, self.out, kind=self.format, per_shard=self.per_shard, seed=self.seed)
        for name, reason in bad[:10]:
            print_error(f"left out: {name}: {reason}")
        if bad:
            print_error(f"{len(bad)} images could not be opened and are left out")
        for split, shards in counts.items():
            print(f"{split:5}  {sum(shards):,} images in {len(shards)} shards")
        print(f"next   mlpmixer train {self.out}")
        return 1 if bad else 0


@dataclass(frozen=True, kw_only=True)
class DataPreview(OnData):
    """A labelled picture of what the network sees: training images of DATA after the recipe's augmentation."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """A data set's name, a folder with a folder for each class, a Parquet file or folder, or hf:owner/name."""
    out: Annotated[str, arg(metavar="FILE")]
    """The PNG file to write."""
    recipe: Annotated[str, arg(metavar="NAME")] = ""
    """Where to start from (mlpmixer list recipes); the default fits the data."""
    model: Annotated[str, arg(metavar="NAME")] = ""
    """An architecture (mlpmixer list models) instead of the recipe's."""
    augreg: Annotated[str, arg(metavar="LEVEL")] = ""
    """RandAugment and mixup of AugReg instead of the recipe's: none, light1, light2, medium1, medium2, strong1,
    strong2."""
    rows: int = 6
    """Images."""
    cols: int = 8
    """The evaluation view and augmented views of each."""
    config: Annotated[Recipe, arg(name="")] = field(default_factory=Recipe)

    @classmethod
    def parse(cls, args: Sequence[str]) -> "DataPreview":
        return _with_start(with_data(read(cls, "mlpmixer data preview", args)), out=tyro.MISSING)

    def __call__(self) -> int:
        from mlpmixer.data.datasets import open_data
        from mlpmixer.data.preprocess import Preprocess
        from mlpmixer.training.preview import preview

        recipe, channels = self.config, (0.5,) * self.config.model.in_channels
        size = pair(recipe.model.image_size)
        shape = Preprocess(image_size=size, in_channels=len(channels), fit=recipe.data.fit, mean=channels, std=channels)
        print(
            preview(
                open_data(recipe.data), recipe.data, recipe.augment, shape, self.out, rows=self.rows, cols=self.cols
            )
        )
        return 0

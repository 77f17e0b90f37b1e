"""The command line: parses, calls one function, prints. Torch is imported by the commands that need it, never for help.

Each command is a frozen dataclass: its fields are the arguments, calling it runs it and gives the exit code.
0: done; 1: done, with failures that were printed; 2: a wrong command, name, value or path; 130: interrupted.
"""

import dataclasses
import json
import math
import os
import re
import sys
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from mlpmixer.config import Data, Init, Method, MixerConfig, Recipe, pair
from mlpmixer.registry import suggest

if TYPE_CHECKING:
    from mlpmixer.data.check import CheckReport
    from mlpmixer.evaluate import Averaged, Metrics
    from mlpmixer.predict import Classifier, Failure, Prediction
    from mlpmixer.probe import ProbeResult
    from mlpmixer.reproduce import Outcome, Plan

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

Flag = FlagCreatePairsOff[bool]
Event = dict[str, Any]
RUNS = Path("runs")
MAX_ROWS = 40  # longer tables of classes are cut; --json has all


class Command(Protocol):
    def __call__(self) -> int: ...


# --- train --------------------------------------------------------------------------------------------------------

SHORT = {
    "epochs": "run.epochs",
    "steps": "run.steps",
    "time": "run.time",
    "batch-size": "run.batch-size",
    "seed": "run.seed",
    "device": "run.device",
    "precision": "run.precision",
    "patience": "run.patience",
    "compile": "run.compile",
    "test": "run.test",
    "lr": "optim.lr",
    "image-size": "model.image-size",
    "patch-size": "model.patch-size",
    "in-channels": "model.in-channels",
    "data-dir": "data.data-dir",
    "fit": "data.fit",
    "init": "init.weights",
    "resize": "init.resize",
    "magnified": "init.magnified",
    "teacher": "distill.teacher",
}
SWITCHES = {"--quiet", "--json", "-h", "--help"} | {
    f"--{owner}.{no}{name}"
    for owner, name in (
        ("augment", "flip"),
        ("augment", "trivialaugment"),
        ("init", "magnified"),
        ("distill", "hard"),
        ("run", "checkpointing"),
        ("run", "compile"),
        ("run", "test"),
    )
    for no in ("", "no-")
}
LATEST = "latest"


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a network on DATA. The recipe sets everything, options override it: `mlpmixer train cifar10 --epochs 5 --lr 3e-4`."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """A data set's name (mlpmixer list datasets), a folder with a folder for each class, a Parquet file or folder, or hf:owner/name."""
    recipe: Annotated[str, arg(metavar="NAME")] = ""
    """Where to start from (mlpmixer list recipes); the default fits the data."""
    model: Annotated[str, arg(metavar="NAME")] = ""
    """An architecture (mlpmixer list models) instead of the recipe's."""
    augreg: Annotated[str, arg(metavar="LEVEL")] = ""
    """RandAugment and mixup of AugReg instead of the recipe's: none, light1, light2, medium1, medium2, strong1, strong2."""
    out: Annotated[str, arg(metavar="DIR")] = ""
    """The run's folder; default: a new one under runs/."""
    resume: Annotated[str, arg(metavar="[DIR]")] = ""
    """Go on with the run in DIR, or with the latest unfinished one."""
    quiet: Flag = False
    """Print the result only."""
    json: Flag = False
    """Print one JSON object a line."""
    config: Annotated[Recipe, arg(name="")] = field(default_factory=Recipe)

    @classmethod
    def parse(cls, args: Sequence[str]) -> "Train":
        args = _data_first([_long_form(a) for a in args])
        for i, a in enumerate(args):
            if a == "--resume" and (i + 1 == len(args) or args[i + 1].startswith("-")):
                args[i] = f"--resume={LATEST}"
        resume = _value(args, "--resume")
        if not resume or {"-h", "--help"} & set(args):
            config = _start_from(args)
            default = cls(data=config.data.name, config=config)
            return tyro.cli(cls, prog="mlpmixer train", description=_with_short(cls), args=args, default=default)
        from mlpmixer.runlog import read_recipe

        run = _latest_unfinished() if resume == LATEST else Path(resume)
        config = read_recipe(run)
        parsed = tyro.cli(cls, prog="mlpmixer train", args=args, default=cls(data=config.data.name, config=config))
        if parsed.data != config.data.name or parsed.config != config or parsed.recipe or parsed.model or parsed.augreg or parsed.out:
            raise ValueError(f"a run goes on as it was started; leave the other options out: mlpmixer train --resume {run}")
        return dataclasses.replace(parsed, resume=str(run))

    def __call__(self) -> int:
        from mlpmixer.runlog import free_directory
        from mlpmixer.train import Diverged, Interrupted, train

        out = Path(self.resume or self.out or free_directory(RUNS / _run_name(self.config)))
        try:
            with _reporter(quiet=self.quiet, as_json=self.json) as report:
                result = train(self.config, out=out, resume=bool(self.resume), report=report)
        except Interrupted as stop:
            _err(f"stopped after step {stop.step:,}, saved; to go on: mlpmixer train --resume {stop.path}")
            return 130
        except Diverged as e:
            _err(str(e))
            return 1
        if not self.json:
            _print_result(result.path, result.summary)
        return 0


@dataclass(frozen=True, kw_only=True)
class LrFind:
    """Look for a learning rate for DATA: train a throw-away copy while the rate grows, and see where the loss stops falling.

    The options of train change the recipe; its schedule plays no part. With Muon both rates grow by the same factor. The suggestion is a
    tenth of the rate with the lowest loss: a place to start from, to be compared with its neighbours on validation images.
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
        args = _data_first([_long_form(a) for a in args])
        config = _start_from(args)
        default = cls(data=_first_positional(args) or tyro.MISSING, config=config)
        return tyro.cli(cls, prog="mlpmixer lr-find", description=_with_short(cls), args=args, default=default)

    def __call__(self) -> int:
        from mlpmixer.lr_finder import find_lr, plot

        with _reporter() as report:
            sweep = find_lr(self.config, steps=self.sweep_steps, low=self.low, high=self.high, report=report)
        path = plot(sweep, self.out)
        if self.json:
            _print_json(sweep.to_json())
            return 0
        muon = f" --optim.muon-lr {sweep.suggested * sweep.muon_per_lr:.2g}" if sweep.muon_per_lr else ""
        print(f"lowest loss at a rate of {sweep.lowest:.2g}, after {len(sweep.lr)} of {self.sweep_steps} steps")
        print(f"try     --lr {sweep.suggested:.2g}{muon}")
        print(f"plot    {path}")
        return 0


def _start_from(args: Sequence[str]) -> Recipe:
    """The recipe that the options will override, from a first look at the arguments: --recipe, --model, --augreg and DATA."""
    from mlpmixer.recipes import RECIPES, augreg, recipe_for

    data, name, model = _first_positional(args), _value(args, "--recipe"), _value(args, "--model")
    weights = _value(args, "--init.weights")
    recipe = RECIPES[name]() if name else recipe_for(data or "digits", _start(weights, data or "digits"))
    if model:
        from mlpmixer.zoo import MODELS

        recipe = dataclasses.replace(recipe, model=MODELS[model])
    if level := _value(args, "--augreg"):
        recipe = dataclasses.replace(recipe, augment=augreg(recipe.augment, level))
    if weights:
        trained = _architecture_of_weights(weights).adapted(  # with --patch-size alone the image follows, with --resize blocks a width
            image_size=_size(args, "--model.image-size"),
            patch_size=_size(args, "--model.patch-size"),
            method=typing.cast(Method, _value(args, "--init.resize") or "bicubic"),
        )
        recipe = dataclasses.replace(recipe, model=trained, init=Init(weights=weights))
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, name=data or recipe.data.name))


def _start(weights: str, data: str) -> Literal["scratch", "same data", "other data", "published"]:
    if not weights:
        return "scratch"
    from mlpmixer.weights import trained_on

    before = trained_on(weights)
    return "published" if before is None else "same data" if before == Path(data).name else "other data"


def _data_first(args: list[str]) -> list[str]:
    """DATA is taken from wherever it stands, so that an option of one or two values before it does not swallow it."""
    data = _first_positional(args)
    if data:
        args.remove(data)
    return [data, *args] if data else args


def _with_short(command: type) -> str:
    return f"{command.__doc__}\n\nShort forms of the options below: {', '.join(f'--{s}' for s in SHORT)}."


def _long_form(a: str) -> str:
    """--batch_size=3 -> --run.batch-size=3"""
    if not a.startswith("--"):
        return a
    name, eq, value = a[2:].partition("=")
    name = name.replace("_", "-")
    negated = name.startswith("no-") and name[3:] in SHORT
    if negated:
        owner, _, leaf = SHORT[name[3:]].rpartition(".")
        name = f"{owner}.no-{leaf}"
    return "--" + SHORT.get(name, name) + eq + value


def _value(args: Sequence[str], flag: str) -> str:
    for i, a in enumerate(args):
        if a.startswith(flag + "="):
            return a.partition("=")[2]
        if a == flag and i + 1 < len(args):
            return args[i + 1]
    return ""


def _size(args: Sequence[str], flag: str) -> int | tuple[int, int] | None:
    """The one or two whole numbers after a flag."""
    found = re.search(rf"{re.escape(flag)}[= ](\d+)(?: (\d+))?(?= |$)", " ".join(args))
    if not found:
        return None
    return (int(found[1]), int(found[2])) if found[2] else int(found[1])


def _first_positional(args: Sequence[str]) -> str:
    """The first argument that is no flag, no flag's value and no number (a size or a beta may take two)."""
    before = ""
    for a in args:
        takes_value = before.startswith("--") and "=" not in before and before not in SWITCHES
        if not a.startswith("-") and not takes_value and not re.fullmatch(r"[\d.]+", a):
            return a
        before = a
    return ""


def _run_name(recipe: Recipe) -> str:
    data = Path(recipe.data.name).name.removeprefix("hf:") or "data"
    return re.sub(r"[^\w.-]+", "-", data if recipe.name == data else f"{data}-{recipe.name}")


def _latest_unfinished() -> Path:
    runs = [p.parent for p in RUNS.glob("*/recipe.json") if not p.with_name("summary.json").exists()]
    if not runs:
        raise ValueError(f"nothing to resume: no unfinished run under {RUNS}/; name the run: mlpmixer train --resume DIR")
    return max(runs, key=lambda run: run.stat().st_mtime)


@contextmanager
def _reporter(*, quiet: bool = False, as_json: bool = False) -> Iterator[Callable[[Event], None]]:
    """What is told while one waits: JSON lines, or live on a terminal and plain lines elsewhere, or nothing.

    Training goes to standard output, a download to standard error: it never stands between results.
    """
    if as_json or quiet:
        yield _print_json if as_json else lambda event: None
        return
    phase, show = "", None
    with ExitStack() as shown:

        def report(event: Event) -> None:
            nonlocal phase, show
            now = "fetch" if event["kind"] == "fetch" else "train"
            if show is None or now != phase:
                shown.close()
                stream, live, plain = (sys.stderr, _live_fetch, _plain_fetch) if now == "fetch" else (sys.stdout, _live, _plain)
                phase, show = now, shown.enter_context(live()) if stream.isatty() else plain()
            show(event)

        yield report


def _plain_fetch(every_s: float = 10.0) -> Callable[[Event], None]:
    url, last, last_bytes = "", 0.0, 0

    def report(event: Event) -> None:
        nonlocal url, last, last_bytes
        now, done, total = time.monotonic(), event["done_bytes"], event["total_bytes"]
        if event["url"] != url:
            url, last, last_bytes = event["url"], now, done
            _err(f"fetching {url}" + (f", {_megabytes(total)}" if total else "") + (f", {_megabytes(done)} of it are here" if done else ""))
        elif now - last >= every_s:
            speed = max(done - last_bytes, 0) / (now - last)
            left = f" of {_megabytes(total)}, {_duration((total - done) / speed if speed else None)} left" if total else ""
            _err(f"fetched {_megabytes(done)}{left}")
            last, last_bytes = now, done

    return report


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


@contextmanager
def _live_fetch() -> Iterator[Callable[[Event], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def report(event: Event) -> None:
            name = escape(event["url"].rpartition("/")[2])
            progress.update(task, description=name, completed=event["done_bytes"], total=event["total_bytes"] or None)

        yield report


def _plain(every_s: float = 10.0) -> Callable[[Event], None]:
    last, total = time.monotonic(), 0

    def report(event: Event) -> None:
        nonlocal last, total
        if event["kind"] == "start":
            total = event.get("steps", 0)
            print("\n".join(_start_lines(event)), flush=True)
        elif event["kind"] == "eval":
            print(_eval_line(event), flush=True)
        elif event["kind"] == "row":
            print(_row_line(event), flush=True)
        elif event["kind"] == "step" and time.monotonic() - last >= every_s:
            last = time.monotonic()
            print(f"step {event['step']:,}/{total:,}  {_step_text(event)}  {_duration(event.get('eta_s'))} left", flush=True)

    return report


@contextmanager
def _live() -> Iterator[Callable[[Event], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("step", total=None, now="")

        def report(event: Event) -> None:
            if event["kind"] == "start":
                progress.update(task, total=event.get("steps"), completed=event.get("step", 0))
                progress.console.print("\n".join(_start_lines(event)), markup=False, highlight=False, soft_wrap=True)
            elif event["kind"] == "row":
                progress.console.print(_row_line(event), markup=False, highlight=False, soft_wrap=True)
            elif event["kind"] == "step":
                progress.update(task, completed=event["step"], now=f"{_step_text(event)}  {_duration(event.get('eta_s'))} left")
            elif event["kind"] == "eval":
                progress.console.print(_eval_line(event), markup=False, highlight=False, soft_wrap=True)

        yield report


def _start_lines(e: Event) -> list[str]:
    return [
        f"{e['train_images']:,} training images, {e['val_images']:,} for validation, {e['classes']} classes",
        f"{e['params']:,} parameters, {e['steps']:,} steps, {e['precision']} on {e['device']}",
        f"run: {e['out']}",
        *(f"note: {note}" for note in e.get("notes", ())),
    ]


def _row_line(e: Event) -> str:
    return f"row {e['number']} of {e['of']}: {e['row']}"


def _step_text(e: Event) -> str:
    top1 = f"  train {_percent(e['top1'])}" if e.get("top1") is not None else ""
    return f"loss {e['loss']:.4f}{top1}  {e['images_per_s']:,.0f} images/s"


def _eval_line(e: Event) -> str:
    return f"epoch {e['epoch']:.4g}  step {e['step']:,}  {e['split']}: top-1 {_percent(e['top1'])}, loss {e['nll']:.4f}"


def _print_result(path: Path, summary: dict[str, Any]) -> None:
    test = summary.get("test") or {}
    top1 = {"test": test.get("top1"), "validation": summary.get("val_top1")}
    scores = [f"{split} top-1 {_percent(share)}" for split, share in top1.items() if share is not None]
    bad = summary.get("bad_images") or []
    print(f"{', '.join(scores)} after {summary['steps']:,} steps in {_duration(summary['train_s'])}")
    if bad:
        print(f"{len(bad)} unreadable images were left out; they are named in {path / 'summary.json'}")
    print(f"model   {path / 'model.safetensors'}")
    print(f"report  {path / 'report.html'}")
    print(f"next    mlpmixer predict {path} IMAGE...")


# --- evaluate, predict --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Use the model at other sizes than its own, without training."""

    image_size: int | tuple[int, int] | None = None
    """Pixels, or height and width, without training. The patch is kept, so a larger image has more of them: that costs accuracy."""
    patch_size: int | tuple[int, int] | None = None
    """Pixels, or height and width; without --image-size the image grows with it. Larger photos cost next to no accuracy this way."""
    in_channels: int | None = None
    """1 grey, 3 RGB, any other number for multispectral arrays."""
    resize: Method = "bicubic"
    """How token mixing comes to another grid of patches, see transfer.adapt."""
    magnified: Flag = False
    """The images at the new size are enlargements of small ones and show no more than those did."""

    def load(self, run: str, device: str) -> "Classifier":
        if self.image_size is None and self.patch_size is None and (self.resize != "bicubic" or self.magnified):
            raise ValueError("--resize and --magnified are about another size: give --image-size or --patch-size, too")
        from mlpmixer.device import choose_device
        from mlpmixer.predict import load

        with _reporter() as report:
            return load(run, device=str(choose_device(device)), report=report, **dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Accuracy, calibration and the worst mistakes of the model in RUN on DATA."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run, a weight file (.safetensors, .npz, .pth), hf:owner/name, or a name of `mlpmixer list weights`."""
    data: Annotated[Positional[str], arg(metavar="DATA")] = ""
    """A data set's name, a path, or hf:owner/name; default: the data the run was trained on."""
    split: Literal["test", "val", "train", "all"] = "test"
    """Which part of the data; all: a plain folder, whole."""
    data_dir: Annotated[str, arg(metavar="DIR")] = ""
    """Where the files of a named data set are."""
    tta: Annotated[str, arg(metavar="KIND,...")] = ""
    """Also the mean over several views of each image (test-time augmentation): flip, shift (by 1/32 of the side) or flip,shift."""
    batch_size: int = 256
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: Flag = False
    """Print all numbers as JSON."""
    html: Annotated[str, arg(metavar="FILE")] = ""
    """Also write a page with plots and the worst mistakes."""
    sizes: Annotated[Sizes, arg(name="")] = field(default_factory=Sizes)

    def __call__(self) -> int:
        from mlpmixer.data.datasets import open_images
        from mlpmixer.evaluate import data_of, evaluate, views_of

        kinds = self.tta.split(",") if self.tta else []
        views_of(kinds)  # a wrong one is said before anything is loaded
        classifier = self.sizes.load(self.run, self.device)
        data = data_of(classifier, self.data or None)
        if self.data_dir:
            data = dataclasses.replace(data, data_dir=self.data_dir)
        images = open_images(data, self.split)
        metrics = evaluate(classifier, images, batch_size=self.batch_size, tta=kinds)
        if self.json:
            _print_json(metrics.to_json())
        else:
            _print_metrics(metrics)
        if self.html:
            from mlpmixer.report import evaluation_html, thumbnails_of

            pictures = thumbnails_of(images, [w.index for w in metrics.most_wrong])
            page = evaluation_html(metrics, pictures, model=self.run, data=f"{data.name}, {self.split}")
            Path(self.html).write_text(page, encoding="utf-8")
            if not self.json:
                print(f"\npage    {self.html}")
        return 1 if metrics.bad else 0


def _print_metrics(m: "Metrics") -> None:
    print(f"{m.n:,} images  {_score_text(m)}")
    if m.tta:
        print(f"with test-time augmentation ({', '.join(m.tta.kinds)}: the mean over {m.tta.views} views)  {_score_text(m.tta)}")
    print()
    rows = [(c.name, _percent(c.precision), _percent(c.recall), _percent(c.f1), f"{c.support:,}") for c in m.per_class]
    shown = rows if len(rows) <= MAX_ROWS else sorted(rows, key=lambda r: float(r[3].split()[0]))[: MAX_ROWS // 2]
    _print_table(("class", "precision", "recall", "f1", "images"), shown)
    if len(shown) < len(rows):
        print(f"(the {len(shown)} lowest f1 of {len(rows)} classes; all of them: --json)")
    if m.most_wrong:
        print("\nsurest mistakes")
        mistakes = [(w.name, w.true, w.predicted, _percent(w.probability)) for w in m.most_wrong[:5]]
        _print_table(("image", "is", "taken for", "with"), mistakes)
    for name, reason in m.bad[:10]:
        _err(f"{name}: {reason}")
    if m.bad:
        _err(f"{len(m.bad)} images could not be read; they are counted nowhere above")


def _score_text(m: "Metrics | Averaged") -> str:
    top5 = f"  top-5 {_percent(m.top5)}" if m.top5 is not None else ""
    return f"top-1 {_percent(m.top1)}{top5}  nll {m.nll:.4f}  ece {m.ece:.4f}"


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Class probabilities of images by the model in RUN. Unreadable files are named, the rest is done; then the exit code is 1."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run, a weight file (.safetensors, .npz, .pth), hf:owner/name, or a name of `mlpmixer list weights`."""
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SRC...")]
    """Image files, folders (searched to the bottom), patterns such as 'photos/*.jpg', or - for a list of them on standard input."""
    top_k: int = 5
    """How many classes for each image."""
    format: Literal["table", "csv", "json", "jsonl"] = "table"
    """How to print the result."""
    out: Annotated[str, arg(metavar="FILE")] = ""
    """Where to write the result instead of standard output."""
    features: Annotated[str, arg(metavar="FILE")] = ""
    """Also write each image's feature vector (what the head sees) to FILE.npz or FILE.csv."""
    batch_size: int = 64
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    sizes: Annotated[Sizes, arg(name="")] = field(default_factory=Sizes)

    def __call__(self) -> int:
        if not self.sources:
            raise ValueError(f"which images? mlpmixer predict {self.run} FILE... (or folders, patterns, or - for a list on standard input)")
        if self.features and Path(self.features).suffix not in (".npz", ".csv"):
            raise ValueError(f"--features {self.features}: expected a name that ends in .npz or .csv")
        from mlpmixer.predict import Failure, csv_lines, find_images, json_lines, jsonl_lines, predict_files

        classifier = self.sizes.load(self.run, self.device)
        sources = [s for given in self.sources for s in ((line.rstrip("\n") for line in sys.stdin) if given == "-" else [given]) if s]
        paths = find_images(sources)
        failed: list[Failure] = []

        def watched(results: "Iterable[Prediction | Failure]") -> "Iterator[Prediction | Failure]":
            for result in results:
                if isinstance(result, Failure):
                    failed.append(result)
                    if self.format == "table":
                        _err(f"{result.name}: {result.reason}")
                yield result

        if self.features:
            paths = iter(_write_features(classifier, paths, Path(self.features), self.batch_size))
        top_k = min(self.top_k, len(classifier.classes))
        results = watched(predict_files(classifier, paths, self.top_k, self.batch_size))
        as_text = {"csv": lambda r: csv_lines(r, top_k), "json": json_lines, "jsonl": jsonl_lines, "table": _table_lines}
        lines = as_text[self.format](results)
        if self.out:
            with open(self.out, "w", encoding="utf-8") as f:
                f.writelines(lines)
        else:
            for line in lines:
                sys.stdout.write(line)
        if failed:
            _err(f"{len(failed)} of the sources gave no image")
        return 1 if failed else 0


def _table_lines(results: "Iterable[Prediction | Failure]") -> "Iterator[str]":
    from mlpmixer.predict import Prediction

    for result in results:
        if isinstance(result, Prediction):
            yield f"{result.name}\n" + "".join(f"  {_percent(p):>8}  {label}\n" for label, p in result.top)


def _write_features(classifier: "Classifier", paths: "Iterable[str | Failure]", file: Path, batch_size: int) -> "list[str | Failure]":
    """Feature vectors of the readable images to an .npz (names, features) or .csv; gives the list of paths back."""
    import numpy as np

    from mlpmixer.predict import Failure, decoded_batches

    found = list(paths)
    items = ((p.name, p) if isinstance(p, Failure) else (p, lambda p=p: p) for p in found)
    names: list[str] = []
    rows = [np.zeros((0, classifier.meta.config.hidden_dim if classifier.meta else 0), np.float32)]
    for batch in decoded_batches(items, classifier.array, batch_size):
        good = [(name, image) for name, image in batch if not isinstance(image, Failure)]
        if good:
            names += [name for name, _ in good]
            rows.append(classifier.features(np.stack([image for _, image in good])))
    features = np.concatenate(rows)
    if file.suffix == ".npz":
        np.savez(file, names=np.array(names), features=features)
    else:
        import csv

        with open(file, "w", newline="", encoding="utf-8") as f:
            out = csv.writer(f, lineterminator="\n")
            out.writerow(["image", *(f"f{i}" for i in range(features.shape[1]))])
            out.writerows([name, *(f"{v:.8g}" for v in row)] for name, row in zip(names, features, strict=True))
    return found


# --- probe --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How good the frozen features of the model in RUN are for DATA: few-shot accuracy, nearest neighbours, a linear probe.

    The classes of DATA may be others than the model's. The few-shot numbers are those of the official evaluation: ridge
    regression on a few training images of each class, drawn three times, measured on all test images.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run, a weight file (.safetensors, .npz, .pth), hf:owner/name, or a name of `mlpmixer list weights`."""
    data: Annotated[Positional[str], arg(metavar="DATA")] = ""
    """A data set's name, a path, or hf:owner/name; default: the data the run was trained on."""
    shots: Annotated[str, arg(metavar="K,K,...")] = "1,5,10,25"
    """How many training images of each class to learn from."""
    knn: Annotated[int, arg(metavar="K")] = 0
    """Also let the K nearest of all training images vote, such as 20."""
    linear: Flag = False
    """Also fit a logistic regression on all training images; its strength is chosen on validation images."""
    data_dir: Annotated[str, arg(metavar="DIR")] = ""
    """Where the files of a named data set are."""
    cache: Annotated[str, arg(metavar="DIR")] = ""
    """Where features are kept for the next time; default: features/ beside the model."""
    batch_size: int = 256
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: Flag = False
    """Print all numbers as JSON."""
    sizes: Annotated[Sizes, arg(name="")] = field(default_factory=Sizes)

    def __call__(self) -> int:
        shots = _whole_numbers("--shots", self.shots)
        from mlpmixer.evaluate import data_of
        from mlpmixer.probe import probe

        classifier = self.sizes.load(self.run, self.device)
        data = data_of(classifier, self.data or None)
        if self.data_dir:
            data = dataclasses.replace(data, data_dir=self.data_dir)
        assert classifier.path is not None
        result = probe(
            classifier,
            data,
            shots=shots,
            neighbours=self.knn or None,
            linear=self.linear,
            batch_size=self.batch_size,
            cache=self.cache or classifier.path.with_name("features"),
        )
        if self.json:
            _print_json(result.to_json())
        else:
            _print_probe(result)
        return 1 if result.bad else 0


def _whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """1,5,10 -> (1, 5, 10)"""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f"{option} {text}: expected whole numbers with commas between them, such as {option} 1,5,10,25")
    return tuple(map(int, text.split(",")))


def _print_probe(p: "ProbeResult") -> None:
    print(f"{p.n_train:,} training and {p.n_test:,} test images of {len(p.classes)} classes, {p.num_features:,} features\n")
    rows = []
    for row in p.few_shot:
        low, high = row.range
        name = f"{row.shots} image{'s' if row.shots > 1 else ''} of each class"
        rows.append((name, _percent(row.mean), f"{_percent(low)} to {_percent(high)} over {len(p.seeds)} draws"))
    if p.neighbours:
        rows.append((f"{p.neighbours.k} nearest neighbours", _percent(p.neighbours.top1), ""))
    if p.linear:
        settled = "" if p.linear.converged else ", not converged"
        rows.append(("linear probe", _percent(p.linear.top1), f"l2 {p.linear.l2:g}, chosen on validation{settled}"))
    _print_table(("", "top-1", ""), rows)
    for name, reason in p.bad[:10]:
        _err(f"{name}: {reason}")
    if p.bad:
        _err(f"{len(p.bad)} images could not be read; they are counted nowhere above")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a model in another form: official .npz, timm's state dict, or a file of this package, which keeps all that belongs to it."""

    model: Annotated[Positional[str], arg(metavar="RUN")]
    """A run, a weight file (.safetensors, .npz, .pth), hf:owner/name, or a name of `mlpmixer list weights`."""
    out: Annotated[Positional[str], arg(metavar="FILE")]
    """What to write: FILE.npz is official, FILE.safetensors is of this package unless --timm is given."""
    timm: Flag = False
    """Write FILE.safetensors with timm's names."""

    def __call__(self) -> int:
        from mlpmixer.weights import convert

        with _reporter() as report:
            notes = convert(self.model, self.out, timm=self.timm, report=report)
        for note in notes:
            _err(f"note: {note}")
        print(self.out)
        return 0


@dataclass(frozen=True, kw_only=True)
class Push:
    """Publish the model in RUN, with a model card, as a repository of the Hugging Face Hub or as a folder of that form."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run's folder, or its model.safetensors."""
    target: Annotated[Positional[str], arg(metavar="TARGET")]
    """A new folder, or hf:owner/name; for the Hub, log in before: hf auth login."""
    licence: Annotated[str, arg(metavar="NAME")] = ""
    """The model's licence as the Hub writes it: apache-2.0, mit, cc-by-4.0, ...; without it the card says that none is stated."""
    private: Flag = False
    """If the repository is new, make it private."""

    def __call__(self) -> int:
        from mlpmixer.hub import push

        print(push(self.run, self.target, licence=self.licence, private=self.private))
        return 0


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Run a published table again and put our figures beside the published ones; without TABLE, list the tables.

    Everything is looked for before anything starts: what is lacking is said at once. Given again, the command goes on where it stopped.
    With fewer steps or smaller batches it is a trial, marked as reduced.
    """

    table: Annotated[Positional[str], arg(metavar="TABLE")] = ""
    """Which table, such as cifar10-transfer."""
    row: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME")] = ()
    """Only this row, by the name of its weights, such as B/16:imagenet21k; can be given several times."""
    data_dir: Annotated[str, arg(metavar="DIR")] = ""
    """Where the files of the data set are; default: the Hugging Face Hub."""
    weights_dir: Annotated[str, arg(metavar="DIR")] = ""
    """Where the published weight files are (DIR/imagenet21k/Mixer-B_16.npz); default: they are fetched into the cache."""
    out: Annotated[str, arg(metavar="DIR")] = ""
    """Where each row has its run folder; default: runs/TABLE, or runs/TABLE-reduced."""
    steps: int = 0
    """Fewer steps; 0: as published."""
    batch_size: int = 0
    """Fewer images a step; 0: as published."""
    accumulate: int = 0
    """Parts a batch is computed in, to save memory; 0: parts no larger than published. The result is the same."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    seed: int = 0
    """Of order and augmentation."""
    check: Flag = False
    """Only say what it takes and what is lacking (then the exit code is 1)."""
    quiet: Flag = False
    """Print the result only."""
    json: Flag = False
    """Print one JSON object a line."""

    def __call__(self) -> int:
        from mlpmixer.reproduce import TABLES, Settings, plan, reproduce

        if not self.table:
            rows = [(name, table.title, ", ".join(row.weights for row in table.rows)) for name, table in TABLES.items()]
            if self.json:
                _print_json([{"table": name, "title": title, "rows": r.split(", ")} for name, title, r in rows])
            else:
                _print_table(("table", "", "rows"), rows)
            return 0
        settings = Settings(
            data_dir=self.data_dir or None,
            weights_dir=self.weights_dir or None,
            steps=self.steps,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            device=self.device,
            seed=self.seed,
        )
        if self.check:
            return _print_plan(plan(self.table, self.row, settings, self.out or None), as_json=self.json)
        from mlpmixer.train import Diverged, Interrupted

        try:
            with _reporter(quiet=self.quiet, as_json=self.json) as report:
                outcome = reproduce(self.table, self.row, settings, self.out or None, report)
        except Interrupted as stop:
            _err(f"stopped after step {stop.step:,}, saved in {stop.path}; to go on: the same command")
            return 130
        except Diverged as e:
            _err(str(e))
            return 1
        if self.json:
            _print_json({"kind": "table", **outcome.to_json()})
        else:
            _print_outcome(outcome)
        return 0


def _print_plan(p: "Plan", *, as_json: bool) -> int:
    lacking = p.lacking()
    rows = []
    for job in p.jobs:
        state = "finished" if job.done else "started" if job.run.exists() else "to do"
        weights = "finished" if job.done else "absent" if job in p.absent else "there"
        pflops, gib = f"{job.flops / 1e15:,.4g}", f"{job.num_bytes / 2**30:.1f}"
        rows.append((job.row.weights, state, weights, f"{job.recipe.run.steps:,}", pflops, gib))
    if as_json:
        keys = ("row", "state", "weights", "steps", "pflops", "memory_gib")
        _print_json({"table": p.name, "out": str(p.out), "rows": [dict(zip(keys, r, strict=True)) for r in rows], "lacking": lacking})
    else:
        _print_table(("row", "state", "weights", "steps", "PFLOPs", "memory, GiB"), rows)
        print(f"\nPFLOPs: of the whole training; 36 are an hour at 10 TFLOP/s. Memory: of the training, roughly. Runs: {p.out}")
    if lacking:
        _err(lacking)
    return 1 if lacking else 0


def _print_outcome(o: "Outcome") -> None:
    header, rows = o.cells()
    print(f"{o.name}: {o.table.title}\n")
    _print_table(header, rows)
    print("\n".join(["", *o.notes]))
    print(f"table   {o.out / 'table.md'}")


# --- summary, list, doctor ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A network line by line: shapes, parameters, FLOPs. Options change it: `mlpmixer summary B/16 --image-size 384`."""

    model: Annotated[Positional[str], arg(metavar="MODEL|RUN")]
    """An architecture's name (mlpmixer list models), a run's folder, or its model.safetensors."""
    json: Flag = False
    """Print as JSON."""
    config: Annotated[MixerConfig, arg(name="")] = field(default_factory=MixerConfig)

    @classmethod
    def parse(cls, args: Sequence[str]) -> "Summary":
        name = next((a for a in args if not a.startswith("-")), "")
        default = cls(model=name, config=_architecture(name)) if name else tyro.MISSING
        return tyro.cli(cls, prog="mlpmixer summary", args=args, default=default)

    def __call__(self) -> int:
        from mlpmixer.zoo import summary

        layers = summary(self.config)
        params, flops = sum(layer.params for layer in layers), sum(layer.flops for layer in layers)
        if self.json:
            _print_json({"model": self.model, "params": params, "flops": flops, "layers": [dataclasses.asdict(layer) for layer in layers]})
            return 0
        rows = [(x.name, " x ".join(map(str, x.output)), f"{x.params:,}", f"{x.flops:,}") for x in layers]
        _print_table(("layer", "output", "params", "FLOPs"), rows)
        print(f"\n{params:,} parameters, {flops / 1e9:.4g} GFLOPs an image (2 for each multiply-add)")
        return 0


def _architecture(name: str) -> MixerConfig:
    """Of a model's name, or of whatever holds weights."""
    from mlpmixer.zoo import MODELS, WEIGHTS

    is_weights = name in WEIGHTS or name.startswith("hf:") or (name not in MODELS and Path(name).exists())
    return _architecture_of_weights(name) if is_weights else MODELS[name]


def _architecture_of_weights(name: str) -> MixerConfig:
    """Without fetching what has a name."""
    from mlpmixer.zoo import WEIGHTS

    if name in WEIGHTS:
        return WEIGHTS[name].config
    from mlpmixer.weights import architecture

    return architecture(name)


@dataclass(frozen=True, kw_only=True)
class List:
    """The names that can be used: models, weights, datasets or recipes."""

    what: Positional[Literal["models", "weights", "datasets", "recipes"]]
    """Which names."""

    def __call__(self) -> int:
        if self.what == "models":
            from mlpmixer.zoo import MODELS, count_params

            rows = []
            for name, c in MODELS.items():
                sizes = (c.num_patches, c.num_blocks, c.hidden_dim, c.tokens_mlp_dim, c.channels_mlp_dim)
                rows.append((name, "x".join(map(str, pair(c.image_size))), *map(str, sizes), f"{count_params(c):,}"))
            _print_table(("model", "image px", "patches", "blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim", "params"), rows)
        elif self.what == "weights":
            from mlpmixer.zoo import WEIGHTS

            rows = []
            for name, w in WEIGHTS.items():
                size, top1 = f"{w.num_bytes:,}" if w.num_bytes else "", _percent(w.top1) if w.top1 else ""
                rows.append((name, f"{w.num_classes:,}", top1, size, w.preprocess, w.url))
            _print_table(("weights", "classes", "top-1", "bytes", "preprocess", "address"), rows)
            print("\ntop-1: on ImageNet-1k, as others report it; zoo.WEIGHTS says who, and under which licence the weights are")
        elif self.what == "datasets":
            from mlpmixer.data.datasets import DATASETS

            rows = [(name, named.title, "x".join(map(str, named.image_size)), str(len(named.classes))) for name, named in DATASETS.items()]
            _print_table(("dataset", "", "image px", "classes"), rows)
            print("\nor a folder with a folder for each class, a Parquet file or folder, or hf:owner/name")
        else:
            from mlpmixer.recipes import RECIPES

            _print_table(("recipe", ""), [(name, _first_line(recipe)) for name, recipe in RECIPES.items()])
        return 0


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """What this machine and this installation are, and what is wrong with them."""

    def __call__(self) -> int:
        from mlpmixer.doctor import diagnose

        findings = diagnose()
        width = max(len(f.name) for f in findings)
        for f in findings:
            print(f"{'!!' if f.problem else '  '} {f.name:{width}}  {f.value}")
        problems = [f for f in findings if f.problem]
        for f in problems:
            print(f"\n!! {f.name}: {f.problem}")
        return 1 if problems else 0


# --- data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """Look for broken, duplicate and mislaid images in DATA, and count its classes. The exit code is 1 when something is found."""

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
            _print_json(report.to_json())
        else:
            _print_check(report)
        return 0 if report.ok else 1


def _print_check(report: "CheckReport") -> None:
    splits = list(report.counts)
    classes = list(dict.fromkeys(name for counts in report.counts.values() for name in counts))
    rows = [(name, *(f"{report.counts[split].get(name, 0):,}" for split in splits)) for name in classes]
    shown = rows if len(rows) <= MAX_ROWS else rows[: MAX_ROWS // 2]
    _print_table(("class", *splits), [*shown, ("all", *(f"{sum(counts.values()):,}" for counts in report.counts.values()))])
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
class DataPreview:
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
    """RandAugment and mixup of AugReg instead of the recipe's: none, light1, light2, medium1, medium2, strong1, strong2."""
    rows: int = 6
    """Images."""
    cols: int = 8
    """The evaluation view and augmented views of each."""
    config: Annotated[Recipe, arg(name="")] = field(default_factory=Recipe)

    @classmethod
    def parse(cls, args: Sequence[str]) -> "DataPreview":
        args = _data_first([_long_form(a) for a in args])
        config = _start_from(args)
        default = cls(data=_first_positional(args) or tyro.MISSING, out=tyro.MISSING, config=config)
        return tyro.cli(cls, prog="mlpmixer data preview", description=_with_short(cls), args=args, default=default)

    def __call__(self) -> int:
        from mlpmixer.data.datasets import open_data
        from mlpmixer.data.preprocess import Preprocess
        from mlpmixer.data.preview import preview

        recipe, channels = self.config, (0.5,) * self.config.model.in_channels
        size = pair(recipe.model.image_size)
        shape = Preprocess(image_size=size, in_channels=len(channels), fit=recipe.data.fit, mean=channels, std=channels)
        print(preview(open_data(recipe.data), recipe.data, recipe.augment, shape, self.out, rows=self.rows, cols=self.cols))
        return 0


# --- main ---------------------------------------------------------------------------------------------------------

COMMANDS: dict[str, Any] = {
    "train": Train,
    "lr-find": LrFind,
    "evaluate": Evaluate,
    "predict": Predict,
    "probe": Probe,
    "convert": Convert,
    "push": Push,
    "reproduce": Reproduce,
    "summary": Summary,
    "list": List,
    "data check": DataCheck,
    "data preview": DataPreview,
    "doctor": Doctor,
}


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {_first_line(command)}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mlpmixer COMMAND ...",
            "",
            "MLP-Mixer: train on your own pictures, evaluate, predict.",
            "",
            *lines,
            "",
            "mlpmixer COMMAND --help says more; mlpmixer --version; a first try: mlpmixer train digits",
        ]
    )


def parse(args: Sequence[str]) -> Command:
    """The command that the arguments ask for. ValueError for an unknown one; SystemExit after help (0) or a wrong option (2)."""
    name, rest = (args[0], args[1:]) if args else ("", [])
    if name == "data":
        name, rest = f"data {rest[0]}" if rest else "data", rest[1:]
    if name not in COMMANDS:
        raise ValueError(f"no command {name!r}; {suggest(name, COMMANDS)} (mlpmixer --help tells what they do)")
    command = COMMANDS[name]
    parsed: Command = command.parse(rest) if hasattr(command, "parse") else tyro.cli(command, prog=f"mlpmixer {name}", args=rest)
    return parsed


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code."""
    # Torch's threads wait for each other in a busy loop. When another process holds a core, the loop burns whole time slices: a
    # step of the digits model took 3.6 s instead of 0.05 s. A bounded loop (0.25 s then, the same on an idle machine) mends that.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from mlpmixer import __version__

        print(f"mlpmixer {__version__}")
        return 0
    try:
        return parse(args)()
    except SystemExit as e:
        return int(e.code or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ValueError as e:
        _err(str(e))
        return 2
    except OSError as e:
        _err(str(e))
        return 2 if isinstance(e, FileNotFoundError | NotADirectoryError | IsADirectoryError) else 1


# --- printing -----------------------------------------------------------------------------------------------------


def _err(message: str) -> None:
    print(f"mlpmixer: {message}", file=sys.stderr, flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(_finite(value), ensure_ascii=False, default=str), flush=True)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of text, numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    right = [bool(rows) and all(re.fullmatch(r"[\d.,]*( %)?", row[i]) for row in rows) for i in range(len(header))]
    for row in (header, *rows):
        cells = (f"{c:>{w}}" if r else f"{c:{w}}" for c, w, r in zip(row, widths, right, strict=True))
        print("  ".join(cells).rstrip())


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    s = round(seconds)
    return f"{s} s" if s < 60 else f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"

"""Published tables, run again: each is an entry of TABLES, each row of it a recipe on published weights. A verb over
the other verbs.

    reproduce("cifar10-transfer", ["B/16:imagenet21k"], Settings(data_dir="downloads"))

A row is trained in a run folder of its own under `out`. Given again, the same call goes on where it stopped: finished
rows are read, an interrupted one is resumed exactly. Whatever is not as published, fewer steps or fewer images, marks a
row as reduced.
"""

import dataclasses
import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpmixer.config import Config, to_json
from mlpmixer.data.datasets import open_data
from mlpmixer.download import Report, cache_path, fetch
from mlpmixer.registry import Registry
from mlpmixer.training.recipe import Init, Recipe, read_recipe
from mlpmixer.training.recipes import RECIPES
from mlpmixer.weights import run_folder
from mlpmixer.weights.published import WEIGHTS

RESULTS_JSON, RESULTS_MD = "table.json", "table.md"
# Of the machine and of chance, not of the rule: the official code fixes neither seed nor order, and the parts of a
# batch add up to it.
FREE = {"model.num_classes", "data.data_dir", "init.weights", "run.device", "run.seed", "run.accumulate"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a published table: fine-tuned from `weights`, a name in published.WEIGHTS, it is said to reach `top1`, a
    fraction."""

    weights: str
    top1: float


@dataclass(frozen=True, kw_only=True)
class Table:
    """A published table, and how its rows are made."""

    title: str
    """What was done, in a line."""
    source: str
    """Where the figures and the settings stand."""
    recipe: str
    """The published settings: a name in RECIPES; a row brings model and weights."""
    train_images: int
    """Images that a step draws from."""
    test_images: int
    """Images that ours is measured on: the whole test split."""
    official_images: str
    """Images that the published figures are measured on, in words."""
    deviations: str
    """In what our rule is known to be another than the published one, in words; "" when in nothing."""
    rows: tuple[Row, ...]

    def row(self, weights: str) -> Row:
        """UnknownName when no row starts from these weights."""
        rows: Registry[Row] = Registry("row")
        rows |= {row.weights: row for row in self.rows}
        return rows[weights]

    def recipe_of(self, row: Row) -> Recipe:
        """The published settings of a row."""
        return dataclasses.replace(
            RECIPES[self.recipe](), model=WEIGHTS[row.weights].config, init=Init(weights=row.weights)
        )


TABLES: Registry[Table] = Registry("table")
TABLES["cifar10-transfer"] = Table(
    title="CIFAR-10 after fine-tuning at 224 px by the official rule",
    source="google-research/vision_transformer @ c6de1e5, README.md; settings: vit_jax/configs/common.py",
    recipe="finetune-official",
    train_images=49_000,  # train[:98%]
    test_images=10_000,
    official_images="9,728 of the 10,000 test images: batches of 512, the last partial one dropped",
    deviations="crops are antialiased and taken of the image at 224 px, pixels are rounded to 8 bits, the 2 % held out are drawn by class",
    rows=(
        Row(weights="B/16:imagenet1k", top1=0.9672),
        Row(weights="L/16:imagenet1k", top1=0.9659),
        Row(weights="B/16:imagenet21k", top1=0.9682),
        Row(weights="L/16:imagenet21k", top1=0.9834),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """Where things are, and what may differ from the published settings. 0: as published."""

    data_dir: str | None = None
    """Where the files of the data set are; None: the Hugging Face Hub."""
    weights_dir: str | None = None
    """Where the published weight files are, as FOLDER/FILE of their addresses or side by side; None: fetched into the
    cache."""
    steps: int = 0
    """Fewer steps."""
    batch_size: int = 0
    """Fewer images a step."""
    accumulate: int = 0
    """Parts a batch is computed in; 0: parts no larger than the published."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    seed: int = 0
    """Of order and augmentation."""

    def of(self, recipe: Recipe, weights: str) -> Recipe:
        """`recipe` with these settings. ValueError for more steps or images than published, or a batch that has no such
        parts."""
        run = recipe.run
        for option, value, published in (
            ("steps", self.steps, run.steps),
            ("batch_size", self.batch_size, run.batch_size),
        ):
            if not 0 <= value <= published:
                raise ValueError(f"{option} must be at least 1 and at most the published {published:,}, got {value:,}")
        batch = self.batch_size or run.batch_size
        part = run.batch_size // run.accumulate
        accumulate = self.accumulate or next(a for a in range(1, batch + 1) if batch % a == 0 and batch // a <= part)
        return dataclasses.replace(
            recipe,
            data=dataclasses.replace(recipe.data, data_dir=self.data_dir),
            init=Init(weights=weights),
            run=dataclasses.replace(
                run,
                steps=self.steps or run.steps,
                batch_size=batch,
                accumulate=accumulate,
                device=self.device,
                seed=self.seed,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done for a row."""

    row: Row
    recipe: Recipe
    run: Path
    """The run folder."""
    file: Path
    """Where its weights are, or have to be."""
    done: bool
    """Whether the run folder holds its result already."""

    @property
    def flops(self) -> int:
        """Of the training, three times those of the forward passes (2 for each multiply-add)."""
        run = self.recipe.run
        return 3 * run.steps * run.batch_size * sum(layer.flops for layer in self.recipe.model.layers())

    @property
    def num_bytes(self) -> int:
        """Memory that training needs, roughly: weights and gradients in float32, momentum in bfloat16, activations of a
        part of a batch."""
        cfg: Any = self.recipe.model
        run = self.recipe.run
        s, c = cfg.num_patches, cfg.hidden_dim
        of_block = 5 * s * c + 2 * c * cfg.tokens_mlp_dim + 2 * s * cfg.channels_mlp_dim
        bytes_: int = 10 * cfg.num_params + 4 * cfg.num_blocks * of_block * (run.batch_size // run.accumulate)
        return bytes_


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a table takes, and what is lacking for it here. Nothing has been done yet."""

    name: str
    out: Path
    jobs: tuple[Job, ...]
    """The rows that were asked for, done or not."""
    problems: tuple[str, ...]
    """What is wrong with data, device, folders or weight files, a sentence each."""
    absent: tuple[Job, ...]
    """The rows whose weight file is not there."""

    def lacking(self, reason: str = "") -> str:
        """All that is lacking as one message, "" when nothing is. `reason`: why the weights could not be fetched."""
        lines = [f"  {problem}" for problem in self.problems]
        if self.absent:
            total = sum(WEIGHTS[job.row.weights].num_bytes for job in self.absent)
            lines.append(f"  weights, {total:,} bytes in all{f' ({reason})' if reason else ''}: put")
            for job in self.absent:
                known = WEIGHTS[job.row.weights]
                lines += [f"    {known.url} ({known.num_bytes:,} bytes)", f"      at {job.file}"]
        if not lines:
            return ""
        todo = [job for job in self.jobs if not job.done]
        pflops, gib = sum(job.flops for job in todo) / 1e15, max(job.num_bytes for job in todo) / 2**30
        return "\n".join(
            [
                f"{self.name} cannot start, and nothing was trained; what is lacking:",
                *lines,
                f"training will take {pflops:,.4g} PFLOPs and up to {gib:.1f} GiB of memory",
            ]
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished row beside the published figure. Shares are fractions."""

    row: str
    official_top1: float
    top1: float
    n: int
    """Test images that `top1` is measured on."""
    steps: int
    differs: tuple[str, ...]
    """In what the run is not as published; empty for a reproduction."""
    command: str
    """What gives it again."""
    run: str
    device: str
    train_s: float

    @property
    def reduced(self) -> bool:
        """Whether this is no reproduction of the published figure."""
        return bool(self.differs)

    @property
    def difference(self) -> float:
        """Ours less the published one."""
        return self.top1 - self.official_top1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A table so far: the results under `out`, in the order of the rows, None for rows that are not finished."""

    name: str
    table: Table
    out: Path
    results: tuple[Result | None, ...]

    @property
    def notes(self) -> list[str]:
        """What one must know to read the figures, a sentence each."""
        t = self.table
        notes = [f"official: {t.source}; measured on {t.official_images}. Ours: on every test image."]
        if t.deviations:
            notes.append(f"known deviations of ours: {t.deviations}.")
        if reduced := [r for r in self.results if r and r.reduced]:
            also = "; ".join(dict.fromkeys(d for r in reduced for d in r.differs))
            notes.append(f"REDUCED is not the published setting and reproduces nothing: {also}.")
        return notes

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """(header, rows) as text; top-1 in percent, the difference in points."""
        header = ("row", "official top-1", "our top-1", "our images", "difference", "steps", "setting", "command")
        rows: list[tuple[str, ...]] = []
        for row, r in zip(self.table.rows, self.results, strict=True):
            official = f"{100 * row.top1:.2f} %"
            if r is None:
                rows.append((row.weights, official, "", "", "", "", "not run", ""))
                continue
            ours, difference, setting = (
                f"{100 * r.top1:.2f} %",
                f"{100 * r.difference:+.2f}",
                "REDUCED" if r.reduced else "official",
            )
            rows.append((row.weights, official, ours, f"{r.n:,}", difference, f"{r.steps:,}", setting, r.command))
        return header, rows

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows = [
            {**dataclasses.asdict(r), "reduced": r.reduced, "difference": r.difference}
            if r
            else {"row": row.weights, "official_top1": row.top1, "top1": None}
            for row, r in zip(self.table.rows, self.results, strict=True)
        ]
        about = {f: getattr(self.table, f) for f in ("title", "source", "official_images", "test_images", "deviations")}
        return {"table": self.name, **about, "out": str(self.out), "rows": rows}

    def to_markdown(self) -> str:
        """A page with the table."""
        header, rows = self.cells()
        lines = [header, ("---",) * len(header), *((*row[:-1], f"`{row[-1]}`" if row[-1] else "") for row in rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([f"# {self.name}: {self.table.title}", table, *self.notes]) + "\n"


def plan(
    name: str, rows: Sequence[str] = (), settings: Settings | None = None, out: str | os.PathLike[str] | None = None
) -> Plan:
    """Look whether everything is there for `rows` (weights' names; all when none is given) of the table `name`.

    Reads data set and weight files whole, fetches no weights, writes nothing. out: default runs/NAME, or
    runs/NAME-reduced when the settings are not the published ones.
    Errors: UnknownName for table or row; ValueError for settings that cannot be. What is lacking is told by the Plan
    instead.
    """
    table, settings = TABLES[name], settings or Settings()
    chosen = [table.row(r) for r in dict.fromkeys(rows)] or list(table.rows)
    if out is None:
        base = RECIPES[table.recipe]()
        out = Path("runs") / (f"{name}-reduced" if differences(settings.of(base, ""), base) else name)
    asked = [_job(table, row, settings, Path(out)) for row in chosen]
    todo = [job for job in asked if not job.done]
    problems = [problem for job in todo for problem in _run_problems(job)] + (
        _shared_problems(todo[0].recipe) if todo else []
    )
    if todo and settings.weights_dir is not None and not Path(settings.weights_dir).is_dir():
        problems.append(f"weights: no folder {settings.weights_dir}")
    problems += [problem for job in todo if job.file.is_file() for problem in _file_problems(job)]
    absent = tuple(job for job in todo if not job.file.is_file())
    return Plan(name=name, out=Path(out), jobs=tuple(asked), problems=tuple(problems), absent=absent)


def reproduce(
    name: str,
    rows: Sequence[str] = (),
    settings: Settings | None = None,
    out: str | os.PathLike[str] | None = None,
    report: Report | None = None,
    stop_after_s: float | None = None,
) -> Outcome:
    """Run `rows` (weights' names; all when none is given) of the table `name`, those that are not finished yet under
    `out`.

    Everything is looked for before anything starts, see `plan`; absent weights are fetched then, unless there is a
    weights_dir. After every row the table so far is written to table.json and table.md in `out`.

    out: default runs/NAME, or runs/NAME-reduced when the settings are not the published ones.
    report: receives {"kind": "row", "row", "number", "of"}, the progress of downloads, and what `train` reports.
    stop_after_s: stop then, as `train` does.

    Errors: ValueError that names all that is lacking; whatever `train` raises (Interrupted and Diverged among it).
    """
    found = plan(name, rows, settings, out)
    may_fetch = settings is None or settings.weights_dir is None
    if found.problems or (found.absent and not may_fetch):
        raise ValueError(found.lacking())
    if found.absent:
        _fetch_absent(found, report)
        found = plan(name, rows, settings, found.out)
        if missing := found.lacking():
            raise ValueError(missing)
    from mlpmixer.training.run import train

    todo, until = (
        [job for job in found.jobs if not job.done],
        None if stop_after_s is None else time.monotonic() + stop_after_s,
    )
    for number, job in enumerate(todo, 1):
        if report:
            report({"kind": "row", "row": job.row.weights, "number": number, "of": len(todo)})
        left = None if until is None else max(until - time.monotonic(), 0.0)
        train(job.recipe, out=job.run, resume=True, report=report, stop_after_s=left)
        _write(outcome_of(name, found.out))
    return _write(outcome_of(name, found.out))


def jobs(name: str, settings: Settings, out: Path) -> tuple[Job, ...]:
    """All rows of the table `name`, without a look at anything but whether they are done."""
    return tuple(_job(TABLES[name], row, settings, out) for row in TABLES[name].rows)


def outcome_of(name: str, out: str | os.PathLike[str]) -> Outcome:
    """The table `name` as far as its rows are finished under `out`, whatever their settings."""
    table = TABLES[name]
    results = tuple(_result(name, row, _run_of(row, Path(out))) for row in table.rows)
    return Outcome(name=name, table=table, out=Path(out), results=results)


def _write(outcome: Outcome) -> Outcome:
    run_folder.write_json(outcome.out / RESULTS_JSON, outcome.to_json())
    (outcome.out / RESULTS_MD).write_text(outcome.to_markdown(), encoding="utf-8")
    return outcome


def differences(recipe: Recipe, published: Recipe) -> list[str]:
    """Every field in which a run does not follow the published rule: "run.steps 2 instead of 10,000"."""
    return _unlike(recipe, published, FREE)


def _unlike(recipe: Recipe, other: Recipe, free: set[str]) -> list[str]:
    ours, theirs = _flat(to_json(recipe)), _flat(to_json(other))

    def text(value: Any) -> str:
        return f"{value:,}" if type(value) is int else str(value)

    return [f"{f} {text(ours[f])} instead of {text(theirs[f])}" for f in ours if f not in free and ours[f] != theirs[f]]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def _run_of(row: Row, out: Path) -> Path:
    return out / row.weights.replace("/", "-").replace(":", "-")


def _job(table: Table, row: Row, settings: Settings, out: Path) -> Job:
    file, weights = cache_path(WEIGHTS[row.weights].url), row.weights
    if settings.weights_dir is not None:
        file = _file_in(Path(settings.weights_dir), row)
        weights = str(file)
    run = _run_of(row, out)
    recipe = settings.of(table.recipe_of(row), weights)
    done = (run / "summary.json").exists() and not _unlike(read_recipe(run), recipe, {"model.num_classes"})
    return Job(row=row, recipe=recipe, run=run, file=file, done=done)


def _file_in(folder: Path, row: Row) -> Path:
    """folder/imagenet21k/Mixer-B_16.npz, as the files are published; folder/Mixer-B_16.npz when that one is of the
    right size."""
    known = WEIGHTS[row.weights]
    inner, name = known.url.split("/")[-2:]
    beside = folder / name
    is_it = not (folder / inner / name).exists() and beside.is_file() and beside.stat().st_size == known.num_bytes
    return beside if is_it else folder / inner / name


def _folder_of(file: Path, row: Row) -> Path:
    """The reverse of `_file_in`."""
    return file.parents[1] if file.parent.name == WEIGHTS[row.weights].url.split("/")[-2] else file.parent


def _run_problems(job: Job) -> list[str]:
    """A folder that holds a run of other settings."""
    if not (job.run / "recipe.json").exists():
        return []
    unlike = _unlike(job.recipe, read_recipe(job.run), {"model.num_classes"})
    return (
        [f"{job.run} holds a run of other settings ({'; '.join(unlike)} there): give another folder as out"]
        if unlike
        else []
    )


def _shared_problems(recipe: Recipe) -> list[str]:
    """A device that is not there, data that cannot be opened: the same for all rows."""
    from mlpmixer.hardware import choose_device

    problems = []
    for what, attempt in (
        ("device", lambda: choose_device(recipe.run.device)),
        ("data", lambda: open_data(recipe.data)),
    ):
        problems += _problem(what, attempt)
    return problems


def _file_problems(job: Job) -> list[str]:
    """A weight file of another size, or one that does not hold these weights."""
    from mlpmixer.weights.load import load_file

    size, known = job.file.stat().st_size, WEIGHTS[job.row.weights]
    if known.num_bytes and size != known.num_bytes:
        return [
            f"weights: {job.file} has {size:,} bytes, but {known.url} has {known.num_bytes:,}: put the right file there"
        ]
    return _problem("weights", lambda: load_file(job.file, job.row.weights))


def _problem(what: str, attempt: Callable[[], object]) -> list[str]:
    try:
        attempt()
    except (ValueError, OSError) as e:
        return [f"{what}: {e}"]
    return []


def _fetch_absent(found: Plan, report: Report | None) -> None:
    """Download the weights that are not in the cache. ValueError that names all of them that are lacking when one
    cannot be had."""
    for i, job in enumerate(found.absent):
        known = WEIGHTS[job.row.weights]
        try:
            fetch(known.url, num_bytes=known.num_bytes, report=report)
        except ValueError as e:
            raise ValueError(dataclasses.replace(found, absent=found.absent[i:]).lacking(str(e.__cause__ or e))) from e


def _result(name: str, row: Row, run: Path) -> Result | None:
    """What a finished run folder says; None when there is none, or its test split was not scored."""
    if not (run / "summary.json").exists():
        return None
    table, recipe = TABLES[name], read_recipe(run)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    if summary["test"] is None:
        return None
    published, n = table.recipe_of(row), summary["test"]["n"]
    counts = (("training images", summary["train_images"], table.train_images), ("test images", n, table.test_images))
    differs = differences(recipe, published) + [
        f"{have:,} {what} instead of {all_:,}" for what, have, all_ in counts if have != all_
    ]
    return Result(
        row=row.weights,
        official_top1=row.top1,
        top1=summary["top1"],
        n=n,
        steps=summary["steps"],
        differs=tuple(differs),
        command=_command(name, row, recipe, published, run.parent),
        run=str(run),
        device=summary["device"],
        train_s=summary["train_s"],
    )


def _command(name: str, row: Row, recipe: Recipe, published: Recipe, out: Path) -> str:
    """What was, or could have been, typed for a run."""
    words = ["mlpmixer", "reproduce", name, "--row", row.weights]
    options = {"--data-dir": recipe.data.data_dir, "--out": str(out)}
    if recipe.init.weights != row.weights:
        options["--weights-dir"] = str(_folder_of(Path(recipe.init.weights), row))
    default = Settings(batch_size=recipe.run.batch_size).of(published, "").run
    for option in ("steps", "batch_size", "accumulate", "device", "seed"):
        value = getattr(recipe.run, option)
        if value != getattr(default if option == "accumulate" else published.run, option):
            options[f"--{option.replace('_', '-')}"] = str(value)
    return shlex.join([*words, *(word for option, value in options.items() if value for word in (option, value))])

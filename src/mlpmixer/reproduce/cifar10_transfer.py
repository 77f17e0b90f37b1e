"""The official table of Mixers fine-tuned on CIFAR-10, run again from the published weights.

Everything is checked before anything starts. Whatever is not as published (fewer steps, smaller batches, other images)
marks a row as REDUCED.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpmixer.config import to_json
from mlpmixer.data.datasets import open_data
from mlpmixer.download import Report, cache_path, fetch
from mlpmixer.models.configs import MixerConfig
from mlpmixer.registry import Registry
from mlpmixer.reproduce.experiment import ExperimentContext
from mlpmixer.reproduce.page import Page, Table, make_table, percent
from mlpmixer.training.recipe import Init, Recipe, read_recipe
from mlpmixer.training.recipes import RECIPES
from mlpmixer.weights.published import WEIGHTS
from mlpmixer.weights.run_folder import differences, left_open, read_summary

RECIPE = "finetune-official"
"""The published settings; each row adds its network and weights."""
ROWS: Registry[float] = Registry("row")
"""Published top-1 by the name of the weights that were fine-tuned."""
ROWS |= {"B/16:imagenet1k": 0.9672, "L/16:imagenet1k": 0.9659, "B/16:imagenet21k": 0.9682, "L/16:imagenet21k": 0.9834}
TRAIN_IMAGES, TEST_IMAGES = 49_000, 10_000  # train[:98%], and the whole test split

# What may differ from the published settings: they fix neither seed nor order, and the parts of a batch add up to it.
FREE = {"data.data_dir", "data.min_per_class", "init.weights", "run.device", "run.seed", "run.accumulate"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """The fine-tuning behind one row."""

    row: str
    """The published weights that it starts from."""
    recipe: Recipe
    run: Path
    file: Path
    """Where the weights are, or have to be."""

    @property
    def conflicts(self) -> list[str]:
        """The differences of a run that is in the folder already."""
        started = (self.run / "recipe.json").exists()
        return _differences(self.recipe, read_recipe(self.run)) if started else []

    @property
    def done(self) -> bool:
        """Whether the run folder holds the result already."""
        return (self.run / "summary.json").exists() and not self.conflicts

    @property
    def flops(self) -> int:
        """FLOPs of the training: three times those of the forward passes (2 for each multiply-add)."""
        run = self.recipe.run
        return 3 * run.steps * run.images_per_step * sum(layer.flops for layer in self.recipe.model.layers())

    @property
    def num_bytes(self) -> int:
        """Approximate memory of the training: weights and gradients in float32, momentum in bfloat16, activations of a
        part of a batch."""
        cfg, run = WEIGHTS[self.row].config, self.recipe.run
        assert isinstance(cfg, MixerConfig)
        s, c = cfg.num_patches, cfg.hidden_dim
        block = 5 * s * c + 2 * c * cfg.tokens_mlp_dim + 2 * s * cfg.channels_mlp_dim
        return 10 * cfg.num_params + 4 * cfg.num_blocks * block * (run.images_per_step // run.accumulate)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The work that the rows need, and what is missing for it here."""

    jobs: Sequence[Job]
    absent: Sequence[Job]
    """The rows whose weight file is not there."""
    problems: Sequence[str]
    """Problems with data, device, folders or weight files, one sentence each."""

    def missing(self, reason: str = "") -> str:
        """All that is missing as one message, "" when nothing is. reason: why weights could not be fetched."""
        lines = [f"  {problem}" for problem in self.problems]
        if self.absent:
            total = sum(WEIGHTS[job.row].num_bytes for job in self.absent)
            lines.append(f"  weights, {total:,} bytes in all{f' ({reason})' if reason else ''}: put")
        for job in self.absent:
            known = WEIGHTS[job.row]
            lines += [f"    {known.url} ({known.num_bytes:,} bytes)", f"      at {job.file}"]
        if not lines:
            return ""
        todo = [job for job in self.jobs if not job.done]
        pflops, gib = sum(job.flops for job in todo) / 1e15, max(job.num_bytes for job in todo) / 2**30
        end = f"training will take {pflops:,.4g} PFLOPs and up to {gib:.1f} GiB of memory"
        return "\n".join(["cifar10-transfer cannot start, and nothing was trained; missing:", *lines, end])

    def rows(self) -> list[dict[str, str]]:
        """State and cost of each row, as text."""
        return [
            {
                "row": job.row,
                "state": "finished" if job.done else "started" if job.run.exists() else "to do",
                "weights": "finished" if job.done else "absent" if job in self.absent else "there",
                "steps": f"{job.recipe.run.steps:,}",
                "pflops": f"{job.flops / 1e15:,.4g}",
                "memory_gib": f"{job.num_bytes / 2**30:.1f}",
            }
            for job in self.jobs
        ]


def fine_tune_published(context: ExperimentContext) -> Page:
    for _ in train_rows(context, context.overrides.rows):
        context.write(make_page(context))  # the table so far
    return make_page(context)


def train_rows(context: ExperimentContext, rows: Sequence[str] = ()) -> Iterator[Job]:
    """Fine-tune the weights named (all by default), each row in a run folder of its own; yields a row when it is done.

    Absent weights are fetched first, unless the context has a weights_dir.
    Errors: ValueError that names all that is missing; OutOfTime; whatever `train` raises.
    """
    plan = make_plan(context, rows)
    if plan.absent and not plan.problems and context.weights_dir is None:
        _fetch_absent(plan, context.report)
        plan = make_plan(context, rows)
    if missing := plan.missing():
        raise ValueError(missing)
    context.num_parts = len(plan.jobs)
    for job in plan.jobs:
        context.train(job.run.name, job.recipe)
        yield job


def make_plan(context: ExperimentContext, rows: Sequence[str] = ()) -> Plan:
    """Check whether everything is there for the rows named (all by default).

    Reads data and weight files whole, fetches nothing, writes nothing. What is missing is in the Plan.
    Errors: UnknownName for a row; ValueError for overrides that cannot be.
    """
    from mlpmixer.hardware import choose_device

    jobs = make_jobs(context, rows)
    todo = [job for job in jobs if not job.done]
    problems = []
    for job in todo:
        if conflicts := job.conflicts:
            other = f"holds a run of other settings ({'; '.join(conflicts)} there)"
            problems.append(f"{job.run} {other}: give another folder as out")
    if todo:
        problems += _problem("device", lambda: choose_device(context.device))
        problems += _problem("data", lambda: open_data(todo[0].recipe.data))
        if context.weights_dir is not None and not Path(context.weights_dir).is_dir():
            problems.append(f"weights: no folder {context.weights_dir}")
    problems += [problem for job in todo if job.file.is_file() for problem in _file_problems(job)]
    return Plan(jobs=jobs, absent=[job for job in todo if not job.file.is_file()], problems=problems)


def make_jobs(context: ExperimentContext, rows: Sequence[str] = ()) -> list[Job]:
    for row in rows:
        ROWS[row]  # an unknown one is answered
    return [_make_job(context, row) for row in ROWS if not rows or row in rows]


def _make_job(context: ExperimentContext, row: str) -> Job:
    recipe, changes = published_recipe(row), context.overrides
    published = recipe.run
    for option in ("steps", "batch_size"):
        value, most = getattr(changes, option), getattr(published, option)
        if not 0 <= value <= most:
            raise ValueError(f"{option} must be at least 1 and at most the published {most:,}, got {value:,}")
    part = published.images_per_step // published.accumulate
    batch = changes.batch_size or published.images_per_step
    settings = dataclasses.replace(
        published,
        steps=changes.steps or published.steps,
        batch_size=batch,
        accumulate=changes.accumulate or next(n for n in range(1, batch + 1) if batch % n == 0 and batch // n <= part),
        device=context.device,
        seed=context.seed,
    )
    known, run = WEIGHTS[row], _run_folder(context.out, row)
    file = cache_path(known.url)
    if context.weights_dir is not None:  # as published, or side by side and told apart by size
        (inner, name), folder = known.url.split("/")[-2:], Path(context.weights_dir)
        nested, beside = folder / inner / name, folder / name
        fits = not nested.exists() and beside.is_file() and beside.stat().st_size == known.num_bytes
        file = beside if fits else nested
    recipe = dataclasses.replace(
        recipe,
        name=run.name,
        data=dataclasses.replace(recipe.data, data_dir=context.data_dir),
        init=Init(weights=row if context.weights_dir is None else str(file)),
        run=settings,
    )
    return Job(row=row, recipe=recipe, run=run, file=file)


def published_recipe(row: str) -> Recipe:
    """The published settings of a row."""
    recipe = RECIPES[RECIPE]()
    optim = dataclasses.replace(recipe.optim, loss="softmax")  # what training decides for images of one class
    return dataclasses.replace(recipe, model=WEIGHTS[row].config, init=Init(weights=row), optim=optim)


def _run_folder(out: Path, row: str) -> Path:
    return out / "runs" / row.replace("/", "-").replace(":", "-")


def _file_problems(job: Job) -> list[str]:
    """A weight file of another size, or one that does not hold these weights."""
    from mlpmixer.weights.load import load_file

    size, known = job.file.stat().st_size, WEIGHTS[job.row]
    if known.num_bytes and size != known.num_bytes:
        sizes = f"has {size:,} bytes, but {known.url} has {known.num_bytes:,}"
        return [f"weights: {job.file} {sizes}: put the right file there"]
    return _problem("weights", lambda: load_file(job.file, job.row))


def _problem(what: str, attempt: Callable[[], object]) -> list[str]:
    try:
        attempt()
    except (ValueError, OSError) as e:
        return [f"{what}: {e}"]
    return []


def _fetch_absent(plan: Plan, report: Report | None) -> None:
    """Download the weights that are not in the cache. ValueError that names all that is missing when one fails."""
    for i, job in enumerate(plan.absent):
        try:
            fetch(WEIGHTS[job.row].url, num_bytes=WEIGHTS[job.row].num_bytes, report=report)
        except ValueError as e:
            rest = dataclasses.replace(plan, absent=plan.absent[i:])
            raise ValueError(rest.missing(str(e.__cause__ or e))) from e


def _differences(recipe: Recipe, other: Recipe, free: Collection[str] = ()) -> list[str]:
    """Each field in which a recipe is not the other one: "run.steps 2 instead of 10,000"."""

    def text(value: Any) -> str:
        return f"{value:,}" if type(value) is int else str(value)

    ours, theirs = to_json(recipe), to_json(other)
    free = {"name", *free, *left_open(ours), *left_open(theirs)}
    found = differences(ours, theirs).items()
    return [f"{field} {text(have)} instead of {text(want)}" for field, (have, want) in found if field not in free]


# --- results ------------------------------------------------------------------------------------------------------


def read_results(out: Path) -> list[dict[str, Any]]:
    """Every row of the table: the published figure, and ours when it is finished under `out`, whatever its settings."""
    results = []
    for row, official in ROWS.items():
        result: dict[str, Any] = {"row": row, "official_top1": official, "top1": None}
        run = _run_folder(out, row)
        values = read_summary(run) or {}
        if values.get("test"):
            n = values["test"]["n"]
            differs = _differences(read_recipe(run), published_recipe(row), FREE)
            counts = (("training", values["train_images"], TRAIN_IMAGES), ("test", n, TEST_IMAGES))
            differs += [f"{have:,} {what} images instead of {all_:,}" for what, have, all_ in counts if have != all_]
            result |= {key: values[key] for key in ("top1", "steps", "device", "train_s")}
            result |= {"n": n, "differs": differs, "reduced": bool(differs), "run": str(run)}
            result["difference"] = values["top1"] - official
        results.append(result)
    return results


def results_table(results: list[dict[str, Any]]) -> Table:
    rows = []
    for r in results:
        row = {"row": r["row"], "official top-1": percent(r["official_top1"], 2)}
        row |= dict.fromkeys(("our top-1", "our images", "difference", "steps"), "") | {"setting": "not run"}
        if r["top1"] is not None:
            row |= {"our top-1": percent(r["top1"], 2), "our images": f"{r['n']:,}", "steps": f"{r['steps']:,}"}
            row |= {"difference": f"{100 * r['difference']:+.2f}"}
            row |= {"setting": "REDUCED" if r["reduced"] else "official"}
        rows.append(row)
    return make_table("CIFAR-10 after fine-tuning at 224 px: Google's figures and ours", rows)


def make_page(context: ExperimentContext) -> Page:
    results = read_results(context.out)
    done = [r for r in results if r["top1"] is not None]
    findings = [f"{len(done)} of {len(results)} rows have been run here."]
    if differs := dict.fromkeys(difference for r in done for difference in r["differs"]):
        findings.append(f"REDUCED is not the published setting and reproduces nothing: {'; '.join(differs)}.")
    return Page(
        template="cifar10_transfer.md",
        findings=findings,
        tables=(results_table(results),),
        figures={"rows": results},
    )

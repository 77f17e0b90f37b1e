"""Tables 2 and 3: transfer. Every row as published, the tasks behind the columns, and what can be run from published
weights."""

import dataclasses
import math
import time
from typing import Any

from mlpmixer.reproduce.cifar10_transfer import TABLES, Outcome, Settings, jobs, outcome_of, reproduce
from mlpmixer.reproduce.experiment import Lab
from mlpmixer.reproduce.page import Cells, Page
from mlpmixer.reproduce.published import AVG5, TABLE2, TABLE3, VTAB, Row, Task
from mlpmixer.training.recipes import grid

RUNNABLE = "cifar10-transfer"  # the one published table whose data and weights are both public as files


def run(lab: Lab) -> Page:
    settings = Settings(data_dir=lab.data_dir, weights_dir=lab.weights_dir, device=lab.device, seed=lab.seed)
    runs = lab.out / "runs"
    found = jobs(RUNNABLE, settings, runs)
    there = [job for job in found if job.done or job.file.is_file()]
    lab.parts = len(there)
    if lab.scale == "full" and not all(job.done for job in there):
        _train(lab, [job.row.weights for job in there], settings)
    outcome = outcome_of(RUNNABLE, runs)
    done = [result for result in outcome.results if result]
    takes = "; ".join(f"{job.row.weights} {job.flops / 1e15:,.0f} PFLOPs" for job in found)
    findings = [
        f"{len(done)} of the {len(found)} rows that published weights and CIFAR-10 allow have been run here"
        + ("." if done else f"; their weight files are here: {', '.join(job.row.weights for job in there) or 'none'}.")
    ]
    findings += [
        f"{r.row} on CIFAR-10: {100 * r.top1:.2f} % where {100 * r.official_top1:.2f} % is published"
        + (" (REDUCED, reproduces nothing)." if r.reduced else ".")
        for r in done
    ]
    return Page(
        claim="tables 2 and 3 below, every row; Avg5 and VTAB-1k are means over the tasks below.",
        findings=tuple(findings),
        tables=(
            _ours(outcome),
            _published(2, TABLE2),
            _published(3, TABLE3),
            _tasks("Avg5: five tasks", AVG5),
            _tasks("VTAB-1k: 19 tasks", VTAB),
        ),
        notes=(
            "Of the paper's models only those with a name in the column weights are public, as they were before "
            "fine-tuning; none of "
            "JFT-300M is.",
            f"What runs here is Google's own table of fine-tuning on CIFAR-10 (`mlpmixer reproduce {RUNNABLE}`): with "
            f"`--scale full`, the "
            f"rows whose weight files are in --weights-dir or the cache. It takes: {takes}.",
            "The tasks are specifications. `mlpmixer train DATA --init WEIGHTS --recipe NAME --image-size PX` runs "
            "one; "
            "`recipes.grid(NAME)` has the rates to choose from on validation.",
            "Table 2 evaluates on images resized to 256 px and cut to 224 (or in proportion), table 3 on those whose "
            "short side is 256: "
            "L/16 at 448 px has 84.15 % in the one and 83.91 % in the other.",
        ),
        figures={
            "table2": [dataclasses.asdict(row) for row in TABLE2],
            "table3": [dataclasses.asdict(row) for row in TABLE3],
            "avg5": [dataclasses.asdict(task) for task in AVG5],
            "vtab": [dataclasses.asdict(task) for task in VTAB],
            "ours": outcome.to_json()["rows"],
        },
    )


def _train(lab: Lab, rows: list[str], settings: Settings) -> None:
    from mlpmixer.training.run import Interrupted

    if time.monotonic() >= lab.until:
        raise lab.out_of_time()
    left = None if math.isinf(lab.until) else lab.until - time.monotonic()
    try:
        reproduce(RUNNABLE, rows, settings, lab.out / "runs", lab.report, stop_after_s=left)
    except Interrupted as e:
        if time.monotonic() < lab.until:
            raise
        lab.finished = sum(result is not None for result in outcome_of(RUNNABLE, lab.out / "runs").results)
        raise lab.out_of_time() from e


def _ours(outcome: Outcome) -> Cells:
    header, rows = outcome.cells()
    return Cells(
        title=f"{TABLES[RUNNABLE].title}: Google's figures and ours",
        header=header[:-1],
        rows=tuple(row[:-1] for row in rows),
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _published(number: int, rows: list[Row]) -> Cells:
    lines = tuple(
        (
            row.upstream,
            row.model,
            f"{row.image_px or ''}",
            f"{row.epochs or ''}",
            *(_percent(share) for share in (row.imagenet, row.real, row.avg5, *((row.vtab,) if number == 2 else ()))),
            f"{row.images_per_s_core:,}" if row.images_per_s_core else "",
            f"{1000 * row.kilo_core_days:,.0f}" + (" (extrapolated)" if row.extrapolated else ""),
            row.weights,
        )
        for row in rows
    )
    vtab = ("VTAB-1k",) if number == 2 else ()
    header = (
        "upstream",
        "model",
        "px",
        "epochs",
        "ImageNet",
        "ReaL",
        "Avg5",
        *vtab,
        "images/s/core",
        "core-days",
        "weights",
    )
    return Cells(title=f"The paper's table {number}", header=header, rows=lines)


def _tasks(title: str, tasks: list[Task]) -> Cells:
    def rates(task: Task) -> str:
        return ", ".join(f"{recipe.optim.lr:g}" for recipe in grid(task.recipe))

    rows: list[tuple[Any, ...]] = [
        (t.name, t.group, f"{t.classes:,}", t.splits, "top-1", f"{t.image_px}", f"{t.steps:,}", rates(t), t.recipe)
        for t in tasks
    ]
    header = ("task", "group", "classes", "train; test", "metric", "px", "steps", "learning rates", "recipe")
    return Cells(title=title, header=header, rows=tuple(rows))

"""Tables 2 and 3, transfer: every row as published, the tasks behind the columns, and what published weights allow."""

from mlpmixer.reproduce import cifar10_transfer
from mlpmixer.reproduce.experiment import ExperimentContext
from mlpmixer.reproduce.page import Page, Table, make_table, percent
from mlpmixer.reproduce.published import AVG5, TABLE2, TABLE3, VTAB, Row, Task
from mlpmixer.training.recipes import grid


def tabulate_transfer(context: ExperimentContext) -> Page:
    jobs = cifar10_transfer.make_jobs(context)
    there = [job for job in jobs if job.done or job.file.is_file()]
    context.num_parts = len(there)
    if context.scale == "full" and there:
        list(cifar10_transfer.train_rows(context, [job.row for job in there]))
    results = cifar10_transfer.read_results(context.out)
    done = [result for result in results if result["top1"] is not None]
    here = f"; their weight files are here: {', '.join(job.row for job in there) or 'none'}"
    findings = [
        f"{len(done)} of the {len(jobs)} rows that published weights and CIFAR-10 allow have been run here"
        f"{'' if done else here}.",
        *(
            f"{r['row']} on CIFAR-10: {percent(r['top1'], 2)} where {percent(r['official_top1'], 2)} is published"
            + (" (REDUCED, reproduces nothing)." if r["reduced"] else ".")
            for r in done
        ),
    ]
    takes = "; ".join(f"{job.row} {job.flops / 1e15:,.0f} PFLOPs" for job in jobs)
    return Page(
        template="transfer.md",
        values={"takes": takes},
        findings=findings,
        tables=(
            cifar10_transfer.results_table(results),
            _published(2, TABLE2),
            _published(3, TABLE3),
            _tasks("Avg5: five tasks", AVG5),
            _tasks("VTAB-1k: 19 tasks", VTAB),
        ),
        figures={
            "table2": [row._asdict() for row in TABLE2],
            "table3": [row._asdict() for row in TABLE3],
            "avg5": [task._asdict() for task in AVG5],
            "vtab": [task._asdict() for task in VTAB],
            "ours": results,
        },
    )


def _percent(share: float | None) -> str:
    return "" if share is None else percent(share, 2)


def _published(number: int, rows: list[Row]) -> Table:
    vtab = [{"VTAB-1k": _percent(row.vtab)} if number == 2 else {} for row in rows]
    days = [f"{1000 * row.kilo_core_days:,.0f}{' (extrapolated)' if row.extrapolated else ''}" for row in rows]
    lines = [
        {
            "upstream": row.upstream,
            "model": row.model,
            "px": row.image_px or "",
            "epochs": row.epochs or "",
            "ImageNet": _percent(row.imagenet),
            "ReaL": _percent(row.real),
            "Avg5": _percent(row.avg5),
            **vtab[i],
            "images/s/core": f"{row.images_per_s_core:,}" if row.images_per_s_core else "",
            "core-days": days[i],
            "weights": row.weights,
        }
        for i, row in enumerate(rows)
    ]
    return make_table(f"The paper's table {number}", lines)


def _tasks(title: str, tasks: list[Task]) -> Table:
    lines = [
        {
            "task": task.name,
            "group": task.group,
            "classes": f"{task.classes:,}",
            "train; test": task.splits,
            "metric": "top-1",
            "px": task.image_px,
            "steps": f"{task.steps:,}",
            "learning rates": ", ".join(f"{recipe.optim.lr:g}" for recipe in grid(task.recipe)),
            "recipe": task.recipe,
        }
        for task in tasks
    ]
    return make_table(title, lines)

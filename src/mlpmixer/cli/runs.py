"""mlpmixer runs."""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.options import Json
from mlpmixer.cli.printing import between, columns_of, percent, print_json, print_table
from mlpmixer.evaluation.significance import wilson
from mlpmixer.weights.run_folder import METRICS

if TYPE_CHECKING:
    from mlpmixer.weights.run_list import ListedRun

HEADER = ("run", "data", "network", "score (95 %), or state", "time")
LEAST_WIDTHS = {3: 30, 1: 8, 2: 8, 0: 8}  # of the columns, in the order in which they are cut
KEYS: "dict[str, Callable[[ListedRun], Any]]" = {
    "date": lambda run: run.started,
    "name": lambda run: run.path,
    "data": lambda run: run.data,
    "score": lambda run: -1 if run.score is None else run.score,
    "time": lambda run: run.train_s or 0,
}


@dataclass(frozen=True, kw_only=True)
class Runs(Command):
    """List the runs in FOLDER: data, network, accuracy, time, state."""

    folder: Annotated[str, Arg("FOLDER", "a folder that holds runs", positional=True)] = "runs"
    sort: Literal["date", "name", "data", "score", "time"] = "date"
    """Order of the lines, the last being the newest or the highest."""
    json: Json = False

    def __call__(self) -> int:
        from mlpmixer.weights.run_list import list_runs

        folder = Path(self.folder)
        runs = list_runs(folder)
        runs.sort(key=KEYS[self.sort])
        if self.json:
            print_json([dataclasses.asdict(run) for run in runs])
        elif runs:
            print_table(*fitted(HEADER, [row(run, folder) for run in runs], columns_of(sys.stdout)))
        else:
            print(f"no runs in {folder}")
        return 0


def row(run: "ListedRun", folder: Path) -> list[str]:
    name = Path(run.path).name if Path(run.path) == folder else os.path.relpath(run.path, folder)
    data = os.path.basename(run.data.rstrip("/")) or run.data
    return [name, data, run.network, outcome(run), "" if run.train_s is None else short_duration(run.train_s)]


def outcome(run: "ListedRun") -> str:
    """The accuracy of a finished run, else how far it has come."""
    if run.state == "damaged":
        return "damaged: " + run.problem.replace(" is damaged: ", ": ", 1)  # the cell is short
    if run.state == "finished" and run.score is not None and run.n:
        if run.folds:
            return f"{percent(run.score)} +- {100 * (run.deviation or 0):.2f}, {run.folds} folds"
        name = f"{METRICS[run.metric]} " if run.metric != "top1" else ""
        interval = f" {between(wilson(round(run.score * run.n), run.n))}" if run.metric == "top1" else ""
        on = "" if run.split == "test" else f", {run.split}"
        return f"{name}{percent(run.score)}{interval} of {run.n:,}{on}"
    if run.folds:
        return f"{run.state}, {run.step} of {run.folds} folds done"
    return f"{run.state} at step {run.step or 0:,}" + (f" of {run.steps:,}" if run.steps else "")


def short_duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def fitted(header: Sequence[str], rows: list[list[str]], columns: int) -> tuple[Sequence[str], list[list[str]]]:
    """A table whose cells are cut until it fits."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for i, least in LEAST_WIDTHS.items():
        over = sum(widths) + 2 * (len(widths) - 1) - columns
        widths[i] -= max(min(over, widths[i] - least), 0)
    cut = [[c if len(c) <= w else c[: w - 1] + "…" for c, w in zip(cells, widths, strict=True)] for cells in rows]
    return header, cut

"""mlpmixer reproduce."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.options import Device, JsonLines, Quiet
from mlpmixer.cli.printing import print_error, print_json, print_table
from mlpmixer.cli.progress import reporter

if TYPE_CHECKING:
    from mlpmixer.reproduce.cifar10_transfer import Outcome, Plan


@dataclass(frozen=True, kw_only=True)
class Reproduce(Command):
    """Reproduce a claim of the paper.

    Our figures stand beside the published ones. Without NAME, list what there is. An experiment such as table1 writes a page with tables and plots; a table such as cifar10-transfer runs published
    rows again from published weights. The same command resumes what was stopped.
    """

    name: Annotated[str, Arg("NAME", positional=True)] = ""
    """an experiment or a table"""
    scale: Literal["small", "long", "full"] = "small"
    """(experiments) Size: small takes minutes on two CPU cores, long takes hours, full is for one GPU."""
    max_minutes: float = 0.0
    """(experiments) Stop cleanly after this time (exit code 3), to be resumed. 0: run to the end."""
    data_dir: Annotated[str, Arg("DIR")] = ""
    """Folder with the files of the data set; default: the Hugging Face Hub."""
    weights_dir: Annotated[str, Arg("DIR")] = ""
    """Folder with the published weight files, such as DIR/imagenet21k/Mixer-B_16.npz; default: they are downloaded."""
    out: Annotated[str, Arg("DIR")] = ""
    """Folder for the results; default: results/NAME/SCALE, for a table runs/NAME or runs/NAME-reduced."""
    row: Annotated[tuple[str, ...], Arg("NAME")] = ()
    """(tables) Run only this row, named by its weights, such as B/16:imagenet21k. Can be repeated."""
    steps: int = 0
    """(tables) Override the number of steps; 0 keeps the published number. Fewer steps or smaller batches are a trial,
    marked as reduced."""
    batch_size: int = 0
    """(tables) Override the batch size; 0 keeps the published one."""
    accumulate: int = 0
    """(tables) Parts that a batch is computed in, to save memory; 0 keeps them as small as published. The result is the
    same."""
    check: bool = False
    """(tables) Only print what it takes and what is missing (exit code 1 if something is)."""
    device: Device = "auto"
    seed: int = 0
    """Random seed for initialisation, order and augmentation."""
    quiet: Quiet = False
    json: JsonLines = False

    def __call__(self) -> int:
        from mlpmixer.registry import Registry
        from mlpmixer.reproduce import EXPERIMENTS, TABLES

        if not self.name:
            return print_reproducible(as_json=self.json)
        known: Registry[object] = Registry("experiment or table")
        known |= {**EXPERIMENTS, **TABLES}
        known[self.name]  # refuses an unknown name
        is_table = self.name in TABLES
        others = ("scale", "max_minutes") if is_table else ("row", "steps", "batch_size", "accumulate", "check")
        given = [f"--{o.replace('_', '-')}" for o in others if getattr(self, o) != getattr(Reproduce(), o)]
        if given:
            kinds = ("a table", "experiments") if is_table else ("an experiment", "tables")
            raise ValueError(
                f"{self.name} is {kinds[0]}, and {', '.join(given)} is for {kinds[1]} only: mlpmixer reproduce lists both"
            )

        from mlpmixer.reproduce import OutOfTime
        from mlpmixer.training.run import Diverged, Interrupted

        try:
            return self._table() if is_table else self._experiment()
        except OutOfTime as stop:
            print_error(f"{stop}; to resume: the same command")
            return 3
        except Interrupted as stop:
            print_error(f"stopped after step {stop.step:,}, saved in {stop.path}; to resume: the same command")
            return 130
        except Diverged as e:
            print_error(str(e))
            return 1

    def _experiment(self) -> int:
        from mlpmixer.reproduce import run

        with reporter(quiet=self.quiet, as_json=self.json) as report:
            page, path = run(
                self.name,
                self.scale,
                out=self.out or None,
                data_dir=self.data_dir or None,
                weights_dir=self.weights_dir or None,
                device=self.device,
                seed=self.seed,
                max_minutes=self.max_minutes,
                report=report,
            )
        if self.json:
            print_json({"kind": "page", "path": str(path), "findings": page.findings, "figures": page.figures})
            return 0
        for cells in page.tables:
            print(f"{cells.title}\n")
            print_table(cells.header, cells.rows)
            print()
        print("\n".join([*page.findings, f"page    {path}"]))
        return 0

    def _table(self) -> int:
        from mlpmixer.reproduce.cifar10_transfer import Settings, plan, reproduce

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
            return print_plan(plan(self.name, self.row, settings, self.out or None), as_json=self.json)
        with reporter(quiet=self.quiet, as_json=self.json) as report:
            outcome = reproduce(self.name, self.row, settings, self.out or None, report)
        if self.json:
            print_json({"kind": "table", **outcome.to_json()})
        else:
            print_outcome(outcome)
        return 0


def print_reproducible(*, as_json: bool) -> int:
    from mlpmixer.reproduce import EXPERIMENTS, TABLES

    if as_json:
        tables = [
            {"table": name, "title": t.title, "rows": [row.weights for row in t.rows]} for name, t in TABLES.items()
        ]
        experiments = [
            {"experiment": name, "title": e.title, "source": e.source, "scales": e.scales}
            for name, e in EXPERIMENTS.items()
        ]
        print_json([*tables, *experiments])
        return 0
    rows = []
    for name, e in EXPERIMENTS.items():
        needs = [*(["--data-dir"] if e.data else []), *(['".[rivals]"'] if e.rivals else [])]
        rows.append(
            (name, e.title, "; ".join(f"{scale}: {text}" for scale, text in e.scales.items()), ", ".join(needs))
        )
    print_table(("experiment", "what it shows", "scales", "needs"), rows)
    print()
    print_table(
        ("table", "", "rows"), [(name, t.title, ", ".join(row.weights for row in t.rows)) for name, t in TABLES.items()]
    )
    return 0


def print_plan(p: "Plan", *, as_json: bool) -> int:
    lacking = p.lacking()
    rows = []
    for job in p.jobs:
        state = "finished" if job.done else "started" if job.run.exists() else "to do"
        weights = "finished" if job.done else "absent" if job in p.absent else "there"
        pflops, gib = f"{job.flops / 1e15:,.4g}", f"{job.num_bytes / 2**30:.1f}"
        rows.append((job.row.weights, state, weights, f"{job.recipe.run.steps:,}", pflops, gib))
    if as_json:
        keys = ("row", "state", "weights", "steps", "pflops", "memory_gib")
        print_json(
            {
                "table": p.name,
                "out": str(p.out),
                "rows": [dict(zip(keys, r, strict=True)) for r in rows],
                "lacking": lacking,
            }
        )
    else:
        print_table(("row", "state", "weights", "steps", "PFLOPs", "memory, GiB"), rows)
        print(
            f"\nPFLOPs: the whole training; 36 take an hour at 10 TFLOP/s. Memory: rough estimate for training. Runs: "
            f"{p.out}"
        )
    if lacking:
        print_error(lacking)
    return 1 if lacking else 0


def print_outcome(o: "Outcome") -> None:
    header, rows = o.cells()
    print(f"{o.name}: {o.table.title}\n")
    print_table(header, rows)
    print("\n".join(["", *o.notes]))
    print(f"table   {o.out / 'table.md'}")

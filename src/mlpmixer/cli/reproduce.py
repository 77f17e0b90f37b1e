"""mlpmixer reproduce."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.options import Device, JsonLines, Quiet
from mlpmixer.cli.printing import print_error, print_json, print_table
from mlpmixer.cli.progress import reporter

if TYPE_CHECKING:
    from mlpmixer.reproduce import ExperimentContext


@dataclass(frozen=True, kw_only=True)
class Reproduce(Command):
    """Reproduce a claim of the paper.

    Writes a page with our figures beside the published ones. Without NAME, lists the experiments. The same command
    resumes an experiment that was stopped.
    """

    name: Annotated[str, Arg("NAME", positional=True)] = ""
    """an experiment"""
    scale: Literal["default", "small", "long", "full"] = "default"
    """Size: small takes minutes on two CPU cores, long takes hours, full is for one GPU. Default: the first that the
    experiment has."""
    max_minutes: float = 0.0
    """Stop cleanly after this time (exit code 3); the same command resumes. 0: run to the end."""
    data_dir: Annotated[str, Arg("DIR")] = ""
    """Folder with the files of the data set; default: the Hugging Face Hub."""
    weights_dir: Annotated[str, Arg("DIR")] = ""
    """Folder with weight files: ours, and published ones such as DIR/imagenet21k/Mixer-B_16.npz; default: ours are in
    $MLPMIXER_WEIGHTS, and published ones are downloaded."""
    out: Annotated[str, Arg("DIR")] = ""
    """Folder for page and runs; default: results/NAME/SCALE, or results/NAME/SCALE-reduced for a reduced trial."""
    row: Annotated[tuple[str, ...], Arg("NAME")] = ()
    """(cifar10-transfer) Run only this row, named by its weights, such as B/16:imagenet21k. Can be repeated."""
    steps: int = 0
    """(cifar10-transfer) Override the number of steps; 0 keeps the published number. Fewer steps or smaller batches are
    a trial, marked as reduced."""
    batch_size: int = 0
    """(cifar10-transfer) Override the batch size; 0 keeps the published one."""
    accumulate: int = 0
    """(cifar10-transfer) Parts that a batch is computed in, to save memory; 0 keeps them as small as published. The
    result is the same."""
    check: bool = False
    """(cifar10-transfer) Only print what it takes and what is missing (exit code 1 if something is)."""
    device: Device = "auto"
    seed: int = 0
    """Random seed for initialisation, order and augmentation."""
    quiet: Quiet = False
    json: JsonLines = False

    def __call__(self) -> int:
        from mlpmixer.reproduce import EXPERIMENTS, ExperimentContext, OutOfTime, Overrides, run

        if not self.name:
            return print_experiments(as_json=self.json)
        from mlpmixer.training.loop import Diverged, Interrupted

        overrides = Overrides(rows=self.row, steps=self.steps, batch_size=self.batch_size, accumulate=self.accumulate)
        if (self.check or overrides != Overrides()) and not EXPERIMENTS[self.name].overrides:
            known = ", ".join(name for name, experiment in EXPERIMENTS.items() if experiment.overrides)
            raise ValueError(
                f"--row, --steps, --batch-size, --accumulate and --check are options of {known}, not of {self.name}"
            )
        settings: dict[str, Any] = {
            "scale": "" if self.scale == "default" else self.scale,
            "out": self.out or None,
            "data_dir": self.data_dir or None,
            "weights_dir": self.weights_dir or None,
            "device": self.device,
            "seed": self.seed,
            "max_minutes": self.max_minutes,
            "overrides": overrides,
        }
        if self.check:
            return print_plan(ExperimentContext(name=self.name, **settings), as_json=self.json)
        try:
            with reporter(quiet=self.quiet, as_json=self.json) as report:
                page, path = run(self.name, report=report, **settings)
        except OutOfTime as stop:
            print_error(f"{stop}; to resume: the same command")
            return 3
        except Interrupted as stop:
            print_error(f"stopped after step {stop.step:,}, saved in {stop.path}; to resume: the same command")
            return 130
        except Diverged as e:
            print_error(str(e))
            return 1
        if self.json:
            print_json({"kind": "page", "path": str(path), "findings": page.findings, "figures": page.figures})
            return 0
        for table in page.tables:
            print(f"{table.title}\n")
            print_table(table.header, table.rows)
            print()
        print("\n".join([*page.findings, f"page    {path}"]))
        return 0


def print_experiments(*, as_json: bool) -> int:
    from mlpmixer.reproduce import EXPERIMENTS

    if as_json:
        print_json(
            [
                {"experiment": name, "title": e.title, "source": e.source, "scales": e.scales}
                for name, e in EXPERIMENTS.items()
            ]
        )
        return 0
    rows = []
    for name, e in EXPERIMENTS.items():
        needs = [*(["--data-dir"] if e.data else []), *([f'".[{",".join(e.extras)}]"'] if e.extras else [])]
        scales = "; ".join(f"{scale}: {text}" for scale, text in e.scales.items())
        rows.append((name, e.title, scales, ", ".join(needs)))
    print_table(("experiment", "what it shows", "scales", "needs"), rows)
    return 0


def print_plan(context: "ExperimentContext", *, as_json: bool) -> int:
    from mlpmixer.reproduce.cifar10_transfer import make_plan

    plan = make_plan(context, context.overrides.rows)
    rows, missing = plan.rows(), plan.missing()
    if as_json:
        print_json({"table": context.name, "out": str(context.out), "rows": rows, "lacking": missing})
    else:
        print_table(("row", "state", "weights", "steps", "PFLOPs", "memory, GiB"), [tuple(r.values()) for r in rows])
        print(
            "\nPFLOPs: the whole training; 36 take an hour at 10 TFLOP/s. Memory: a rough estimate for training. Runs: "
            f"{context.out}"
        )
    if missing:
        print_error(missing)
    return 1 if missing else 0

"""mlpmixer bench."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.options import MODEL, Json, whole_numbers
from mlpmixer.cli.printing import percent, print_error, print_json, print_table
from mlpmixer.cli.progress import reporter

if TYPE_CHECKING:
    from mlpmixer.exporters.benchmark import Bench as Measured
    from mlpmixer.exporters.benchmark import Row

HEADER = (
    "engine",
    "computes in",
    "threads",
    "batch",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "images/s",
    "MiB",
    "start s",
    "same top-1",
    "off by",
)


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure how fast each engine runs a model on this machine.

    Times are from pixels to probabilities. For an export, the last line names the fastest engine in float32 that gives the same answers, as the --engine option
    of `predict`, `evaluate`, `probe`, `compare` and `serve`. A run is computed by torch; it is measured beside its
    export.
    """

    run: Annotated[str, Arg("RUN", MODEL, positional=True)]
    batch: Annotated[str, Arg("N,...")] = "1,32"
    """Batch sizes."""
    threads: Annotated[str, Arg("N,...")] = "1,0"
    """Numbers of threads. 0: the engine's default; only this row decides which engine is recommended."""
    seconds: float = 20.0
    """Time for all calls together. A large model takes longer, since each row is at least three calls."""
    csv: Annotated[str, Arg("FILE")] = ""
    """Also write the table, with the machine and the versions in each line."""
    json: Json = False

    def __call__(self) -> int:
        batches, threads = whole_numbers("--batch", self.batch), whole_numbers("--threads", self.threads)
        from mlpmixer.exporters.benchmark import bench
        from mlpmixer.inference.engines import require_file
        from mlpmixer.inference.exported import export_at

        if self.csv and not Path(self.csv).absolute().parent.is_dir():
            raise ValueError(f"--csv {self.csv}: its folder does not exist")
        file = export_at(self.run)
        with reporter() as report:
            if file:
                require_file(file)
            else:
                from mlpmixer.weights.load import locate

                locate(self.run, report=report)
            print_error(
                f"measuring {self.run} for {self.seconds:g} s, or longer if it is large; other work on this machine "
                f"affects the result"
            )
            found = bench(self.run, batches=batches, threads=threads, seconds=self.seconds, report=report)
        if self.csv:
            Path(self.csv).write_text(found.to_csv(), encoding="utf-8")
        if self.json:
            print_json(found.to_json())
        else:
            print_bench(found)
        return 0


def print_bench(b: "Measured") -> None:
    print_table(HEADER, [_cells(row) for row in b.rows])
    calls = sorted({row.calls for row in b.rows})
    print(
        f"{b.environment['cpu']}, {b.environment['cores']} cores; interleaved, {_range(calls)} calls each; MiB: peak memory of "
        f"the process"
    )
    print(
        f"same top-1, off by (the largest difference of a probability): against {b.reference}, on {b.images} random "
        f"images"
    )
    for failed in b.failed:
        what = f"{failed.engine} in {failed.precision}" if failed.precision else failed.engine
        print(f"not measured: {what}: {failed.reason}")
    if b.choice:
        print(f"recommended: --engine {b.choice.engine} ({b.choice.why})")
    elif b.exported:
        engine, times = b.exported
        print(
            f"a run is computed by torch; exported, {engine} has {times:.2f} times its speed: mlpmixer export {b.model}"
        )


def _cells(row: "Row") -> Sequence[str]:
    return (
        f"{row.engine} {row.version}",
        row.precision,
        str(row.threads or "auto"),
        f"{row.batch:,}",
        *(f"{ms:,.2f}" for ms in (row.p50_ms, row.p90_ms, row.p99_ms)),
        f"{row.images_per_s:,.1f}",
        "" if row.peak_mib is None else f"{row.peak_mib:,.0f}",
        f"{row.start_s:.2f}",
        percent(row.agreement),
        f"{row.probability_max_diff:.0e}",
    )


def _range(numbers: Sequence[int]) -> str:
    return f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"

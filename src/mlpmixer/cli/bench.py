"""mlpmixer bench."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.options import MODEL, Json, WeightsDir, require_writable, whole_numbers
from mlpmixer.cli.printing import percent, print_error, print_json, print_table
from mlpmixer.cli.progress import reporter
from mlpmixer.durable import write_text

if TYPE_CHECKING:
    from mlpmixer.exporters.benchmark import Bench as Measured
    from mlpmixer.exporters.benchmark import Row


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure how fast each engine runs a model on this machine.

    Times are from pixels to probabilities. For an export, the last line names the fastest engine in float32 that gives
    the same answers, as the --engine option of `predict`, `evaluate`, `probe`, `compare` and `serve`. A run is
    measured beside its export.
    """

    run: Annotated[str, Arg("RUN", MODEL, positional=True)]
    batch: Annotated[str, Arg("N,...")] = "1,32"
    """Batch sizes."""
    threads: Annotated[str, Arg("N,...")] = "1,0"
    """Numbers of threads. 0: the engine's default; only these rows decide which engine is recommended."""
    seconds: float = 20.0
    """Seconds for all calls together. A large model takes longer, since each row is at least three calls."""
    csv: Annotated[str, Arg("FILE")] = ""
    """Also write the table, with the machine and the versions in each line."""
    json: Json = False
    weights_dir: WeightsDir = ""

    def __call__(self) -> int:
        batches, threads = whole_numbers("--batch", self.batch), whole_numbers("--threads", self.threads)
        from mlpmixer.exporters.benchmark import bench
        from mlpmixer.inference.engines import require_file
        from mlpmixer.inference.exported import export_at

        if self.csv:
            require_writable("--csv", self.csv)
        file = export_at(self.run)
        with reporter() as report:
            if file:
                require_file(file)
            else:
                from mlpmixer.weights.load import locate

                locate(self.run, report=report)
            slower = "longer if it is large; other work on this machine affects the result"
            print_error(f"measuring {self.run} for {self.seconds:g} s, or {slower}")
            found = bench(self.run, batches=batches, threads=threads, seconds=self.seconds, report=report)
        if self.csv:
            write_text(Path(self.csv), found.to_csv())
        if self.json:
            print_json(found.to_json())
        else:
            print_bench(found)
        return 0


def print_bench(b: "Measured") -> None:
    rows = [_cells(row) for row in b.rows]
    print_table([*rows[0]], [[*row.values()] for row in rows])
    fewest, most = min(row.calls for row in b.rows), max(row.calls for row in b.rows)
    calls = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    machine = f"{b.environment['cpu']}, {b.environment['cores']} cores"
    print(f"{machine}; interleaved, {calls} calls each; MiB: peak memory of the process")
    print(
        f"same top-1, off by (largest difference of a probability): against {b.reference}, on {b.images} random images"
    )
    for failed in b.failed:
        what = f"{failed.engine} in {failed.precision}" if failed.precision else failed.engine
        print(f"not measured: {what}: {failed.reason}")
    if b.choice:
        print(f"recommended: --engine {b.choice.engine} ({b.choice.why})")
    elif b.exported:
        engine, times = b.exported
        print(f"torch computes a run; its export is {times:.2f} times as fast with {engine}: mlpmixer export {b.model}")


def _cells(row: "Row") -> dict[str, str]:
    """A row of the table, by the headings of its columns."""
    return {
        "engine": f"{row.engine} {row.version}",
        "computes in": row.precision,
        "threads": str(row.threads or "auto"),
        "batch": f"{row.batch:,}",
        "p50 ms": f"{row.p50_ms:,.2f}",
        "p90 ms": f"{row.p90_ms:,.2f}",
        "p99 ms": f"{row.p99_ms:,.2f}",
        "images/s": f"{row.images_per_s:,.1f}",
        "MiB": "" if row.peak_mib is None else f"{row.peak_mib:,.0f}",
        "start s": f"{row.start_s:.2f}",
        "same top-1": percent(row.agreement),
        "off by": f"{row.probability_max_diff:.0e}",
    }

"""How fast each engine runs a model on this machine, whether its answers are right, and which one to use.

Each engine runs in a process of its own (`inference.measure`), so that its memory and its start are its own. All of
them stay alive and take turns, so that other work on the machine meets them alike. What is timed is pixels to
probabilities. Imports no torch for an export.
"""

import csv
import dataclasses
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpmixer import __version__
from mlpmixer.hardware import cores, cpu_name
from mlpmixer.inference.compiled_classifier import COMPILED
from mlpmixer.inference.engines import ENGINES, Precision, engines_for, require_file, threads_each
from mlpmixer.inference.exported import export_at
from mlpmixer.inference.load import load
from mlpmixer.inference.measure import IMAGES

if TYPE_CHECKING:
    from mlpmixer.download import Report

TOLERANCE = 1e-4  # of a probability, as in `exporters.check`
MARGIN = 1.05  # times the speed of the default engine: less is no reason to use another
CALLS = 3  # of each row, at least
MODULE = "mlpmixer.inference.measure"


@dataclass(frozen=True, kw_only=True)
class Row:
    """An engine's speed. Times of a call are wall time."""

    engine: str
    version: str
    precision: str
    """int8 and float32: some layers in int8, the rest in float32."""
    threads: int
    """0: the engine's default."""
    batch: int
    """Images per call."""
    calls: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_s: float
    """The batch over the median."""
    peak_mib: float | None
    """Peak memory of the process with batches up to this one; None where the system does not tell."""
    start_s: float
    """From loading the model to its first answer, with the import of the engine."""
    agreement: float
    """Share of the images with the same likeliest class as the reference."""
    probability_max_diff: float
    """From the reference."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An engine that could not be measured."""

    engine: str
    precision: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The engine to use for an export on this machine, by `choose`."""

    engine: str
    images_per_s: dict[str, float]
    """Speed of each float32 engine whose answers are right: the geometric mean over the batches."""
    wrong: tuple[str, ...]
    """Engines in float32 whose answers are not."""
    threads: int
    why: str
    """A sentence."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The measurements, and the engine they recommend."""

    model: str
    environment: dict[str, Any]
    reference: str
    """The engine whose answers the others are compared with."""
    images: int
    """Number of images compared."""
    rows: tuple[Row, ...]
    """Measurements: engine, precision, threads and batch of each row, times in ms, memory in MiB."""
    failed: tuple[Failed, ...]
    """Engines that could not be measured, with the reason."""
    choice: Choice | None
    """None for a run, and for an .xml or .pt2, which only one engine opens."""
    exported: tuple[str, float] | None = None
    """For a run: the fastest engine in float32 for its export, and its speed relative to the run's."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    def to_csv(self) -> str:
        """A line per row and per failure, with the environment in each."""
        out = io.StringIO()
        names = ["model", *(f.name for f in dataclasses.fields(Row)), "reference", "failed", *self.environment]
        writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
        writer.writeheader()
        records = [dataclasses.asdict(row) | {"reference": self.reference} for row in self.rows]
        records += [{"engine": f.engine, "precision": f.precision, "failed": f.reason} for f in self.failed]
        for record in records:
            values = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in record.items()}
            writer.writerow({"model": self.model, **values, **self.environment})
        return out.getvalue()


def bench(
    model: str | os.PathLike[str],
    *,
    batches: Sequence[int] = (1, 32),
    threads: Sequence[int] = (1, 0),
    seconds: float = 20.0,
    report: "Report | None" = None,
) -> Bench:
    """Measure every engine that runs `model` here, in every precision it has.

    model: an export (file or bundle), in the engines that open it; or a run, a weight file or a name of `mlpmixer list
        weights`, in torch, in compiled kernels and, exported into a temporary folder, in onnxruntime and openvino.
    batches: images per call. threads: 0 is the engine's default.
    seconds: for all calls together; starting the engines, and three calls of each row, may take longer.
    report: receives the progress of a download.

    The reference is torch in float32 for a run; for an export, the first engine that opens it, in float32.

    Errors: ValueError for a model that is missing or not a classifier, for numbers out of range, and when no engine
    runs it.
    """
    batches, threads = sorted(set(batches)), list(dict.fromkeys(threads))
    if not batches or batches[0] < 1:
        raise ValueError(f"batches must be at least 1 image, got {', '.join(map(str, batches)) or 'none'}")
    if not threads:
        raise ValueError("threads: expected at least one number, 0 for the engine's default")
    for number in threads:
        threads_each(1, number)
    if not 0 < seconds < 1e6:
        raise ValueError(f"seconds must be positive, got {seconds:g}")
    name, file = os.fspath(model), export_at(model)
    failed: list[Failed] = []
    with tempfile.TemporaryDirectory(prefix="mlpmixer-bench-") as scratch:
        if file:
            require_file(file)
            paths = dict.fromkeys(engines_for(file), str(file))
        else:
            paths = _of_run(name, Path(scratch) / "model.onnx", report, failed)
        for engine in [engine for engine in paths if engine != COMPILED and find_spec(engine) is None]:
            reason = f'{engine} is not installed: pip install "{ENGINES[engine].package}"'
            failed.append(Failed(engine=engine, precision="", reason=reason))
            del paths[engine]
        found = [one for number in threads for one in _measure(paths, number, batches, seconds / len(threads), failed)]
    failed = list(dict.fromkeys(failed))
    reference = next((one for one in found if one.precision == "float32"), None)
    if reference is None:
        raise ValueError(f"no engine computes {name} here: {'; '.join(dict.fromkeys(f.reason for f in failed))}")
    rows = [_row(one, batch, reference) for one in found for batch in batches]
    best = choose(rows, *tolerances(reference.about["made"]))
    return Bench(
        model=name,
        environment={
            "cpu": cpu_name(),
            "cores": cores(),
            "python": platform.python_version(),
            "mlpmixer": __version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        reference=f"{reference.engine} {reference.about['version']} in {reference.about['precision']}",
        images=IMAGES,
        rows=tuple(rows),
        failed=tuple(failed),
        choice=best if file and len(engines_for(file)) > 1 else None,
        exported=None if file else _best_export(best),
    )


def tolerances(made: dict[str, Any]) -> tuple[float, float]:
    """The least agreement and the largest difference of a probability with which another engine is right.

    made: how an export was made. Engines round layers in int8 differently: where each is as far from the float model as
    the export was found to be, two of them may be twice as far from each other.
    """
    if made.get("int8"):
        with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
            found = made["check"]
            agreement, off = int(found["agreeing"]) / int(found["n"]), float(found["probability_max_diff"])
            return 2 * agreement - 1, max(2 * off, TOLERANCE)
    return 1.0, TOLERANCE


def choose(rows: Sequence[Row], min_agreement: float = 1.0, max_diff: float = TOLERANCE) -> Choice | None:
    """The fastest engine in float32 (with layers in int8, if the model has them) whose answers are right, if any.

    Only rows with the engine's default number of threads count, or else with the largest one. Speed is the geometric
    mean of images/s over the batches. The first of ENGINES stays unless another is faster by MARGIN.
    """
    threads = 0 if any(row.threads == 0 for row in rows) else max((row.threads for row in rows), default=0)
    exact = [row for row in rows if row.precision.endswith("float32")]
    wrong = {row.engine for row in exact if row.agreement < min_agreement or not row.probability_max_diff < max_diff}
    speeds: dict[str, float] = {}
    for name in ENGINES:
        own = [row.images_per_s for row in exact if row.engine == name and row.threads == threads]
        if own and name not in wrong:
            speeds[name] = statistics.geometric_mean(own)
    if not speeds:
        return None
    first, best = next(iter(speeds)), max(speeds, key=speeds.__getitem__)
    engine = best if speeds[best] >= MARGIN * speeds[first] else first
    others = [name for name in speeds if name != engine]
    if not others:
        why = "" if wrong else "the only one that runs this file here"
    elif engine != first:
        why = f"{speeds[engine] / speeds[first]:.2f} times the speed of {first}"
    else:
        times = max(speeds[name] for name in others) / speeds[first]
        why = f"{max(others, key=speeds.__getitem__)} has {times:.2f} times its speed"
        why += f", and less than {MARGIN:g} changes nothing" if times > 1 else ""
    wrong_names = tuple(name for name in ENGINES if name in wrong)
    if wrong:
        why = "; ".join(filter(None, (why, f"the answers of {' and '.join(wrong_names)} differ")))
    return Choice(engine=engine, images_per_s=speeds, wrong=wrong_names, threads=threads, why=why)


def _best_export(best: Choice | None) -> tuple[str, float] | None:
    speeds = dict(best.images_per_s) if best else {}
    of_run = speeds.pop("torch", None)
    speeds.pop(COMPILED, None)
    if of_run is None or not speeds:
        return None
    engine = max(speeds, key=speeds.__getitem__)
    return engine, speeds[engine] / of_run


# --- measuring ---------------------------------------------------------------------------------------------


def _of_run(name: str, file: Path, report: "Report | None", failed: list[Failed]) -> dict[str, str]:
    """Engine -> path: the run for torch and compiled, and its export, which is written to `file`, for the others."""
    from mlpmixer.exporters.export import write_unchecked

    classifier = load(name, report=report)
    if not classifier.classes:
        raise ValueError(f"{name} has no head (num_classes=0), so it has no probabilities to compare")
    others = engines_for(file)
    try:
        write_unchecked(classifier, "onnx", file)
    except ValueError as e:
        failed += [Failed(engine=engine, precision="", reason=str(e)) for engine in others]
        others = []
    return {"torch": name, COMPILED: name} | dict.fromkeys(others, str(file))


def _measure(
    paths: Mapping[str, str], threads: int, batches: Sequence[int], seconds: float, failed: list[Failed]
) -> "list[Worker]":
    """Each engine in each of its precisions, in turns; those that cannot go to `failed`."""

    def working(workers: "Iterable[Worker]", step: "Callable[[Worker], None]") -> "list[Worker]":
        """The engines that take the step."""
        able = []
        for worker in workers:
            try:
                step(worker)
                able.append(worker)
            except ValueError as e:
                failed.append(Failed(engine=worker.engine, precision=worker.precision, reason=str(e)))
        return able

    tasks = [(path, engine, precision) for engine, path in paths.items() for precision in ENGINES[engine].precisions]
    with ExitStack() as stack:
        started = (stack.enter_context(Worker(*task, threads, batches)) for task in tasks)
        alive = working(started, lambda worker: worker.start())  # one by one: each has the machine for its start
        end, rounds = time.monotonic() + seconds, 0
        while alive and (rounds < CALLS or time.monotonic() < end):
            alive = working(alive, lambda worker: worker.turn())
            rounds += 1
    return alive


def _row(worker: "Worker", batch: int, reference: "Worker") -> Row:
    p50, p90, p99 = (float(v) for v in 1e3 * np.percentile(worker.times[batch], (50, 90, 99)))
    answers, wanted = (np.array(other.about["answers"], np.float32) for other in (worker, reference))
    return Row(
        engine=worker.engine,
        version=worker.about["version"],
        precision=worker.about["precision"],
        threads=worker.threads,
        batch=batch,
        calls=len(worker.times[batch]),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        images_per_s=1e3 * batch / p50,
        peak_mib=worker.about["peak_mib"][str(batch)],
        start_s=worker.about["start_s"],
        agreement=float((answers.argmax(1) == wanted.argmax(1)).mean()),
        probability_max_diff=float(np.abs(answers - wanted).max()),
    )


class Worker:
    """One engine in a process of its own. An error there is a ValueError here."""

    def __init__(self, path: str, engine: str, precision: Precision, threads: int, batches: Sequence[int]) -> None:
        self.engine, self.precision, self.threads = engine, precision, threads
        self.about: dict[str, Any] = {}
        self.times: dict[int, list[float]] = {batch: [] for batch in batches}
        """Seconds of the calls."""
        path = os.path.abspath(path) if os.path.exists(path) else path
        self.process = subprocess.Popen(
            [sys.executable, "-m", MODULE, path, engine, precision, *map(str, (threads, *batches))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],  # where -m finds this package
            start_new_session=True,  # Ctrl-C is for the process that started it
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def start(self) -> None:
        """Wait until its model is loaded."""
        self.about = self._answer()

    def turn(self) -> None:
        """Time some calls with each batch."""
        for batch, times in self.times.items():
            times += self._answer(f"{batch}\n")

    def _answer(self, question: str = "") -> Any:
        assert self.process.stdin and self.process.stdout
        with suppress(OSError):  # then there is no answer
            self.process.stdin.write(question)
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"its process ended by itself (exit code {self.process.wait()})")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise ValueError(answer["error"])
        return answer

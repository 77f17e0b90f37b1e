"""How fast each engine computes a model on this machine, whether its answers are right, and which one to take.

Each engine computes in a process of its own, so that its memory and its start are its own; all of them stay alive and
take turns, so that whatever else the machine does meets them alike. What is measured is from pixels to probabilities,
through `Classifier.probabilities`. Imports no torch for an export.
"""

import csv
import dataclasses
import io
import multiprocessing
import os
import platform
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer import __version__
from mlpmixer.data.images import Pixels
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.hardware import cores, cpu_name, peak_mib
from mlpmixer.inference.classifier import Exported, load
from mlpmixer.inference.engines import ENGINES, Precision, engines_for, installed, require_file, require_threads
from mlpmixer.inference.exported import export_at

if TYPE_CHECKING:
    from mlpmixer.weights.load import Report

IMAGES = 32  # made-up ones, to compare answers on
TOLERANCE = 1e-4  # of a probability: what an export may differ from its model by (`export.check`)
MARGIN = 1.05  # times the speed of the engine that is taken anyway: less is no reason to take another
CALLS = 3  # of each row, at least
TURN_S = 0.1  # of one row at a time, or one call

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Row:
    """An engine's speed. Times of a call are wall time."""

    engine: str
    version: str
    precision: str
    """int8 and float32: layers in int8, all else in float32."""
    threads: int
    """0: as many as the engine chooses."""
    batch: int
    """Images of a call."""
    calls: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_s: float
    """The batch over the median."""
    peak_mib: float | None
    """The most memory that its process has held with batches up to this one; None where the system does not tell."""
    start_s: float
    """From loading the model to its first answer; the import of the engine counts in."""
    agreement: float
    """Share of the images whose likeliest class is the reference's."""
    probability_max_diff: float
    """From the reference."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What could not be measured."""

    engine: str
    precision: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The engine to take for an export on this machine, by `choose`."""

    engine: str
    images_per_s: dict[str, float]
    """Of each engine that may be taken: the geometric mean over the batches."""
    wrong: tuple[str, ...]
    """Engines that compute in float32, and may not be taken: their answers are others."""
    threads: int

    @property
    def why(self) -> str:
        """A plain sentence."""
        first = next(iter(self.images_per_s))
        others = {name: speed for name, speed in self.images_per_s.items() if name != self.engine}
        if not others:
            word = "" if self.wrong else "the only one that computes this file here"
        elif self.engine != first:
            word = f"{self.images_per_s[self.engine] / others[first]:.2f} times the speed of {first}"
        else:
            name = max(others, key=others.__getitem__)
            times = others[name] / self.images_per_s[first]
            word = f"{name} has {times:.2f} times its speed" + (
                f", and less than {MARGIN:g} changes nothing" if times > 1 else ""
            )
        otherwise = f"{' and '.join(self.wrong)} answers otherwise" if self.wrong else ""
        return "; ".join(filter(None, (word, otherwise)))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The table, and what follows from it."""

    model: str
    environment: dict[str, Any]
    reference: str
    """Whose answers the others are compared with."""
    images: int
    """That they are compared on."""
    rows: tuple[Row, ...]
    failed: tuple[Failed, ...]
    choice: Choice | None
    """None where nothing is to choose: torch computes a run, and one engine alone opens an .xml or a .pt2."""
    exported: tuple[str, float] | None = None
    """Of a run: the fastest engine in float32 for its export, and how many times it is as fast as the run."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self) | {
            "choice": self.choice and dataclasses.asdict(self.choice) | {"why": self.choice.why}
        }

    def to_csv(self) -> str:
        """A line for each row and for what could not be measured, with the environment in each."""
        out = io.StringIO()
        names = ["model", *(f.name for f in dataclasses.fields(Row)), "reference", "failed", *self.environment]
        writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
        writer.writeheader()
        lines: tuple[Row | Failed, ...] = (*self.rows, *self.failed)
        for row in lines:
            values = dataclasses.asdict(row)
            values = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items() if k != "reason"}
            reason = {"failed": row.reason} if isinstance(row, Failed) else {"reference": self.reference}
            writer.writerow({"model": self.model, **values, **reason, **self.environment})
        return out.getvalue()


def bench(
    model: str | os.PathLike[str],
    *,
    batches: Sequence[int] = (1, 32),
    threads: Sequence[int] = (1, 0),
    seconds: float = 20.0,
    report: "Report | None" = None,
) -> Bench:
    """Measure every engine that computes `model` here, in every precision it has.

    model: an export (file or bundle), in the engines that open it; or a run, a weight file or a name of `mlpmixer list
        weights`, in torch and, exported into a temporary folder, in onnxruntime and openvino.
    batches: images at a time. threads: 0 is as many as the engine chooses.
    seconds: for all calls together; it takes longer where three calls of each row do, and for starting the engines.
    report: receives the progress of a download.

    The reference is torch in float32 for a run; for an export, the first engine that opens it, in float32. A script
    that calls this needs `if __name__ == "__main__":`, since it starts processes.

    Errors: ValueError for a model that is not there or no classifier, and for numbers that cannot be used, and when no
    engine computes it.
    """
    batches, threads = sorted(set(batches)), list(dict.fromkeys(threads))
    if not batches or batches[0] < 1:
        raise ValueError(f"batches must be at least 1 image, got {', '.join(map(str, batches)) or 'none'}")
    if not threads:
        raise ValueError("threads: expected at least one number, 0 for as many as the engine chooses")
    for number in threads:
        require_threads(number)
    if not 0 < seconds < 1e6:
        raise ValueError(f"seconds must be positive, got {seconds:g}")
    name, file = os.fspath(model), export_at(model)
    with tempfile.TemporaryDirectory(prefix="mlpmixer-bench-") as scratch:
        kinds, failed = _of_export(file) if file else _of_run(name, Path(scratch) / "model.onnx", report)
        rows, reference = list[Row](), None
        for number in threads:
            measured, unable, reference = _together(kinds, number, batches, seconds / len(threads), reference)
            rows += measured
            failed += unable
    failed = list(dict.fromkeys(failed))
    if reference is None or not rows:
        raise ValueError(f"no engine computes {name} here: {'; '.join(dict.fromkeys(f.reason for f in failed))}")
    return Bench(
        model=name,
        environment=_environment(),
        reference=reference.text,
        images=IMAGES,
        rows=tuple(rows),
        failed=tuple(failed),
        choice=choose(rows, reference.limits) if file and len(engines_for(file)) > 1 else None,
        exported=None if file else _best_export(rows, reference.limits),
    )


@dataclass(frozen=True)
class Limits:
    """How far another engine's answers may be from the reference's, to be the same for all purposes."""

    agreement: float = 1.0
    probability_max_diff: float = TOLERANCE

    def hold(self, row: Row) -> bool:
        return row.agreement >= self.agreement and row.probability_max_diff < self.probability_max_diff


def limits_of(made: dict[str, Any]) -> Limits:
    """Of an export, by how it was made. Layers in int8 are rounded differently by each engine; where each is as far
    from the float model as the export was found to be when it was written, two engines may be twice as far from each
    other."""
    if made.get("int8"):
        with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
            found = made["check"]
            agreement, off = int(found["agreeing"]) / int(found["n"]), float(found["probability_max_diff"])
            return Limits(2 * agreement - 1, max(2 * off, TOLERANCE))
    return Limits()


def choose(rows: Sequence[Row], limits: Limits) -> Choice | None:
    """The fastest engine in float32 (beside which layers may be int8) whose answers are right, on as many threads as it
    chooses, or the most that were measured; speed is the geometric mean of images/s over the batches. The first of
    ENGINES stays where none is faster by MARGIN. None where no answers are right."""
    threads = 0 if any(row.threads == 0 for row in rows) else max((row.threads for row in rows), default=0)
    exact = [row for row in rows if row.precision.endswith("float32")]
    wrong = {row.engine for row in exact if not limits.hold(row)}
    speeds: dict[str, float] = {}
    for name in ENGINES:
        own = [row.images_per_s for row in exact if row.engine == name and row.threads == threads]
        if own and name not in wrong:
            speeds[name] = statistics.geometric_mean(own)
    if not speeds:
        return None
    first, best = next(iter(speeds)), max(speeds, key=speeds.__getitem__)
    engine = best if speeds[best] >= MARGIN * speeds[first] else first
    return Choice(
        engine=engine, images_per_s=speeds, wrong=tuple(name for name in ENGINES if name in wrong), threads=threads
    )


def _best_export(rows: Sequence[Row], limits: Limits) -> tuple[str, float] | None:
    found = choose(rows, limits)
    speeds = found.images_per_s if found else {}
    others = {name: speed for name, speed in speeds.items() if name != "torch"}
    if not others or "torch" not in speeds:
        return None
    best = max(others, key=others.__getitem__)
    return best, others[best] / speeds["torch"]


def images_for(preprocess: Preprocess, count: int) -> Pixels:
    """Made-up images (count,H,W,C), the same ones each time: noise, from single pixels to large fields."""
    (height, width), rng = preprocess.image_size, np.random.default_rng(0)
    images = np.empty((count, height, width, preprocess.in_channels), np.uint8)
    for i in range(count):
        fields = max(max(height, width) >> i % 6, 2)
        noise = rng.integers(0, 256, (fields, fields, preprocess.in_channels))
        images[i] = noise[np.arange(height) * fields // height][:, np.arange(width) * fields // width]
    pixels: Pixels = images.astype(preprocess.dtype)
    return pixels


# --- what is measured ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A model file in an engine."""

    path: str
    engine: str
    precision: Precision


def _of_export(file: Path) -> tuple[list[Kind], list[Failed]]:
    require_file(file)
    return _kinds(str(file), engines_for(file))


def _of_run(name: str, file: Path, report: "Report | None") -> tuple[list[Kind], list[Failed]]:
    """Torch with the run, and the others with its export, which is written to `file`."""
    from mlpmixer.exporters.export import write_unchecked

    classifier = load(name, report=report)
    if not classifier.classes:
        raise ValueError(f"{name} has no head (num_classes=0), so it gives no probabilities to compare")
    kinds, failed = _kinds(name, ["torch"])
    try:
        write_unchecked(classifier, "onnx", file)
    except ValueError as e:
        return kinds, [*failed, *(Failed(engine=other, precision="", reason=str(e)) for other in engines_for(file))]
    more, lacking = _kinds(str(file), engines_for(file))
    return [*kinds, *more], [*failed, *lacking]


def _kinds(path: str, names: Sequence[str]) -> tuple[list[Kind], list[Failed]]:
    kinds, failed = list[Kind](), list[Failed]()
    for name in names:
        if installed(name) is None:
            lacking = f'{name} is not installed: pip install "{ENGINES[name].package}"'
            failed.append(Failed(engine=name, precision="", reason=lacking))
        else:
            kinds += [Kind(path, name, precision) for precision in ENGINES[name].precisions]
    return kinds, failed


@dataclass(frozen=True)
class Reference:
    """Whose answers the others are compared with."""

    text: str
    answers: Floats
    limits: Limits


def _together(
    kinds: Sequence[Kind], threads: int, batches: Sequence[int], seconds: float, reference: Reference | None
) -> tuple[list[Row], list[Failed], Reference | None]:
    """All kinds on so many threads, in turns. The first one that answers in float32 is the reference where there is
    none yet."""
    failed = list[Failed]()
    started = list[tuple[Kind, Worker, Started]]()
    with ExitStack() as stack:
        for kind in kinds:  # one after the other: each has the machine for its start
            try:
                worker = stack.enter_context(Worker.running(kind, threads, batches))
                started.append((kind, worker, worker.started()))
            except ValueError as e:
                failed.append(Failed(engine=kind.engine, precision=kind.precision, reason=str(e)))
        times: dict[tuple[int, int], list[float]] = {(i, batch): [] for i in range(len(started)) for batch in batches}
        alive, end, rounds = set(range(len(started))), time.monotonic() + seconds, 0
        while alive and (rounds < CALLS or time.monotonic() < end):
            for i, batch in times:
                if i in alive:
                    try:
                        times[i, batch] += started[i][1].turn(batch)
                    except ValueError as e:
                        kind = started[i][0]
                        failed.append(Failed(engine=kind.engine, precision=kind.precision, reason=str(e)))
                        alive.discard(i)
            rounds += 1
    measured = [(i, kind, start) for i, (kind, _, start) in enumerate(started) if i in alive]
    first = next(((kind, start) for _, kind, start in measured if kind.precision == "float32"), None)
    if reference is None and first:
        kind, start = first
        reference = Reference(f"{kind.engine} {start.version} in {start.numbers}", start.answers, start.limits)
    if reference is None:
        return [], failed, None
    rows = [
        _row(kind, start, threads, batch, times[i, batch], reference)
        for i, kind, start in measured
        for batch in batches
    ]
    return rows, failed, reference


def _row(kind: Kind, start: "Started", threads: int, batch: int, times: Sequence[float], reference: Reference) -> Row:
    p50, p90, p99 = (float(v) for v in 1e3 * np.percentile(times, (50, 90, 99)))
    return Row(
        engine=kind.engine,
        version=start.version,
        precision=start.numbers,
        threads=threads,
        batch=batch,
        calls=len(times),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        images_per_s=1e3 * batch / p50,
        peak_mib=start.peak_mib[batch],
        start_s=start.start_s,
        agreement=float((start.answers.argmax(1) == reference.answers.argmax(1)).mean()),
        probability_max_diff=float(np.abs(start.answers - reference.answers).max()),
    )


def _environment() -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "python": platform.python_version(),
        "mlpmixer": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


# --- a process for each -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Started:
    """What a process has found of itself before its first turn."""

    version: str
    numbers: str
    start_s: float
    peak_mib: dict[int, float | None]
    """By batch, from the smallest on."""
    answers: Floats
    """To `images_for`, (IMAGES, K)."""
    limits: Limits


class Worker:
    """A process that computes one kind, as this one sees it. What goes wrong in it is a ValueError here."""

    def __init__(self, process: Any, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe

    @classmethod
    @contextmanager
    def running(cls, kind: Kind, threads: int, batches: Sequence[int]) -> Iterator["Worker"]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(kind, threads, batches, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            yield cls(process, ours)
        finally:
            ours.close()  # which ends it, after what it computes
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()

    def started(self) -> Started:
        found: Started = self._received()
        return found

    def turn(self, batch: int) -> list[float]:
        """Seconds of some calls, at least one."""
        with suppress(OSError):  # then there is nothing to receive
            self.pipe.send(batch)
        times: list[float] = self._received()
        return times

    def _received(self) -> Any:
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(timeout=5)
            raise ValueError(f"its process ended by itself (exit code {self.process.exitcode})") from None
        if isinstance(answer, str):
            raise ValueError(answer)
        return answer


def work(kind: Kind, threads: int, batches: Sequence[int], pipe: Connection) -> None:
    """The process: sends what it has `Started` as, then the times of a turn for each batch it receives; a str is what
    went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    with suppress(EOFError, OSError):
        try:
            _work(kind, threads, batches, pipe)
        except ValueError as e:
            pipe.send(str(e))


def _work(kind: Kind, threads: int, batches: Sequence[int], pipe: Connection) -> None:
    if kind.engine == "torch" and kind.precision == "bfloat16":
        require_bfloat16()
    begin = time.perf_counter()
    classifier = load(kind.path, engine=kind.engine, precision=kind.precision, threads=threads)
    images = images_for(classifier.preprocess, max(IMAGES, *batches))
    classifier.probabilities(images[: batches[0]])
    start_s = time.perf_counter() - begin
    parts = [classifier.probabilities(images[i : i + batches[0]]) for i in range(0, IMAGES, batches[0])]
    peaks: dict[int, float | None] = {}
    for batch in batches:
        classifier.probabilities(images[:batch])  # the first one allocates
        peaks[batch] = peak_mib()
    runtime = classifier.runtime
    assert runtime
    pipe.send(
        Started(
            version=runtime.version,
            numbers=runtime.precision_label,
            start_s=start_s,
            peak_mib=peaks,
            answers=np.concatenate(parts)[:IMAGES],
            limits=limits_of(classifier.export.made) if isinstance(classifier, Exported) else Limits(),
        )
    )
    while True:
        batch, times = pipe.recv(), list[float]()
        while not times or sum(times) < TURN_S:
            begin = time.perf_counter()
            classifier.probabilities(images[:batch])
            times.append(time.perf_counter() - begin)
        pipe.send(times)


def require_bfloat16() -> None:
    """ValueError where torch has no matrix products in bfloat16."""
    import torch

    from mlpmixer.hardware import has_bf16

    if not has_bf16(torch.device("cpu")):
        raise ValueError("this processor has no bfloat16 products, and torch would emulate them, slower than float32")

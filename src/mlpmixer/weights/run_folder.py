"""A run directory: recipe.json, splits.json, env.json, metrics.jsonl, summary.json, model.safetensors, checkpoints/,
report.html."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from mlpmixer.config import Config, from_json, to_json
from mlpmixer.data.split_record import SplitRecord
from mlpmixer.durable import read_json, write_json, write_text
from mlpmixer.registry import shortened

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

MODEL_FILE = "model.safetensors"
LAST_FILE, BEST_FILE = "last.safetensors", "best.safetensors"  # beside the model: the one of the two that it is not
METRICS = {"top1": "top-1", "map": "mAP"}  # where an image has one class; where it may have several
SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.html"
LOCK_FILE = ".lock"
SPLITS_FILE = "splits.json"
ENV_FILE = "env.json"
FOLDS_FILE, OUT_OF_FOLD_FILE = "folds.json", "out_of_fold.csv"  # of a cross-validation, whose runs lie in its folder


def is_run(path: Path) -> bool:
    """Whether a run was started in this directory."""
    return (path / "recipe.json").exists()


def is_cross_validation(path: Path) -> bool:
    """Whether a cross-validation was started in this directory."""
    return (path / FOLDS_FILE).exists()


def read_cross_validation(folder: Path) -> dict[str, Any]:
    """folds.json: "recipe", and "summary" when it is finished. ValueError, which names it, when it is damaged."""
    found = read_json(folder / FOLDS_FILE)
    if not isinstance(found.get("recipe"), dict) or not isinstance(found.get("summary", {}), dict):
        raise ValueError(f"{folder / FOLDS_FILE} is damaged: expected a recipe and a summary")
    return found


def read_recipe_json(run: Path) -> dict[str, Any]:
    """The resolved recipe of a run as plain JSON; `training.recipe.read_recipe` makes a Recipe of it.

    ValueError when `run` is not a run directory, and when the file is damaged.
    """
    path = run / "recipe.json"
    try:
        recipe = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{run} is not a run: it has no recipe.json") from None
    if not recipe:
        raise ValueError(f"{path} is damaged: it is empty")
    return recipe


def left_open(recipe: Mapping[str, Any]) -> set[str]:
    """The fields of a recipe, as plain JSON, that training sets as it starts: from the data, or by measuring."""
    run = recipe["run"]
    is_open = {
        "model.num_classes": True,
        "optim.loss": recipe["optim"]["loss"] == "auto",
        "run.batch_size": run["batch_size"] == "auto",
        "run.steps": bool(run["time"]) and not run["steps"],
        "run.threads": not run["threads"],
    }
    return {name for name, is_left in is_open.items() if is_left}


def read_environment(run: Path) -> dict[str, Any]:
    """The `environment` stored when a run was last started; empty where that is damaged or missing."""
    with suppress(OSError, ValueError):
        return dict(read_json(run / ENV_FILE))
    return {}


def measured_fields(run: Path) -> list[str]:
    """The fields of a run's recipe that were measured as it started; none for older runs, which do not say."""
    return list(map(str, read_environment(run).get("measured", [])))


def learned_from(run: Path) -> str:
    """The sources that a run learned from, as `environment` stores them; empty for older runs, which do not say."""
    return str(read_environment(run).get("learned_from", ""))


def differences(recipe: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where two recipes, as plain JSON, differ: {"run.seed": (0, 1)}."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**recipe, **other}:
        a, b = recipe.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= {f"{key}.{field}": values for field, values in differences(a, b).items()}
        elif a != b:
            found[key] = a, b
    return found


def metric_of(scores: Any) -> str:
    """The name of the metric by which these are judged, a key of METRICS."""
    return next((name for name in METRICS if isinstance(scores, dict) and name in scores), "top1")


def read_summary(run: Path) -> dict[str, Any] | None:
    """summary.json; None while the run is not finished. ValueError, which names it, when it is damaged."""
    path = run / SUMMARY_FILE
    try:
        summary = read_json(path)
    except FileNotFoundError:
        return None
    numbers = [summary, *(summary[part] for part in ("val", "test") if summary.get(part) is not None)]
    for of in numbers:
        for name in ("steps", "train_s") if of is summary else (metric_of(of), "n"):
            if not isinstance(of, dict) or type(of.get(name)) not in (int, float):
                raise ValueError(f"{path} is damaged: expected a number {name}")
    return summary


def write_recipe(run: Path, recipe: Config) -> None:
    write_json(run / "recipe.json", to_json(recipe))


def read_splits(run: Path) -> SplitRecord | None:
    """Which images the run was started on; None for older runs. ValueError, which names it, for a damaged file."""
    path = run / SPLITS_FILE
    try:
        return from_json(SplitRecord, read_json(path))
    except FileNotFoundError:
        return None
    except ValueError as e:
        reason = shortened(str(e).removeprefix(f"{path} is damaged: "))
        raise ValueError(f"{path} is damaged: {reason}. Remove it to resume without comparing the images") from e


def environment(
    device: str,
    precision: str,
    kernels: str,
    processes: int = 1,
    measured: Sequence[str] = (),
    learned_from: str = "",
    began: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Versions, hardware, commit and command line: what one needs to believe a figure.

    measured: fields of the recipe; learned_from: trained weights and their terms. A resumed run reads both again.
    began: what a resumed run stored as it started, whose date and command remain.
    """
    packages = {}
    for name in ("mlpmixer", "torch", "numpy", "pillow", "safetensors", "scikit-learn"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    first = {key: began[key] for key in ("date", "command") if key in began} if began else {}
    return {
        "date": now,
        "resumed": [] if began is None else [*began.get("resumed", []), now],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "device": device,
        "precision": precision,
        "kernels": kernels,
        "processes": processes,
        "measured": list(measured),
        "learned_from": learned_from,
        "cpu_count": os.cpu_count(),
        "commit": _commit(),
        "command": ["mlpmixer" if (name := Path(sys.argv[0]).name) == "__main__.py" else name, *sys.argv[1:]],
    } | first


def _commit() -> str | None:
    """The commit of the source tree this package runs from, with + when it has changes; None outside a git checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if dirty else "")


def new_directory(base: Path) -> Path:
    """`base`, or base-2, base-3, ...: the first that does not exist, made by this call and no other."""
    path, n = base, 1
    while True:
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
        n += 1
        path = base.with_name(f"{base.name}-{n}")


def remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def drop_parts(run: Path) -> None:
    """Remove the files that a killed process was writing: those of `durable.replacing`, and of safetensors within it,
    the latter only in folders of a run. For who has locked the folder."""
    for folder in (run, run / "checkpoints"):
        names = r"\..+\.\d+\.part|\.tmp\w{6}" if folder != run or is_run(run) else r"\..+\.\d+\.part"
        for path in folder.glob(".*"):
            if re.fullmatch(names, path.name):
                path.unlink()


_locks: set[TextIO] = set()
if hasattr(os, "register_at_fork"):  # a child that outlives its parent must not hold its lock
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _locks])


@contextmanager
def locked(run: Path) -> Iterator[str]:
    """Within, no other process can lock this folder, which is made if need be, and removed if it is left empty.

    Gives why files cannot be locked there, or "". The kernel drops the lock of a process that has died in any way.
    InUse, which names the process that holds it.
    """
    made = [run, *(folder for folder in run.parents if not folder.exists())]
    for attempt in range(100):
        try:
            file, problem = _lock(run)
            break
        except (FileNotFoundError, FileExistsError):
            if attempt == 99:
                raise
    _locks.add(file)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield problem
    finally:
        _locks.discard(file)
        if not file.closed:  # as it is in a forked child
            with suppress(OSError):
                (run / LOCK_FILE).unlink()
                for folder in made:
                    folder.rmdir()
            file.close()


def is_locked(run: Path) -> bool:
    """Whether a training holds this folder now. A shared lock for an instant tells it."""
    if fcntl is None:
        return False
    try:
        with open(run / LOCK_FILE) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as e:
        return isinstance(e, BlockingIOError)
    return False


class InUse(ValueError):
    """Another process trains in the folder of a run."""


def _lock(run: Path) -> tuple[TextIO, str]:
    """The lock file of a run, locked, or why it cannot be. FileNotFoundError or FileExistsError when another process
    has just removed it or its folder."""
    problem = ""
    run.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        file = stack.enter_context(open(run / LOCK_FILE, "a+", encoding="utf-8", errors="replace"))
        try:
            if fcntl is None:
                raise OSError("this system has no such locks")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = " ".join(file.read(200).split()) or "another process"
            raise InUse(
                f"{run} is in use: {holder} trains in it; wait until it has ended, stop it, or choose another out"
            ) from None
        except OSError as e:
            problem = str(e)
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(run / LOCK_FILE)):
            raise FileNotFoundError(run / LOCK_FILE)
        stack.pop_all()
        return file, problem


class MetricsFile:
    """metrics.jsonl: one JSON object a line. Opening it at a step drops the lines after that step, so a resumed run
    leaves one history, and those that damage has made unreadable, of which there are `num_lost`."""

    def __init__(self, path: Path, after_step: int) -> None:
        lines, self.num_lost = _metrics_in(path)
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= after_step))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that can be read: not a killed run's half-written last one, nor damaged ones."""
    return _metrics_in(path)[0]


def _metrics_in(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The readable lines, and the number of the others that were whole."""
    try:
        *whole, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    lines = [line for text in (*whole, rest) if (line := _metrics_line(text))]
    return lines, max(len(whole) - len(lines), 0)


def _metrics_line(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str) or type(line.get("step")) is not int:
        return None
    scores = [line[name] for name in (*METRICS, *(f"train_{metric}" for metric in METRICS)) if name in line]
    sound = all(type(score) in (int, float) for score in scores) and (scores or line["kind"] != "eval")
    return line if sound else None

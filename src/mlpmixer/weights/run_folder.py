"""A run directory: recipe.json, splits.json, env.json, metrics.jsonl, summary.json, model.safetensors, checkpoints/,
report.html."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from mlpmixer.config import Config, from_json, to_json
from mlpmixer.data.split_record import SplitRecord
from mlpmixer.durable import read_json, write_json

MODEL_FILE = "model.safetensors"
SPLITS_FILE = "splits.json"


def is_run(path: Path) -> bool:
    """Whether a run was started in this directory."""
    return (path / "recipe.json").exists()


def read_recipe_json(run: Path) -> dict[str, Any]:
    """The resolved recipe of a run as plain JSON; `training.recipe.read_recipe` makes a Recipe of it.

    ValueError when `run` is not a run directory, and when the file is damaged.
    """
    try:
        return read_json(run / "recipe.json")
    except FileNotFoundError:
        raise ValueError(f"{run} is not a run: it has no recipe.json") from None


def write_recipe(run: Path, recipe: Config) -> None:
    write_json(run / "recipe.json", to_json(recipe))


def read_splits(run: Path) -> SplitRecord | None:
    """Which images the run was started on; None for runs of before. ValueError, which names it, for a damaged file."""
    path = run / SPLITS_FILE
    try:
        return from_json(SplitRecord, read_json(path), str(path))
    except FileNotFoundError:
        return None


def environment(device: str, precision: str, kernels: str, processes: int = 1) -> dict[str, Any]:
    """Versions, hardware, commit and command line: what one needs to believe a figure."""
    packages = {}
    for name in ("mlpmixer", "torch", "numpy", "pillow", "safetensors", "scikit-learn"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "device": device,
        "precision": precision,
        "kernels": kernels,
        "processes": processes,
        "cpu_count": os.cpu_count(),
        "commit": _commit(),
        "command": ["mlpmixer" if (name := Path(sys.argv[0]).name) == "__main__.py" else name, *sys.argv[1:]],
    }


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


class MetricsFile:
    """metrics.jsonl: one JSON object a line. Opening it at a step drops the lines after that step, so a resumed run
    leaves one history."""

    def __init__(self, path: Path, after_step: int) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= after_step]
        part = path.with_name(f".{path.name}.part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(part, path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a half-written last line (a killed run) is left out."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


def free_directory(base: Path) -> Path:
    """`base`, or base-2, base-3, ...: the first that does not exist."""
    path, n = base, 1
    while path.exists():
        n += 1
        path = base.with_name(f"{base.name}-{n}")
    return path

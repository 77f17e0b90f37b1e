"""The runs in a folder, and how far each has come, from their JSON files alone. No torch."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mlpmixer.config import from_json
from mlpmixer.durable import read_json
from mlpmixer.models.configs import NetworkConfig
from mlpmixer.models.names import MODELS
from mlpmixer.registry import shortened
from mlpmixer.weights.model_file import states
from mlpmixer.weights.run_folder import (
    FOLDS_FILE,
    SUMMARY_FILE,
    is_cross_validation,
    is_locked,
    is_run,
    metric_of,
    read_cross_validation,
    read_metrics,
    read_recipe_json,
    read_summary,
)

MOST_DEPTH = 4  # of folders between the one that is named and a run
TRACES = (FOLDS_FILE, "metrics.jsonl", SUMMARY_FILE, "checkpoints")  # of a run whose recipe may be lost


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedRun:
    """A run, or a cross-validation as one. What its files do not say is None or empty."""

    path: str
    started: str = ""
    """ISO date and time, UTC."""
    data: str = ""
    network: str = ""
    """A name of `mlpmixer list models`, or the architecture."""
    state: Literal["finished", "running", "stopped", "damaged"] = "damaged"
    problem: str = ""
    step: int | None = None
    """The last one that is saved; of a cross-validation, the finished folds."""
    steps: int | None = None
    folds: int = 0
    split: str = ""
    """The images scored: test, val, or the folds."""
    metric: str = ""
    """top1, or map where an image may have several classes."""
    score: float | None = None
    n: int | None = None
    deviation: float | None = None
    """Standard deviation of the score over the folds (n - 1)."""
    train_s: float | None = None


def list_runs(folder: Path) -> list[ListedRun]:
    """The runs in a folder and in those within it, the newest last. ValueError when it does not exist."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: name the one that holds runs (mlpmixer train DATA makes runs/)")
    return sorted(map(read_run, _runs_in(folder)), key=lambda run: run.started)


def _runs_in(folder: Path, depth: int = 0, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    if (real := folder.resolve()) in above:  # a link that leads back
        return
    traces = TRACES if depth else TRACES[1:]  # of a cross-validation that is named itself, the folds are listed
    if is_run(folder) or any((folder / name).exists() for name in traces):
        yield folder
    elif depth < MOST_DEPTH:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.name.startswith("."):
                yield from _runs_in(inner, depth + 1, above | {real})


def read_run(run: Path) -> ListedRun:
    """A run as its files describe it; damage is in its `problem`."""
    found = ListedRun(path=str(run), started=_started(run))
    try:
        return _folds(run, found) if is_cross_validation(run) else _single(run, found)
    except (ValueError, OSError) as e:
        problem = str(e).removeprefix(f"{run}/")
    except (TypeError, KeyError, AttributeError) as e:
        file = FOLDS_FILE if is_cross_validation(run) else "recipe.json"
        problem = f"{file} is damaged: not what a run writes ({type(e).__name__}: {e})"
    return dataclasses.replace(found, problem=shortened(problem))


def _single(run: Path, found: ListedRun) -> ListedRun:
    recipe, summary = read_recipe_json(run), read_summary(run)
    found = dataclasses.replace(found, **_about(recipe), state=_state(run, finished=summary is not None))
    if summary is not None:
        split = "test" if summary.get("test") else "val"
        steps, metric = summary["steps"], metric_of(summary[split])
        numbers = {"score": summary[split][metric], "n": summary[split]["n"], "train_s": summary["train_s"]}
        return dataclasses.replace(found, step=steps, steps=steps, split=split, metric=metric, **numbers)
    lines = read_metrics(run / "metrics.jsonl")
    evaluated = (line for line in reversed(lines) if line["kind"] == "eval" and line.get("split") == "val")
    scores: dict[str, Any] = next(evaluated, {})
    metric, saved = metric_of(scores), states(run)
    return dataclasses.replace(
        found,
        step=lines[-1]["step"] if lines and found.state == "running" else int(saved[0].stem[5:]) if saved else 0,
        steps=recipe["run"]["steps"] or _steps(recipe, lines),
        split="val" if scores else "",
        metric=metric if scores else "",
        score=scores.get(metric),
    )


def _steps(recipe: Mapping[str, Any], lines: list[dict[str, Any]]) -> int | None:
    """The steps that `run.epochs` are, by a line that has both."""
    line = next((line for line in lines if line.get("epoch")), None)
    return max(round(recipe["run"]["epochs"] * line["step"] / line["epoch"]), 1) if line else None


def _folds(folder: Path, found: ListedRun) -> ListedRun:
    stored = read_cross_validation(folder)
    recipe, summary = stored["recipe"], stored.get("summary")
    folds, done = recipe["data"]["folds"], len(list(folder.glob(f"fold-*/{SUMMARY_FILE}")))
    found = dataclasses.replace(
        found, **_about(recipe), folds=folds, step=done, steps=folds, state=_state(folder, finished=summary is not None)
    )
    if summary is None:
        return found
    numbers: dict[str, Any] = {key: summary[key] for key in ("deviation", "train_s")}
    n, score = summary["metrics"]["n"], summary["top1"]
    return dataclasses.replace(found, **numbers, n=n, split="folds", metric="top1", score=score)


def _state(run: Path, finished: bool) -> Literal["finished", "running", "stopped"]:
    return "running" if is_locked(run) else "finished" if finished else "stopped"


def _about(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {"data": str(recipe["data"]["name"]), "network": recipe.get("network") or _network(recipe["model"])}


def _network(model: Mapping[str, Any]) -> str:
    """The name of a network, whatever its input, its classes and what no weight depends on; else its architecture."""
    config = from_json(NetworkConfig, dict(model))
    free = {"image_size", "in_channels", "num_classes", *config.weight_free}
    return next((name for name, known in MODELS.items() if not known.differences(config, free)), config.architecture)


def _started(run: Path) -> str:
    for name in ("fold-1/env.json", "env.json"):
        with suppress(ValueError, OSError):
            return str(read_json(run / name)["date"])
    with suppress(OSError):
        return datetime.fromtimestamp(run.stat().st_mtime, UTC).isoformat(timespec="seconds")
    return ""

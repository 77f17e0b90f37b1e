"""Runs that are changed, stopped and compared, and batches by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlpmixer.data.store import Store
from mlpmixer.training.augment import augment, mix
from mlpmixer.training.batches import Batch
from mlpmixer.training.device_store import DeviceStore
from mlpmixer.training.recipe import Augment
from mlpmixer.weights import model_file, run_folder


def batch_of(images: Store | DeviceStore, step: int, numbers: np.ndarray) -> Batch:
    """These images as the batch of a step."""
    return Batch(step, images.array(numbers), images.labels[numbers], numbers)


class Stopped(Exception):
    pass


def stop_at(step: int, kind: str = "save") -> Callable[[dict[str, Any]], None]:
    """A report that ends the run (with Stopped) when the state after that step is saved, or at another event."""

    def stop(event: dict[str, Any]) -> None:
        if event["kind"] == kind and event["step"] == step:
            raise Stopped

    return stop


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights of a finished run."""
    return model_file.read_tensors(run / run_folder.MODEL_FILE)[0]


def lines(run: Path, kind: str, key: str) -> list[Any]:
    """The values of a key in the lines of that kind in metrics.jsonl."""
    return [line[key] for line in run_folder.read_metrics(run / "metrics.jsonl") if line["kind"] == kind]


def assert_same_run(a: Path, b: Path) -> None:
    """Two runs have the same bits: their weights, last and best, and all that they logged but times and memory."""
    models = [{path.name for path in run.glob("*.safetensors")} for run in (a, b)]
    assert models[0] == models[1] and run_folder.MODEL_FILE in models[0]
    for name in models[0]:
        first, second = (model_file.read_tensors(run / name)[0] for run in (a, b))
        assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert [lines(a, "eval", key) for key in ("step", "top1", "nll")] == [
        lines(b, "eval", key) for key in ("step", "top1", "nll")
    ]


def augmented(
    images: torch.Tensor, targets: torch.Tensor, cfg: Augment, size: tuple[int, int], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A whole batch as training augments and mixes it."""
    return mix(augment(images, cfg, size, generator), targets, cfg, generator)

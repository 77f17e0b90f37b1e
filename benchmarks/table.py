"""A benchmark's rows as a CSV file that carries its environment in its name; the scripts beside this one use it."""

import argparse
import csv
import platform
import re
from pathlib import Path
from typing import Any

import torch

from mlpmixer.hardware import device_name


def model_and_batch(text: str) -> tuple[str, int]:
    """NAME:BATCH, as argparse takes a type."""
    name, _, batch = text.partition(":")
    if not (name and batch.isdecimal() and int(batch)):
        raise argparse.ArgumentTypeError(f"expected NAME:BATCH, such as Nano/4:128, got {text!r}")
    return name, int(batch)


def path_of(benchmark: str, device: torch.device) -> Path:
    """The CSV file of a benchmark on this device (for a CPU: with torch's present number of threads)."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return (
        Path(__file__).parent
        / f"{benchmark}_torch-{torch.__version__.split('+')[0]}_python-{platform.python_version()}_{slug}.csv"
    )


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """All rows, under the first one's keys; says which file it was."""
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(path.name)

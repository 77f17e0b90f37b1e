"""Images a second of the models in the README's table: python benchmarks/models_table.py [--timm-python PATH]

Rows of engines.py, interleaved for each model: timm in torch, and ours in onnxruntime in float32 and int8, from pixels
to probabilities. Writes benchmarks/models_<torch>_<cpu>.csv instead of the one that lies there; `python
results/collect.py table` then puts it into the README.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from engines import measure, prepare
from table import path_of, write

from mlpmixer.hardware import device_name

MODELS = [
    "Pico/2",
    "Nano/4",
    "Nano/8",
    "S/32",
    "S/16",
    "B/32",
    "B/16",
    "resmlp-s12",
]  # L/16: int8 takes 14 GB of memory
RECIPES = {"Nano/4": {"tokens_mlp_dim": 96}}  # the network of the recipe for CIFAR-10
KINDS = [("torch", "float32"), ("timm", "float32"), ("ours:onnxruntime", "float32"), ("ours:onnxruntime", "int8")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0, help="time for a row, at least five turns")
    parser.add_argument("--timm-python", default="", metavar="PATH", help="a Python that has timm beside torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cpu = torch.device("cpu")
    rows: list[dict[str, Any]] = []
    for model in args.models:
        with tempfile.TemporaryDirectory() as name:
            prepare(model, args.batch, Path(name), **RECIPES.get(model, {}))
            found = measure(model, args.batch, args.threads, args.seconds, args.timm_python, Path(name), KINDS)
            rows += [{"device": device_name(cpu), **row} for row in found]
    for old in Path(__file__).parent.glob("models_*.csv"):
        old.unlink()
    write(path_of("models", cpu), rows)


if __name__ == "__main__":
    main()

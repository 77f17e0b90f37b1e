"""A whole process that classifies one image with a bundle, from start to exit: python benchmarks/process.py --model
S/32 --int8

The bundle's own predict.py and `mlpmixer predict` take turns; a row is the median (and the range) of `--turns`
processes: seconds of the clock, seconds of processor time, and the most memory it has held. A model is made here with
random weights, which compute as trained ones do, or given with --bundle. Of a process that is started anew each time it
is mostly Python's imports and the reading of the model. Writes benchmarks/process_<model>_<cpu>.csv.
"""

import argparse
import csv
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Nothing large is imported by this process: a child's peak begins with what its parent holds (Linux, getrusage).

CALIBRATION = 32  # images of noise, which fix the ranges of int8


def make(name: str, int8: bool, folder: Path) -> None:
    """A bundle of a zoo model with random weights and an image beside it, without the check and the files that a user's
    has."""
    import numpy as np
    import torch
    from PIL import Image

    from mlpmixer.data.preprocess import Preprocess
    from mlpmixer.exporters.export import write_unchecked
    from mlpmixer.exporters.int8 import Quantiser
    from mlpmixer.exporters.targets.bundle import PROGRAM, write_manifest
    from mlpmixer.inference.measure import sample_images
    from mlpmixer.inference.torch_classifier import from_network
    from mlpmixer.models.architecture import create_model
    from mlpmixer.weights.model_file import ModelMeta

    torch.manual_seed(0)
    model = create_model(name)
    torch.nn.init.normal_(model.head.weight, std=0.02)  # type: ignore[union-attr, arg-type]
    size = model.cfg.image_size
    pre = Preprocess(image_size=(size, size) if isinstance(size, int) else size, in_channels=model.cfg.in_channels)
    meta = ModelMeta(config=model.cfg, classes=tuple(map(str, range(model.cfg.num_classes))), preprocess=pre)
    folder.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "float.onnx"
        write_unchecked(from_network(model, meta), "onnx", whole)
        if int8:
            quantiser = Quantiser(whole, Path(scratch), sample_images(pre, CALIBRATION))
            quantiser.write(folder / "model.onnx", list(quantiser.layers))
        else:
            shutil.copyfile(whole, folder / "model.onnx")
    write_manifest(folder)
    shutil.copyfile(PROGRAM, folder / "predict.py")
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480)).save(folder / "photo.jpg")


def took(command: list[str]) -> tuple[float, float, float]:
    """Seconds from start to exit, seconds of processor time, peak MiB."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}: {said.decode()}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="S/32", help="a name of `mlpmixer list models`, with random weights")
    parser.add_argument("--int8", action="store_true", help="all its layers in int8")
    parser.add_argument("--bundle", type=Path, help="what `mlpmixer export --to bundle` wrote, instead of --model")
    parser.add_argument("--image", type=Path, help="default: a JPEG of 640x480 pixels that is made")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.model, args.int8, args.make)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.bundle or Path(scratch) / "bundle"
        if not args.bundle:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--make", str(folder)], check=True)
        elif not args.image:
            parser.error("--bundle needs an --image")
        image = str(args.image or folder / "photo.jpg")
        commands = {
            "predict.py of the bundle": [sys.executable, str(folder / "predict.py"), image],
            "mlpmixer predict": [
                sys.executable,
                "-m",
                "mlpmixer",
                "predict",
                str(folder),
                image,
                "--engine",
                "onnxruntime",
            ],
        }
        for command in commands.values():  # from here on, files are in memory and compiled
            took(command)
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
        for _ in range(args.turns):
            for name, command in commands.items():
                found[name].append(took(command))
        size_mib = (folder / "model.onnx").stat().st_size / 2**20
    kind = args.bundle.name if args.bundle else f"{args.model}{' int8' if args.int8 else ''}"
    rows: list[dict[str, Any]] = []
    for name, times in found.items():
        wall, cpu, peak = ([t[i] for t in times] for i in range(3))
        rows.append(
            {
                "model": kind, "model_mib": round(size_mib, 1), "program": name, "turns": args.turns,
                "median_s": round(statistics.median(wall), 3), "min_s": round(min(wall), 3), "max_s": round(max(wall), 3),  # noqa: E501
                "cpu_s": round(statistics.median(cpu), 3), "peak_mib": round(statistics.median(peak), 1),
            }
        )  # fmt: skip
        print(*rows[-1].values(), sep="\t", flush=True)
    from mlpmixer.hardware import cores, cpu_name

    slug = re.sub(r"[^a-z0-9]+", "-", f"{kind} {cpu_name()} {cores()} cores".lower()).strip("-")
    path = Path(__file__).parent / f"process_{slug}.csv"
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(path.name)


if __name__ == "__main__":
    main()

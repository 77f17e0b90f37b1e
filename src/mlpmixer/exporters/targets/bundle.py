"""A folder that classifies with onnxruntime, numpy and pillow alone: model, class names, program, Dockerfile, README."""

import json
import shutil
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mlpmixer.exporters.job import Job, require_program
from mlpmixer.exporters.readme import readme
from mlpmixer.exporters.targets import onnx
from mlpmixer.hardware import cpu_name
from mlpmixer.inference.exported import MANIFEST, MODEL, PROBABILITIES, Export, digest, open_export
from mlpmixer.weights.model_file import FORMAT
from mlpmixer.weights.run_folder import write_json

PACKAGES = ("onnxruntime", "numpy", "pillow")
PROGRAM = Path(__file__).with_name("bundled") / "predict.py"
MEASURING_S = 1.0  # for each of the two figures, and three calls at least


def require(job: Job) -> None:
    """ValueError for a model whose preprocessing the bundle's program does not have, and when packages are missing."""
    require_program(job.meta, "the program in a bundle")
    onnx.require(job)


def write(job: Job, path: Path) -> None:
    path.mkdir()
    onnx.write(job, path / MODEL)
    write_manifest(path)


def finish(job: Job, path: Path) -> None:
    onnx.finish(job, path / MODEL)
    write_manifest(path)
    shutil.copyfile(PROGRAM, path / "predict.py")
    labels = json.dumps(job.meta.classes, ensure_ascii=False, indent=0)
    texts = {
        "labels.json": labels + "\n",
        "requirements.txt": "".join(f"{name}=={metadata.version(name)}\n" for name in PACKAGES),
        "Dockerfile": DOCKERFILE.format(python=f"{sys.version_info.major}.{sys.version_info.minor}"),
        "README.md": readme("bundle.md", job, speed=measure(open_export(path / MODEL)), cpu=cpu_name()),
    }
    for name, text in texts.items():
        (path / name).write_text(text, encoding="utf-8")


def write_manifest(path: Path) -> None:
    """Store the digest of the model, without which `exported.open_export` does not open the folder."""
    write_json(path / MANIFEST, {"format": FORMAT, "files": {MODEL: digest(path / MODEL)}})


def measure(export: Export) -> dict[str, Any]:
    """Milliseconds for one image (median), and images/s in batches, from pixels to probabilities on all cores."""
    pre, size = export.meta.preprocess, export.batch or 32
    images = np.random.default_rng(0).integers(0, 256, (size, *pre.image_size, pre.in_channels)).astype(pre.dtype)
    one, many = (_median_s(export, images[:n]) for n in (1, size))
    return {"one_ms": 1e3 * one, "batch": size, "images_per_s": size / many}


def _median_s(export: Export, images: Any) -> float:
    export(images, PROBABILITIES)  # the first call allocates
    times: list[float] = []
    while len(times) < 3 or sum(times) < MEASURING_S:
        start = time.perf_counter()
        export(images, PROBABILITIES)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


DOCKERFILE = """\
# docker build -t classifier . && docker run --rm -v "$PWD:/images:ro" classifier /images/photo.jpg
FROM python:{python}-slim
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY model.onnx bundle.json predict.py ./
USER nobody
ENTRYPOINT ["python", "predict.py"]
"""

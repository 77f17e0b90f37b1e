"""A folder that classifies with onnxruntime, numpy and pillow alone: model, class names, program, Dockerfile,
README."""

import json
import shutil
import statistics
import sys
from importlib import metadata
from pathlib import Path

from mlpmixer.durable import write_json, write_text
from mlpmixer.exporters.job import Job, require_program
from mlpmixer.exporters.targets import onnx
from mlpmixer.exporters.texts import fill, write_licence
from mlpmixer.hardware import cpu_name
from mlpmixer.inference.exported import MANIFEST, MODEL, digest, open_export
from mlpmixer.inference.exported_classifier import Exported
from mlpmixer.inference.measure import sample_images, time_calls
from mlpmixer.weights.model_file import FORMAT

PACKAGES = ("onnxruntime", "numpy", "pillow")
PROGRAM = Path(__file__).with_name("bundled") / "predict.py"
TURNS = 10  # of measure.TURN_S, for each of the two speeds


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
    write_licence(path)
    batch, one_s, batch_s = measure(path)
    speed = {"cpu": cpu_name(), "batch": batch, "one_ms": 1e3 * one_s, "images_per_s": batch / batch_s}
    texts = {
        "labels.json": json.dumps(job.meta.classes, ensure_ascii=False, indent=0) + "\n",
        "requirements.txt": "".join(f"{name}=={metadata.version(name)}\n" for name in PACKAGES),
        "Dockerfile": fill("Dockerfile", job, python=f"{sys.version_info.major}.{sys.version_info.minor}"),
        "README.md": fill("bundle.md", job, **speed),
    }
    for name, text in texts.items():
        write_text(path / name, text)


def write_manifest(path: Path) -> None:
    """Store the digest of the model, without which `exported.open_export` does not open the folder."""
    write_json(path / MANIFEST, {"format": FORMAT, "files": {MODEL: digest(path / MODEL)}})


def measure(path: Path) -> tuple[int, float, float]:
    """A batch size, and median seconds for one image and for such a batch, from pixels to probabilities on all
    cores."""
    export = open_export(path / MODEL)
    batch, classifier = export.batch or 32, Exported(export)
    images = sample_images(classifier.preprocess, batch)
    one, many = (
        statistics.median(second for _ in range(TURNS) for second in time_calls(classifier, images[:n]))
        for n in (1, batch)
    )
    return batch, one, many

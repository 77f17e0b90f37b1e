"""A folder that classifies with onnxruntime, numpy and pillow alone: the model, its class names, a program, a
Dockerfile, a README."""

import json
import shutil
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mlpmixer.evaluation.significance import wilson
from mlpmixer.exporters.check import Checked
from mlpmixer.exporters.job import Job, require_program
from mlpmixer.exporters.targets import onnx
from mlpmixer.hardware import cpu_name
from mlpmixer.inference.exported import MANIFEST, MODEL, PROBABILITIES, Export, digest, open_export
from mlpmixer.weights.model_file import FORMAT, ModelMeta
from mlpmixer.weights.run_folder import write_json

PACKAGES = ("onnxruntime", "numpy", "pillow")
PROGRAM = Path(__file__).with_name("bundled") / "predict.py"
MEASURING_S = 1.0  # each of the two figures; longer where three calls take longer


def require(job: Job) -> None:
    """ValueError for a model whose preprocessing the bundle's program does not have, and when packages are missing."""
    require_program(job.meta, "the program in a bundle")
    onnx.require(job)


def write(job: Job, path: Path) -> None:
    path.mkdir()
    onnx.write(job, path / MODEL)
    write_manifest(path)


def finish(job: Job, path: Path, checked: Checked) -> None:
    onnx.finish(job, path / MODEL, checked)
    write_manifest(path)
    shutil.copyfile(PROGRAM, path / "predict.py")
    labels = json.dumps(job.meta.classes, ensure_ascii=False, indent=0)
    texts = {
        "labels.json": labels + "\n",
        "requirements.txt": "".join(f"{name}=={metadata.version(name)}\n" for name in PACKAGES),
        "Dockerfile": DOCKERFILE.format(python=f"{sys.version_info.major}.{sys.version_info.minor}"),
        "README.md": readme(job, checked, measure(open_export(path / MODEL))),
    }
    for name, text in texts.items():
        (path / name).write_text(text, encoding="utf-8")


def write_manifest(path: Path) -> None:
    """Makes a folder with a model one that `exported.open_export` opens, and only with that model."""
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


def readme(job: Job, checked: Checked, speed: dict[str, Any]) -> str:
    """What the bundle is, how to use it, and what was measured when it was made."""
    meta, pre = job.meta, job.meta.preprocess
    height, width = pre.image_size
    numbers = "in float32" if job.int8 is None else f"{job.int8.layers} layers in int8"
    features = ", `features`" if checked.feature_max_diff is not None else ""
    evidence = ", `logits`, `evidence`" if job.evidence else ""
    taken = f"{job.batch or 'any number'}, {height}, {width}, {pre.in_channels}"
    return f"""\
# An image classifier without a framework

{described(job)}
This folder needs Python with onnxruntime, numpy and pillow, and nothing else; no torch.

```
pip install -r requirements.txt
python predict.py photo.jpg more/*.png
python predict.py --json --top 3 photo.jpg
docker build -t classifier . && docker run --rm -v "$PWD:/images:ro" classifier /images/photo.jpg
```

```python
from predict import Model

model = Model()
print(model.predict("photo.jpg"))  # [(class, probability), ...]
```

## Measured when it was made

{measured(job, checked)}
- Speed: {speed["one_ms"]:.2f} ms for one image, {speed["images_per_s"]:,.0f} images/s in batches of {speed["batch"]}, from pixels to
  probabilities, on {cpu_name()} with all its cores, {numbers}. Other work on the machine counts in: measure on yours.

## The files

- `model.onnx`: `images`, {pre.dtype} ({taken}) in 0..255 -> `probabilities`, `top_probabilities`, `top_classes`{features}{evidence}.
  Normalisation is inside. Class names, preprocessing and origin are in its metadata, as JSON under `mlpmixer`.
- `predict.py`: brings an image of any size to {width}x{height} pixels as in training (fit: {pre.fit}, {pre.interpolation},
  antialiased), and asks the model.
- `labels.json`: the class names in the model's order. `bundle.json`: the SHA-256 of the model, without which it is not opened.
- `requirements.txt`: the versions it was checked with. `Dockerfile`: a container that does the same.

{origin(meta)}
"""


def described(job: Job) -> str:
    """A sentence: what network it is, for which classes, and what exported it."""
    meta = job.meta
    params = "" if meta.network else f", {meta.config.num_params:,} parameters"
    kind = f"A classifier ({meta.network or meta.config.architecture}{params})"
    shown = ", ".join(meta.classes[:20]) + (f" and {len(meta.classes) - 20:,} more" if len(meta.classes) > 20 else "")
    return f"{kind} for {len(meta.classes):,} classes ({shown}), exported by mlpmixer {job.made['mlpmixer']}."


def measured(job: Job, checked: Checked) -> str:
    """Items of a list: its accuracy, how it compares with the torch model, and what its layers in int8 are worth."""
    accuracy = "The images it was checked on have other classes: accuracy was not measured."
    if checked.right is not None and checked.n_test:
        low, high = wilson(checked.right, checked.n_test)
        share = f"{100 * checked.right / checked.n_test:.2f} % ({100 * low:.1f}-{100 * high:.1f}, 95 % interval from the number of images)"
        accuracy = f"{share} of {checked.n_test:,} test images of {checked.data}, computed by this `{MODEL}`."
    int8 = ""
    if q := job.int8:
        before, after = (f"{100 * right / q.n:.2f} %" for right in (q.right_float, q.right))
        speed = f"on one thread it has {q.speed:.2f} times the speed."
        int8 = f"\n- Int8: on {q.n:,} validation images top-1 is {after}, in float32 {before}; {speed}"
    return f"""\
- Accuracy: {accuracy}
- Against the torch model: on {checked.n:,} images the likeliest class is the same for {100 * checked.agreement:.2f} %,
  and the largest difference of a probability is {checked.probability_max_diff:.1e}.{int8}"""


def origin(meta: ModelMeta) -> str:
    """A line: where the model comes from, and its licence."""
    provenance = meta.provenance
    known = ", ".join(
        f"{key} {provenance[key]}" for key in ("recipe", "data", "weights", "source", "date") if provenance.get(key)
    )
    licence = provenance.get("licence") or "none is stated"
    return f"Origin: {known or 'nothing is recorded with the model'}. Licence of the model: {licence}."

"""Exports: the files that `mlpmixer export` writes, opened in one of `engines.ENGINES`. No torch but for a .pt2.

B images of H x W pixels with C channels, S patches, K classes, the k likeliest of them, D features. The graph of an
export takes pixels and ends in probabilities: normalisation is inside, so that every caller gets the same answer.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mlpmixer.config import from_json, parse_json, to_json
from mlpmixer.data.images import Pixels
from mlpmixer.inference.engines import SUFFIXES, Precision, Runtime, Session, open_session
from mlpmixer.registry import shortened, shown
from mlpmixer.weights.model_file import FORMAT, ModelMeta, public

MODEL, MANIFEST = "model.onnx", "bundle.json"  # in a bundle
INPUT = "images"
PROBABILITIES, TOP_PROBABILITIES, TOP_CLASSES = "probabilities", "top_probabilities", "top_classes"
FEATURES, PIXELS = "features", "pixels"
LOGITS, EVIDENCE = "logits", "evidence"
MAX_BATCH_BYTES = 2**31  # of pixels, in a fixed batch
MAX_MANIFEST_BYTES = 2**20
EXPECTED = "expected an .onnx, .xml or .pt2 file, or a bundle, that `mlpmixer export` wrote"


@dataclass(frozen=True)
class Export:
    """Pixels (B,H,W,C) from `meta.preprocess.array` -> outputs by name. Made by `open_export`.

    probabilities (B,K) float32; top_probabilities (B,k) float32, falling, and top_classes (B,k) int64, their classes;
    features (B,D) float32, the input of the head, but for a network of one's own. A graph with evidence also gives
    logits (B,K) and evidence (B,S,K), both float32: what each patch adds to each logit, which is the head's bias and
    the sum of it. A graph that takes images of any size also gives pixels (B,H,W,C) uint8, the resized images.
    """

    path: Path
    meta: ModelMeta
    made: dict[str, Any]
    """How it was made, and what the check against the torch model found (`check`)."""
    batch: int | None
    """B; None: any number."""
    outputs: tuple[str, ...]
    runtime: Runtime
    compute: Callable[[Pixels, tuple[str, ...]], list[NDArray[Any]]]

    def __call__(self, images: Pixels, *outputs: str) -> list[NDArray[Any]]:
        """Errors: ValueError for an output that is not there, and when the engine cannot compute it."""
        if missing := [name for name in outputs if name not in self.outputs]:
            raise ValueError(f"{self.path} gives no {missing[0]}; it gives {', '.join(self.outputs)}")
        return self.compute(images, outputs)


def export_at(name: str | os.PathLike[str]) -> Path | None:
    """The graph's file for the name of an exported file or a bundle; None for anything else, such as a run."""
    path = Path(name)
    return path if path.suffix in SUFFIXES else path / MODEL if (path / MANIFEST).is_file() else None


def open_export(
    file: Path, *, engine: str | None = None, precision: Precision = "float32", streams: int = 1, threads: int = 0
) -> Export:
    """The export in a file that `export_at` has found, ready to run.

    engine: a name of `engines.ENGINES`; None: onnxruntime for .onnx, openvino for .xml, torch for .pt2.
    precision: of the layers that are not in int8. streams, threads: see `engines.threads_each`.

    Errors: ValueError when the engine is unknown, not installed, or not for such a file or precision, and for a file
    that is missing, damaged, not written by `mlpmixer export`, or not the one that its bundle or .xml was made with.
    """
    if file.name == MODEL:
        _require_same_model(file.parent)
    session, runtime = open_session(file, engine, precision, streams, threads)
    try:
        stored = parse_metadata(session.metadata or "{}")
        meta, made, weights = from_json(ModelMeta, stored["model"]), stored["export"], str(stored.get("weights", ""))
        if not isinstance(made, dict):
            raise ValueError("export: expected an object")
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        problem = "its metadata has no entry" if isinstance(e, KeyError) else "its metadata cannot be read:"
        raise ValueError(f"{file} is not an export of this package: {problem} {shortened(e)}; {EXPECTED}") from e
    if session.weights and digest(session.weights) != weights:
        raise ValueError(
            f"{session.weights} is not the file that {file} was written with (SHA-256 differs): export it again"
        )
    shapes = _checked_shapes(file, session, meta)

    def compute(images: Pixels, outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        answers = session.compute(images, outputs)
        for name, answer in zip(outputs, answers, strict=True):  # a graph may declare one shape and give another
            if name in shapes and answer.shape != (len(images), *shapes[name]):
                raise ValueError(f"{file} answers {len(images)} images with {name} of shape {answer.shape}; {EXPECTED}")
        return answers

    runtime = dataclasses.replace(runtime, int8=bool(made.get("int8")))
    return Export(file, meta, made, session.batch, tuple(o.name for o in session.outputs), runtime, compute)


def _checked_shapes(file: Path, session: Session, meta: ModelMeta) -> dict[str, tuple[int, ...]]:
    """Output -> shape for one image, as the metadata decides it. ValueError when the graph declares another one."""
    pre, classes, outputs = meta.preprocess, len(meta.classes), {value.name: value for value in session.outputs}
    size = (*pre.image_size, pre.in_channels)
    wanted = (None, None, pre.in_channels) if PIXELS in outputs else size
    if [(value.name, value.dtype, value.shape[1:]) for value in session.inputs] != [(INPUT, pre.dtype.name, wanted)]:
        found = ", ".join(map(str, session.inputs))
        raise ValueError(f"the metadata of {file} says images {[*size]}, its graph takes {found}; {EXPECTED}")
    if (batch := session.batch) and batch * math.prod(size) * pre.dtype.itemsize > MAX_BATCH_BYTES:
        limit = f"{MAX_BATCH_BYTES / 2**30:g} GiB"
        raise ValueError(f"{file} takes {batch:,} images at a time, more than fit into {limit}; {EXPECTED}")
    if PROBABILITIES not in outputs or outputs[PROBABILITIES].shape[1:] != (classes,):
        found = ", ".join(map(str, outputs.values()))
        raise ValueError(f"the metadata of {file} names {classes} classes, its graph gives {found}; {EXPECTED}")
    shapes: dict[str, tuple[int, ...]] = {PROBABILITIES: (classes,), LOGITS: (classes,), PIXELS: size}
    if not meta.network:  # whose features a network of one's own has, its config does not say
        shapes |= {FEATURES: (meta.config.num_features,), EVIDENCE: (math.prod(meta.config.grid), classes)}
    for name in shapes.keys() & outputs.keys():
        shape, declared = shapes[name], outputs[name].shape[1:]
        if len(declared) != len(shape) or any(n not in (None, m) for n, m in zip(declared, shape, strict=True)):
            raise ValueError(
                f"the metadata of {file} says {name} of shape {shape}, its graph gives {outputs[name]}; {EXPECTED}"
            )
    return shapes


def metadata(meta: ModelMeta, made: dict[str, Any], weights: str = "") -> str:
    """The text stored in an export: the header of a model file, how it was made, and the SHA-256 of weights beside it.

    ASCII, since XML cannot hold every character.
    """
    stored = {"format": FORMAT, "model": to_json(public(meta)), "export": made}
    return json.dumps(stored | ({"weights": weights} if weights else {}))


def parse_metadata(text: str) -> dict[str, Any]:
    """Parse the text written by `metadata`. Errors: ValueError, KeyError, TypeError for anything else."""
    stored: dict[str, Any] = parse_json(text)
    if stored["format"] != FORMAT:
        raise ValueError(f"format {shown(stored['format'])}; this version reads format {FORMAT}")
    return stored


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _require_same_model(folder: Path) -> None:
    """ValueError when `folder` is a bundle and its model is not the one that it was made with."""
    manifest, model = folder / MANIFEST, folder / MODEL
    if not manifest.is_file():
        return
    try:
        if manifest.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"more than {MAX_MANIFEST_BYTES:,} bytes")
        wanted = str(parse_metadata(manifest.read_text(encoding="utf-8"))["files"][MODEL])
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{manifest} cannot be read ({type(e).__name__}: {shortened(e)}); {EXPECTED}") from e
    if not model.is_file():
        raise ValueError(f"{model} does not exist: the bundle is incomplete; export it again")
    if digest(model) != wanted:
        raise ValueError(f"{model} is not the file that the bundle was made with (SHA-256 differs): export it again")

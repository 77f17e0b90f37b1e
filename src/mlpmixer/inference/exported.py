"""What `mlpmixer export` has written, opened in one of `engines.ENGINES`. Imports no torch but for a .pt2.

B images of H x W pixels with C channels, S patches, K classes, k of them on top, D features. The graph of an export
takes pixels, not normalised images, and ends in probabilities: what lies between is inside, so that every caller gets
the same answer.
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

from mlpmixer.config import from_json, to_json
from mlpmixer.data.images import Pixels
from mlpmixer.inference.engines import SUFFIXES, Precision, Runtime, open_session
from mlpmixer.weights.model_file import FORMAT, ModelMeta, public

MODEL, MANIFEST = "model.onnx", "bundle.json"  # of a bundle
INPUT = "images"
PROBABILITIES, TOP_PROBABILITIES, TOP_CLASSES = "probabilities", "top_probabilities", "top_classes"
FEATURES, PIXELS = "features", "pixels"
LOGITS, EVIDENCE = "logits", "evidence"
MAX_BATCH_BYTES = 2**31  # pixels that a graph of a fixed batch may want at once
MAX_MANIFEST_BYTES = 2**20
EXPECTED = "expected an .onnx, .xml or .pt2 file, or a bundle, that `mlpmixer export` wrote"


@dataclass(frozen=True)
class Export:
    """Pixels (B,H,W,C) as `meta.preprocess.array` gives them -> what is asked for, by `open_export`.

    probabilities (B,K) float32; top_probabilities (B,k) float32, falling, and top_classes (B,k) int64, their classes;
    features (B,D) float32, the input of the head, but for a network of one's own. A graph with evidence also gives
    logits (B,K) and evidence (B,S,K), both float32: what each patch adds to each logit, which is the head's bias and the
    sum of it. A graph that takes images of any size also gives pixels (B,H,W,C) uint8, the resized images.
    """

    path: Path
    meta: ModelMeta
    made: dict[str, Any]
    """How it was made, and what the check against the torch model found (`check`)."""
    batch: int | None
    """B; None where the graph takes any number."""
    outputs: tuple[str, ...]
    runtime: Runtime
    compute: Callable[[Pixels, tuple[str, ...]], list[NDArray[Any]]]

    def __call__(self, images: Pixels, *outputs: str) -> list[NDArray[Any]]:
        """Errors: ValueError for an output that is not there, and when the engine cannot compute it."""
        if missing := [name for name in outputs if name not in self.outputs]:
            raise ValueError(f"{self.path} gives no {missing[0]}; it gives {', '.join(self.outputs)}")
        return self.compute(images, outputs)


def export_at(name: str | os.PathLike[str]) -> Path | None:
    """The file meant by the name of an exported file or of a bundle; None for whatever else, such as a run."""
    path = Path(name)
    return path if path.suffix in SUFFIXES else path / MODEL if (path / MANIFEST).is_file() else None


def open_export(
    file: Path, *, engine: str | None = None, precision: Precision = "float32", streams: int = 1, threads: int = 0
) -> Export:
    """The export in a file that `export_at` has found, ready to compute.

    engine: a name of `engines.ENGINES`; None: onnxruntime for .onnx, openvino for .xml, torch for .pt2.
    precision: of what is float in the model. streams: calls that are computed at the same time, each on `threads`, with
        0 on its share of the cores; of one 0 leaves it to the engine, which takes one for each core.

    Errors: ValueError when the engine is unknown, not installed, or not for such a file or precision, and for a file
    that is missing, damaged, not written by `mlpmixer export`, or not the one that the bundle or the .xml beside it was
    made with.
    """
    if file.name == MODEL:
        require_same_files(file.parent)
    session, runtime = open_session(file, engine, precision, streams, threads)
    meta, made, weights = _read_metadata(session.metadata, file)
    runtime = dataclasses.replace(runtime, int8=bool(made.get("int8")))
    if session.weights and digest(session.weights) != weights:
        raise ValueError(
            f"{session.weights} is not the file that {file} was written with (SHA-256 differs): export it again"
        )
    pixels, classes = meta.preprocess, len(meta.classes)
    size = [*pixels.image_size, pixels.in_channels]
    inputs, outputs = session.inputs, {value.name: value for value in session.outputs}
    wanted = [None, None, size[2]] if PIXELS in outputs else size
    if [(value.name, value.dtype, list(value.shape[1:])) for value in inputs] != [(INPUT, pixels.dtype.name, wanted)]:
        raise ValueError(
            f"the metadata of {file} speak of images {size}, its graph takes {', '.join(map(str, inputs))}; {EXPECTED}"
        )
    if PROBABILITIES not in outputs or outputs[PROBABILITIES].shape[1:] != (classes,):
        found = ", ".join(map(str, outputs.values()))
        raise ValueError(f"the metadata of {file} name {classes} classes, its graph gives {found}; {EXPECTED}")
    shapes = _shapes(meta)
    for name, shape in shapes.items():
        said = outputs[name].shape[1:] if name in outputs else shape
        if len(said) != len(shape) or any(n not in (None, m) for n, m in zip(said, shape, strict=True)):
            raise ValueError(
                f"the metadata of {file} speak of {name} of shape {shape}, its graph gives {outputs[name]}; {EXPECTED}"
            )
    batch = session.batch
    if batch and batch * math.prod(pixels.image_size) * pixels.in_channels * pixels.dtype.itemsize > MAX_BATCH_BYTES:
        raise ValueError(
            f"{file} takes {batch:,} images at a time, more than fit into {MAX_BATCH_BYTES / 2**30:g} GiB; {EXPECTED}"
        )

    def compute(images: Pixels, outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        answers = session.compute(images, outputs)
        for name, answer in zip(
            outputs, answers, strict=True
        ):  # what a graph says of its outputs is not what it must do
            if name in shapes and answer.shape != (len(images), *shapes[name]):
                raise ValueError(f"{file} answers {len(images)} images with {name} of shape {answer.shape}; {EXPECTED}")
        return answers

    return Export(file, meta, made, batch, tuple(outputs), runtime, compute)


def _shapes(meta: ModelMeta) -> dict[str, tuple[int, ...]]:
    """The shape of each output for one image, as far as the metadata decide it: not the features of a network of one's
    own."""
    classes, pixels, own = len(meta.classes), meta.preprocess, not meta.network
    shapes: dict[str, tuple[int, ...]] = {
        PROBABILITIES: (classes,),
        LOGITS: (classes,),
        PIXELS: (*pixels.image_size, pixels.in_channels),
    }
    return shapes | (
        {FEATURES: (meta.config.num_features,), EVIDENCE: (math.prod(meta.config.grid), classes)} if own else {}
    )


def metadata(meta: ModelMeta, made: dict[str, Any], weights: str = "") -> str:
    """What is stored in the file: the header of a model file, how the export was made, and the SHA-256 of weights that
    lie beside it.

    ASCII, since XML does not hold every character.
    """
    return json.dumps(
        {"format": FORMAT, "model": to_json(public(meta)), "export": made} | ({"weights": weights} if weights else {})
    )


def _read_metadata(text: str | None, file: Path) -> tuple[ModelMeta, dict[str, Any], str]:
    try:
        stored = json.loads(text or "{}")
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']!r}; this version reads format {FORMAT}")
        if not isinstance(stored["export"], dict):
            raise ValueError("export: expected an object")
        return from_json(ModelMeta, stored["model"]), stored["export"], str(stored.get("weights", ""))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as e:
        problem = "its metadata have no entry" if isinstance(e, KeyError) else "its metadata cannot be read:"
        raise ValueError(f"{file} is no export of this package: {problem} {str(e)[:300]}; {EXPECTED}") from e


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def require_same_files(folder: Path) -> None:
    """ValueError when `folder` is a bundle and its files are not those it was made with."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    try:
        if manifest.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"more than {MAX_MANIFEST_BYTES:,} bytes")
        stored = json.loads(manifest.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']!r}; this version reads format {FORMAT}")
        wanted = str(stored["files"][MODEL])
    except (KeyError, TypeError, ValueError, RecursionError) as e:
        raise ValueError(f"{manifest} cannot be read ({type(e).__name__}: {str(e)[:300]}); {EXPECTED}") from e
    if not (folder / MODEL).is_file():
        raise ValueError(f"{folder / MODEL} does not exist: the bundle is not whole; export it again")
    if digest(folder / MODEL) != wanted:
        raise ValueError(
            f"{folder / MODEL} is not the file that the bundle was made with (SHA-256 differs): export it again"
        )

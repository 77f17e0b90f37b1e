"""What `mlpmixer export` has written, opened and computed by onnxruntime. Imports no torch.

B images of H x W pixels with C channels, K classes, k of them on top, D features. The graph of an export takes pixels, not normalised
images, and ends in probabilities: what lies between is inside, so that every caller gets the same answer.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.checkpoint import FORMAT, ModelMeta
from mlpmixer.config import from_json, to_json
from mlpmixer.data.images import Pixels
from mlpmixer.onnx_model import KEY, open_session

MODEL, MANIFEST = "model.onnx", "bundle.json"  # of a bundle
INPUT = "images"
PROBABILITIES, TOP_PROBABILITIES, TOP_CLASSES = "probabilities", "top_probabilities", "top_classes"
FEATURES, PIXELS = "features", "pixels"
EXPECTED = "expected an .onnx file or a bundle that `mlpmixer export` wrote"


@dataclass(frozen=True)
class Export:
    """Pixels (B,H,W,C) as `meta.preprocess.array` gives them -> what is asked for, by `open_export`.

    probabilities (B,K) float32; top_probabilities (B,k) float32, falling, and top_classes (B,k) int64, their classes; features (B,D)
    float32, which the head sees. Another network than a Mixer has no features. A graph that takes images of any size, all of one size, also
    gives pixels (B,H,W,C) uint8, what it made of them.
    """

    path: Path
    meta: ModelMeta
    made: dict[str, Any]
    """How it was made, and what the check against the torch model found (`check`)."""
    batch: int | None
    """B; None where the graph takes any number."""
    outputs: tuple[str, ...]
    compute: Callable[[Pixels, tuple[str, ...]], list[NDArray[Any]]]

    def __call__(self, images: Pixels, *outputs: str) -> list[NDArray[Any]]:
        """A graph of a fixed batch computes the images in parts, the last one filled up with zeros.

        Errors: ValueError for an output that is not there, and when the runtime cannot compute it.
        """
        if missing := [name for name in outputs if name not in self.outputs]:
            raise ValueError(f"{self.path} gives no {missing[0]}; it gives {', '.join(self.outputs)}")
        size = self.batch or max(len(images), 1)
        parts = []
        for start in range(0, max(len(images), 1), size):
            part = images[start : start + size]
            lacking = np.zeros((self.batch - len(part) if self.batch else 0, *images.shape[1:]), images.dtype)
            parts.append([answer[: len(part)] for answer in self.compute(np.concatenate([part, lacking]), outputs)])
        return [np.concatenate(answers) for answers in zip(*parts, strict=True)]


def export_at(name: str | os.PathLike[str]) -> Path | None:
    """The .onnx file meant by the name of such a file or of a bundle; None for whatever else, such as a run."""
    path = Path(name)
    return path if path.suffix == ".onnx" else path / MODEL if (path / MANIFEST).is_file() else None


def open_export(file: Path, *, threads: int = 0) -> Export:
    """The export in an .onnx file, which `export_at` has found. `threads`: 0 leaves it to the runtime, which takes one for each core.

    Errors: ValueError when onnxruntime is not installed, and for a file that is missing, damaged, not written by `mlpmixer export`, or not
    the one that the bundle around it was made with.
    """
    require_same_files(file.parent)
    session = open_session(os.fspath(file), threads)
    meta, made = _read_metadata(session.get_modelmeta().custom_metadata_map.get(KEY), file)
    pixels, classes = meta.preprocess, len(meta.classes)
    size = [*pixels.image_size, pixels.in_channels]
    takes, gives = session.get_inputs(), {value.name: value for value in session.get_outputs()}
    kind = "tensor(uint8)" if pixels.dtype == np.uint8 else "tensor(float)"
    wanted = [None, None, size[2]] if PIXELS in gives else size
    if [(value.name, value.type, list(map(_number, value.shape[1:]))) for value in takes] != [(INPUT, kind, wanted)]:
        raise ValueError(f"the metadata of {file} speak of images {size}, its graph takes {', '.join(map(_described, takes))}; {EXPECTED}")
    if PROBABILITIES not in gives or gives[PROBABILITIES].shape[1:] != [classes]:
        found = ", ".join(map(_described, gives.values()))
        raise ValueError(f"the metadata of {file} name {classes} classes, its graph gives {found}; {EXPECTED}")

    def compute(images: Pixels, outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        try:
            answers: list[NDArray[Any]] = session.run(list(outputs), {INPUT: images})
        except Exception as e:  # onnxruntime's errors have no common class
            raise ValueError(f"onnxruntime cannot compute {file} for images of shape {images.shape}: {e}") from e
        return answers

    return Export(file, meta, made, _number(takes[0].shape[0]), tuple(gives), compute)


def metadata(meta: ModelMeta, made: dict[str, Any]) -> str:
    """What is stored in the file: the header of a model file, and how the export was made."""
    return json.dumps({"format": FORMAT, "model": to_json(meta), "export": made}, ensure_ascii=False)


def _read_metadata(text: str | None, file: Path) -> tuple[ModelMeta, dict[str, Any]]:
    try:
        stored = json.loads(text or "{}")
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']!r}; this version reads format {FORMAT}")
        return from_json(ModelMeta, stored["model"]), dict(stored["export"])
    except (KeyError, TypeError, ValueError) as e:
        reason = "its metadata have no entry" if isinstance(e, KeyError) else "its metadata cannot be read:"
        raise ValueError(f"{file} is no export of this package: {reason} {e}; {EXPECTED}") from e


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
        stored = json.loads(manifest.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']!r}; this version reads format {FORMAT}")
        wanted = str(stored["files"][MODEL])
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{manifest} cannot be read ({type(e).__name__}: {e}); {EXPECTED}") from e
    if not (folder / MODEL).is_file():
        raise ValueError(f"{folder / MODEL} does not exist: the bundle is not whole; export it again")
    if digest(folder / MODEL) != wanted:
        raise ValueError(f"{folder / MODEL} is not the file that the bundle was made with (SHA-256 differs): export it again")


def _number(size: Any) -> int | None:
    """Of a dimension: onnxruntime says None or a name where it takes any."""
    return size if isinstance(size, int) else None


def _described(value: Any) -> str:
    return f"{value.name!r}, {value.type} ({', '.join(map(str, value.shape))})"

"""Features of images, computed once: a cache keyed by everything that could change them. Imports no torch."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlpmixer.config import parse_json, to_json
from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import Source
from mlpmixer.durable import replacing
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.files import map_images

CACHE_FORMAT = 1
STD_FLOOR = 1e-5  # big_vision: evaluators/fewshot_lsr.py

Matrix = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Outputs = tuple[NDArray[np.int64], NDArray[np.float32], list[tuple[str, str]]]


@dataclass(frozen=True)
class Features:
    """Features (N,D) float32 and labels (N,) of the readable images of a set, in its order."""

    values: NDArray[np.float32]
    labels: NDArray[np.int64]
    bad: tuple[tuple[str, str], ...]
    """Unreadable images, (name, reason)."""


def extract_features(
    classifier: Classifier,
    images: ImageSet,
    *,
    batch_size: int = 256,
    cache: str | os.PathLike[str] | None = None,
    name: str = "features",
) -> Features:
    """The features of every readable image, each of which goes through the network once.

    cache: a folder in which they are kept as NAME-KEY.safetensors, to be read from it the next time. KEY is the SHA-256
        of the network (architecture and current weights; without a torch network, the model file), of engine and
        precision, of the preprocessing, and of the images: names, with the bytes of those in memory, or path, size and
        times of those in files. A change of any of these gives another key, so an outdated file is never read.

    ValueError when no image is readable, when a kept file is damaged, or when a model with neither network nor file is
    to be cached.
    """
    if cache is None:
        kept, values, bad = map_images(classifier, images, classifier.features, batch_size)
    else:
        folder, plain_name = Path(cache), re.sub(r"[^\w.-]+", "-", name)
        file = folder / f"{plain_name}-{_key(classifier, images)}.safetensors"
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(f"cannot write features to {folder}: name another folder")
            _write(file, map_images(classifier, images, classifier.features, batch_size))
        kept, values, bad = _read(file)
    return Features(values, images.labels[kept], tuple(bad))


def _key(classifier: Classifier, images: ImageSet) -> str:
    digest = hashlib.sha256()

    def add(part: bytes) -> None:
        digest.update(b"%d:" % len(part))
        digest.update(part)

    if classifier.network is not None:
        other = classifier.meta.network if classifier.meta else ""
        add(other.encode() or json.dumps(to_json(classifier.network.cfg), sort_keys=True).encode())
        for name, tensor in classifier.network.state_dict().items():
            add(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    elif classifier.path is not None:
        with open(classifier.path, "rb") as f:
            add(hashlib.file_digest(f, "sha256").digest())
    else:
        raise ValueError("only the features of a network or a model file can be cached: leave cache out")
    how = (classifier.runtime.engine, classifier.runtime.precision) if classifier.runtime else ()
    add(json.dumps([CACHE_FORMAT, to_json(classifier.preprocess), *how], sort_keys=True).encode())
    for i in range(len(images)):
        add(os.fsencode(str(images.names[i])))
        try:
            add(_fingerprint(images.source(i)))
        except (ValueError, OSError) as e:  # it will be reported as unreadable
            add(str(e).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _fingerprint(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, Image.Image):
        return f"{source.mode} {source.size} ".encode() + source.tobytes()
    stat = os.stat(source)  # ctime, too: it moves with permissions, and when mtime is set back
    return os.fsencode(os.path.abspath(source)) + f" {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}".encode()


def _write(file: Path, outputs: Outputs) -> None:
    """Atomic: no file or the whole one."""
    from safetensors.numpy import save_file

    kept, values, bad = outputs
    with replacing(file) as part:
        save_file({"kept": kept, "features": values}, part, {"bad": json.dumps(bad)})


def _read(file: Path) -> Outputs:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as f:
            bad = [(str(name), str(reason)) for name, reason in parse_json(f.metadata()["bad"])]
            return f.get_tensor("kept"), f.get_tensor("features"), bad
    except (SafetensorError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{file} is damaged: delete it and try again") from e


def mean_std(features: Matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x = np.asarray(features, np.float64)
    return x.mean(axis=0), x.std(axis=0) + STD_FLOOR


def require_pairs(**parts: tuple[Matrix, Labels]) -> None:
    """ValueError unless all features (N,D) are finite and of one D, with labels (N,) from 0 on."""
    widths = set()
    for part, (features, labels) in parts.items():
        if features.ndim != 2 or not len(features) or labels.shape != (len(features),):
            raise ValueError(
                f"{part}: expected features (N,D) and labels (N,) with N >= 1, got {features.shape} and {labels.shape}"
            )
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise ValueError(f"{part}: labels must be integers from 0 on, got {labels.dtype} from {labels.min()} on")
        if not np.isfinite(features).all():
            raise ValueError(
                f"{part}: the features contain NaN or infinity: the model is broken, as after a diverged training"
            )
        widths.add(features.shape[1])
    if len(widths) > 1:
        raise ValueError(f"all parts must have the same number of features, got {', '.join(map(str, sorted(widths)))}")

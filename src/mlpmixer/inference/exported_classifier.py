"""A classifier around an export. Imports no torch."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.images import Pixels
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.engines import Runtime
from mlpmixer.inference.exported import FEATURES, PROBABILITIES, Export, open_export
from mlpmixer.inference.prediction import Floats


class Exported(Classifier):
    """A Classifier around an export, whose graph takes pixels and ends in probabilities."""

    def __init__(self, export: Export) -> None:
        def outputs(images: NDArray[Any], *names: str) -> tuple[Floats, ...]:
            return tuple(np.asarray(values, np.float32) for values in export(images, *names))

        meta = export.meta
        super().__init__(
            classes=meta.classes,
            preprocess=meta.preprocess,
            logits=lambda images: outputs(images, PROBABILITIES)[0],
            pre_logits=lambda images: outputs(images, FEATURES)[0],
            both=lambda images: outputs(images, PROBABILITIES, FEATURES),
            sigmoid=meta.sigmoid,
            threshold=meta.threshold,
            meta=meta,
            path=export.path,
            runtime=export.runtime,
            reopen=partial(_reopen, export.path.absolute(), stamp(export.path), export.runtime),
        )
        self.export = export

    def _to_probabilities(self, logits: Floats) -> Floats:
        """Unchanged: the softmax or sigmoid is in the graph."""
        return logits

    def _network_input(self, images: Pixels) -> NDArray[Any]:
        """Unchanged: the normalisation is in the graph."""
        return images


def stamp(file: Path) -> tuple[int, int] | None:
    """Bytes and nanoseconds that tell one content of a file from another; None when it is not there."""
    return (found.st_size, found.st_mtime_ns) if (found := file.stat() if file.is_file() else None) else None


def require_unchanged(file: Path, before: tuple[int, int] | None) -> None:
    """ValueError when the file is not as it was."""
    if (now := stamp(file)) is None or now != before:
        raise ValueError(
            f"{file} {'is not there' if now is None else 'has changed'}: a copy of a model loaded without torch opens "
            f"its file again, and needs it as it was; load it anew with mlpmixer.load"
        )


def _reopen(file: Path, before: tuple[int, int] | None, how: Runtime) -> Exported:
    require_unchanged(file, before)
    return Exported(
        open_export(file, engine=how.engine, precision=how.precision, streams=how.streams, threads=how.threads)
    )

"""A classifier around a plain Mixer in a model file, which the package's own kernels compute. Imports no torch."""

from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mlpmixer.hardware import has_gpu
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.engines import MODEL_SUFFIX, open_session
from mlpmixer.inference.engines.compiled import FEATURES, LOGITS, Unsuitable
from mlpmixer.inference.exported_classifier import require_unchanged, stamp
from mlpmixer.inference.prediction import Floats
from mlpmixer.weights.model_file import read_meta

COMPILED = "compiled"  # the engine


def without_torch(file: Path, *, streams: int = 1, threads: int = 0) -> Classifier:
    """The plain Mixer in a run's model file, computed by compiled kernels: see `engines.compiled`.

    Errors: Unsuitable for any other model, and without compiled kernels here; CheckpointError for a damaged file.
    """
    if file.suffix != MODEL_SUFFIX:
        raise Unsuitable(f"{file} is not a model file of this package")
    session, runtime = open_session(file, COMPILED, "float32", streams, threads)
    meta = read_meta(file)

    def outputs(images: NDArray[Any], *names: str) -> tuple[Floats, ...]:
        return tuple(session.compute(images, names))

    return Classifier(
        classes=meta.classes,
        preprocess=meta.preprocess,
        logits=lambda images: outputs(images, LOGITS)[0],
        pre_logits=lambda images: outputs(images, FEATURES)[0],
        both=lambda images: outputs(images, LOGITS, FEATURES),
        sigmoid=meta.sigmoid,
        threshold=meta.threshold,
        meta=meta,
        path=file,
        runtime=runtime,
        reopen=partial(_reopen, file.absolute(), stamp(file), runtime.streams, runtime.threads),
    )


def _reopen(file: Path, before: tuple[int, int] | None, streams: int, threads: int) -> Classifier:
    require_unchanged(file, before)
    return without_torch(file, streams=streams, threads=threads)


def require_suitable(device: str, precision: str, *, resized: bool, own: bool) -> None:
    """Unsuitable where a run is asked for in a way that only torch computes."""
    if device not in ("auto", "cpu"):
        raise Unsuitable(f"the compiled kernels run on the CPU, but device={device} was asked for")
    if device == "auto" and has_gpu():
        raise Unsuitable("there is a GPU, which device=auto prefers")
    if precision != "float32":
        raise Unsuitable(f"the compiled kernels compute in float32, but {precision} was asked for")
    if resized or own:
        raise Unsuitable("another size, and a network of your own, need torch")

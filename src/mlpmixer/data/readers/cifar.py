"""CIFAR's original files: binary and Python."""

import io
import pickle
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlpmixer.data.image_set import TEST, TRAIN, RawSplits
from mlpmixer.data.readers.files import Files
from mlpmixer.data.readers.idx import from_arrays

CIFAR_FILES = re.compile(
    r"(data_batch_[1-5]|test_batch|train|test)(\.bin)?|batches\.meta(\.txt)?|fine_label_names\.txt|meta"
)


def read_cifar(files: Files, name: str, classes: Sequence[str]) -> RawSplits | None:
    """CIFAR's binary and Python layouts; None when the folder has neither."""
    tens = len(classes) == 10
    stems = {
        TRAIN: [f"data_batch_{i}" for i in range(1, 6)] if tens else ["train"],
        TEST: ["test_batch"] if tens else ["test"],
    }
    for suffix, read in ((".bin", _cifar_binary), ("", _cifar_python)):
        wanted = {split: [s + suffix for s in names] for split, names in stems.items()}
        everything = [f for names in wanted.values() for f in names]
        if not any(f in files for f in everything):
            continue
        if missing := [f for f in everything if f not in files]:
            raise ValueError(f"{name}: {', '.join(missing)} missing beside {next(f for f in everything if f in files)}")
        sets = {}
        for split, names in wanted.items():
            batches = [read(files[f](), f, tens) for f in names]
            flat = np.concatenate([pixels for pixels, _ in batches])
            pixels = np.ascontiguousarray(flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            sets[split] = from_arrays(split, pixels, np.concatenate([labels for _, labels in batches]), classes, 3)
        return RawSplits(name, sets)
    return None


def _cifar_binary(content: bytes, name: str, tens: bool) -> tuple[np.ndarray, np.ndarray]:
    skip = 1 if tens else 2  # CIFAR-100: coarse label, fine label
    if not content or len(content) % (skip + 3072):
        raise ValueError(
            f"{name} has {len(content)} bytes, not a multiple of {skip + 3072}: it is cut short or of another data set"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, skip + 3072)
    return rows[:, skip:], rows[:, skip - 1]


def _cifar_python(content: bytes, name: str, tens: bool) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _NumpyOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as e:  # a hostile or damaged pickle can raise anything
        raise ValueError(f"{name} is not a CIFAR batch: {e}") from e
    if not isinstance(batch, dict):
        raise ValueError(f"{name} is not a CIFAR batch: a {type(batch).__name__}")
    plain = {
        k.decode("latin1") if isinstance(k, bytes) else k: getattr(v, "value", None) if isinstance(v, _Array) else v
        for k, v in batch.items()
    }
    key = "labels" if tens else "fine_labels"
    pixels, labels = plain.get("data"), plain.get(key)
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != 3072
        or labels is None
    ):
        raise ValueError(
            f"{name} is not a CIFAR batch: expected data (uint8, N x 3072) and {key}, got {', '.join(map(str, plain))}"
        )
    try:
        labels = np.asarray(labels).astype(np.int64)
    except (ValueError, TypeError, OverflowError) as e:
        raise ValueError(f"{name}: {key} are not whole numbers") from e
    if labels.shape != (len(pixels),):
        raise ValueError(f"{name}: {len(pixels)} images but {key} of shape {labels.shape}")
    return pixels, labels


class _Dtype:
    """Stands in for numpy.dtype: plain numbers only."""

    def __init__(self, spec: object, *_: object) -> None:
        if not isinstance(spec, str) or not re.fullmatch(r"[<>|=]?[iuf][1248]", spec):
            raise pickle.UnpicklingError(f"it holds arrays of {spec!r}")
        self.value: np.dtype[Any] = np.dtype(spec)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands in for numpy.ndarray while unpickling; `value` is the real one."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.fill(raw.encode("latin1") if isinstance(raw, str) else raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: _Dtype, shape: Any, order: Any) -> "_Array":
        self.value = np.frombuffer(raw, dtype.value).reshape(shape, order=order)
        return self


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


class _NumpyOnly(pickle.Unpickler):
    """Knows what rebuilding plain numpy arrays takes, as the stand-ins above, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *_: _Array()
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return lambda raw, dtype, shape, order="C": _Array().fill(raw, dtype, shape, order)
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _Array if name == "ndarray" else _Dtype
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in an old pickle
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; only plain numpy arrays are read")

"""CIFAR's original files, in their binary and their Python version."""

import io
import pickle
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from mlpmixer.data.bounded import operations
from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.paths import TEST, TRAIN
from mlpmixer.data.readers.files import Files, OriginalFiles
from mlpmixer.registry import shortened, shown

_PIXELS = 3 * 32 * 32


def read_cifar(
    files: Files, classes: Sequence[str], *, train: Sequence[str], test: Sequence[str], label_columns: Sequence[str]
) -> dict[str, ImageSet]:
    """Train and test. ValueError, which names the file, when one is missing or damaged.

    label_columns: the labels of an image, in the order of the binary version; the last is the class.
    """
    suffix = ".bin" if any(name.endswith(".bin") for name in files) else ""
    wanted = {split: [stem + suffix for stem in stems] for split, stems in ((TRAIN, train), (TEST, test))}
    if missing := [name for names in wanted.values() for name in names if name not in files]:
        raise ValueError(f"{', '.join(missing)} missing beside {next(iter(files))}")
    sets = {}
    for split, names in wanted.items():
        read = partial(_binary, skip=len(label_columns)) if suffix else partial(_python, key=label_columns[-1])
        batches = [read(files[name](), name) for name in names]
        pixels = np.concatenate([batch for batch, _ in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.concatenate([batch for _, batch in batches])
        sets[split] = ImageSet.from_arrays(split, np.ascontiguousarray(pixels), labels, classes)
    return sets


def _binary(content: bytes, name: str, *, skip: int) -> tuple[np.ndarray, np.ndarray]:
    if not content or len(content) % (skip + _PIXELS):
        raise ValueError(
            f"{name} has {len(content)} bytes, not a multiple of {skip + _PIXELS}: cut short, or of another data set"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, skip + _PIXELS)
    return rows[:, skip:], rows[:, skip - 1]


def _python(content: bytes, name: str, *, key: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _Unpickler(content).load()
        columns = {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}
        pixels, labels = columns["data"].value.reshape(-1, _PIXELS), columns[key]
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):  # lists could hold lists
            raise ValueError(f"{key} is not a list of whole numbers")
        if len(labels) != len(pixels):
            raise ValueError(f"{len(pixels)} images, but {len(labels)} {key}")
        return pixels, np.array(labels, np.int64)
    except Exception as e:  # a damaged or hostile pickle can raise anything
        reason = f"no {e}" if isinstance(e, KeyError) else e
        raise ValueError(
            f"{name} is not a CIFAR batch, which has data (uint8, N x {_PIXELS}) and {key}: {shortened(reason)}"
        ) from e


class _Unpickler(pickle.Unpickler):
    """Reads arrays of uint8, numbers, text and containers of these: it runs no code, and takes memory of the order of
    the file.

    `find_class` knows what numpy's arrays are made of, and gives functions of this module for it; anything else is an
    error. What an operation claims is checked before the C code reserves it: `operations` reads all of them first,
    without executing any, and fails where an argument is longer than what is left of the file, and for tuples that are
    too large; a number in the memo, which is a table of all numbers below it, must be less than the bytes before it.
    Text becomes bytes only once, however often it is referred to.
    """

    def __init__(self, content: bytes) -> None:
        for operation, argument, place in operations(content):
            if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument) > place:
                raise pickle.UnpicklingError(f"it asks for a memo of {argument:,} places")
        super().__init__(io.BytesIO(content), encoding="latin1")
        self.left = len(content)

    def find_class(self, module: str, name: str) -> Any:
        match module.replace("numpy._core", "numpy.core"), name:
            case ("numpy", "ndarray" | "dtype") | ("numpy.core.multiarray", "_reconstruct"):
                return partial(_Array, self)
            case "numpy.core.numeric", "_frombuffer":
                return lambda content, kind, shape, order: _Array(self).fill(content, shape, order)
            case "_codecs", "encode":  # how Python 3 writes bytes in an old pickle
                return lambda text, _: self.encoded(text)
        raise pickle.UnpicklingError(f"it asks for {shown(f'{module}.{name}')}; only arrays of uint8 are read")

    def encoded(self, text: str) -> bytes:
        self.left -= len(text)
        if self.left < 0:
            raise pickle.UnpicklingError("it uses the same text again and again")
        return text.encode("latin1")


class _Array:
    """Stands in for numpy's arrays and types in a pickle: an array of uint8 is all that can come of it."""

    value: np.ndarray

    def __init__(self, unpickler: _Unpickler, *args: Any) -> None:
        self.unpickler = unpickler
        if args and not (isinstance(args[0], partial) or args[0] in ("u1", "|u1")):
            kind = shown(args[0]) if isinstance(args[0], str) else type(args[0]).__name__  # the text may be endless
            raise pickle.UnpicklingError(f"it holds arrays of {kind}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if isinstance(state[-1], str | bytes):  # of an array: version, shape, type, order, content
            self.fill(state[-1], state[1], "F" if state[3] else "C")

    def fill(self, content: str | bytes, shape: tuple[int, ...], order: Any) -> "_Array":
        content = self.unpickler.encoded(content) if isinstance(content, str) else content
        self.value = np.frombuffer(content, np.uint8).reshape(shape, order=order)
        return self


CIFAR10 = OriginalFiles(
    expected="cifar-10-binary.tar.gz or cifar-10-python.tar.gz",
    names=re.compile(r"(data_batch_[1-5]|test_batch)(\.bin)?"),
    read=partial(
        read_cifar, train=[f"data_batch_{i}" for i in range(1, 6)], test=["test_batch"], label_columns=["labels"]
    ),
    archives=("cifar-10-binary.tar", "cifar-10-python.tar"),
)
CIFAR100 = OriginalFiles(
    expected="cifar-100-binary.tar.gz or cifar-100-python.tar.gz",
    names=re.compile(r"(train|test)(\.bin)?"),
    read=partial(read_cifar, train=["train"], test=["test"], label_columns=["coarse_labels", "fine_labels"]),
    archives=("cifar-100-binary.tar", "cifar-100-python.tar"),
)

"""Predictions as JSON, JSON lines and CSV, and feature vectors as a file."""

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from zipfile import ZipFile

import numpy as np

from mlpmixer.inference.classifier import Failure, Floats, Prediction


def to_record(result: Prediction | Failure) -> dict[str, Any]:
    """One result as plain JSON values: image, label, probability, top; or image, error."""
    if isinstance(result, Failure):
        return {"image": _printable(result.name), "error": _printable(result.reason)}
    top = [{"label": label, "probability": round(p, 6)} for label, p in result.top]
    return {
        "image": _printable(result.name),
        "label": result.label,
        "probability": round(result.probability, 6),
        "top": top,
    }


def jsonl_lines(results: Iterable[Prediction | Failure]) -> Iterator[str]:
    """One JSON object a line, as the results come."""
    for result in results:
        yield json.dumps(to_record(result), ensure_ascii=False) + "\n"


def json_lines(results: Iterable[Prediction | Failure]) -> Iterator[str]:
    """One JSON array, a line for each result, as the results come."""
    start = "[\n"
    for result in results:
        yield start + json.dumps(to_record(result), ensure_ascii=False)
        start = ",\n"
    yield "[]\n" if start == "[\n" else "\n]\n"


def csv_lines(results: Iterable[Prediction | Failure], top_k: int = 1) -> Iterator[str]:
    """CSV with a header: image, label, probability, [label_2, probability_2, ...], error."""
    extra = [column for k in range(2, top_k + 1) for column in (f"label_{k}", f"probability_{k}")]
    yield _csv(["image", "label", "probability", *extra, "error"])
    for result in results:
        cells: list[str] = []
        if isinstance(result, Prediction):
            cells = [cell for label, p in result.top[:top_k] for cell in (label, f"{p:.6f}")]
        error = _printable(result.reason) if isinstance(result, Failure) else ""
        yield _csv([_printable(result.name), *cells, *[""] * (2 + len(extra) - len(cells)), error])


def _csv(cells: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _printable(name: str) -> str:
    """File names may hold bytes that are no UTF-8; text output may not."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class FeatureFile:
    """An .npz (names, features) or .csv of feature vectors, written row by row; memory does not grow with their number.

    Use it in a `with` statement: the whole file is there when that ends, and nothing has changed if it fails.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".npz", ".csv"):
            raise ValueError(f"{self.path}: expected a name that ends in .npz or .csv")

    def __enter__(self) -> "FeatureFile":
        self._part = self.path.with_name(f".{self.path.name}.part")
        self._num_rows, self._width, self._longest_name = 0, 0, 1
        with ExitStack() as stack:
            if self.path.suffix == ".npz":  # an array's header says how long it is, so the arrays wait for the last row
                self._names = stack.enter_context(TemporaryFile("w+", encoding="ascii", dir=self.path.parent))
                self._rows = stack.enter_context(TemporaryFile(dir=self.path.parent))
            self._file = stack.enter_context(open(self._part, "wb"))
            self._files = stack.pop_all()
        return self

    def add(self, name: str, features: Floats) -> None:
        """One row: the image's name and its feature vector (hidden_dim,)."""
        if self.path.suffix == ".npz":
            self._names.write(json.dumps(name) + "\n")
            self._rows.write(features.astype("<f4").tobytes())
        else:
            header = "" if self._num_rows else _csv(["image", *(f"f{i}" for i in range(len(features)))])
            self._file.write((header + _csv([_printable(name), *(f"{v:.8g}" for v in features)])).encode())
        self._num_rows, self._width = self._num_rows + 1, len(features)
        self._longest_name = max(self._longest_name, len(name))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._files:
                if kind is None and self.path.suffix == ".npz":
                    self._write_arrays()
                elif kind is None and not self._num_rows:
                    self._file.write(_csv(["image"]).encode())
                self._file.flush()
                os.fsync(self._file.fileno())
            if kind is None:
                os.replace(self._part, self.path)
        finally:
            self._part.unlink(missing_ok=True)

    def _write_arrays(self) -> None:
        """As numpy.savez writes them."""
        names_type = np.dtype(f"<U{self._longest_name}")
        self._names.seek(0)
        self._rows.seek(0)
        with ZipFile(self._file, "w", allowZip64=True) as archive:
            with archive.open("names.npy", "w", force_zip64=True) as array:
                _write_array_header(array, names_type, (self._num_rows,))
                for line in self._names:
                    array.write(np.array(json.loads(line), names_type).tobytes())
            with archive.open("features.npy", "w", force_zip64=True) as array:
                _write_array_header(array, np.dtype("<f4"), (self._num_rows, self._width))
                shutil.copyfileobj(self._rows, array)


def _write_array_header(file: IO[bytes], dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> None:
    descr = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, descr)

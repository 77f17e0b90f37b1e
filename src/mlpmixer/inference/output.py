"""Predictions as JSON, JSON lines, CSV and Parquet, and feature vectors as a file."""

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from zipfile import ZipFile

import numpy as np

from mlpmixer.durable import replacing
from mlpmixer.inference.prediction import Failure, Floats, Prediction

COLUMNS = ("label", "probability")
LISTS = ("labels", "probabilities")  # where an image may have several classes
ROW_GROUP = 10_000  # rows of a Parquet file that are in memory at a time


def to_record(result: Prediction | Failure) -> dict[str, Any]:
    """One result as plain JSON values: image, label, probability, top; image, labels, threshold, top, where an image
    may have several classes; or image, error."""
    if isinstance(result, Failure):
        return {"image": _printable(result.name), "error": _printable(result.reason)}
    top = [{"label": label, "probability": round(p, 6)} for label, p in result.top]
    if result.threshold is not None:
        labels = list(result.labels)
        return {"image": _printable(result.name), "labels": labels, "threshold": result.threshold, "top": top}
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


def csv_lines(results: Iterable[Prediction | Failure], top_k: int = 1, *, multi_label: bool = False) -> Iterator[str]:
    """CSV with a header: image, label, probability, [label_2, probability_2, ...], error.

    multi_label: where an image may have several classes, image, labels, probabilities, error, with ; between them.
    """
    yield _csv(_columns(top_k, multi_label))
    for result in results:
        yield _csv(map(_text, _row(result, top_k, multi_label)))


def write_parquet(
    path: str | os.PathLike[str],
    results: Iterable[Prediction | Failure],
    classes: Sequence[str],
    top_k: int = 1,
    *,
    multi_label: bool = False,
) -> None:
    """A Parquet file with the columns of `csv_lines`, written whole or not at all; memory does not grow with their
    number.

    Probabilities are float32, labels and probabilities of `multi_label` lists; what a failure has no value for is null.
    The schema's metadata holds the names of all classes, as JSON:
    `json.loads(pyarrow.parquet.read_schema(path).metadata[b"classes"])`.

    Errors: ValueError without pyarrow, OSError when it cannot be written.
    """
    from mlpmixer.data.readers.parquet import import_pyarrow

    pa = import_pyarrow()
    names, results = _columns(top_k, multi_label), iter(results)
    types = [pa.float32() if name.startswith("probabilit") else pa.string() for name in names]
    types = [pa.list_(kind) if name in LISTS else kind for name, kind in zip(names, types, strict=True)]
    schema = pa.schema(list(zip(names, types, strict=True)), {"classes": json.dumps(list(classes))})
    with replacing(Path(path)) as part, pa.parquet.ParquetWriter(part, schema) as writer:
        while group := [_row(result, top_k, multi_label) for result in islice(results, ROW_GROUP)]:
            columns = zip(zip(*group, strict=True), types, strict=True)
            writer.write_table(
                pa.Table.from_arrays([pa.array(values, kind) for values, kind in columns], schema=schema)
            )


def _columns(top_k: int, multi_label: bool) -> list[str]:
    if multi_label:
        return ["image", *LISTS, "error"]
    return ["image", "label", "probability", *(f"{c}_{k}" for k in range(2, top_k + 1) for c in COLUMNS), "error"]


def _row(result: Prediction | Failure, top_k: int, multi_label: bool) -> list[Any]:
    """The cells of `_columns`."""
    if isinstance(result, Failure):
        return [_printable(result.name), *[None] * 2 * (1 if multi_label else top_k), _printable(result.reason)]
    if multi_label:
        probabilities = [p for _, p in result.top[: len(result.labels)]]
        return [_printable(result.name), list(result.labels), probabilities, None]
    cells = [cell for named in result.top[:top_k] for cell in named]
    return [_printable(result.name), *cells, *[None] * (2 * top_k - len(cells)), None]


def _text(cell: str | float | list[Any] | None) -> str:
    if isinstance(cell, list):
        return ";".join(map(_text, cell))
    return "" if cell is None else f"{cell:.6f}" if isinstance(cell, float) else cell


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

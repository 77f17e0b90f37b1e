"""Shards: many labelled images in one file, a WebDataset tar or a Parquet file as on the Hugging Face Hub, read from
any row on.

tar: files of one name are a sample, KEY.jpg (or .png, .webp, ...) with KEY.cls (class number or name) or KEY.json
({"label": ...}).
Parquet: a column image or img (struct(bytes, path) or bytes) and a column label, fine_label or labels (number or text).
"""

import io
import os
import posixpath
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import IO, Any, Literal, NamedTuple, cast

import numpy as np

from mlpmixer.config import parse_json
from mlpmixer.data.bounded import BoundedFile
from mlpmixer.data.image_set import LazySequence
from mlpmixer.data.images import IMAGE_SUFFIXES, Source
from mlpmixer.data.labels import Label, read_label, used_labels
from mlpmixer.data.readers.parquet import (
    class_names,
    encoded_images,
    find_columns,
    import_pyarrow,
    read_columns,
    require_labels,
)
from mlpmixer.data.streaming.remote import RemoteFile
from mlpmixer.download import NetworkError, Retry, first_line
from mlpmixer.registry import shortened, shown

Kind = Literal["tar", "parquet"]
SUFFIXES = (".tar", ".parquet")
READ_BYTES = 1 << 18  # per read from a server


class ShardError(ValueError):
    """A shard that cannot be read; the message names it and says why."""


class Sample(NamedTuple):
    """An image as it is stored, and its label."""

    name: str
    content: bytes
    label: Label


@dataclass(frozen=True)
class Shard:
    """A path, https://... or hf://datasets/OWNER/NAME@REVISION/FILE, and the number of samples (0: not known)."""

    address: str
    samples: int = 0

    @property
    def name(self) -> str:
        return self.address.replace(os.sep, "/").rpartition("/")[2].partition("?")[0]

    @property
    def kind(self) -> Kind:
        return "tar" if self.name.lower().endswith(".tar") else "parquet"

    @property
    def remote(self) -> bool:
        return "://" in self.address

    def open(self, retry: Retry) -> IO[bytes]:
        """The file, seekable. OSError when it cannot be opened."""
        if self.address.startswith("hf://"):
            return retry.run(self._open_on_the_hub)
        if self.remote:
            return io.BufferedReader(RemoteFile(self.address, retry), READ_BYTES)
        return open(self.address, "rb")

    def _open_on_the_hub(self) -> IO[bytes]:
        from huggingface_hub import HfFileSystem

        try:
            return cast(IO[bytes], HfFileSystem().open(self.address.removeprefix("hf://"), "rb"))
        except FileNotFoundError:
            raise
        except Exception as e:  # no network, refused, broken off: the Hub has many ways to say so
            raise NetworkError(first_line(e)) from e


class Contents(NamedTuple):
    """How many samples a shard holds, the names of its classes where it states them, else the labels that occur."""

    samples: int
    classes: tuple[str, ...] | None = None
    labels: tuple[int | str, ...] = ()


def read_rows(shard: Shard, first: int, last: int, retry: Retry) -> Iterator[Sample]:
    """Samples first..last-1 of a shard; ShardError when it cannot be read."""
    row = first
    with _open(shard, retry) as file:
        for sample in (_tar_rows if shard.kind == "tar" else _parquet_rows)(shard, file, first, last):
            row += 1
            yield sample
    if row < last:
        raise ShardError(
            f"{shard.address} holds {row} samples, expected at least {last}: it is cut short, or has changed"
        )


def inspect_shard(shard: Shard, retry: Retry) -> Contents:
    """Count the samples of a shard and find its classes.

    Reads the end of a Parquet file, and the labels if it does not name the classes; of a local tar the names of the
    files and the labels; of a tar on a server everything.
    """
    with _open(shard, retry) as file:
        return _inspect_tar(file) if shard.kind == "tar" else _inspect_parquet(shard, file)


@contextmanager
def _open(shard: Shard, retry: Retry) -> Iterator[IO[bytes]]:
    """The file; what goes wrong with it is a ShardError."""
    failures: tuple[type[Exception], ...] = (OSError, ValueError, tarfile.TarError, RecursionError)
    if shard.kind == "parquet":
        failures = (OSError, ValueError, import_pyarrow().ArrowException)
    if shard.address.startswith("hf://"):
        failures = (Exception,)
    try:
        with shard.open(retry) as file:
            yield file
    except ShardError:
        raise
    except failures as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else shortened(first_line(e))
        raise ShardError(f"{shard.address} cannot be read: {reason}") from e


# ---- tar


class _TarSample(NamedTuple):
    """The files of one sample by suffix: (first byte, length) of each, and the content of those that were wanted."""

    key: str
    content: dict[str, bytes]
    places: dict[str, tuple[int, int]]

    @property
    def image_suffix(self) -> str:
        return next((s for s in self.places if f".{s}" in IMAGE_SUFFIXES), "")

    @property
    def label(self) -> Label:
        try:
            if "cls" in self.content:
                return read_label(self.content["cls"])
            value = parse_json(self.content["json"])["label"]
        except (KeyError, TypeError, ValueError):
            return None
        return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _tar_samples(file: IO[bytes], wanted: Callable[[int, str], bool]) -> Iterator[_TarSample]:
    """The samples of a tar, with the content of the files for which wanted(number of the sample, suffix) is true."""
    number, sample = 0, None
    bounded = BoundedFile.whole(file)
    with tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r:") as tar:
        for member in tar:
            folder, base = posixpath.split(member.name)
            if not member.isfile() or base.startswith((".", "__")):  # macOS; WebDataset's notes about the shard
                continue
            stem, _, suffix = base.partition(".")
            key, suffix = posixpath.join(folder, stem), suffix.lower()
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                    number += 1
                sample = _TarSample(key, {}, {})
            sample.places[suffix] = (member.offset_data, member.size)
            if wanted(number, suffix):
                bounded.seek(member.offset_data)
                sample.content[suffix] = bounded.read(member.size)
                if len(sample.content[suffix]) < member.size:
                    raise tarfile.ReadError(f"it ends within {shown(member.name)}")
    if sample is not None:
        yield sample


def _is_label(row: int, suffix: str) -> bool:
    return suffix in ("cls", "json")


def _tar_rows(shard: Shard, file: IO[bytes], first: int, last: int) -> Iterator[Sample]:
    def wanted(row: int, suffix: str) -> bool:
        return first <= row < last and (_is_label(row, suffix) or f".{suffix}" in IMAGE_SUFFIXES)

    for sample in islice(_tar_samples(file, wanted), first, last):
        content = sample.content.get(sample.image_suffix, b"")
        yield Sample(f"{shard.name}/{sample.key}", content, sample.label)


def _inspect_tar(file: IO[bytes]) -> Contents:
    labels = [sample.label for sample in _tar_samples(file, _is_label)]
    return Contents(len(labels), None, used_labels(labels))


# ---- Parquet


def _parquet(shard: Shard, file: IO[bytes] | str) -> tuple[Any, str, str]:
    """(ParquetFile, image column, label column). Pages are read as they are needed, not whole row groups."""
    parquet = import_pyarrow().parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    try:
        image, label = find_columns(parquet.schema_arrow.names, shard.address)
        require_labels(parquet.schema_arrow.field(label).type, shard.address)
    except ValueError as e:
        raise ShardError(str(e)) from e
    return parquet, image, label


def _labels(parquet: Any, label: str, file: IO[bytes]) -> Any:
    """The column of labels of a Parquet file."""
    return read_columns(parquet, [label], BoundedFile.whole(file).size)[label]


def _parquet_rows(shard: Shard, file: IO[bytes], first: int, last: int) -> Iterator[Sample]:
    parquet, image, label = _parquet(shard, file)
    row = 0
    for group in range(parquet.num_row_groups):
        size = parquet.metadata.row_group(group).num_rows
        if row + size <= first:
            row += size
            continue
        for batch in parquet.iter_batches(batch_size=16, row_groups=[group], columns=[image, label], use_threads=False):
            for content, value in zip(encoded_images(batch[image], shard.address)[0], batch[label], strict=True):
                if row == last:
                    return
                if row >= first:
                    yield Sample(f"{shard.name}[{row}]", content.as_py() or b"", value.as_py())
                row += 1


def _inspect_parquet(shard: Shard, file: IO[bytes]) -> Contents:
    parquet, _, label = _parquet(shard, file)
    if names := class_names(parquet.schema_arrow, label):
        return Contents(parquet.metadata.num_rows, names)
    return Contents(parquet.metadata.num_rows, None, used_labels(_labels(parquet, label, file).unique().to_pylist()))


# ---- local shards by index, for validation and test


def _tar_images(path: str, places: Sequence[tuple[int, int]]) -> Sequence[Source]:
    """Images at (first byte, length)."""

    def item(i: int) -> Source:
        start, length = places[i]
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(length)

    return LazySequence(len(places), item)


def _parquet_images(shard: Shard) -> Sequence[Source]:
    """The images of a Parquet file, of which two row groups at most are in memory."""
    metadata, lock = _parquet(shard, shard.address)[0].metadata, threading.Lock()
    starts = np.cumsum([0, *(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))])

    @lru_cache(maxsize=2)
    def content(group: int) -> Any:
        parquet, image, _ = _parquet(shard, shard.address)
        try:
            column = read_columns(parquet, [image], os.path.getsize(shard.address), [group])[image]
        except (OSError, ValueError) as e:  # Arrow's are among them
            raise ShardError(f"{shard.address} cannot be read: {shortened(first_line(e))}") from e
        return encoded_images(column, shard.address)[0]

    def item(i: int) -> Source:
        group = int(np.searchsorted(starts, i, side="right")) - 1
        with lock:
            column = content(group)
        return column[i - int(starts[group])].as_py() or b""

    return LazySequence(int(starts[-1]), item)


def index_shard(shard: Shard) -> tuple[list[str], list[Label], Sequence[Source]]:
    """(names, labels, images) of all samples of a local shard; images are read later. Raises ShardError."""
    with _open(shard, Retry()) as file:
        if shard.kind == "parquet":
            parquet, _, label = _parquet(shard, file)
            labels = _labels(parquet, label, file).to_pylist()
            return [f"{shard.name}[{i}]" for i in range(len(labels))], labels, _parquet_images(shard)
        samples = list(_tar_samples(file, _is_label))
    places = [s.places.get(s.image_suffix, (0, 0)) for s in samples]
    return [f"{shard.name}/{s.key}" for s in samples], [s.label for s in samples], _tar_images(shard.address, places)

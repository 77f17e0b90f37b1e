"""Shards: many labelled images in one file, a WebDataset tar or a Parquet file as on the Hugging Face Hub, read from
any row on.

tar: files of one name are a sample, KEY.jpg (or .png, .webp, ...) with KEY.cls (class number or name) or KEY.json
({"label": ...}).
Parquet: a column image or img (struct(bytes, path) or bytes) and a column label, fine_label or labels (number or text).
"""

import io
import json
import os
import posixpath
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, Literal, NamedTuple, TypeVar, cast

import numpy as np

from mlpmixer.data.image_set import LazySequence
from mlpmixer.data.images import IMAGE_SUFFIXES, Source
from mlpmixer.data.labels import Label, used_labels
from mlpmixer.data.readers.parquet import class_names, encoded_images, find_columns, import_pyarrow
from mlpmixer.data.streaming.remote import RemoteFile
from mlpmixer.download import Refused, Retry, first_line

T = TypeVar("T")
Kind = Literal["tar", "parquet"]
SUFFIXES = (".tar", ".parquet")
READ_BYTES = 1 << 18  # per read from a server


class ShardError(ValueError):
    """A shard that cannot be read; the message names it and says why."""


class Sample(NamedTuple):
    """An image as it is stored, and its label. `start` is the byte of a tar where it begins."""

    name: str
    content: bytes
    label: Label
    start: int = 0


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

    def open(self, timeout_s: float) -> IO[bytes]:
        """The file, seekable. OSError when it cannot be opened; from the Hub, anything."""
        if self.address.startswith("hf://"):
            from huggingface_hub import HfFileSystem

            return cast(IO[bytes], HfFileSystem().open(self.address.removeprefix("hf://"), "rb"))
        if self.remote:
            return io.BufferedReader(RemoteFile(self.address, timeout_s), READ_BYTES)
        return open(self.address, "rb")


@dataclass(frozen=True)
class Contents:
    """How many samples a shard holds, the names of its classes where it states them, else the labels that occur."""

    samples: int
    classes: tuple[str, ...] | None = None
    labels: tuple[int | str, ...] = ()


def read_rows(shard: Shard, first: int, last: int, retry: Retry) -> Iterator[Sample]:
    """Samples first..last-1 of a shard; ShardError when it cannot be read."""
    row, known = first, (0, 0)  # known: sample known[0] begins at byte known[1] of a tar

    def rows(file: IO[bytes]) -> Iterator[Sample]:
        nonlocal row, known
        is_tar = shard.kind == "tar"
        for sample in _tar_rows(shard, file, row, last, known) if is_tar else _parquet_rows(shard, file, row, last):
            known, row = (row, sample.start), row + 1
            yield sample

    yield from _with_retries(shard, retry, rows)
    if row < last:
        raise ShardError(
            f"{shard.address} holds {row} samples, expected at least {last}: it is cut short, or has changed"
        )


def inspect_shard(shard: Shard, retry: Retry) -> Contents:
    """Count the samples of a shard and find its classes.

    Reads the end of a Parquet file, and the labels if it does not name the classes; of a local tar the names of the
    files and the labels; of a tar on a server everything.
    """

    def read(file: IO[bytes]) -> Iterator[Contents]:
        yield _inspect_tar(file) if shard.kind == "tar" else _inspect_parquet(shard, file)

    return next(_with_retries(shard, retry, read))


def _with_retries(shard: Shard, retry: Retry, read: Callable[[IO[bytes]], Iterator[T]]) -> Iterator[T]:
    """The items of read(file). When a connection breaks it is called again, and has to continue where it was."""
    failures = 0
    while True:
        try:
            with shard.open(retry.timeout_s) as file:
                for item in read(file):
                    failures = 0
                    yield item
            return
        except ShardError:
            raise
        except _failures(shard) as e:
            failures += 1
            if not shard.remote or isinstance(e, Refused | FileNotFoundError) or failures >= retry.attempts:
                raise _unreadable(shard, e, f" (tried {failures} times)" if failures > 1 else "") from e
            retry.wait(failures)


def _failures(shard: Shard) -> tuple[type[Exception], ...]:
    """What reading a broken file or connection can raise; the Hub has many ways to say so."""
    if shard.address.startswith("hf://"):
        return (Exception,)
    if shard.kind == "tar":
        return OSError, tarfile.TarError
    return OSError, import_pyarrow().ArrowException


def _unreadable(shard: Shard, error: Exception, more: str = "") -> ShardError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return ShardError(f"{shard.address} cannot be read: {reason}{more}")


# ---- tar


class _TarSample(NamedTuple):
    """The files of one sample by suffix: (first byte, length) of each, and the content of those that were wanted."""

    key: str
    start: int
    content: dict[str, bytes]
    places: dict[str, tuple[int, int]]

    @property
    def image_suffix(self) -> str:
        return next((s for s in self.places if f".{s}" in IMAGE_SUFFIXES), "")

    @property
    def label(self) -> Label:
        try:
            if "cls" in self.content:
                text = self.content["cls"].decode("utf-8", "replace").strip()
                return int(text) if text.removeprefix("-").isdecimal() else text or None
            value = json.loads(self.content["json"])["label"]
        except (KeyError, TypeError, ValueError):
            return None
        return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _tar_samples(file: IO[bytes], number: int, start: int, wanted: Callable[[int, str], bool]) -> Iterator[_TarSample]:
    """The samples of a tar from `number` on, which begins at byte `start`; reads what wanted(number, suffix) says."""
    file.seek(start)
    sample: _TarSample | None = None
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            folder, base = posixpath.split(member.name)
            if not member.isfile() or base.startswith((".", "__")):  # macOS; WebDataset's notes about the shard
                continue
            stem, _, suffix = base.partition(".")
            key = posixpath.join(folder, stem)
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                    number += 1
                sample = _TarSample(key, member.offset, {}, {})
            suffix = suffix.lower()
            sample.places[suffix] = (member.offset_data, member.size)
            if wanted(number, suffix):
                file.seek(member.offset_data)
                sample.content[suffix] = file.read(member.size)
                if len(sample.content[suffix]) < member.size:
                    raise tarfile.ReadError(f"it ends within {member.name}")
    if sample is not None:
        yield sample


def _is_label(row: int, suffix: str) -> bool:
    return suffix in ("cls", "json")


def _tar_rows(shard: Shard, file: IO[bytes], first: int, last: int, known: tuple[int, int]) -> Iterator[Sample]:
    number, start = known

    def wanted(row: int, suffix: str) -> bool:
        return first <= row < last and (_is_label(row, suffix) or f".{suffix}" in IMAGE_SUFFIXES)

    for row, sample in enumerate(_tar_samples(file, number, start, wanted), number):
        if row >= first:
            content = sample.content.get(sample.image_suffix, b"")
            yield Sample(f"{shard.name}/{sample.key}", content, sample.label, sample.start)
        if row == last - 1:
            return


def _inspect_tar(file: IO[bytes]) -> Contents:
    labels = [sample.label for sample in _tar_samples(file, 0, 0, _is_label)]
    return Contents(len(labels), None, used_labels(labels))


# ---- Parquet


def _parquet(shard: Shard, file: IO[bytes] | str) -> tuple[Any, str, str]:
    """(ParquetFile, image column, label column). Pages are read as they are needed, not whole row groups."""
    parquet = import_pyarrow().parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    try:
        return parquet, *find_columns(parquet.schema_arrow.names, shard.address)
    except ValueError as e:
        raise ShardError(str(e)) from e


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
    column = parquet.read(columns=[label], use_threads=False)[label]
    return Contents(parquet.metadata.num_rows, None, used_labels(column.unique().to_pylist()))


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
        column = parquet.read_row_group(group, columns=[image], use_threads=False)[image]
        return encoded_images(column, shard.address)[0]

    def item(i: int) -> Source:
        group = int(np.searchsorted(starts, i, side="right")) - 1
        with lock:
            column = content(group)
        return column[i - int(starts[group])].as_py() or b""

    return LazySequence(int(starts[-1]), item)


def index_shard(shard: Shard) -> tuple[list[str], list[Label], Sequence[Source]]:
    """(names, labels, images) of all samples of a local shard; images are read later. Raises ShardError."""
    try:
        if shard.kind == "parquet":
            parquet, _, label = _parquet(shard, shard.address)
            labels = parquet.read(columns=[label], use_threads=False)[label].to_pylist()
            return [f"{shard.name}[{i}]" for i in range(len(labels))], labels, _parquet_images(shard)
        with open(shard.address, "rb") as file:
            samples = list(_tar_samples(file, 0, 0, _is_label))
    except _failures(shard) as e:
        raise _unreadable(shard, e) from e
    places = [s.places.get(s.image_suffix, (0, 0)) for s in samples]
    return [f"{shard.name}/{s.key}" for s in samples], [s.label for s in samples], _tar_images(shard.address, places)

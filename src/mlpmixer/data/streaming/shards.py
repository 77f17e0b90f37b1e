"""Shards: many labelled images in one file, a WebDataset tar or a Parquet file as on the Hugging Face Hub, read from
any row on.

tar: files of one name make a sample, KEY.jpg (or .png, .webp, ...) with KEY.cls (class number or name) or KEY.json
({"label": ...}).
Parquet: a column image or img (struct(bytes, path) or bytes) and a column label, fine_label or labels (number or text).
"""

import io
import json
import os
import posixpath
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http.client import HTTPException
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from mlpmixer.data.image_set import ImageSet, LazySequence
from mlpmixer.data.images import IMAGE_SUFFIXES, ImageError, Source, open_image
from mlpmixer.data.labels import Label, used_labels
from mlpmixer.data.readers.parquet import class_names, encoded_images, find_columns, import_pyarrow
from mlpmixer.data.streaming.remote import HubFile, Refused, RemoteFile, Retry

Kind = Literal["tar", "parquet"]
SUFFIXES = (".tar", ".parquet")
READ_BYTES = 1 << 18  # at once from a server


class ShardError(ValueError):
    """A shard that cannot be read; the message names it and says why."""


class Sample(NamedTuple):
    """An image as it is stored. `start` is the byte of a tar where it begins; `label` None when there is none."""

    name: str
    content: bytes
    label: Label
    start: int = 0


@dataclass(frozen=True)
class Shard:
    """Where it is (a path, https://..., hf://datasets/OWNER/NAME@REVISION/FILE), and how many samples it is said to
    hold."""

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
        """The file, seekable. OSError when it cannot be had."""
        if self.address.startswith("hf://"):
            return io.BufferedReader(HubFile(self.address.removeprefix("hf://")), READ_BYTES)
        if self.remote:
            return io.BufferedReader(RemoteFile(self.address, timeout_s), READ_BYTES)
        return open(self.address, "rb")


@dataclass(frozen=True)
class Contents:
    """What a shard holds: samples, and the names of its classes where it states them, else the labels that occur."""

    samples: int
    classes: tuple[str, ...] | None = None
    labels: tuple[int | str, ...] = field(default=())


def read_rows(shard: Shard, first: int, last: int, retry: Retry) -> Iterator[Sample]:
    """Samples first..last-1 of a shard. A broken connection is opened again where it stopped. ShardError when it cannot
    be read on."""
    row, known, in_vain = first, (0, 0), 0  # known: sample number known[0] begins at byte known[1]
    while row < last:
        try:
            with shard.open(retry.timeout_s) as file:
                rows = (
                    _tar_rows(shard, file, row, last, known)
                    if shard.kind == "tar"
                    else _parquet_rows(shard, file, row, last)
                )
                for sample in rows:
                    known, row, in_vain = (row, sample.start), row + 1, 0
                    yield sample
        except _failures() as e:
            in_vain += 1
            _wait_or_give_up(shard, e, in_vain, retry)
        else:
            if row < last:
                raise ShardError(
                    f"{shard.address} holds {row} samples, expected at least {last}: it is cut short, or has changed"
                )


def look_into(shard: Shard, retry: Retry) -> Contents:
    """Count the samples. Of a Parquet file only the end is read, and the labels where it does not name the classes; of
    a tar on a server everything, of a local one the names of the files and the labels."""
    in_vain = 0
    while True:
        try:
            with shard.open(retry.timeout_s) as file:
                return _look_into_tar(file) if shard.kind == "tar" else _look_into_parquet(shard, file)
        except _failures() as e:
            in_vain += 1
            _wait_or_give_up(shard, e, in_vain, retry)


def _failures() -> tuple[type[Exception], ...]:
    """What reading a file, a connection, a tar or Parquet can raise when they are broken."""
    try:
        from pyarrow import ArrowException
    except ImportError:
        return OSError, HTTPException, tarfile.TarError
    return OSError, HTTPException, tarfile.TarError, ArrowException


def _wait_or_give_up(shard: Shard, error: Exception, in_vain: int, retry: Retry) -> None:
    """Only what comes over a network is tried again: a broken file stays broken."""
    if not shard.remote or isinstance(error, Refused | FileNotFoundError) or in_vain >= retry.attempts:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip().partition("\n")[0]
        )
        tried = f" (tried {in_vain} times)" if in_vain > 1 else ""
        raise ShardError(f"{shard.address} cannot be read: {reason or type(error).__name__}{tried}") from error
    time.sleep(retry.backoff_s * 2 ** (in_vain - 1))


# ---- tar


class _Group(NamedTuple):
    """The files of one sample: their bytes where they were wanted, and (first byte, length) of each, by suffix."""

    key: str
    start: int
    content: dict[str, bytes]
    places: dict[str, tuple[int, int]]


def _groups(file: IO[bytes], number: int, start: int, wanted: Callable[[int, str], bool]) -> Iterator[_Group]:
    """The samples of a tar from byte `start` on, where sample `number` begins; wanted(number, suffix): shall its bytes
    be read?"""
    file.seek(start)
    group: _Group | None = None
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            folder, base = posixpath.split(member.name)
            if not member.isfile() or base.startswith((".", "__")):  # of macOS; of WebDataset, about the shard itself
                continue
            stem, _, suffix = base.partition(".")
            key = posixpath.join(folder, stem)
            if group is None or key != group.key:
                if group is not None:
                    yield group
                    number += 1
                group = _Group(key, member.offset, {}, {})
            suffix = suffix.lower()
            group.places[suffix] = (member.offset_data, member.size)
            if wanted(number, suffix):
                file.seek(member.offset_data)
                group.content[suffix] = file.read(member.size)
                if len(group.content[suffix]) < member.size:
                    raise tarfile.ReadError(f"it ends within {member.name}")
    if group is not None:
        yield group


def _is_label(suffix: str) -> bool:
    return suffix in ("cls", "json")


def _image_suffix(group: _Group) -> str | None:
    return next((s for s in group.places if f".{s}" in IMAGE_SUFFIXES), None)


def _tar_label(group: _Group) -> Label:
    if (text := group.content.get("cls")) is not None:
        return _number_or_text(text.decode("utf-8", "replace").strip())
    try:
        value = json.loads(group.content["json"])["label"]
    except (KeyError, TypeError, ValueError):
        return None
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _number_or_text(text: str) -> Label:
    try:
        return int(text)
    except ValueError:
        return text or None


def _tar_rows(shard: Shard, file: IO[bytes], first: int, last: int, known: tuple[int, int]) -> Iterator[Sample]:
    number, start = known

    def wanted(row: int, suffix: str) -> bool:
        return first <= row < last and (_is_label(suffix) or f".{suffix}" in IMAGE_SUFFIXES)

    for row, group in enumerate(_groups(file, number, start, wanted), number):
        if row >= first:
            content = group.content.get(_image_suffix(group) or "", b"")
            yield Sample(f"{shard.name}/{group.key}", content, _tar_label(group), group.start)
        if row == last - 1:
            return


def _look_into_tar(file: IO[bytes]) -> Contents:
    samples, labels = 0, set()
    for group in _groups(file, 0, 0, lambda row, suffix: _is_label(suffix)):
        samples += 1
        labels.add(_tar_label(group))
    return Contents(samples, None, used_labels(labels))


# ---- Parquet


def _parquet(shard: Shard, file: IO[bytes] | str) -> tuple[Any, str, str]:
    """(ParquetFile, image column, label column). Pages are read as they are needed, not whole row groups."""
    pa = import_pyarrow()
    parquet = pa.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    return parquet, *find_columns(parquet.schema_arrow.names, shard.address)


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


def _look_into_parquet(shard: Shard, file: IO[bytes]) -> Contents:
    parquet, _, label = _parquet(shard, file)
    names = class_names(parquet.schema_arrow, label)
    labels = (
        () if names else used_labels(set(parquet.read(columns=[label], use_threads=False)[label].unique().to_pylist()))
    )
    return Contents(parquet.metadata.num_rows, tuple(names) if names else None, labels)


# ---- shards on disk by index, for validation and test


class TarImages(LazySequence[Source]):
    """Images that lie at (file, first byte, length)."""

    def __init__(self, places: Sequence[tuple[str, int, int]]) -> None:
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def item(self, i: int) -> Source:
        path, start, length = self.places[i]
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(length)


class ParquetImages(LazySequence[Source]):
    """The images of a Parquet file; two row groups at most are held in memory."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.ends = np.cumsum([0, *self._row_groups()])
        self._lock = threading.Lock()
        self._column = lru_cache(maxsize=2)(self._read_column)

    def _row_groups(self) -> list[int]:
        metadata = _parquet(self.shard, self.shard.address)[0].metadata
        return [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]

    def _read_column(self, group: int) -> Any:
        parquet, image, _ = _parquet(self.shard, self.shard.address)
        column = parquet.read_row_group(group, columns=[image], use_threads=False)[image]
        return encoded_images(column, self.shard.address)[0]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def item(self, i: int) -> Source:
        group = int(np.searchsorted(self.ends, i, side="right")) - 1
        with self._lock:
            column = self._column(group)
        content: bytes | None = column[i - int(self.ends[group])].as_py()
        return content or b""


def images_on_disk(shard: Shard) -> tuple[list[str], list[Label], Sequence[Source]]:
    """(names, labels, sources) of all samples of a local shard; only names and labels are read now. ShardError as in
    `read_rows`."""
    try:
        if shard.kind == "parquet":
            parquet, _, label = _parquet(shard, shard.address)
            labels = parquet.read(columns=[label], use_threads=False)[label].to_pylist()
            return [f"{shard.name}[{i}]" for i in range(len(labels))], labels, ParquetImages(shard)
        with open(shard.address, "rb") as file:
            groups = list(_groups(file, 0, 0, lambda row, suffix: _is_label(suffix)))
    except _failures() as e:
        raise ShardError(f"{shard.address} cannot be read: {str(e).partition(chr(10))[0]}") from e
    places = [(shard.address, *group.places.get(_image_suffix(group) or "", (0, 0))) for group in groups]
    return [f"{shard.name}/{g.key}" for g in groups], [_tar_label(g) for g in groups], TarImages(places)


# ---- writing


def write_shards(
    sets: dict[str, ImageSet], out: str | os.PathLike[str], *, kind: Kind = "tar", per_shard: int = 1000, seed: int = 0
) -> tuple[dict[str, list[int]], list[tuple[str, str]]]:
    """Write sets of the same classes, each in an order drawn from `seed`, to OUT/SPLIT-*.tar or .parquet, with
    OUT/_info.json beside them.

    Files and bytes are copied as they are, arrays become PNG. Returns the samples of each shard by split, and (name,
    reason) of the images that cannot be opened and are left out. ValueError when `out` holds something already or
    `per_shard` is not positive.
    """
    if per_shard < 1:
        raise ValueError(f"a shard needs at least 1 image, got per_shard={per_shard}")
    if os.path.exists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise ValueError(f"{os.fspath(out)} exists and is not an empty folder; name a new one")
    os.makedirs(out, exist_ok=True)
    classes = next(iter(sets.values())).classes
    counts: dict[str, list[int]] = {}
    names: dict[str, list[str]] = {}
    bad: list[tuple[str, str]] = []
    for split, images in sets.items():
        order = np.random.default_rng(seed).permutation(len(images))
        total = -(-len(images) // per_shard)
        for number in range(total):
            rows = []
            for i in order[number * per_shard : (number + 1) * per_shard].tolist():
                try:
                    rows.append((f"{i:08d}", *_encoded(images.source(i)), int(images.labels[i])))
                except ImageError as e:
                    bad.append((images.names[i], str(e)))
            name = f"{split}-{number:05d}-of-{total:05d}.{kind}"
            path = os.path.join(out, name)
            (_write_tar if kind == "tar" else _write_parquet)(path + ".part", rows, classes)
            os.replace(path + ".part", path)
            counts.setdefault(split, []).append(len(rows))
            names.setdefault(split, []).append(name)
    info = {
        "classes": classes,
        "splits": {
            s: {"name": s, "num_samples": sum(counts[s]), "filenames": names[s], "shard_lengths": counts[s]}
            for s in counts
        },
    }
    with open(os.path.join(out, "_info.json"), "w", encoding="utf-8") as file:
        json.dump(info, file, indent=1)
    return counts, bad


def _encoded(source: Source) -> tuple[str, bytes]:
    """(suffix, bytes) of an image as a file."""
    with open_image(source) as image:
        if isinstance(source, Image.Image):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            return "png", buffer.getvalue()
        suffix = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}.get(image.format or "", (image.format or "").lower())
    if isinstance(source, bytes):
        return suffix, source
    with open(source, "rb") as file:
        return suffix, file.read()


Row = tuple[str, str, bytes, int]


def _write_tar(path: str, rows: Sequence[Row], classes: Sequence[str]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, suffix, content, label in rows:
            for name, data in ((f"{key}.{suffix}", content), (f"{key}.cls", str(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _write_parquet(path: str, rows: Sequence[Row], classes: Sequence[str]) -> None:
    pa = import_pyarrow()
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": content, "path": f"{key}.{suffix}"} for key, suffix, content, _ in rows], kind
            ),
            "label": pa.array([label for *_, label in rows], pa.int64()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pa.parquet.write_table(table, path, row_group_size=100, compression="none")

"""The files in which a data set was first published: plain, compressed, or in a tar archive."""

import gzip
import io
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, cast

from mlpmixer.data.bounded import BoundedFile
from mlpmixer.data.image_set import ImageSet
from mlpmixer.registry import shortened

Files = Mapping[str, Callable[[], bytes]]
"""Lower-case file name, without .gz and .xz -> the unpacked content."""
_MAX_BYTES = 1 << 28  # of a file or an archive, unpacked; the largest here, CIFAR-100's archive, has 187 MB
_XZ_BYTES = 1 << 27  # of memory to unpack .xz: twice what xz -9 needs
_CHUNK = 1 << 20
_DAMAGED = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, tarfile.TarError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class OriginalFiles:
    """The layout of the files in which a data set was first published, and their reader."""

    expected: str
    """The files to download, for an error message."""
    names: re.Pattern[str]
    """Matches the lower-case names of the unpacked files that `read` takes."""
    read: Callable[[Files, Sequence[str]], dict[str, ImageSet]]
    """Reads the files that were found, one at least, given the names of the classes."""
    archives: tuple[str, ...] = ()
    """Tar archives that may hold the files, without .gz."""

    def find(self, folder: str) -> Files:
        """The files in `folder`, else in an archive there, else none."""
        entries = [(e.lower(), os.path.join(folder, e)) for e in sorted(os.listdir(folder))]
        found: dict[str, Callable[[], bytes]] = {}
        for entry, path in entries:
            stem, suffix = os.path.splitext(entry)
            name = stem if suffix in (".gz", ".xz") else entry
            if self.names.fullmatch(name) and os.path.isfile(path):
                found.setdefault(name, partial(_unpacked, path))
        archive = next((path for entry, path in entries if entry.removesuffix(".gz") in self.archives), None)
        return found if found or archive is None else _members(archive, self.names)


def _unpacked(path: str) -> bytes:
    buffer = io.BytesIO()
    try:
        with open(path, "rb") as file:
            for piece in {".gz": _gz, ".xz": _xz}.get(os.path.splitext(path)[1].lower(), _plain)(file):
                buffer.write(piece)
                if buffer.tell() > _MAX_BYTES:
                    break
    except _DAMAGED as e:
        raise ValueError(f"{path} is damaged or cut short ({shortened(e)}): download it again") from e
    if buffer.tell() > _MAX_BYTES:
        raise ValueError(f"{path} unpacks to more than {_MAX_BYTES >> 20} MiB: not a file of this data set")
    return buffer.getvalue()


def _plain(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(_CHUNK), b"")


def _gz(file: IO[bytes]) -> Iterator[bytes]:
    with gzip.open(file) as unpacked:
        yield from _plain(cast(IO[bytes], unpacked))


def _xz(file: IO[bytes]) -> Iterator[bytes]:
    """lzma.open has no limit of memory: a header of a few bytes can ask for 4 GiB."""
    packed = file.read(_CHUNK)
    while packed:  # one stream after the other
        unpacker = lzma.LZMADecompressor(memlimit=_XZ_BYTES)
        while not unpacker.eof:
            if unpacker.needs_input and not (packed := packed or file.read(_CHUNK)):
                raise EOFError("it ends within its data")
            yield unpacker.decompress(packed if unpacker.needs_input else b"", _CHUNK)
            packed = b""
        packed = unpacker.unused_data.lstrip(b"\0") or file.read(_CHUNK)


def _members(archive: str, names: re.Pattern[str]) -> Files:
    """The files of a tar archive, by base name; nothing is written to disk."""
    found: dict[str, bytes] = {}
    try:
        with (gzip.open if archive.lower().endswith(".gz") else open)(archive, "rb") as file:
            bounded = BoundedFile(cast(IO[bytes], file), _MAX_BYTES)
            with tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r:") as tar:
                for member in tar:
                    if member.offset_data + member.size > _MAX_BYTES:
                        raise EOFError(f"it holds more than {_MAX_BYTES >> 20} MiB")
                    base = os.path.basename(member.name).lower()
                    if names.fullmatch(base) and base not in found and member.isreg() and not member.issparse():
                        bounded.seek(member.offset_data)
                        found[base] = bounded.read(member.size)
    except _DAMAGED as e:
        raise ValueError(f"{archive} is damaged or cut short ({shortened(e)}): download it again") from e
    return {name: partial(bytes, content) for name, content in found.items()}

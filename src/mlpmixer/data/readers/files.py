"""The files in which a data set was first published: plain, compressed, or in a tar archive."""

import gzip
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from mlpmixer.data.image_set import ImageSet

Files = Mapping[str, Callable[[], bytes]]
"""Lower-case file name, without .gz and .xz -> the unpacked content."""
_MAX_BYTES = 1 << 32  # far more than any file of these data sets
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError)


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
            name = stem if suffix in _OPENERS else entry
            if self.names.fullmatch(name) and os.path.isfile(path):
                found.setdefault(name, partial(_unpacked, path))
        archive = next((path for entry, path in entries if entry.removesuffix(".gz") in self.archives), None)
        return found if found or archive is None else _members(archive, self.names)


def _unpacked(path: str) -> bytes:
    try:
        with _OPENERS.get(os.path.splitext(path)[1].lower(), open)(path, "rb") as file:
            content = cast(bytes, file.read(_MAX_BYTES))
    except _DAMAGED as e:
        raise ValueError(f"{path} is damaged or cut short ({e}): download it again") from e
    if len(content) == _MAX_BYTES:
        raise ValueError(f"{path} unpacks to more than {_MAX_BYTES >> 30} GiB: not a file of this data set")
    return content


def _members(archive: str, names: re.Pattern[str]) -> Files:
    """The files of a tar archive, by base name; nothing is written to disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                base = os.path.basename(member.name).lower()
                wanted = names.fullmatch(base) and base not in found and member.size < _MAX_BYTES
                if wanted and member.isfile() and (file := tar.extractfile(member)):
                    found[base] = file.read()
    except _DAMAGED as e:
        raise ValueError(f"{archive} is damaged or cut short ({e}): download it again") from e
    return {name: partial(bytes, content) for name, content in found.items()}

"""Files of a folder or of a tar archive, unpacked."""

import gzip
import io
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, cast

_MAX_BYTES = 1 << 32  # no file of the original data sets comes near it

Files = Mapping[str, Callable[[], bytes]]
"""Lower-case file name -> its bytes, unpacked."""


def unpacked(file: io.BufferedIOBase, name: str) -> bytes:
    """The bytes of a plain, .gz or .xz file. Raises ValueError naming it when it is damaged or absurdly large."""
    opener: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        stream = opener.get(os.path.splitext(name)[1].lower(), lambda f: f)(file)
        content = cast(bytes, stream.read(_MAX_BYTES))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as e:
        raise ValueError(f"{name} is damaged or cut short ({e}): fetch it again") from e
    if len(content) == _MAX_BYTES:
        raise ValueError(f"{name} unpacks to more than {_MAX_BYTES >> 30} GiB: not a file of this data set")
    return content


def files_in(folder: str) -> Files:
    """The files of a folder; .gz and .xz are listed without that suffix."""

    def reader(path: str) -> Callable[[], bytes]:
        def read() -> bytes:
            with open(path, "rb") as f:
                return unpacked(f, path)

        return read

    found: dict[str, Callable[[], bytes]] = {}
    for entry in sorted(os.listdir(folder)):
        path = os.path.join(folder, entry)
        if os.path.isfile(path) and not entry.startswith("."):
            stem, suffix = os.path.splitext(entry.lower())
            found.setdefault(
                stem if suffix in (".gz", ".xz") and not stem.endswith(".tar") else entry.lower(), reader(path)
            )
    return found


def files_in_tar(path: str, wanted: re.Pattern[str]) -> Files:
    """The wanted files of a .tar.gz, by base name; nothing is written to disk."""
    found: dict[str, Callable[[], bytes]] = {}
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                base = os.path.basename(member.name).lower()
                if (
                    member.isfile()
                    and wanted.fullmatch(base)
                    and member.size < _MAX_BYTES
                    and (f := tar.extractfile(member))
                ):
                    content = f.read()
                    found.setdefault(base, lambda content=content: content)  # type: ignore[misc]
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as e:
        raise ValueError(f"{path} is damaged or cut short ({e}): fetch it again") from e
    return found

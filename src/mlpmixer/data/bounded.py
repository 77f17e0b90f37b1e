"""Reading files of others within bounds: no more memory is reserved than they can fill."""

import io
import os
from typing import IO

MAX_READ_BYTES = 1 << 30  # more than any image has; a server that lies about a size could send for ever


class BoundedFile:
    """The first `size` bytes of a file, for readers that ask for as many as the file says: tarfile does, of headers,
    and Python reserves what is asked for before it reads."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size

    @classmethod
    def whole(cls, file: IO[bytes]) -> "BoundedFile":
        """A seekable file, from its start."""
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        return cls(file, size)

    def read(self, most: int = -1) -> bytes:
        left = max(self.size - self.file.tell(), 0)
        wanted, pieces = min(most, left) if most >= 0 else left, []
        if wanted > MAX_READ_BYTES:
            raise OSError(f"it asks for {wanted:,} bytes at once")
        while wanted and (piece := self.file.read(min(wanted, 1 << 20))):
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def seek(self, place: int) -> int:
        if place < 0:
            raise OSError("it points to a place before its start")
        return self.file.seek(min(place, self.size))

    def tell(self) -> int:
        return self.file.tell()


def file_below(folder: str, name: str) -> str | None:
    """The path of a file that others name, if it lies in `folder` or below it, whatever links there are; else None."""
    joined = os.path.join(folder, name)
    try:
        path, root = os.path.realpath(joined), os.path.realpath(folder)
    except ValueError:  # a null character
        return None
    return joined if os.path.commonpath([path, root]) == root and os.path.isfile(path) else None

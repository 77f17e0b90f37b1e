"""Reading files of others within bounds: no more memory is reserved than they can fill."""

import io
import os
import pickle
from collections.abc import Iterator
from pickletools import OpcodeInfo, genops, markobject
from typing import IO, Any

MAX_READ_BYTES = 1 << 30  # more than any image has; a server that lies about a size could send for ever
MAX_TUPLE_DEPTH = 100  # of a pickle
MAX_VALUES_AGAIN = 1_000_000  # in the tuples that a pickle refers to, as often as it does
PLAIN = (1, 0)


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


def operations(pickled: IO[bytes] | bytes) -> Iterator[tuple[OpcodeInfo, Any, int]]:
    """(operation, argument, place) of a pickle, as `pickletools.genops` reads them without executing any.

    pickle.UnpicklingError for tuples that are large by reference, or too deep in each other. A hundred bytes can double
    one thirty times, and 2 MB put a million into each other; as the key of a dict, the one would be hashed for hours,
    and the other, deeper than the C stack, end the process.
    """
    stack, memo, again = list[Any](), dict[Any, Any](), 0  # (values, depth) of objects; only tuples have a depth
    for operation, argument, place in genops(pickled):
        name = operation.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1] if stack else PLAIN
        elif name in ("GET", "BINGET", "LONG_BINGET", "DUP"):
            stack.append((stack or [PLAIN])[-1] if name == "DUP" else memo.get(argument, PLAIN))
            again += stack[-1][0] if stack[-1] not in (PLAIN, markobject) else 0
        else:
            taken = _taken(operation, stack)
            made = PLAIN
            if name.startswith("TUPLE"):
                made = 1 + sum(values for values, _ in taken), 1 + max((depth for _, depth in taken), default=0)
            stack += [markobject if kind is markobject else made for kind in operation.stack_after]
            if made[1] > MAX_TUPLE_DEPTH:
                raise pickle.UnpicklingError(f"it holds more than {MAX_TUPLE_DEPTH} tuples nested in each other")
        if again > MAX_VALUES_AGAIN:
            raise pickle.UnpicklingError("it refers to the same tuples again and again")
        yield operation, argument, place or 0


def _taken(operation: OpcodeInfo, stack: list[Any]) -> list[tuple[int, int]]:
    """Entries that an operation takes from the stack, less the mark."""
    before = operation.stack_before
    at = len(stack) - len(before)
    if markobject in before:
        mark = next((i for i in reversed(range(len(stack))) if stack[i] is markobject), 0)
        at = mark - before.index(markobject)
    taken = [value for value in stack[max(at, 0) :] if value is not markobject]
    del stack[max(at, 0) :]
    return taken

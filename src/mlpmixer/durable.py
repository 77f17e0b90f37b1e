"""Files that are written whole and outlive a crash, and JSON that says what is wrong with it."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlpmixer.config import parse_json

MAX_ITEMS = 4_000_000  # a summary has the confusion of 1,000 classes on validation images and on test images


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write within, which then takes the place of `path`: a crash at any moment leaves the old file or the
    whole new one, on the disk. Its mode is what the umask makes of 0666, whatever library writes it.

    Errors: OSError when the disk is full or read-only.
    """
    writer = f"{os.getpid()}.{threading.get_native_id()}"  # processes and threads may fill one cache
    part = path.with_name(f".{path.name}.{writer}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        part.touch()
        mode = part.stat().st_mode & 0o777
        yield part
        part.chmod(mode)
        with open(part, "rb") as f:
            os.fsync(f.fileno())
        os.replace(part, path)
        if os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as e:
        raise OSError(f"cannot write {path}: {e}") from e
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 as `replacing` does."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `replacing` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. FileNotFoundError when there is none, ValueError, which names it, when it is
    damaged."""
    try:
        value = parse_json(path.read_bytes(), MAX_ITEMS)
    except ValueError as e:
        raise ValueError(f"{path} is damaged: {e}") from e
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, got {type(value).__name__}")
    return value

"""What computes an exported model: one file for each engine, one table of them. An engine is imported when it opens a
file.

`exported.open_export` opens a file with one of them; another engine is another entry of ENGINES.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mlpmixer.hardware import cores
from mlpmixer.inference.engines import onnxruntime, openvino, torch
from mlpmixer.inference.engines.session import Precision, Runtime, Session, Value
from mlpmixer.registry import Registry

__all__ = [
    "ENGINES",
    "SUFFIXES",
    "Engine",
    "Precision",
    "Runtime",
    "Session",
    "Value",
    "engines_for",
    "installed",
    "open_session",
    "threads_each",
]


@dataclass(frozen=True)
class Engine:
    """A library that computes graphs on the CPU."""

    suffixes: tuple[str, ...]
    """Of the files it opens."""
    precisions: tuple[Precision, ...]
    package: str
    """What pip installs it by."""
    open: Callable[[Path, Precision, int, int], Session]
    """A file that exists, a precision of these, streams, threads of each (0: as it chooses). ValueError for what is
    known to go wrong; whatever else is raised is the engine's word that it cannot open the file."""


ENGINES: Registry[Engine] = Registry("engine")
"""Of several that open a file, the first one does where none is named."""
ENGINES["onnxruntime"] = Engine((".onnx",), ("float32",), "mlpmixer[onnx]", onnxruntime.open_file)
ENGINES["openvino"] = Engine((".xml", ".onnx"), ("float32", "bfloat16"), "mlpmixer[openvino]", openvino.open_file)
ENGINES["torch"] = Engine((".pt2",), ("float32", "bfloat16"), "torch", torch.open_file)

SUFFIXES = tuple(dict.fromkeys(suffix for engine in ENGINES.values() for suffix in engine.suffixes))


def engines_for(file: Path) -> list[str]:
    """Those that open such files, the one first that does where none is named."""
    return [name for name, engine in ENGINES.items() if file.suffix in engine.suffixes]


def installed(name: str) -> str | None:
    """The version of the engine that is installed, "" where it is not known; None: it is not. Imports no engine."""
    from importlib import metadata  # itself slow to import

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
    try:
        return "" if find_spec(name) else None
    except ModuleNotFoundError:
        return None


def open_session(
    file: Path, engine: str | None, precision: Precision, streams: int, threads: int
) -> tuple[Session, Runtime]:
    """The graph in a file that exists, in `engine`; None: in the one that is there for such files. threads: as of
    `threads_each`.

    Errors: ValueError for an unknown engine, one that does not open such files or compute so, one that is not
    installed, and for a file that it cannot open.
    """
    able = engines_for(file)
    if not able:
        raise ValueError(f"{file} is no file that an engine opens: expected {', '.join(SUFFIXES)}")
    name = engine or able[0]
    chosen = ENGINES[name]
    if name not in able:
        raise ValueError(f"{name} does not compute {file.suffix} files such as {file}; {' and '.join(able)} can")
    if precision not in chosen.precisions:
        others = [other for other, e in ENGINES.items() if precision in e.precisions]
        known = f"; {' and '.join(others)} can, each of its own files" if others else ""
        raise ValueError(f"{name} computes in {' or '.join(chosen.precisions)}, not in {precision}{known}")
    threads = threads_each(streams, threads)
    try:
        session = chosen.open(file, precision, streams, threads)
    except ValueError:
        raise
    except ModuleNotFoundError as e:
        lacking = (
            f'{file} is computed by {name}, which is not installed (no {e.name} here): pip install "{chosen.package}"'
        )
        raise ValueError(lacking) from None
    except Exception as e:  # the engines' own errors have no common class
        raise ValueError(f"{name} cannot open {file}: {reason(e)}") from e
    return session, Runtime(engine=name, version=session.version, precision=precision, threads=threads, streams=streams)


def threads_each(streams: int, threads: int) -> int:
    """Of each of several streams: `threads`, or with 0 their share of the cores; of one with 0 what the engine chooses,
    0.

    Errors: ValueError for numbers that cannot be.
    """
    if streams < 1:
        raise ValueError(f"streams must be at least 1, got {streams}")
    require_threads(threads)
    return threads or (math.ceil(cores() / streams) if streams > 1 else 0)


def require_threads(threads: int) -> None:
    if threads < 0:
        raise ValueError(f"threads must be at least 0 (as many as the engine chooses), got {threads}")


def reason(error: Exception) -> str:
    """Of several lines, the last one: what comes before are places in the engine's source."""
    return str(error).strip().split("\n")[-1].strip() or type(error).__name__

"""The engines that compute a model, one file each and one table. Their libraries are imported when a file is opened."""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.images import Pixels
from mlpmixer.hardware import cores
from mlpmixer.inference.engines import compiled, onnxruntime, openvino, torch
from mlpmixer.inference.engines.session import Precision, Runtime, Session
from mlpmixer.registry import Registry, shortened

__all__ = [
    "ENGINES",
    "MODEL_SUFFIX",
    "SUFFIXES",
    "Precision",
    "Runtime",
    "Session",
    "engines_for",
    "open_session",
    "threads_each",
]


@dataclass(frozen=True)
class Engine:
    """A library that runs graphs on the CPU."""

    suffixes: tuple[str, ...]
    """Suffixes of the files it opens."""
    precisions: tuple[Precision, ...]
    package: str
    """Its name for pip."""
    open: Callable[[Path, Precision, int, int], Session]
    """(file, precision, streams, threads of each; 0: its default). ValueError for a known mistake; any other exception
    means that the library cannot open the file."""


MODEL_SUFFIX = ".safetensors"
ENGINES: Registry[Engine] = Registry("engine")
"""The first one that opens a file is its default."""
ENGINES["onnxruntime"] = Engine((".onnx",), ("float32",), "mlpmixer[onnx]", onnxruntime.open_file)
ENGINES["openvino"] = Engine((".xml", ".onnx"), ("float32", "bfloat16"), "mlpmixer[openvino]", openvino.open_file)
ENGINES["torch"] = Engine((".pt2",), ("float32", "bfloat16"), "torch", torch.open_file)
ENGINES["compiled"] = Engine((MODEL_SUFFIX,), ("float32",), "mlpmixer", compiled.open_file)

SUFFIXES = tuple(dict.fromkeys(s for engine in ENGINES.values() for s in engine.suffixes if s != MODEL_SUFFIX))
"""Suffixes of exports. A run's model file is none: its network is torch's, unless it is asked to do without."""


def engines_for(file: Path) -> list[str]:
    """The engines that open such files, the default first."""
    return [name for name, engine in ENGINES.items() if file.suffix in engine.suffixes]


def open_session(
    file: Path, engine: str | None, precision: Precision, streams: int, threads: int
) -> tuple[Session, Runtime]:
    """The graph in `file`, ready to run.

    engine: None for the default of such files. threads: see `threads_each`.

    Its `compute` takes any number of images, also where the graph has a fixed batch: the last one is filled up.

    Errors: ValueError for a file that is missing or cannot be opened, and for an engine that is unknown, not installed,
    or not for such files or this precision. ValueError, too, from `compute`.
    """
    able = engines_for(file)
    if not able:
        raise ValueError(f"no engine opens {file}: expected a file that ends in {', '.join(SUFFIXES)}")
    name = engine or able[0]
    chosen = ENGINES[name]
    if name not in able:
        raise ValueError(f"{name} does not open {file.suffix} files such as {file}; {' and '.join(able)} can")
    if precision not in chosen.precisions:
        others = [other for other, e in ENGINES.items() if precision in e.precisions]
        known = f"; {' and '.join(others)} can, each its own files" if others else ""
        raise ValueError(f"{name} computes in {' or '.join(chosen.precisions)}, not in {precision}{known}")
    threads = threads_each(streams, threads)
    require_file(file)
    try:
        session = chosen.open(file, precision, streams, threads)
    except ValueError as e:
        if isinstance(e, UnicodeError):
            raise ValueError(f"{name} cannot open {file}: {reason(e)}") from e
        raise
    except ModuleNotFoundError as e:
        raise ValueError(
            f'{file} needs {name}, which is not installed (no {e.name} here): pip install "{chosen.package}"'
        ) from None
    except Exception as e:  # the engines' own errors have no common class
        raise ValueError(f"{name} cannot open {file}: {reason(e)}") from e

    def compute(images: Pixels, outputs: Sequence[str]) -> list[NDArray[Any]]:
        try:
            return _in_batches(session, images, outputs)
        except Exception as e:
            raise ValueError(f"{name} cannot compute {file} for images of shape {images.shape}: {reason(e)}") from e

    runtime = Runtime(engine=name, version=session.version, precision=precision, threads=threads, streams=streams)
    return replace(session, compute=compute), runtime


def _in_batches(session: Session, images: Pixels, outputs: Sequence[str]) -> list[NDArray[Any]]:
    """A fixed batch is filled up with zeros, and their answers are dropped."""
    batch = session.batch
    if batch is None:
        return session.compute(images, outputs)
    parts = []
    for start in range(0, max(len(images), 1), batch):
        part = images[start : start + batch]
        padding = np.zeros((batch - len(part), *images.shape[1:]), images.dtype)
        parts.append([a[: len(part)] for a in session.compute(np.concatenate([part, padding]), outputs)])
    return [np.concatenate(answers) for answers in zip(*parts, strict=True)]


def require_file(path: Path) -> None:
    """Raise ValueError, with the nearest name, unless there is a file."""
    if not path.is_file():
        close = difflib.get_close_matches(str(path), map(str, path.parent.glob(f"*{path.suffix}")), 1)
        raise ValueError(f"{path} does not exist: expected a file" + (f"; did you mean {close[0]}?" if close else ""))


MOST_THREADS = 1024


def threads_each(streams: int, threads: int) -> int:
    """The number of threads of each stream: `threads`, or for 0 an equal share of the cores.

    0 stays 0, the engine's default, for one stream. A stream is a call that computes while others do.

    Errors: ValueError for numbers out of range.
    """
    if streams < 1:
        raise ValueError(f"streams must be at least 1, got {streams}")
    if threads < 0:
        raise ValueError(f"threads must be at least 0 (the engine's default), got {threads}")
    if max(streams, threads) > MOST_THREADS:
        raise ValueError(f"at most {MOST_THREADS:,} threads and streams, got {max(streams, threads):,}")
    return threads or (math.ceil(cores() / streams) if streams > 1 else 0)


def reason(error: Exception) -> str:
    """The first line of a message that is not a place in the engine's source, which ends with a colon."""
    lines = (line.strip() for line in str(error).splitlines())
    return shortened(next((line for line in lines if line and not line.endswith(":")), type(error).__name__))

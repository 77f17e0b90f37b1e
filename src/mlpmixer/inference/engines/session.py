"""A session: a graph that is ready to run, made by an engine from a file. Imports no engine."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from mlpmixer.data.images import Pixels

Precision = Literal["float32", "bfloat16"]
KEY = "mlpmixer"  # of the metadata in an exported file


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The engine that runs a model, and its settings."""

    engine: str
    version: str
    precision: Precision
    """Precision of the layers that are not in int8."""
    threads: int
    """Threads of each stream; 0: the engine's default."""
    streams: int = 1
    """Calls that compute at the same time."""
    int8: bool = False
    """Whether there are layers in int8."""
    kernels: str = ""
    """compiled: those of `models.kernels`, in torch on a CPU; empty: the engine's own operations."""

    @property
    def precision_label(self) -> str:
        """The precision in words, with int8 where there are such layers."""
        return f"int8 and {self.precision}" if self.int8 else self.precision

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        count = f", {self.streams} streams of {threads}" if self.streams > 1 else f", {threads}" if threads else ""
        kernels = f" with {self.kernels} kernels" if self.kernels else ""
        return f"{self.engine} {self.version}{kernels} in {self.precision_label}{count}"


@dataclass(frozen=True)
class Value:
    """An input or output of a graph."""

    name: str
    dtype: str
    """numpy's name."""
    shape: tuple[int | None, ...]
    """None: any number."""

    def __str__(self) -> str:
        return f"{self.name!r}, {self.dtype} ({', '.join('any' if n is None else str(n) for n in self.shape)})"


@dataclass(frozen=True, kw_only=True)
class Session:
    """One graph in one engine."""

    version: str
    """Version of the engine."""
    metadata: str | None
    """The text stored in the file under KEY."""
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    compute: Callable[[Pixels, Sequence[str]], list[NDArray[Any]]]
    """The first input -> the outputs of these names. Several threads may call it; as many compute at the same time as
    there are streams."""
    weights: Path | None = None
    """A file beside it, which it cannot do without."""

    @property
    def batch(self) -> int | None:
        """Images that the graph takes at a time; None: any number."""
        return self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else None


@contextmanager
def log_level(name: str, level: int) -> Iterator[None]:
    """Let a library's logger pass nothing below `level` for a while."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)

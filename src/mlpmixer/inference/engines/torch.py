"""torch on the CPU: .pt2 files, written by torch.export. Opening one runs the code in it, as with a pickle."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.images import Pixels
from mlpmixer.inference.engines.session import KEY, Precision, Session, Value, log_level

METADATA = f"{KEY}.json"  # an extra file in a .pt2


def open_file(file: Path, precision: Precision, streams: int, threads: int) -> Session:
    """A session of the graph in a .pt2, whose calls share torch's threads."""
    import torch

    limit_threads(streams, threads)
    extra = {METADATA: ""}
    with log_level("torch.export", logging.CRITICAL):  # errors are raised as well
        program = torch.export.load(file, extra_files=extra)
    module = program.module()
    signature = program.graph_signature
    known = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    names = program.call_spec.out_spec.context if program.call_spec.out_spec else None
    if not isinstance(names, list) or len(names) != len(signature.user_outputs):  # outputs without names: not ours
        names = [str(name) for name in signature.user_outputs]

    def compute(images: Pixels, outputs: Sequence[str]) -> list[NDArray[Any]]:
        with torch.inference_mode(), computing("cpu", precision, threads):
            answers = module(torch.from_numpy(np.require(images, requirements="W")))  # a copy of what is read-only
        return [(a.float() if a.is_floating_point() else a).numpy() for a in (answers[name] for name in outputs)]

    return Session(
        version=torch.__version__,
        metadata=extra[METADATA] or None,
        inputs=tuple(_value(str(name), known.get(name)) for name in signature.user_inputs),
        outputs=tuple(_value(name, known.get(node)) for name, node in zip(names, signature.user_outputs, strict=True)),
        compute=compute,
    )


_threads = threading.Lock()


def limit_threads(streams: int, threads: int) -> None:
    """Let torch use the threads of one stream from now on, in the whole process, if there are several streams."""
    import torch

    if streams > 1:
        torch.set_num_threads(threads)


@contextmanager
def computing(device: str, precision: Precision, threads: int) -> Iterator[None]:
    """A context for torch's operations: in `precision` (bfloat16 is autocast), on so many threads of the process (0:
    unchanged)."""
    import torch

    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        if threads in (0, torch.get_num_threads()):
            yield
            return
        with _threads:
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                yield
            finally:
                torch.set_num_threads(before)


@contextmanager
def evaluating(network: Any) -> Iterator[None]:
    """A context in which a network is in evaluation mode; each of its modules then is in the mode it was in."""
    if training := [module for module in network.modules() if module.training]:
        network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _value(name: str, value: Any) -> Value:
    """`value`: a tensor without data; its free sizes are symbols."""
    shape = tuple(n if isinstance(n, int) else None for n in getattr(value, "shape", ()))
    return Value(name, str(getattr(value, "dtype", "")).removeprefix("torch."), shape)

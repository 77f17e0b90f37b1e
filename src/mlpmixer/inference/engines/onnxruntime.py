"""onnxruntime: .onnx files."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mlpmixer.data.images import Pixels
from mlpmixer.inference import onnx_model
from mlpmixer.inference.engines.session import Precision, Session, Value


def open_file(file: Path, precision: Precision, streams: int, threads: int) -> Session:
    """It has as many streams as there are callers: each computes itself, and all share the other threads of the
    session."""
    others = streams * (threads - 1)
    session = onnx_model.open_session(os.fspath(file), others + 1 if threads else 0)
    import onnxruntime

    inputs = tuple(map(_value, session.get_inputs()))

    def compute(images: Pixels, outputs: Sequence[str]) -> list[NDArray[Any]]:
        answers: list[NDArray[Any]] = session.run(list(outputs), {inputs[0].name: images})
        return answers

    return Session(
        version=onnxruntime.__version__,
        metadata=session.get_modelmeta().custom_metadata_map.get(onnx_model.KEY),
        inputs=inputs,
        outputs=tuple(map(_value, session.get_outputs())),
        compute=compute,
    )


def _value(of: Any) -> Value:
    kind = re.sub(r"tensor\((\w+)\)", r"\1", of.type)
    shape = tuple(n if isinstance(n, int) else None for n in of.shape)  # None or a name where it takes any
    return Value(of.name, {"float": "float32", "double": "float64"}.get(kind, kind), shape)

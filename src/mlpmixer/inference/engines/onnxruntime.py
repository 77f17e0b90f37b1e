"""onnxruntime on the CPU: .onnx files."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mlpmixer.data.images import Pixels
from mlpmixer.inference.engines.session import KEY, Precision, Session, Value


def open_file(file: Path, precision: Precision, streams: int, threads: int) -> Session:
    """A session in which each caller computes on its own thread, and all share the other threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = streams * (threads - 1) + 1 if threads else 0
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # errors are raised as well
    # threads that wait do not spin: others, such as a student that learns from this graph, compute on the same cores
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs = tuple(map(_value, session.get_inputs()))

    def compute(images: Pixels, outputs: Sequence[str]) -> list[NDArray[Any]]:
        answers: list[NDArray[Any]] = session.run(list(outputs), {inputs[0].name: images})
        return answers

    return Session(
        version=onnxruntime.__version__,
        metadata=session.get_modelmeta().custom_metadata_map.get(KEY),
        inputs=inputs,
        outputs=tuple(map(_value, session.get_outputs())),
        compute=compute,
    )


def _value(value: Any) -> Value:
    kind = re.sub(r"tensor\((\w+)\)", r"\1", value.type)
    shape = tuple(n if isinstance(n, int) else None for n in value.shape)  # None or a name: any size
    return Value(value.name, {"float": "float32", "double": "float64"}.get(kind, kind), shape)

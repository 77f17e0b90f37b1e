"""OpenVINO on the CPU: .xml files, with their weights in a .bin beside them, and .onnx files."""

import sys
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from numpy.typing import NDArray

from mlpmixer.data.images import Pixels
from mlpmixer.inference.engines.session import KEY, Precision, Session, Value

PLACE = ("framework", KEY)  # in rt_info, where OpenVINO keeps the metadata_props of an ONNX file
HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}


def open_file(file: Path, precision: Precision, streams: int, threads: int) -> Session:
    """A session in which as many calls as there are streams compute at the same time.

    Errors: ValueError for an .xml without weights or of another kind, and for bfloat16 on a processor without it.
    """
    weights = file.with_suffix(".bin") if file.suffix == ".xml" else None
    if weights:
        with open(file, "rb") as f:
            if b"<net" not in f.read(1000):  # OpenVINO would try all its readers, and they print their errors
                raise ValueError(f"{file} is not a model of OpenVINO: expected an .xml that begins with <net")
        if not weights.is_file():
            raise ValueError(f"{weights} does not exist: an .xml needs its weights, in the .bin of the same name")
    openvino = import_openvino()
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # overwriting the file later must not change what was read from it
    model = core.read_model(file)
    # its default is bfloat16 on processors that have it; on others it ignores the hint
    if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("this processor has no bfloat16 for OpenVINO: use float32")
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS[precision]}
    if streams > 1:
        config["NUM_STREAMS"] = streams
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads * streams
    compiled = core.compile_model(model, "CPU", config)
    requests = SimpleQueue[Any]()
    for _ in range(streams):
        requests.put(compiled.create_infer_request())

    def compute(images: Pixels, outputs: Sequence[str]) -> list[NDArray[Any]]:
        request = requests.get()  # each computes one call at a time
        try:
            request.infer([images], share_outputs=True)
            return [request.get_tensor(name).data.copy() for name in outputs]
        finally:
            requests.put(request)

    return Session(
        version=openvino.__version__.split("-")[0],
        metadata=model.get_rt_info(list(PLACE)).astype(str) if model.has_rt_info(list(PLACE)) else None,
        inputs=tuple(value for port in model.inputs for value in _values(port)),
        outputs=tuple(value for port in model.outputs for value in _values(port)),
        compute=compute,
        weights=weights,
    )


def import_openvino() -> Any:
    """Import openvino without its telemetry, which reports each import over the network and stores an id in the user's
    home."""
    telemetry = "openvino_telemetry"
    absent = telemetry not in sys.modules
    if absent:
        sys.modules[telemetry] = None  # type: ignore[assignment]  # it falls back to a stub of its own
    try:
        import openvino
    finally:
        if absent:
            del sys.modules[telemetry]
    return openvino


def _values(port: Any) -> list[Value]:
    """A tensor may have several names, or none."""
    shape = port.partial_shape
    sizes = tuple(None if n.is_dynamic else n.get_length() for n in shape) if shape.rank.is_static else ()
    return [Value(name, port.element_type.to_dtype().name, sizes) for name in sorted(port.get_names()) or [""]]

"""A classifier in an ONNX file, computed by onnxruntime on the CPU. Needs the extra `onnx`; imports no torch.

B images, K classes.
"""

import difflib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.config import from_json
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.weights.model_file import FORMAT

if TYPE_CHECKING:
    import onnx

# the key of metadata_props; the value is the JSON of a model file's header, of which two entries are read here
KEY = "mlpmixer"
FORWARDING = (
    "Identity",
    "Cast",
    "Reshape",
    "Flatten",
    "Squeeze",
    "QuantizeLinear",
    "DequantizeLinear",
)  # probabilities stay what they are
NO_LOGITS = ("Sigmoid", "HardSigmoid", "ArgMax", "TopK", "Hardmax")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Metadata:
    """What a file says of itself: the classes of its outputs, and what its images are."""

    classes: tuple[str, ...]
    preprocess: Preprocess


@dataclass(frozen=True)
class OnnxModel:
    """Normalised images (B,C,H,W) -> logits (B,K), by `open_onnx`."""

    name: str
    input_shape: tuple[int | None, int | None, int | None, int | None]
    """(B,C,H,W); None where the graph takes any number."""
    num_classes: int | None
    """K; None where the file does not say it."""
    metadata: Metadata | None
    compute: Callable[[Floats], Floats]

    def __call__(self, images: Floats) -> Floats:
        """A graph of a fixed batch size computes the images in parts, the last one filled up with zeros. ValueError
        when it cannot."""
        size = self.input_shape[0] or len(images)
        answers = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            lacking = np.zeros((size - len(part), *images.shape[1:]), np.float32)
            answers.append(self.compute(np.concatenate([part, lacking]))[: len(part)])
        return np.concatenate(answers)


def open_onnx(path: str | os.PathLike[str], *, threads: int) -> OnnxModel:
    """The classifier in the file at `path`, with its weights beside it if it keeps them apart.

    Its input is one float32 tensor (B,C,H,W), its first output is taken for logits (B,K). Where that is the result of a
    Softmax node, its logarithm is taken. What it says of itself is read from `metadata_props["mlpmixer"]`: JSON as in
    the header of a model file, {"format": 1, "model": {"classes": [...], "preprocess": {...}}}.

    Errors: ValueError when the packages are not installed, and for a file that is missing, no ONNX, or no such
    classifier.
    """
    name = os.fspath(path)
    session = open_session(name, threads)
    try:
        import onnx
    except ModuleNotFoundError as e:
        raise ValueError(_lacking(name, e)) from None
    graph = onnx.load(name, load_external_data=False).graph

    takes, gives = session.get_inputs(), next(iter(session.get_outputs()), None)
    if len(takes) != 1 or takes[0].type != "tensor(float)" or len(takes[0].shape) != 4:
        raise ValueError(f"{name} takes {', '.join(map(_described, takes))}; expected one float32 input (B, C, H, W)")
    if (
        gives is None
        or gives.type not in ("tensor(float)", "tensor(float16)", "tensor(double)")
        or len(gives.shape) not in (0, 2)
    ):
        raise ValueError(
            f"the first output of {name} is {_described(gives) if gives else 'not there'}; expected logits (B, K)"
        )
    last = _last_node(graph, gives.name)
    if last in NO_LOGITS:
        raise ValueError(
            f"{name} ends in {last}: expected logits, or a Softmax over the classes; export the model without its last "
            f"layer"
        )

    def compute(images: Floats) -> Floats:
        try:
            answer: Floats = session.run([gives.name], {takes[0].name: images})[0].astype(np.float32)
        except Exception as e:
            raise ValueError(
                f"onnxruntime cannot compute {name} for images of shape {images.shape}: {_first_line(e)}"
            ) from e
        if answer.ndim != 2 or len(answer) != len(images) or num_classes not in (None, answer.shape[1]):
            raise ValueError(
                f"{name} answers {len(images)} images with shape {answer.shape}; expected logits (B, "
                f"{num_classes or 'K'})"
            )
        with np.errstate(divide="ignore"):  # log 0 = -inf: never
            return np.log(answer) if last == "Softmax" else answer

    batch, channels, height, width = (_number(n) for n in takes[0].shape)
    num_classes = _number(gives.shape[1]) if gives.shape else None
    metadata = _metadata(session.get_modelmeta().custom_metadata_map.get(KEY), name)
    if metadata is not None and num_classes not in (None, len(metadata.classes)):
        raise ValueError(f"{name} answers with {num_classes} classes, but its metadata name {len(metadata.classes)}")
    num_classes = len(metadata.classes) if metadata is not None else num_classes
    return OnnxModel(name, (batch, channels, height, width), num_classes, metadata, compute)


def copy_onnx(path: str | os.PathLike[str], to: Path, weights: str) -> None:
    """Write the model at `path` to the file `to`, with its weights in another one beside it of the name `weights`."""
    import onnx

    model = onnx.load(os.fspath(path))
    (to.parent / weights).unlink(missing_ok=True)  # onnx would append to it
    onnx.save_model(model, os.fspath(to), save_as_external_data=True, location=weights)


def open_session(name: str, threads: int) -> Any:
    """onnxruntime's session of the file, on the CPU. `threads`: 0 leaves their number to onnxruntime.

    Errors: ValueError when onnxruntime is not installed, and for a file that is missing or no ONNX.
    """
    require_file(Path(name))
    try:
        import onnxruntime
    except ModuleNotFoundError as e:
        raise ValueError(_lacking(name, e)) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what goes wrong is raised, too
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # others compute on the same cores, such as a student
    try:
        return onnxruntime.InferenceSession(name, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # the package's own errors have no common class
        raise ValueError(f"onnxruntime cannot open {name} as an ONNX file: {_first_line(e)}") from e


def require_file(path: Path) -> None:
    """ValueError, with the name that comes nearest, unless there is a file."""
    if not path.is_file():
        close = difflib.get_close_matches(str(path), map(str, path.parent.glob(f"*{path.suffix}")), 1)
        raise ValueError(f"{path} does not exist: expected a file" + (f"; did you mean {close[0]}?" if close else ""))


def _lacking(name: str, error: ModuleNotFoundError) -> str:
    return f'reading {name} needs onnx and onnxruntime (no {error.name} here): pip install "mlpmixer[onnx]"'


def _metadata(text: str | None, name: str) -> Metadata | None:
    if text is None:
        return None
    try:
        stored = json.loads(text)
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']!r}; this version reads format {FORMAT}")
        return from_json(Metadata, {field: stored["model"][field] for field in ("classes", "preprocess")})
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(
            f'the metadata {KEY!r} of {name} cannot be read ({type(e).__name__}: {e}); expected {{"format": {FORMAT}, "model": '
            '{"classes": [...], "preprocess": {...}}}'
        ) from e


def _last_node(graph: "onnx.GraphProto", output: str) -> str:
    """The kind of the node that computes this output, without those behind it that only pass on; "" for the input
    itself."""
    maker = {made: node for node in graph.node for made in node.output}
    while output in maker and maker[output].op_type in FORWARDING:
        output = maker[output].input[0]
    return str(maker[output].op_type) if output in maker else ""


def _number(size: Any) -> int | None:
    """Of a dimension: onnxruntime says None or a name where it takes any."""
    return size if isinstance(size, int) else None


def _described(value: Any) -> str:
    """An input or output: its name, type and shape."""
    return f"{value.name!r}, {value.type} ({', '.join(map(str, value.shape))})"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]

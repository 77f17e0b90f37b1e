"""A classifier of any origin in an ONNX file, such as a teacher. Needs the extra `onnx`; imports no torch.

B images, K classes.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlpmixer.config import from_json
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.split_record import SplitRecord
from mlpmixer.inference.engines import open_session
from mlpmixer.inference.engines.session import KEY, Session
from mlpmixer.inference.exported import parse_metadata
from mlpmixer.registry import shortened
from mlpmixer.weights.model_file import FORMAT

if TYPE_CHECKING:
    import onnx

FORWARDING = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "QuantizeLinear", "DequantizeLinear")
"""Nodes that leave probabilities as they are."""
NO_LOGITS = ("Sigmoid", "HardSigmoid", "ArgMax", "TopK", "Hardmax")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Metadata:
    """The classes of the outputs and the preprocessing of the inputs, as the file states them."""

    classes: tuple[str, ...]
    preprocess: Preprocess
    splits: SplitRecord | None = None
    """Which images it was trained on; None where the file does not say."""


@dataclass(frozen=True)
class OnnxModel:
    """Normalised images (B,C,H,W) -> logits (B,K), by `open_onnx`."""

    name: str
    input_shape: tuple[int | None, ...]
    """(B,C,H,W); None where the graph takes any number."""
    num_classes: int | None
    """K; None where the file does not say."""
    metadata: Metadata | None
    session: Session
    ends_in_softmax: bool
    """Its logarithm is taken for the logits."""

    def __call__(self, images: Floats) -> Floats:
        """Errors: ValueError when the graph cannot take the images, or answers with another shape."""
        [answer] = self.session.compute(images, [self.session.outputs[0].name])
        if answer.ndim != 2 or len(answer) != len(images) or self.num_classes not in (None, answer.shape[1]):
            expected = f"logits (B, {self.num_classes or 'K'})"
            raise ValueError(f"{self.name} answers {len(images)} images with shape {answer.shape}; expected {expected}")
        logits: Floats = answer.astype(np.float32)
        if self.ends_in_softmax:
            with np.errstate(divide="ignore", invalid="ignore"):  # log 0 = -inf: never
                logits = np.log(logits)
        if not has_answers(logits):
            raise ValueError(
                f"{self.name} answers with NaN or infinity: its weights are broken, or it needs other images"
            )
        return logits


def has_answers(logits: Floats) -> bool:
    """Whether each row of logits (B,K) has a largest one that float32 can hold, so that its softmax is a distribution.

    Others may be -inf: never.
    """
    return bool((np.abs(logits.max(axis=1, initial=-np.inf)) <= np.finfo(np.float32).max).all())


def open_onnx(path: str | os.PathLike[str], *, threads: int) -> OnnxModel:
    """The classifier in the file at `path`, in onnxruntime; threads: 0 leaves their number to it.

    Its input is one float32 tensor (B,C,H,W), its first output is taken for logits (B,K). Its metadata are read from
    `metadata_props["mlpmixer"]`: JSON as in the header of a model file, {"format": 1, "model": {"classes": [...],
    "preprocess": {...}}}, where "splits" may stand, too.

    Errors: ValueError when a package is not installed, and for a file that is missing, damaged, or not such a
    classifier.
    """
    name = os.fspath(path)
    session, _ = open_session(Path(name), "onnxruntime", "float32", 1, threads)
    try:
        import onnx
    except ModuleNotFoundError as e:
        raise ValueError(
            f'{name} needs onnx, which is not installed (no {e.name} here): pip install "mlpmixer[onnx]"'
        ) from None
    inputs, output = session.inputs, next(iter(session.outputs), None)
    if len(inputs) != 1 or inputs[0].dtype != "float32" or len(inputs[0].shape) != 4:
        raise ValueError(f"{name} takes {', '.join(map(str, inputs))}; expected one float32 input (B, C, H, W)")
    if output is None or output.dtype not in ("float16", "float32", "float64") or len(output.shape) not in (0, 2):
        raise ValueError(f"the first output of {name} is {output or 'missing'}; expected logits (B, K)")
    last = _last_node(onnx.load(name, load_external_data=False).graph, output.name)
    if last in NO_LOGITS:
        raise ValueError(
            f"{name} ends in {last}; expected logits, or a Softmax over the classes: export the model without its last "
            "layer"
        )
    num_classes = output.shape[1] if output.shape else None
    metadata = _metadata(session.metadata, name)
    if metadata is not None:
        if num_classes not in (None, len(metadata.classes)):
            raise ValueError(f"{name} has {num_classes} classes, but its metadata name {len(metadata.classes)}")
        num_classes = len(metadata.classes)
    return OnnxModel(name, inputs[0].shape, num_classes, metadata, session, last == "Softmax")


def copy_onnx(path: str | os.PathLike[str], to: Path, weights: str) -> None:
    """Write the model at `path` to the file `to`, and its weights to a file `weights` in the same folder."""
    import onnx

    model = onnx.load(os.fspath(path))
    (to.parent / weights).unlink(missing_ok=True)  # onnx would append to it
    onnx.save_model(model, os.fspath(to), save_as_external_data=True, location=weights)


def _metadata(text: str | None, name: str) -> Metadata | None:
    if text is None:
        return None
    try:
        stored = parse_metadata(text)["model"]
        fields = {field: stored[field] for field in ("classes", "preprocess")}
        return from_json(Metadata, fields | {"splits": stored.get("splits")})
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(
            f"the metadata {KEY!r} of {name} cannot be read ({type(e).__name__}: {shortened(e)}); expected "
            f'{{"format": {FORMAT}, "model": {{"classes": [...], "preprocess": {{...}}}}}}'
        ) from e


def _last_node(graph: "onnx.GraphProto", output: str) -> str:
    """The kind of the node that computes this output, before those that only pass it on; "" for the input itself."""
    maker = {made: node for node in graph.node for made in node.output}
    while output in maker and maker[output].op_type in FORWARDING:
        output = maker[output].input[0]
    return str(maker[output].op_type) if output in maker else ""

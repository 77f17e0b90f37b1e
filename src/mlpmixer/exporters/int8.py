"""Exports whose matrix products compute in 8-bit integers: calibrated on training images, judged on validation images.

Weights are s8, with a scale for each output, and at most 64 in size: processors without VNNI add two products in 16
bits, where 2 * 255 * 127 overflows silently. The input of a layer is u8, in a range that is fixed when the export is
made ("static"), so that an answer does not depend on the other images of its batch. Products are summed in 32 bits;
biases, GELU, layer norms, residual additions and preprocessing stay float32. The form is ONNX's own, QuantizeLinear and
DequantizeLinear before a MatMul or a Gemm, which runtimes turn into integer products.

N images of H x W pixels with C channels, K classes.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import Pixels
from mlpmixer.data.streaming.datasets import StreamedSplits
from mlpmixer.evaluation.data import Opened
from mlpmixer.evaluation.evaluate import evaluate, match_classes
from mlpmixer.evaluation.metrics import Metrics
from mlpmixer.evaluation.trained_on import unseen
from mlpmixer.exporters.check import ExportMismatch
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.exported import INPUT, open_export
from mlpmixer.inference.exported_classifier import Exported
from mlpmixer.inference.files import map_images
from mlpmixer.inference.measure import sample_images, time_calls

if TYPE_CHECKING:
    import onnx

MAX_LOSS = 0.005  # of top-1 on validation images
CALIBRATION = 256  # training images that fix the ranges
RANKING = 64  # of them, to rank the layers on
VALIDATION = 5000  # images, at most
BATCH = 32  # where a graph takes any number
SPEED_BATCH, SPEED_TURNS = 4, 15  # images at a time; turns of measure.TURN_S
MIN_SPEEDUP = 1.1  # over float32; less is not worth another model
KINDS = ["MatMul", "Gemm"]


@dataclass(frozen=True, kw_only=True)
class CalibrationImages:
    """Images to calibrate and to judge with."""

    train: Pixels
    """(n, H, W, C), evenly spread over the training images."""
    val: ImageSet


@dataclass(frozen=True, kw_only=True)
class Int8:
    """The layers in int8, and their cost and gain. `_float`: of the same export in float32."""

    layers: int
    """Number of layers in int8."""
    float_layers: list[str]
    """Layers left in float32, the worst one first."""
    calibrated_on: int
    """Number of training images."""
    n: int
    """Number of validation images, of which `right` are classified correctly."""
    right: int
    right_float: int
    batch: int
    """Images at a time for `images_per_s`, per second of processor time on one thread."""
    images_per_s: float
    images_per_s_float: float
    num_bytes: int
    num_bytes_float: int

    @property
    def speed(self) -> float:
        """Relative to float32."""
        return self.images_per_s / self.images_per_s_float

    @property
    def pays(self) -> bool:
        """Whether it is faster by MIN_SPEEDUP."""
        return self.speed >= MIN_SPEEDUP


def images_for(classifier: Classifier, data: Opened) -> CalibrationImages:
    """Training and validation images of `data`, the same ones each time; none to judge with that the model was trained
    on.

    Errors: ValueError when it cannot be opened, has no such images, or other classes than the model.
    """
    try:
        splits = data.splits()
        match_classes(splits.val.classes, classifier.classes)
        val = unseen(classifier, data.data, splits.val)
    except ValueError as e:
        raise ValueError(
            f"int8 is calibrated on training images and judged on validation images of the model's classes: {e}"
        ) from e
    if isinstance(splits, StreamedSplits):
        from mlpmixer.training.stream import Stream  # which imports torch

        stream = Stream(splits.train, splits.labels, classifier.preprocess, data.data)
        train = stream.sample(min(CALIBRATION, len(stream)))
    else:
        _, train, _ = map_images(classifier, splits.train.spread(CALIBRATION), lambda pixels: pixels, BATCH)
    return CalibrationImages(train=train, val=val.spread(VALIDATION))


def quantise(file: Path, out: Path, given: CalibrationImages, *, engine: str | None = None) -> Int8:
    """Write the float export in `file` to `out`, with as many layers in int8 as validation images allow.

    All of them, if that costs at most MAX_LOSS of top-1. Otherwise each layer is tried alone, and those that change the
    answers to training images most return to float32 one by one, until the loss is small enough. engine: see
    `open_export`.

    Errors: ExportMismatch when no layer can be int8, ValueError for a graph without layers and when onnxruntime's tools
    cannot be imported.
    """
    with tempfile.TemporaryDirectory() as scratch:
        quantiser = Quantiser(file, Path(scratch), given.train, engine)
        before = _top1(file, given.val, engine)
        right_float, right = round(before.top1 * before.n), 0

        def good_enough(float_layers: Sequence[str]) -> bool:
            nonlocal right
            quantiser.write(out, [layer for layer in quantiser.layers if layer not in float_layers])
            after = _top1(out, given.val, engine)
            right = round(after.top1 * after.n)
            return right_float - right <= MAX_LOSS * before.n

        float_layers = choose(list(quantiser.layers), good_enough, quantiser.worst_first)
    batch, *speeds = images_per_s(file, out, engine=engine)
    return Int8(
        layers=len(quantiser.layers) - len(float_layers),
        float_layers=float_layers,
        calibrated_on=len(given.train),
        n=before.n,
        right=right,
        right_float=right_float,
        batch=batch,
        images_per_s=speeds[1],
        images_per_s_float=speeds[0],
        num_bytes=out.stat().st_size,
        num_bytes_float=file.stat().st_size,
    )


def _top1(file: Path, images: ImageSet, engine: str | None) -> Metrics:
    metrics = evaluate(Exported(open_export(file, engine=engine)), images)
    assert isinstance(metrics, Metrics)
    return metrics


def choose(
    layers: Sequence[str], good_enough: Callable[[Sequence[str]], bool], worst_first: Callable[[], list[str]]
) -> list[str]:
    """The fewest layers, in the order of `worst_first`, without which the others are good enough. ExportMismatch when
    none is left."""
    order: list[str] = []
    for n in range(len(layers)):
        if n == 1:
            order = worst_first()
        if good_enough(order[:n]):
            return order[:n]
    raise ExportMismatch(
        f"no layer of this model can be int8: even with only one of the {len(layers)}, top-1 on validation images "
        f"falls by more than {100 * MAX_LOSS:g} points. Nothing was written"
    )


class Quantiser:
    """Writes a float export with any choice of layers in int8.

    scratch: a folder for intermediate files. images: (n, H, W, C), to calibrate on. engine: to rank layers with.
    """

    layers: dict[str, list[str]]
    """The network's name of a layer -> the nodes of the graph with its weights."""

    def __init__(self, file: Path, scratch: Path, images: Pixels, engine: str | None = None) -> None:
        import onnx

        self.file, self.scratch, self.images, self.engine = file, scratch, images, engine
        self.batch = open_export(file, engine=engine).batch
        model = onnx.load(str(file))
        layers = layers_of(model.graph)
        if not layers:
            raise ValueError("int8 needs matrix products with weights, and this network has none: leave int8 out")
        self.layers = {layer: [node.name for node in nodes] for layer, nodes in layers.items()}
        _keep_outputs(model.graph, list(chain.from_iterable(layers.values())))
        del model.graph.value_info[:]  # shapes from torch.onnx, which the quantiser's own would contradict
        props = {entry.key: entry.value for entry in model.metadata_props}
        done = {"onnx.quant.pre_process": "onnxruntime.quant"}  # the quantiser need not prepare it again
        onnx.helper.set_model_props(model, props | done)
        self.prepared = scratch / "prepared.onnx"
        onnx.save(model, str(self.prepared))

    def write(self, out: Path, layers: Sequence[str]) -> None:
        """A file with these layers in int8. The first call computes the ranges. ValueError without onnxruntime's
        tools."""
        try:
            from onnxruntime.quantization import QuantType, quantize_static
        except ModuleNotFoundError as e:
            raise ValueError(
                f'int8 needs onnx and onnxruntime with its tools (no {e.name} here): pip install "mlpmixer[onnx]"'
            ) from None
        with _own_log():
            quantize_static(
                self.prepared,
                out,
                SimpleNamespace(get_next=self._batches().__next__),
                calibration_cache_path=self.scratch / "ranges.json",
                nodes_to_quantize=[name for layer in layers for name in self.layers[layer]],
                op_types_to_quantize=KINDS,
                per_channel=True,
                reduce_range=True,  # weights of 7 bits
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"OpTypesToExcludeOutputQuantization": KINDS},
            )

    def _batches(self) -> Iterator[dict[str, Pixels] | None]:
        """Inputs of the graph, and None at the end. A fixed batch is filled up by repetition."""
        size = self.batch or BATCH
        for start in range(0, len(self.images), size):
            part = self.images[start : start + size]
            yield {INPUT: np.resize(part, (self.batch or len(part), *part.shape[1:]))}
        yield None

    def worst_first(self) -> list[str]:
        """Layers by how much the answers to some training images change when that layer alone is int8."""
        alone = self.scratch / "alone.onnx"

        def probabilities(file: Path) -> NDArray[np.float32]:
            chosen = np.linspace(0, len(self.images) - 1, min(RANKING, len(self.images))).round().astype(np.int64)
            return Exported(open_export(file, engine=self.engine)).probabilities(self.images[chosen])

        wanted = probabilities(self.file)
        moved: dict[str, float] = {}
        for layer in self.layers:
            self.write(alone, [layer])
            moved[layer] = float(np.abs(probabilities(alone) - wanted).mean())
        return sorted(moved, key=moved.__getitem__, reverse=True)


def layers_of(graph: "onnx.GraphProto") -> "dict[str, list[onnx.NodeProto]]":
    """The network's products with constant weights, by the name of their layer, which `targets.onnx` puts before their
    own. Products outside the network, to resize images and for evidence, are not among them."""
    weights = {value.name for value in graph.initializer}
    layers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        network, _, layer = node.name.rpartition("/")[0].partition(".")
        if network == "network" and node.op_type in KINDS and node.input[1] in weights:
            layers.setdefault(layer or network, []).append(node)
    return layers


def _keep_outputs(graph: "onnx.GraphProto", nodes: "Sequence[onnx.NodeProto]") -> None:
    """Give the input of a layer a name of its own where it is an output of the graph, such as the features, which must
    stay unrounded."""
    from onnx import helper

    outputs = {value.name for value in graph.output}
    for node in nodes:
        if (name := node.input[0]) in outputs:
            node.input[0] = f"{name}_of_{node.name}"
            at = next(i for i, other in enumerate(graph.node) if other.name == node.name)
            graph.node.insert(at, helper.make_node("Identity", [name], [node.input[0]], f"{node.name}_keep"))


@contextmanager
def _own_log() -> Iterator[None]:
    """Keep the quantiser, which logs to the root logger, from setting that up for the whole process."""
    nowhere = logging.NullHandler()
    logging.root.addHandler(nowhere)
    try:
        yield
    finally:
        logging.root.removeHandler(nowhere)


def images_per_s(*files: Path, engine: str | None = None, batch: int = SPEED_BATCH) -> tuple[int, *tuple[float, ...]]:
    """The batch size, and images/s of each file on one thread, from pixels to probabilities.

    batch: images at a time, where the graph takes any number.

    The files take turns, and processor time counts, so that other work on the machine favours neither.
    """
    exports = [open_export(file, engine=engine, threads=1) for file in files]
    classifiers, batch = [Exported(export) for export in exports], exports[0].batch or batch
    images, times = sample_images(exports[0].meta.preprocess, batch), [list[float]() for _ in files]
    for classifier in classifiers:
        classifier.probabilities(images)  # the first call allocates
    for _ in range(SPEED_TURNS):
        for classifier, own in zip(classifiers, times, strict=True):
            own += time_calls(classifier, images, time.process_time)
    return batch, *(batch * len(own) / sum(own) for own in times)

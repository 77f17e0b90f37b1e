"""From images to class probabilities and features, with one object for every kind of model file.

B images of H x W pixels with C channels; K classes. A `Classifier` holds two functions, images -> logits (B,K) and
images -> pre_logits (B,hidden_dim); what runs behind them is no business of the code here. This module imports no
torch by itself: `load` does, when it is asked for a run, and does not for what `mlpmixer export` wrote.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlpmixer.data.images import Pixels
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.engines import Precision, Runtime, threads_each
from mlpmixer.inference.exported import FEATURES, PROBABILITIES, Export, export_at, open_export
from mlpmixer.models.configs import Method

if TYPE_CHECKING:
    from mlpmixer.models.architecture import Build
    from mlpmixer.models.configs import Size
    from mlpmixer.models.mixer import Mixer
    from mlpmixer.weights.load import Report
    from mlpmixer.weights.model_file import ModelMeta

ImageLike = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
Floats = NDArray[np.float32]
Engine = Callable[[Floats], Floats]

CHUNK = 128  # images that go through the network at once; bounds memory, changes no result


@dataclass(frozen=True)
class Prediction:
    """One image's answer: the likeliest class, and the `top` classes with their probabilities, likeliest first."""

    name: str
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    features: Floats | None = field(default=None, compare=False, repr=False)
    """pre_logits (hidden_dim,), where they were asked for."""


@dataclass(frozen=True)
class Failure:
    """One source that gave no image, and why."""

    name: str
    reason: str


class Classifier:
    """A trained model that answers questions about images. Make one with `load`.

    classes: the K names, in the order of the model's outputs.
    preprocess: the one evaluation preprocessing, stored with the model.
    meta: configuration and provenance; None when the model file carries none.
    network: the torch `Mixer` (or what a `network=` has built), for runs only.
    runtime: what computes it; None when nobody said.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str],
        preprocess: Preprocess,
        logits: Engine,
        pre_logits: Engine,
        both: Callable[[Floats], tuple[Floats, Floats]] | None = None,
        multi_label: bool = False,
        meta: "ModelMeta | None" = None,
        network: "Mixer | None" = None,
        path: Path | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        """both: images -> (logits, pre_logits) in one pass of the network, where it has one."""
        self.classes = tuple(classes)
        self.preprocess = preprocess
        self.multi_label = multi_label
        self.meta = meta
        self.network = network
        self.path = path
        self.runtime = runtime
        self._logits = logits
        self._pre_logits = pre_logits
        self._both = both or (lambda images: (logits(images), pre_logits(images)))

    def probabilities(self, images: Pixels) -> Floats:
        """Images as `preprocess_image` gives them, stacked (B,H,W,C) -> (B,K) float32; rows sum to 1 (sigmoid models: each value
        on its own).

        Raises ValueError when type or shape is not the model's, or when the weights give NaN.
        """
        self._require_head()
        return self._activated(self._run(self._logits, images))

    def features(self, images: Pixels) -> Floats:
        """Images as `preprocess_image` gives them, stacked (B,H,W,C) -> pre_logits (B,hidden_dim) float32: what the head sees."""
        return self._run(self._pre_logits, images)

    def probabilities_and_features(self, images: Pixels) -> tuple[Floats, Floats]:
        """`probabilities` and `features` of the same images; a Mixer or an export computes both in one pass."""
        self._require_head()
        logits, features = self._run_all(self._both, images)
        return self._activated(logits), features

    def predict(self, images: ImageLike | Sequence[ImageLike], top_k: int = 5) -> list[Prediction]:
        """The `top_k` likeliest classes of each image, in order; one image gives a list of one.

        An image is a path, a PIL image, or a uint8 array (H,W) or (H,W,C); a (B,H,W,C) array is B images. Raises
        ImageError for an unreadable image and ValueError for an array of another kind; `predict_files` goes on instead.
        """
        several = isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)
        items: Sequence[Any] = images if several else [images]  # type: ignore[assignment]
        out: list[Prediction] = []
        for start in range(0, len(items), CHUNK):
            part = items[start : start + CHUNK]
            arrays = np.stack([self.preprocess_image(item) for item in part])
            names = [_name(item, start + i) for i, item in enumerate(part)]
            out += self.rank(names, arrays, top_k)
        return out

    def preprocess_image(self, image: ImageLike | bytes) -> Pixels:
        """One image as the network wants it: (H,W,C) of the model's size, of `preprocess.dtype`. ImageError when it
        cannot be read."""
        return self.preprocess.array(image)

    def rank(self, names: Sequence[str], images: Pixels, top_k: int, *, features: bool = False) -> list[Prediction]:
        """Predictions for images as `preprocess_image` gives them, stacked (B,H,W,C); with their `features` if asked for."""
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if not features:
            rows = zip(names, self.probabilities(images), strict=True)
            return [self.prediction(name, row, top_k) for name, row in rows]
        both = zip(names, *self.probabilities_and_features(images), strict=True)
        return [replace(self.prediction(name, row, top_k), features=vector) for name, row, vector in both]

    def prediction(self, name: str, probabilities: Floats, top_k: int) -> Prediction:
        """One row (K,) of `probabilities` as a Prediction."""
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        top = tuple((self.classes[k], float(probabilities[k])) for k in best)
        return Prediction(name, top[0][0], top[0][1], top)

    def _require_head(self) -> None:
        if not self.classes:
            raise ValueError("this model has no head (num_classes=0), so it gives no probabilities; ask for features()")

    def _activated(self, logits: Floats) -> Floats:
        """What the network ends in (B,K) -> probabilities (B,K)."""
        logits64 = logits.astype(np.float64)
        if self.multi_label:
            return np.exp(-np.logaddexp(0.0, -logits64)).astype(np.float32)
        exp = np.exp(logits64 - logits64.max(axis=1, keepdims=True))
        softmax: Floats = (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32)
        return softmax

    def _run(self, engine: Engine, images: Pixels) -> Floats:
        return self._run_all(lambda prepared: (engine(prepared),), images)[0]

    def _run_all(self, engine: Callable[[Floats], tuple[Floats, ...]], images: Pixels) -> list[Floats]:
        dtype, want = self.preprocess.dtype, (*self.preprocess.image_size, self.preprocess.in_channels)
        if images.dtype != dtype or images.ndim != 4 or images.shape[1:] != want:
            raise ValueError(
                f"expected {dtype} images of shape (B, {', '.join(map(str, want))}), got {images.dtype} {images.shape}"
            )
        starts = range(0, max(len(images), 1), CHUNK)
        parts = [engine(self._prepared(images[i : i + CHUNK])) for i in starts]
        outputs = [np.concatenate(output) for output in zip(*parts, strict=True)]
        if not all(np.isfinite(output).all() for output in outputs):
            raise ValueError(
                "the network's output is not finite (NaN or infinity): its weights are broken, as after a diverged "
                "training"
            )
        return outputs

    def _prepared(self, images: Pixels) -> NDArray[Any]:
        """What the functions behind take."""
        return self.preprocess.normalise(images)


class Exported(Classifier):
    """A Classifier around what `mlpmixer export` wrote: its graph takes pixels and ends in probabilities. `export`:
    that graph."""

    def __init__(self, export: Export) -> None:
        def outputs(*names: str) -> Callable[[NDArray[Any]], list[Floats]]:
            return lambda images: [np.asarray(values, np.float32) for values in export(images, *names)]

        def both(images: NDArray[Any]) -> tuple[Floats, Floats]:
            probabilities, features = outputs(PROBABILITIES, FEATURES)(images)
            return probabilities, features

        meta = export.meta
        super().__init__(
            classes=meta.classes,
            preprocess=meta.preprocess,
            logits=lambda images: outputs(PROBABILITIES)(images)[0],
            pre_logits=lambda images: outputs(FEATURES)(images)[0],
            both=both,
            multi_label=meta.provenance.get("loss") == "sigmoid",
            meta=meta,
            path=export.path,
            runtime=export.runtime,
        )
        self.export = export

    def _activated(self, logits: Floats) -> Floats:
        """As they are: the softmax or sigmoid is in the graph."""
        return logits

    def _prepared(self, images: Pixels) -> NDArray[Any]:
        return images


def load(
    path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    engine: str | None = None,
    precision: Precision = "float32",
    streams: int = 1,
    threads: int = 0,
    image_size: "int | Size | None" = None,
    patch_size: "int | Size | None" = None,
    in_channels: int | None = None,
    resize: Method = "bicubic",
    magnified: bool = False,
    report: "Report | None" = None,
    network: "Build | None" = None,
) -> Classifier:
    """A trained model in evaluation mode on `device`: a run, a weight file, hf:owner/name or a name of `mlpmixer list
    weights`.

    Or what `mlpmixer export` wrote, an .onnx, .xml or .pt2 file or a bundle: for the CPU, at its own size, and without
    torch but for .pt2.

    engine: what computes an export, see `exported.open_export`; a run is computed by torch.
    precision: bfloat16 is faster where the device has it, with about three digits (in torch: autocast).
    streams: calls that are computed at the same time, on the CPU, where several threads ask: more images a second than
        one after the other on all cores, and each takes longer. More than one make torch keep to `threads` in the whole
        process.
    threads: of each stream, on the CPU; 0: as many as the engine chooses, or of several streams the cores shared out.
    image_size, patch_size (pixels), in_channels: use it at others, without further training; `transfer.adapt` says what
        each does to the accuracy, and what `resize` (its method) and `magnified` are. The preprocessing follows.
    report: receives the progress of a download.
    network: of a run that `train(recipe, network=...)` made, the same again.

    Errors: ValueError, saying what was expected, when there is no model at `path`, the file is damaged, or it cannot be
    fetched.
    """
    if export := export_at(path):
        if (image_size, patch_size, in_channels, network) != (None, None, None, None):
            raise ValueError(
                f"{os.fspath(path)} is an export, of one size for good: export the run itself at another one"
            )
        if device not in ("auto", "cpu"):
            raise ValueError(
                f"{os.fspath(path)} is an export, which is computed on the CPU: device={device!r} is for runs"
            )
        return Exported(open_export(export, engine=engine, precision=precision, streams=streams, threads=threads))
    if engine not in (None, "torch"):
        raise ValueError(
            f"{os.fspath(path)} is no export, so torch computes it, not {engine}: mlpmixer export makes one of a run"
        )
    from mlpmixer.weights.load import load_file, locate

    file = locate(os.fspath(path), report=report)
    if network is not None:
        from mlpmixer.weights.model_file import load_model

        if (image_size, patch_size, in_channels) != (None, None, None):
            raise ValueError("only a Mixer comes to other sizes: leave image_size, patch_size and in_channels out")
        return from_network(
            *load_model(file, network), device=device, precision=precision, streams=streams, threads=threads, path=file
        )
    model, meta = load_file(file, os.fspath(path))
    if (image_size, patch_size, in_channels) != (None, None, None):
        from mlpmixer.weights.adapt import adapt_trained

        sizes: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "in_channels": in_channels}
        model, meta = adapt_trained(model, meta, **sizes, method=resize, magnified=magnified)
    return from_network(model, meta, device=device, precision=precision, streams=streams, threads=threads, path=file)


def from_network(
    network: "Mixer",
    meta: "ModelMeta",
    *,
    device: str = "cpu",
    precision: Precision = "float32",
    streams: int = 1,
    threads: int = 0,
    path: Path | None = None,
) -> Classifier:
    """A Classifier around a torch network, which is put in evaluation mode, in float32, on `device` (auto, cpu, cuda,
    ...).

    On a CPU a Mixer computes on compiled kernels where this machine has them (`kernels.for_inference`: other modules
    around the same parameters); `network` itself stays as it is.
    """
    import torch

    from mlpmixer.hardware import choose_device
    from mlpmixer.inference.engines.torch import computing, limit_threads
    from mlpmixer.models import kernels
    from mlpmixer.models.mixer import Mixer

    where, threads = choose_device(device), threads_each(streams, threads)
    if streams > 1 and where.type != "cpu":
        raise ValueError(f"streams are of the CPU: expected 1 on {where}, got {streams}")
    limit_threads(streams, threads)
    network = network.to(device=where, dtype=torch.float32).eval()
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    compiled = where.type == "cpu" and isinstance(network, Mixer) and not kernels.why_not(network, [dtype])
    computed = kernels.for_inference(network) if compiled else network

    def run(images: Floats, function: Callable[[Any], tuple[Any, ...]]) -> tuple[Floats, ...]:
        with torch.inference_mode(), computing(where.type, precision, threads):
            size = kernels.portion(network.cfg) if compiled else CHUNK
            parts = torch.split(torch.from_numpy(images).to(where), size)
            outputs = ([output.float().cpu().numpy() for output in function(part)] for part in parts)
            return tuple(np.concatenate(output) for output in zip(*outputs, strict=True))

    pre_logits = getattr(computed, "pre_logits", _no_features)

    def both(images: Floats) -> tuple[Floats, Floats]:
        def outputs(part: Any) -> tuple[Any, Any]:
            features = pre_logits(part)
            return computed.head(features) if isinstance(computed, Mixer) else computed(part), features

        logits, features = run(images, outputs)
        return logits, features

    return Classifier(
        classes=meta.classes,
        preprocess=meta.preprocess,
        logits=lambda images: run(images, lambda part: (computed(part),))[0],
        pre_logits=lambda images: run(images, lambda part: (pre_logits(part),))[0],
        both=both,
        multi_label=meta.provenance.get("loss") == "sigmoid",
        meta=meta,
        network=network,
        path=path,
        runtime=Runtime(
            engine="torch",
            version=torch.__version__,
            precision=precision,
            threads=threads,
            streams=streams,
            kernels="compiled" if compiled else "",
        ),
    )


def _no_features(images: Any) -> Any:
    raise ValueError("this network gives no features: it would need a method pre_logits, images (B,C,H,W) -> (B,D)")


def _name(image: Any, index: int) -> str:
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return str(getattr(image, "filename", "") or f"image[{index}]")

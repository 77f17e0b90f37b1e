"""Images to class probabilities and features, with one object for every kind of model file.

B images of H x W pixels with C channels, K classes, D features. A `Classifier` holds two functions, images -> logits
(B,K) and images -> pre_logits (B,D), whatever runs behind them. This module imports no torch by itself: `load` does for
a run, and does not for an export.
"""

import operator
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.config import checked
from mlpmixer.data.images import ImageError, Pixels
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.engines import Precision, Runtime, threads_each
from mlpmixer.inference.exported import FEATURES, PROBABILITIES, Export, export_at, open_export
from mlpmixer.inference.inputs import as_source
from mlpmixer.models.architecture import architecture_of
from mlpmixer.models.configs import Method
from mlpmixer.weights.model_file import require_threshold

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mlpmixer.download import Report
    from mlpmixer.inference.inputs import ImageLike
    from mlpmixer.models.architecture import Build
    from mlpmixer.models.configs import Size
    from mlpmixer.weights.model_file import ModelMeta

Floats = NDArray[np.float32]
Engine = Callable[[Floats], Floats]

CHUNK = 128  # images through the network at a time; bounds memory, changes no result


@dataclass(frozen=True)
class Prediction:
    """The likeliest class of one image, and the `top` classes with their probabilities, likeliest first."""

    name: str
    """The image's path or address, or image[i]."""
    label: str
    """The likeliest class."""
    probability: float
    """Its probability, 0..1."""
    top: tuple[tuple[str, float], ...]
    """(class, probability) of the likeliest classes, this one first."""
    features: Floats | None = field(default=None, compare=False, repr=False)
    """pre_logits (D,), if they were asked for."""
    threshold: float | None = None
    """Probability from which a class counts as present, where an image may have several or none: all these are in
    `top`. None where an image has one class."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The predicted classes, likeliest first: one, or all from the threshold on, perhaps none."""
        if self.threshold is None:
            return (self.label,)
        return tuple(label for label, p in self.top if p >= self.threshold)

    def __repr__(self) -> str:
        what = f"label={self.label!r}, probability={self.probability:.4f}"
        if self.threshold is not None:
            what = f"labels={self.labels!r}, threshold={self.threshold:g}"
        return f"Prediction(name={self.name!r}, {what})"


@dataclass(frozen=True)
class Failure:
    """A source that could not be read as an image, and why."""

    name: str
    """Its path, address or pattern, as it was given or found."""
    reason: str
    """What is wrong with it, without its name."""


@dataclass(frozen=True)
class Transform:
    """A callable that makes of one image, in any form that `Classifier.predict` takes, a float32 tensor (C,H,W).

    The same bits that `predict` gives to the network: resized, cut and normalised as the model's file says. It can be
    pickled, so a `DataLoader` may run it in its workers. Errors: ValueError when the image cannot be read.
    """

    preprocess: Preprocess
    """The rule that the model was trained with."""

    def __call__(self, image: "ImageLike") -> "Tensor":
        import torch

        pixels = self.preprocess.array(as_source(image, self.preprocess.in_channels))
        return torch.from_numpy(self.preprocess.normalise(pixels[None])[0])


class Classifier:
    """A trained model that classifies images. Make one with `load`.

    preprocess: the evaluation preprocessing stored with the model.
    meta: configuration and provenance; None if unknown.
    path: the file of the model; None if there is none.
    runtime: what computes it; None if unknown.
    sigmoid: whether probabilities are of each class alone, and do not sum to 1.

    It can be copied and pickled, for joblib, too: with the weights of a torch network, and with the path of an export,
    which must then be there unchanged.
    """

    _CHANGEABLE = ("_classes", "preprocess", "sigmoid", "_threshold")  # what is not as it was opened

    def __init__(
        self,
        *,
        classes: Sequence[str],
        preprocess: Preprocess,
        logits: Engine,
        pre_logits: Engine,
        both: Callable[[Floats], tuple[Floats, ...]] | None = None,
        sigmoid: bool = False,
        threshold: float | None = None,
        meta: "ModelMeta | None" = None,
        network: "nn.Module | None" = None,
        path: Path | None = None,
        runtime: Runtime | None = None,
        reopen: "Callable[[], Classifier] | None" = None,
    ) -> None:
        """both: images -> (logits, pre_logits) in one pass of the network, if it can.

        reopen: makes it anew, in another process, too; None if the functions can be pickled.
        """
        self.classes = classes
        self.preprocess = preprocess
        self.sigmoid = sigmoid
        self.threshold = threshold
        self.meta = meta
        self._network = network
        self.path = path
        self.runtime = runtime
        self._logits = logits
        self._pre_logits = pre_logits
        self._both = both or (lambda images: (logits(images), pre_logits(images)))
        self._reopen = reopen

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._reopen is None:
            return super().__reduce_ex__(protocol)
        return operator.call, (self._reopen,), {name: getattr(self, name) for name in self._CHANGEABLE}

    def __repr__(self) -> str:
        meta, (height, width), channels = self.meta, self.preprocess.image_size, self.preprocess.in_channels
        names = [*map(repr, self.classes[:3]), *["..."] * (len(self.classes) > 3)]
        what = [f"{len(self.classes):,} classes ({', '.join(names)})", f"images of {height}x{width}x{channels}"]
        if meta:
            what.insert(0, meta.network or f"{meta.config.architecture} of {meta.config.num_params:,} parameters")
        if self.runtime:
            weight = next(self.network.parameters(), None) if self.network else None
            what.append(f"{self.runtime} on {'cpu' if weight is None else weight.device}")
        if self.path:
            what.append(str(self.path))
        return f"<{type(self).__name__}: {', '.join(what)}>"

    @property
    def transform(self) -> Transform:
        """What makes of an image the float32 tensor (C,H,W) that `network` takes, for a torch Dataset."""
        return Transform(self.preprocess)

    @property
    def network(self) -> "nn.Module | None":
        """The torch network, images (B,C,H,W) from `transform` -> logits (B,K); None for an export."""
        return self._network

    @property
    def classes(self) -> tuple[str, ...]:
        """The K names, in the order of the model's outputs, which may be set."""
        return self._classes

    @classes.setter
    def classes(self, names: Iterable[str]) -> None:
        """Errors: ValueError for names that are not strings."""
        self._classes: tuple[str, ...] = checked(tuple[str, ...], tuple(names), "classes")

    @property
    def threshold(self) -> float | None:
        """Probability from which a class counts as present, where an image may have several or none, which
        may be set; None where an image has one class."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        """Errors: ValueError for anything but None and a number above 0 and below 1."""
        require_threshold(value := checked(float | None, value, "threshold"))
        self._threshold = value

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes, or none."""
        return self.threshold is not None

    def probabilities(self, images: Pixels) -> Floats:
        """Class probabilities (B,K) float32; rows sum to 1, but for sigmoid models.

        images: (B,H,W,C) in 0..255, those of `preprocess_image`, stacked.

        Errors: ValueError for another type or shape, and when the weights give NaN.
        """
        self._require_head()
        return self._to_probabilities(self._named(self._run(self._logits, images)))

    def features(self, images: Pixels) -> Floats:
        """Feature vectors (B,D) float32: pre_logits, the input of the head.

        images: (B,H,W,C) in 0..255, those of `preprocess_image`, stacked.

        Errors: as `probabilities`, and ValueError for a network without features.
        """
        return self._run(self._pre_logits, images)

    def probabilities_and_features(self, images: Pixels) -> tuple[Floats, Floats]:
        """Both `probabilities` (B,K) and `features` (B,D) of the same images, in one pass but for a network of your
        own."""
        self._require_head()
        logits, features = self._run_all(self._both, images)
        return self._to_probabilities(self._named(logits)), features

    def predict(
        self, images: "ImageLike | Iterable[ImageLike]", top_k: int = 5, *, allow_urls: bool = False
    ) -> list[Prediction]:
        """The `top_k` likeliest classes of each image, in order; one image gives a list of one.

        images: one of these, or a list of them:
            a path; a folder, which is searched recursively; a pattern such as "photos/*.jpg" (`files.find_images`);
            the bytes of a file, or a file opened for bytes; a Pillow image;
            a numpy array, channels last: (H,W), (H,W,C), or (B,H,W,C) for B images;
            a torch tensor, channels first: (C,H,W), or (B,C,H,W) for B images;
            an address, http:// or https://, which is fetched if `allow_urls` is set.
            Pixels are uint8 in 0..255, or floats in 0..1, which are rounded to 8 bits; C is 1, 3 (RGB) or 4 (with
            alpha), or the number of channels of a model that takes neither 1 nor 3.

        A prediction has the path as its name, or image[i] for the i-th one if the image has no name.

        Errors: ValueError, at the first image that cannot be read (ImageError), for anything else, and for a folder or
        pattern without images. To go on after unreadable images, and to stream: `files.predict_files`.
        """
        from mlpmixer.inference.files import predict_files
        from mlpmixer.inference.inputs import named_images

        found: list[Prediction] = []
        for result in predict_files(self, named_images(images, allow_urls=allow_urls), top_k, allow_urls=allow_urls):
            if isinstance(result, Failure):
                raise ImageError(result.reason, result.name)
            found.append(result)
        return found

    def preprocess_image(self, image: "ImageLike") -> Pixels:
        """One image, as `predict` takes it, at the model's size: (H,W,C) of `preprocess.dtype`, 0..255.

        Errors: ValueError when it cannot be read (ImageError) or is of another kind.
        """
        return self.preprocess.array(as_source(image, self.preprocess.in_channels))

    def rank(self, names: Sequence[str], images: Pixels, top_k: int, *, features: bool = False) -> list[Prediction]:
        """A Prediction for each of the images (B,H,W,C) from `preprocess_image`, with its `features` if asked for.

        Errors: as `probabilities`, and ValueError for a `top_k` below 1.
        """
        if (top_k := checked(int, top_k, "top_k")) < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        p, vectors = self.probabilities_and_features(images) if features else (self.probabilities(images), None)
        found = [self.prediction(name, row, top_k) for name, row in zip(names, p, strict=True)]
        return found if vectors is None else [replace(f, features=v) for f, v in zip(found, vectors, strict=True)]

    def prediction(self, name: str, probabilities: Floats, top_k: int) -> Prediction:
        """The Prediction that one row (K,) of `probabilities` makes."""
        predicted = 0 if self.threshold is None else int((probabilities.astype(np.float64) >= self.threshold).sum())
        best = np.argsort(-probabilities, kind="stable")[: max(top_k, predicted)]
        top = tuple((self.classes[k], float(probabilities[k])) for k in best)
        return Prediction(name, top[0][0], top[0][1], top, threshold=self.threshold)

    def push(self, target: str | os.PathLike[str], *, licence: str = "", private: bool = False) -> str:
        """Publish the model with a model card, as `mlpmixer push` does: to the Hugging Face Hub, or to a new folder.

        target: "owner/name", a repository of the Hub, which is made if it is new (log in first: hf auth login); or a
            folder, as a Path, "./folder" or an absolute path.
        licence: as the Hub writes it (apache-2.0, mit, ...); without one the card says that none is stated.
        private: who may see a repository that this call makes.

        The weights are those of `network` as it is now, with what may be set here, `classes` and `threshold`. If all
        are those of its run, the card says what was measured.

        Gives the repository's address, or the folder. Errors: ValueError for an export, a folder that holds something
        already, and when the Hub refuses or cannot be reached; OSError when nothing can be written.
        """
        from mlpmixer.weights.hub import push_network

        if self.network is None or self.meta is None:
            raise ValueError(
                f"{self.path or 'this classifier'} is not a network of torch: push the run it was made from"
            )
        place = os.fspath(target)
        if isinstance(target, str) and not place.startswith(("hf:", "./", "../", "~")) and not os.path.isabs(place):
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
                raise ValueError(
                    f"expected 'owner/name' for the Hub, or a folder as a Path or './{place}', got {place!r}"
                )
            place = f"hf:{place}"
        options: Any = {"file": self.path, "licence": licence, "private": private}
        return push_network(self.network, self.current_meta(self.meta), os.path.expanduser(place), **options)

    def current_meta(self, meta: "ModelMeta") -> "ModelMeta":
        """`meta` with what `network` is now, and what may be set here; files are written with it.

        Errors: ValueError where `classes` or `preprocess` do not fit the network.
        """
        loss = {} if self.sigmoid == _ends_in_sigmoid(meta) else {"loss": "sigmoid" if self.sigmoid else "softmax"}
        return replace(
            meta,
            config=self.network.cfg if architecture_of(self.network) else meta.config,  # type: ignore[union-attr, arg-type]
            classes=self.classes,
            preprocess=self.preprocess,
            threshold=self.threshold,
            provenance=meta.provenance | loss,
        )

    def _require_head(self) -> None:
        if not self.classes:
            raise ValueError("this model has no head (num_classes=0), so it gives no probabilities; ask for features()")

    def _named(self, logits: Floats) -> Floats:
        """The same logits. ValueError unless each output has a name."""
        if (outputs := logits.shape[1]) != (names := len(self.classes)):
            raise ValueError(
                f"the model gives {outputs:,} outputs for an image, and classes has {names:,} names; expected one for "
                f"each: classifier.classes = (...)"
            )
        return logits

    def _to_probabilities(self, logits: Floats) -> Floats:
        """Logits (B,K) -> probabilities (B,K)."""
        logits64 = logits.astype(np.float64)
        if self.sigmoid:
            return np.exp(-np.logaddexp(0.0, -logits64)).astype(np.float32)
        exp = np.exp(logits64 - logits64.max(axis=1, keepdims=True))
        softmax: Floats = (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32)
        return softmax

    def _run(self, engine: Engine, images: Pixels) -> Floats:
        return self._run_all(lambda prepared: (engine(prepared),), images)[0]

    def _run_all(self, engine: Callable[[Floats], tuple[Floats, ...]], images: Pixels) -> list[Floats]:
        dtype, want = self.preprocess.dtype, (*self.preprocess.image_size, self.preprocess.in_channels)
        shape, given = np.shape(images), getattr(images, "dtype", type(images).__name__)
        if not isinstance(images, np.ndarray) or given != dtype or len(shape) != 4 or shape[1:] != want:
            raise ValueError(
                f"expected {dtype} images of shape (B, {', '.join(map(str, want))}), got {given} {tuple(shape)}"
            )
        starts = range(0, max(len(images), 1), CHUNK)
        parts = [engine(self._network_input(images[i : i + CHUNK])) for i in starts]
        outputs = [np.concatenate(output) for output in zip(*parts, strict=True)]
        if not all(np.isfinite(output).all() for output in outputs):
            raise ValueError(
                "the network's output is not finite (NaN or infinity): its weights are broken, perhaps because the "
                "training diverged"
            )
        return outputs

    def _network_input(self, images: Pixels) -> NDArray[Any]:
        """Pixels (B,H,W,C) -> normalised images (B,C,H,W)."""
        return self.preprocess.normalise(images)


class Exported(Classifier):
    """A Classifier around an export, whose graph takes pixels and ends in probabilities."""

    def __init__(self, export: Export) -> None:
        def outputs(images: NDArray[Any], *names: str) -> tuple[Floats, ...]:
            return tuple(np.asarray(values, np.float32) for values in export(images, *names))

        meta = export.meta
        super().__init__(
            classes=meta.classes,
            preprocess=meta.preprocess,
            logits=lambda images: outputs(images, PROBABILITIES)[0],
            pre_logits=lambda images: outputs(images, FEATURES)[0],
            both=lambda images: outputs(images, PROBABILITIES, FEATURES),
            sigmoid=_ends_in_sigmoid(meta),
            threshold=meta.threshold,
            meta=meta,
            path=export.path,
            runtime=export.runtime,
            reopen=partial(_reopen_export, export.path.absolute(), _stamp(export.path), export.runtime),
        )
        self.export = export

    def _to_probabilities(self, logits: Floats) -> Floats:
        """Unchanged: the softmax or sigmoid is in the graph."""
        return logits

    def _network_input(self, images: Pixels) -> NDArray[Any]:
        """Unchanged: the normalisation is in the graph."""
        return images


def _stamp(file: Path) -> tuple[int, int] | None:
    """Bytes and nanoseconds that tell one content of a file from another; None when it is not there."""
    return (found.st_size, found.st_mtime_ns) if (found := file.stat() if file.is_file() else None) else None


def _reopen_export(file: Path, stamp: tuple[int, int] | None, how: Runtime) -> Exported:
    """ValueError when the file is not as it was."""
    if (now := _stamp(file)) is None or now != stamp:
        raise ValueError(
            f"{file} {'is not there' if now is None else 'has changed'}: a copy of an export opens its file again, and "
            f"needs it as it was; load the export anew with mlpmixer.load"
        )
    return Exported(
        open_export(file, engine=how.engine, precision=how.precision, streams=how.streams, threads=how.threads)
    )


def load(
    path: str | os.PathLike[str],
    *,
    device: "str | torch.device" = "cpu",
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
    """A trained model, ready to classify.

    path: a run, a weight file, hf:owner/name, a name of `mlpmixer list weights`, or an export (an .onnx, .xml or .pt2
        file or a bundle), which runs on the CPU at its own size and, but for .pt2, without torch.
    device: auto, cpu, cuda, cuda:1, mps.
    engine: what runs an export, see `exported.open_export`.
    precision: bfloat16 is faster where the device has it, with about three digits (in torch: autocast).
    streams: calls from several threads that compute at the same time, on the CPU: more images/s, and each call takes
        longer. More than one let torch use no more than `threads` in the whole process.
    threads: of each stream, on the CPU; 0: the engine's default, or an equal share of the cores for several streams.
    image_size, patch_size (pixels), in_channels: other sizes, without further training. `adapt.adapt` says what each
        costs in accuracy, and what `resize` (the method) and `magnified` are. The preprocessing follows.
    report: receives the progress of a download.
    network: the function that built the network, for a run that `train(recipe, network=...)` made.

    Errors: ValueError, which says what was expected, when there is no model at `path`, it is damaged, or it cannot be
    downloaded.
    """
    name = os.fspath(path)
    given: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "in_channels": in_channels}
    sizes = {field: value for field, value in given.items() if value is not None}
    how: dict[str, Any] = {"precision": precision, "streams": streams, "threads": threads}
    if file := export_at(path):
        if sizes or network is not None:
            raise ValueError(f"{name} is an export, whose size is fixed: export the run again at another size")
        if str(device) not in ("auto", "cpu"):
            raise ValueError(f"{name} is an export, which runs on the CPU; device={str(device)!r} is for runs")
        return Exported(open_export(file, engine=engine, **how))
    if engine not in (None, "torch"):
        raise ValueError(f"{name} is not an export; only torch can run it (engine={engine} given)")
    from mlpmixer.weights.load import load_file, locate

    file = locate(name, report=report)
    if network is None:
        model, meta = load_file(file, name, report=report)
        if sizes:
            from mlpmixer.weights.adapt import adapt_trained

            model, meta = adapt_trained(model, meta, **sizes, method=resize, magnified=magnified)
    else:
        from mlpmixer.weights.model_file import load_model

        if sizes:
            raise ValueError(f"{', '.join(sizes)} cannot be changed for a network of your own (network=)")
        model, meta = load_model(file, network)
    return from_network(model, meta, device=device, path=file, **how)


def from_network(
    network: "nn.Module",
    meta: "ModelMeta",
    *,
    device: "str | torch.device" = "cpu",
    precision: Precision = "float32",
    streams: int = 1,
    threads: int = 0,
    path: Path | None = None,
) -> Classifier:
    """A Classifier around a torch network, which is put in evaluation mode, in float32, on `device`.

    On a CPU it runs on compiled kernels where the network and this machine have them: other modules around the same
    parameters. `network` itself keeps its modules, may be trained further, and is always computed as it is then, in
    evaluation mode.
    """
    import torch

    from mlpmixer.hardware import choose_device
    from mlpmixer.inference.engines.torch import computing, evaluating, limit_threads
    from mlpmixer.models.architecture import capability, has

    where, threads = choose_device(device), threads_each(streams, threads)
    if streams > 1 and where.type != "cpu":
        raise ValueError(f"several streams need the CPU: expected streams=1 on {where}, got {streams}")
    limit_threads(streams, threads)
    network = network.to(device=where, dtype=torch.float32).eval()
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[checked(Precision, precision, "precision")]
    fast: Any = network  # what computes
    kernels = capability(network, "kernels", "inference") if where.type == "cpu" and has(network, "kernels") else None
    if kernels and kernels.unsupported_reason(network, [dtype]):
        kernels = None
    shared: list[int] = []  # the parameters that both have
    has_head = bool(architecture_of(network))  # logits are head(pre_logits); other code's networks do not say

    def run(images: Floats, function: Callable[[Any], tuple[Any, ...]]) -> tuple[Floats, ...]:
        nonlocal fast, shared
        if kernels and (now := [*map(id, network.parameters())]) != shared:  # another head, perhaps
            fast, shared = kernels.for_inference(network), now
        mode = nullcontext() if kernels else evaluating(network)
        with torch.inference_mode(), computing(where.type, precision, threads), mode:
            size = kernels.images_per_chunk(fast.cfg) if kernels else CHUNK
            parts = torch.split(torch.from_numpy(images).to(where), size)
            outputs = ([output.float().cpu().numpy() for output in function(part)] for part in parts)
            return tuple(np.concatenate(output) for output in zip(*outputs, strict=True))

    def pre_logits(part: Any) -> Any:
        return getattr(fast, "pre_logits", _no_features)(part)

    def both(part: Any) -> tuple[Any, Any]:
        features = pre_logits(part)
        return fast.head(features) if has_head else fast(part), features

    return Classifier(
        classes=meta.classes,
        preprocess=meta.preprocess,
        logits=lambda images: run(images, lambda part: (fast(part),))[0],
        pre_logits=lambda images: run(images, lambda part: (pre_logits(part),))[0],
        both=lambda images: run(images, both),
        sigmoid=_ends_in_sigmoid(meta),
        threshold=meta.threshold,
        meta=meta,
        network=network,
        path=path,
        runtime=Runtime(
            engine="torch",
            version=torch.__version__,
            precision=precision,
            threads=threads,
            streams=streams,
            kernels="compiled" if kernels else "",
        ),
        reopen=partial(
            from_network,
            network,
            meta,
            device=str(where),
            precision=precision,
            streams=streams,
            threads=threads,
            path=path,
        ),
    )


def _ends_in_sigmoid(meta: "ModelMeta") -> bool:
    return meta.provenance.get("loss") == "sigmoid"


def _no_features(images: Any) -> Any:
    raise ValueError("this network has no features: it needs a method pre_logits, images (B,C,H,W) -> (B,D)")

"""Images to class probabilities and features, with one object for every kind of model file. Imports no torch by itself.

B images of H x W pixels with C channels, K classes, D features. A `Classifier` holds two functions, images -> logits
(B,K) and images -> pre_logits (B,D), whatever runs behind them: `torch_classifier` and `exported_classifier` make one,
`load` from a file.
"""

import operator
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.config import checked
from mlpmixer.data.images import ImageError, Pixels
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.engines import Runtime
from mlpmixer.inference.inputs import as_source
from mlpmixer.inference.prediction import Failure, Floats, Prediction
from mlpmixer.inference.transform import Transform
from mlpmixer.models.architecture import architecture_of
from mlpmixer.weights.model_file import require_threshold

if TYPE_CHECKING:
    from torch import nn

    from mlpmixer.inference.inputs import ImageLike
    from mlpmixer.weights.model_file import ModelMeta

Engine = Callable[[Floats], Floats]

CHUNK = 128  # images through the network at a time; bounds memory, changes no result


class Classifier:
    """A trained model that classifies images. Make one with `load`.

    preprocess: the evaluation preprocessing stored with the model.
    meta: configuration and provenance; None if unknown.
    path: the file of the model; None if there is none.
    runtime: what computes it; None if unknown.
    sigmoid: whether each class has a probability of its own, so that they do not sum to 1.

    It can be copied and pickled, also by joblib. A pickle holds the weights of a torch network, but only the path of an
    export, which must still be there unchanged.
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
        """Callable from an image to the float32 tensor (C,H,W) that `network` takes, for a torch Dataset."""
        return Transform(self.preprocess)

    @property
    def network(self) -> "nn.Module | None":
        """The torch network, images (B,C,H,W) from `transform` -> logits (B,K); None for an export."""
        return self._network

    @property
    def classes(self) -> tuple[str, ...]:
        """The K names, in the order of the model's outputs; may be set."""
        return self._classes

    @classes.setter
    def classes(self, names: Iterable[str]) -> None:
        """Errors: ValueError for names that are not strings."""
        self._classes: tuple[str, ...] = checked(tuple[str, ...], tuple(names), "classes")

    @property
    def threshold(self) -> float | None:
        """Lowest probability at which a class counts as present, where an image may have several or none; may be
        set. None where an image has one class."""
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
        """Both `probabilities` (B,K) and `features` (B,D) of the same images, in one pass (two for a network of your
        own)."""
        self._require_head()
        logits, features = self._run_all(self._both, images)
        return self._to_probabilities(self._named(logits)), features

    def predict(
        self, images: "ImageLike | Iterable[ImageLike]", top_k: int = 5, *, allow_urls: bool = False
    ) -> list[Prediction]:
        """Predict the `top_k` likeliest classes of each image, in order; one image gives a list of one.

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

        The weights are those of `network` as it is now, with the `classes` and `threshold` set here. If all are as in
        its run, the card says what was measured.

        Returns the repository's address, or the folder. Errors: ValueError for an export, a folder that holds something
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
        loss = {} if self.sigmoid == meta.sigmoid else {"loss": "sigmoid" if self.sigmoid else "softmax"}
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

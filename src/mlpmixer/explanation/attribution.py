"""What a Mixer saw in an image, exactly where that is possible. `faithfulness` measures how far each answer is to be
believed.

Letters: B images, S patches in a grid of h x w, K classes.

`images` (B, in_channels, H, W) are as the network sees them, normalised; `classes` (B,) int64 are the classes asked
about; `fill` (in_channels,) stands for "nothing to see", normalised, too, such as the mean pixel of the training
images. Models are in evaluation mode.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.data.datasets import open_images
from mlpmixer.data.images import Pixels
from mlpmixer.evaluation.data import resolve_data
from mlpmixer.inference.classifier import Classifier, Failure
from mlpmixer.inference.files import decoded_batches, map_images
from mlpmixer.models.mixer import Mixer
from mlpmixer.models.mixing import Mixing, mixing_of
from mlpmixer.registry import Registry, suggest

Method = Callable[[Mixer, Tensor, Tensor, Tensor], Tensor]
CHUNK = 64  # images that go through the network at once; bounds memory, changes no result
STEPS = 32  # gradients that are integrated; the completeness error they leave is shown beside each picture
MEAN_OF = 512  # training images that the mean pixel is taken of

METHODS: Registry[Method] = Registry("method")
"""(model, images, classes, fill) -> (B, S): how much each patch speaks for the class, in logits."""


# --- what speaks for a class, patch by patch --------------------------------------------------------------------------


@torch.no_grad()
def patch_evidence(model: Mixer, images: Tensor) -> Tensor:
    """The logits of each patch alone, (B, S, K). Exact: pooling and head are linear, so their mean over the patches is
    the logits."""
    _ready(model)
    return cast(Tensor, model.head(model.tokens(images)))


@METHODS.register("evidence")
@torch.no_grad()
def evidence(model: Mixer, images: Tensor, classes: Tensor, fill: Tensor) -> Tensor:
    """(B, S): what each patch adds to the logit; the sum is the logit less the head's bias. `fill` is not used."""
    own = patch_evidence(model, images) - cast(nn.Linear, model.head).bias
    return own[torch.arange(len(images), device=own.device), :, classes] / model.cfg.num_patches


@METHODS.register("occlusion")
@torch.no_grad()
def occlusion(model: Mixer, images: Tensor, classes: Tensor, fill: Tensor) -> Tensor:
    """(B, S): by how much the logit falls when this patch is filled and all others stay (Zeiler and Fergus 2014,
    arXiv:1311.2901)."""
    _ready(model)
    each = torch.eye(model.cfg.num_patches, dtype=torch.bool, device=images.device)
    rows = []
    for image, k in zip(images, classes.tolist(), strict=True):
        without = [
            model(filled(model, image.expand(len(part), -1, -1, -1), part, fill))[:, k]
            for part in torch.split(each, CHUNK)
        ]
        rows.append(model(image[None])[0, k] - torch.cat(without))
    return torch.stack(rows)


@METHODS.register("gradient-x-input")
def gradient_x_input(model: Mixer, images: Tensor, classes: Tensor, fill: Tensor) -> Tensor:
    """(B, S): the first-order guess at what filling does, gradient * (images - fill), summed within the patch
    (arXiv:1605.01713)."""
    return per_patch(model, gradient(model, images, classes) * _away(images, fill))


@METHODS.register("integrated-gradients")
def integrated_gradients(model: Mixer, images: Tensor, classes: Tensor, fill: Tensor, steps: int = STEPS) -> Tensor:
    """(B, S): the gradient's mean on the straight way from the filled image, * (images - fill) (Sundararajan et al.,
    arXiv:1703.01365).

    The sum over the patches is the logit less that of the filled image, up to the error of `steps` Gauss-Legendre
    nodes.
    """
    return per_patch(model, integrated_pixels(model, images, classes, fill, steps))


def integrated_pixels(model: Mixer, images: Tensor, classes: Tensor, fill: Tensor, steps: int = STEPS) -> Tensor:
    """`integrated_gradients` of each value, in the shape of `images`."""
    away, mean = _away(images, fill), torch.zeros_like(images)
    for node, weight in zip(*np.polynomial.legendre.leggauss(steps), strict=True):  # on -1..1, weights that sum to 2
        mean += gradient(model, images - (1 - node) / 2 * away, classes) * (weight / 2)
    return mean * away


def gradient(model: Mixer, images: Tensor, classes: Tensor) -> Tensor:
    """Of the logit of each image's class, in the shape of `images`."""
    _ready(model)
    images = images.detach().requires_grad_()
    of_class = model(images).gather(1, classes[:, None])
    return torch.autograd.grad(of_class.sum(), images)[0]


def per_patch(model: Mixer, values: Tensor) -> Tensor:
    """Sums within the patches: (B, in_channels, H, W) -> (B, S)."""
    return model.patches(values).sum(dim=2)


def filled(model: Mixer, images: Tensor, where: Tensor, fill: Tensor) -> Tensor:
    """The images with the patches of `where` (B, S) bool filled."""
    (p, q), (h, w) = pair(model.cfg.patch_size), model.cfg.grid
    mask = where.reshape(-1, 1, h, w).repeat_interleave(p, 2).repeat_interleave(q, 3)  # (B, 1, H, W)
    return torch.where(mask, fill[:, None, None], images)


def _away(images: Tensor, fill: Tensor) -> Tensor:
    return images - fill[:, None, None]


def _ready(model: Mixer) -> None:
    if not model.cfg.num_classes:
        raise ValueError("this model has no head (num_classes=0), so there is no class to explain")
    if model.training:
        raise ValueError(
            "the model is in training mode, where dropout and stochastic depth blur what it sees: call model.eval() "
            "first"
        )


# --- images by name ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Belief:
    """One class of one image. logit = evidence_for + evidence_against + bias, sums over the patches that speak for and
    against it."""

    label: str
    probability: float
    logit: float
    evidence_for: float
    evidence_against: float
    bias: float


@dataclass(frozen=True, kw_only=True)
class Explained:
    """What the model saw in one image."""

    name: str
    pixels: Pixels
    """(H, W, in_channels), 0..255, as the network saw it before normalisation."""
    grid: tuple[int, int]
    """h, w: patches down and across."""
    beliefs: tuple[Belief, ...]
    """The likeliest classes, likeliest first."""
    asked: Belief
    """The class that `maps` are about."""
    maps: dict[str, NDArray[np.float32]]
    """Method -> (h, w), logits: positive speaks for the class."""
    filled_logit: float
    """Of the class, for an image that is nothing but `fill`."""
    mixing: Mixing | None

    def to_json(self) -> dict[str, Any]:
        """All but the pixels, and of `mixing` the three numbers after each block."""
        return {
            "image": self.name,
            "asked": dataclasses.asdict(self.asked),
            "top": [dataclasses.asdict(b) for b in self.beliefs],
            "filled_logit": self.filled_logit,
            "maps": {name: values.tolist() for name, values in self.maps.items()},
            "mixing": None if self.mixing is None else self.mixing.spread.tolist(),
        }


def explain(
    classifier: Classifier,
    paths: Iterable[str | Failure],
    fill: Tensor,
    *,
    methods: Sequence[str] = tuple(METHODS),
    label: str = "",
    mixing: bool = True,
    top_k: int = 5,
) -> Iterator[Explained | Failure]:
    """An Explained or a Failure for every path, in order; `paths` is what `predict.find_images` yields.

    label: the class to explain; default: each image's likeliest. mixing: also work out which patches each token has
    heard of.
    Errors: ValueError for an unknown method or class, with the nearest right ones, and for a model without head.
    """
    chosen = [(name, METHODS[name]) for name in methods]
    network = network_of(classifier)
    _ready(network)
    if label and label not in classifier.classes:
        raise ValueError(f"the model has no class {label!r}; {suggest(label, classifier.classes)}")
    items = ((p.name, p) if isinstance(p, Failure) else (p, lambda p=p: p) for p in paths)
    for batch in decoded_batches(items, classifier.preprocess_image, batch_size=8):
        for name, pixels in batch:
            if isinstance(pixels, Failure):
                yield pixels
            else:
                yield _explained(classifier, network, name, pixels, fill, chosen, label, mixing, top_k)


def _explained(
    classifier: Classifier,
    network: Mixer,
    name: str,
    pixels: Pixels,
    fill: Tensor,
    chosen: Sequence[tuple[str, Method]],
    label: str,
    mixing: bool,
    top_k: int,
) -> Explained:
    probabilities, image = classifier.probabilities(pixels[None])[0], as_tensor(classifier, pixels[None])
    bias = cast(nn.Linear, network.head).bias.detach()
    patches = (patch_evidence(network, image)[0] - bias) / network.cfg.num_patches  # (S, K)

    def belief(k: int) -> Belief:
        return Belief(
            label=classifier.classes[k],
            probability=float(probabilities[k]),
            logit=float(patches[:, k].sum() + bias[k]),
            evidence_for=float(patches[:, k].clamp_min(0).sum()),
            evidence_against=float(patches[:, k].clamp_max(0).sum()),
            bias=float(bias[k]),
        )

    best = np.argsort(-probabilities, kind="stable")[:top_k]
    asked = classifier.classes.index(label) if label else int(best[0])
    classes = torch.tensor([asked], device=image.device)
    with torch.no_grad():
        nothing = network(fill[:, None, None].expand_as(image))[0, asked]
    return Explained(
        name=name,
        pixels=pixels,
        grid=network.cfg.grid,
        beliefs=tuple(belief(int(k)) for k in best),
        asked=belief(asked),
        maps={
            n: method(network, image, classes, fill)[0].reshape(network.cfg.grid).cpu().numpy() for n, method in chosen
        },
        filled_logit=float(nothing),
        mixing=mixing_of(network, image[0]) if mixing else None,
    )


def usual_fill(classifier: Classifier) -> tuple[Tensor, str]:
    """What to fill patches with, (in_channels,) on the model's device, and what that is in words.

    The mean pixel of (up to 512 of) the images the model was trained on; the middle of its preprocessing, where those
    are not here.
    """
    preprocess, where = classifier.preprocess, next(network_of(classifier).parameters()).device
    try:
        images = open_images(resolve_data(classifier, None), "train").spread(MEAN_OF)
        _, means, _ = map_images(classifier, images, lambda arrays: preprocess.normalise(arrays).mean(axis=(2, 3)), 128)
        fill, what = means.mean(axis=0), f"the mean of {len(means)} training images"
    except (ValueError, OSError) as error:
        fill, what = (
            np.zeros(preprocess.in_channels, np.float32),
            f"the middle value, as the training images are not at hand: {error}",
        )
    pixel = 255 * (fill * np.array(preprocess.std) + np.array(preprocess.mean))
    return torch.from_numpy(fill).to(where), f"{', '.join(f'{v:.0f}' for v in pixel)} of 255 ({what})"


def network_of(classifier: Classifier) -> Mixer:
    """The Mixer in it; ValueError where there is none."""
    if not isinstance(classifier.network, Mixer):
        raise ValueError(
            "only a Mixer can be explained, from a run or a weight file; this is another network, or an exported one"
        )
    return classifier.network


def as_tensor(classifier: Classifier, arrays: Pixels) -> Tensor:
    """Images as `classifier.preprocess_image` gives them, stacked, as the network sees them."""
    return torch.from_numpy(classifier.preprocess.normalise(arrays)).to(
        next(network_of(classifier).parameters()).device
    )

"""Attribution: how much each patch of an image contributes to a prediction, exactly where that is possible.

B images, S patches in a grid of h x w, K classes. `images` (B, in_channels, H, W) are normalised; `classes` (B,) int64
are the classes to explain; `fill` (in_channels,) is the normalised pixel that stands for "nothing to see", such as the
mean pixel of the training images. Networks are in evaluation mode. `faithfulness` measures how far each method can be
trusted.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlpmixer.data.datasets import open_images
from mlpmixer.data.images import Pixels, decode
from mlpmixer.evaluation.data import resolve_data
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.files import decoded_batches, map_images
from mlpmixer.inference.prediction import Failure
from mlpmixer.models.architecture import capability, has
from mlpmixer.registry import Registry, suggest

if TYPE_CHECKING:
    from mlpmixer.models.configs import NetworkConfig
    from mlpmixer.models.mixing import Mixing

Grid = tuple[int, int]
Method = Callable[[nn.Module, Tensor, Tensor, Tensor, Grid], Tensor]
CHUNK = 64  # images that go through the network at once; bounds memory, changes no result
STEPS = 32  # gradients that are integrated; the completeness error they leave is shown beside each picture
PHOTO_PX = 384  # the longer side of a picture to look at
FILL_IMAGES = 512  # training images whose mean pixel fills patches

METHODS: Registry[Method] = Registry("method")
"""(network, images, classes, fill, grid) -> (B, S): how much each patch speaks for the class, in logits."""


# --- methods ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def patch_evidence(network: nn.Module, images: Tensor) -> Tensor:
    """The logits of each patch alone, (B, S, K). Exact: pooling and head are linear, so their mean is the logits.

    network: in evaluation mode.
    images: (B, C, H, W), normalised.

    Errors: ValueError for a network in training mode, and for one without tokens whose mean a linear head reads.
    """
    _require_eval(network)
    tokens = capability(network, "tokens", "patch evidence")
    return cast(Tensor, cast(nn.Module, network.head)(tokens(images)))


@METHODS.register("evidence")
@torch.no_grad()
def evidence(network: nn.Module, images: Tensor, classes: Tensor, fill: Tensor, grid: Grid) -> Tensor:
    """The contribution of each patch to the logit, which sum to the logit less the head's bias; `fill` is not used."""
    logits = patch_evidence(network, images)
    if logits.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"evidence is about the network's own {logits.shape[1]} patches, not {grid[0]} x {grid[1]}")
    own = logits - head_bias(network)
    return own[torch.arange(len(images), device=own.device), :, classes] / own.shape[1]


@METHODS.register("occlusion")
@torch.no_grad()
def occlusion(network: nn.Module, images: Tensor, classes: Tensor, fill: Tensor, grid: Grid) -> Tensor:
    """The fall of the logit when this patch alone is filled (Zeiler and Fergus 2014, arXiv:1311.2901)."""
    _require_eval(network)
    each = torch.eye(grid[0] * grid[1], dtype=torch.bool, device=images.device)
    rows = []
    for image, k in zip(images, classes.tolist(), strict=True):
        without = [
            network(fill_patches(image.expand(len(part), -1, -1, -1), part, fill, grid))[:, k]
            for part in torch.split(each, CHUNK)
        ]
        rows.append(network(image[None])[0, k] - torch.cat(without))
    return torch.stack(rows)


@METHODS.register("gradient-x-input")
def gradient_x_input(network: nn.Module, images: Tensor, classes: Tensor, fill: Tensor, grid: Grid) -> Tensor:
    """A first-order estimate of occlusion: gradient * (images - fill), summed over the patch (arXiv:1605.01713)."""
    return sum_patches(gradient(network, images, classes) * _difference(images, fill), grid)


@METHODS.register("integrated-gradients")
def integrated_gradients(
    network: nn.Module, images: Tensor, classes: Tensor, fill: Tensor, grid: Grid, steps: int = STEPS
) -> Tensor:
    """The mean gradient on the straight line from the filled image, * (images - fill) (arXiv:1703.01365).

    The sum over the patches is the logit less that of the filled image, up to the error of `steps` Gauss-Legendre
    nodes.
    """
    return sum_patches(integrated_pixels(network, images, classes, fill, steps), grid)


def integrated_pixels(network: nn.Module, images: Tensor, classes: Tensor, fill: Tensor, steps: int = STEPS) -> Tensor:
    """`integrated_gradients` before the sum over patches, in the shape of `images`."""
    difference, mean = _difference(images, fill), torch.zeros_like(images)
    for node, weight in zip(*np.polynomial.legendre.leggauss(steps), strict=True):  # on -1..1, weights that sum to 2
        mean += gradient(network, images - (1 - node) / 2 * difference, classes) * (weight / 2)
    return mean * difference


def gradient(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """The gradient of the logit of each image's class, in the shape of `images`."""
    _require_eval(network)
    images = images.detach().requires_grad_()
    return torch.autograd.grad(network(images).gather(1, classes[:, None]).sum(), images)[0]


def patch_numbers(images: Tensor, grid: Grid) -> Tensor:
    """The patch that each pixel of the images is in, (H, W), row-major; equal patches where H and W can be divided."""
    down, across = (torch.arange(n, device=images.device) * k // n for n, k in zip(images.shape[2:], grid, strict=True))
    return down[:, None] * grid[1] + across


def sum_patches(values: Tensor, grid: Grid) -> Tensor:
    """Sums over the patches: (B, in_channels, H, W) -> (B, S)."""
    sums = values.new_zeros(len(values), grid[0] * grid[1])
    return sums.index_add_(1, patch_numbers(values, grid).flatten(), values.sum(dim=1).flatten(1))


def fill_patches(images: Tensor, where: Tensor, fill: Tensor, grid: Grid) -> Tensor:
    """The images with the patches of `where` (B, S) bool filled."""
    return torch.where(where[:, patch_numbers(images, grid)][:, None], fill[:, None, None], images)


def _difference(images: Tensor, fill: Tensor) -> Tensor:
    return images - fill[:, None, None]


def _require_eval(network: nn.Module) -> None:
    if network.training:
        raise ValueError(
            "the network is in training mode, with dropout and stochastic depth: call network.eval() first"
        )


# --- images by name ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ClassEvidence:
    """One class of one image. Where evidence is exact, logit = evidence_for + evidence_against + bias; else None."""

    label: str
    probability: float
    logit: float
    evidence_for: float | None = None
    """Sum over the patches that speak for the class."""
    evidence_against: float | None = None
    bias: float | None = None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a network sees a class in an image."""

    name: str
    """Path of the image."""
    pixels: Pixels
    """(H, W, in_channels), 0..255, the input of the network before normalisation."""
    photo: Pixels
    """The same part of the image for the eye: up to PHOTO_PX on its longer side where the file is that large, else
    `pixels`."""
    grid: Grid
    """h, w: patches down and across."""
    top: tuple[ClassEvidence, ...]
    """The likeliest classes, likeliest first."""
    target: ClassEvidence
    """The class that `maps` are about."""
    rival: ClassEvidence | None
    """The likeliest other class; None where there is none and where an image may have several classes."""
    threshold: float | None
    """Lowest probability at which a class is given, where an image may have several; else None."""
    maps: dict[str, NDArray[np.float32]]
    """Method -> (h, w), logits: positive speaks for the class."""
    rival_maps: dict[str, NDArray[np.float32]]
    """Method -> (h, w) for the rival; empty without one."""
    filled_logit: float
    """The logit of the class for an image that is nothing but `fill`."""
    filled_lead: float
    """The lead over the rival for the same image of `fill`."""
    mixing: "Mixing | None"
    """The patches on which each patch depends, block by block, if asked for."""

    @property
    def lead(self) -> float:
        """The logit of the class less the rival's: the logarithm of how many times as likely it is."""
        return self.target.logit - (self.rival.logit if self.rival else 0.0)

    @property
    def least_lead(self) -> float:
        """The lead from which the class is given: 0 before a rival, else the logit of the threshold."""
        return 0.0 if self.threshold is None else math.log(self.threshold / (1 - self.threshold))

    @property
    def lead_bias(self) -> float | None:
        """The part of `lead` that no patch adds; None where evidence is not exact."""
        bias, other = self.target.bias, self.rival.bias if self.rival else 0.0
        return None if bias is None or other is None else bias - other

    def lead_map(self, method: str) -> NDArray[np.float32]:
        """(h, w): how much each patch adds to `lead`. Every method is linear in the logits, so this is a difference."""
        return self.maps[method] - self.rival_maps[method] if self.rival else self.maps[method]

    def to_json(self) -> dict[str, Any]:
        """All but the pixels; of `mixing` the three numbers after each block."""
        return {
            "image": self.name,
            "asked": dataclasses.asdict(self.target),
            "rival": dataclasses.asdict(self.rival) if self.rival else None,
            "threshold": self.threshold,
            "top": [dataclasses.asdict(c) for c in self.top],
            "filled_logit": self.filled_logit,
            "maps": {name: values.tolist() for name, values in self.maps.items()},
            "rival_maps": {name: values.tolist() for name, values in self.rival_maps.items()},
            "mixing": None if self.mixing is None else self.mixing.spread.tolist(),
        }


def explain(
    classifier: Classifier,
    paths: Iterable[str | Failure],
    fill: Tensor,
    *,
    methods: Sequence[str] | None = None,
    label: str = "",
    mixing: bool = False,
    top_k: int = 5,
) -> Iterator[Explanation | Failure]:
    """Explain the image at every path: an Explanation, or a Failure, for each, in order.

    classifier: a run or weights, opened by `load`; not an export.
    paths: what `find_images` yields.
    fill: (in_channels,), the normalised pixel that stands for "nothing to see"; `default_fill(classifier)[0]`.
    methods: names of METHODS; default: all that the network supports.
    label: the class to explain; default: each image's likeliest.
    mixing: also work out which patches each patch depends on.
    top_k: number of classes in `Explanation.top`.

    Errors: ValueError for an unknown method or class, for a method that the network does not support, and for a network
    without a head.
    """
    network = require_network(classifier)
    chosen = [(name, METHODS[name]) for name in (supported(network) if methods is None else methods)]
    if label and label not in classifier.classes:
        raise ValueError(f"the model has no class {label!r}; {suggest(label, classifier.classes)}")
    items = ((p.name, p) if isinstance(p, Failure) else (p, lambda p=p: p) for p in paths)
    for batch in decoded_batches(items, classifier.preprocess_image, batch_size=8):
        for name, pixels in batch:
            if isinstance(pixels, Failure):
                yield pixels
            else:
                yield _explanation(classifier, network, name, pixels, fill, chosen, label, mixing, top_k)


def _explanation(
    classifier: Classifier,
    network: nn.Module,
    name: str,
    pixels: Pixels,
    fill: Tensor,
    methods: Sequence[tuple[str, Method]],
    label: str,
    mixing: bool,
    top_k: int,
) -> Explanation:
    grid, image = grid_of(classifier), network_input(classifier, pixels[None])
    probabilities = classifier.probabilities(pixels[None])[0]
    with torch.no_grad():
        logits, filled = network(torch.cat([image, fill[:, None, None].expand_as(image)]))
    exact: tuple[Tensor, Tensor] | None = None
    if has(network, "tokens"):
        bias = head_bias(network)
        exact = (patch_evidence(network, image)[0] - bias) / (grid[0] * grid[1]), bias  # (S, K), (K,)

    def scored(k: int) -> ClassEvidence:
        found = ClassEvidence(label=classifier.classes[k], probability=float(probabilities[k]), logit=float(logits[k]))
        if exact is None:
            return found
        evidence, bias = (values[..., k] for values in exact)
        above, below = (float(part.sum()) for part in (evidence.clamp_min(0), evidence.clamp_max(0)))
        return dataclasses.replace(found, evidence_for=above, evidence_against=below, bias=float(bias))

    order = [int(k) for k in np.argsort(-probabilities, kind="stable")]
    target = classifier.classes.index(label) if label else order[0]
    compared = [target] if classifier.multi_label else [target, *[k for k in order if k != target][:1]]
    classes, views = torch.tensor(compared, device=image.device), image.expand(len(compared), -1, -1, -1)
    maps = {n: method(network, views, classes, fill, grid).reshape(-1, *grid).cpu().numpy() for n, method in methods}
    drawn = capability(network, "mixing", "--method mixing").mixing_of(network, image[0]) if mixing else None
    return Explanation(
        name=name,
        pixels=pixels,
        photo=_photo(classifier, name, pixels),
        grid=grid,
        top=tuple(scored(k) for k in order[:top_k]),
        target=scored(target),
        rival=scored(compared[1]) if compared[1:] else None,
        threshold=classifier.threshold,
        maps={n: values[0] for n, values in maps.items()},
        rival_maps={n: values[1] for n, values in maps.items() if compared[1:]},
        filled_logit=float(filled[target]),
        filled_lead=float(filled[target] - filled[compared[1:]].sum()),
        mixing=drawn,
    )


def _photo(classifier: Classifier, path: str, pixels: Pixels) -> Pixels:
    """`Explanation.photo` of the image in a file that could be read before."""
    height, width = pixels.shape[:2]
    file = decode(path, "RGB")
    factor = min(PHOTO_PX / max(height, width), file.width / width, file.height / height)
    return classifier.preprocess.scaled(factor).array(path) if factor > 1 else pixels


def default_fill(classifier: Classifier) -> tuple[Tensor, str]:
    """The pixel to fill patches with, (in_channels,) on the model's device, and a description of it.

    The mean pixel of up to 512 training images; the middle of the preprocessing's range if they are not available.
    """
    preprocess, device = classifier.preprocess, next(require_network(classifier).parameters()).device
    try:
        images = open_images(resolve_data(classifier, None), "train").spread(FILL_IMAGES)
        _, means, _ = map_images(classifier, images, lambda arrays: preprocess.normalise(arrays).mean(axis=(2, 3)), 128)
        fill, what = means.mean(axis=0), f"the mean of {len(means)} training images"
    except (ValueError, OSError) as error:
        fill = np.zeros(preprocess.in_channels, np.float32)
        what = f"the middle value, as the training images are not available: {error}"
    pixel = 255 * (fill * np.array(preprocess.std) + np.array(preprocess.mean))
    return torch.from_numpy(fill).to(device), f"{', '.join(f'{v:.0f}' for v in pixel)} of 255 ({what})"


def require_network(classifier: Classifier) -> nn.Module:
    """The torch network of a classifier. ValueError where there is none, and for a network without classes."""
    if classifier.network is None:
        raise ValueError("an export cannot be explained: give the run or weight file that it was made from")
    if not classifier.classes:
        raise ValueError("this model has no head (num_classes=0), so there is no class to explain")
    return classifier.network


def supported(network: nn.Module) -> list[str]:
    """The names of METHODS that work with a network: evidence needs tokens whose mean a linear head reads."""
    return [name for name in METHODS if name != "evidence" or has(network, "tokens")]


def head_bias(network: nn.Module) -> Tensor:
    """The bias of the head, (K,)."""
    return cast(nn.Linear, network.head).bias.detach()


def grid_of(classifier: Classifier) -> Grid:
    """Patches down and across; for a network without patches, places of its last feature map."""
    config = classifier.meta.config if classifier.meta else require_network(classifier).cfg
    return cast("NetworkConfig", config).grid


def network_input(classifier: Classifier, arrays: Pixels) -> Tensor:
    """Images as `classifier.preprocess_image` gives them, stacked, normalised for the network and on its device."""
    device = next(require_network(classifier).parameters()).device
    return torch.from_numpy(classifier.preprocess.normalise(arrays)).to(device)

"""Figure 4: what shuffled pixels do to a Mixer and to a ResNet.

Letters: S patches, P patch_size, C channels of an image. One permutation is drawn from a seed and used for all images.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.data.datasets import open_data
from mlpmixer.inference.classifier import load
from mlpmixer.models.architecture import Build
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.reproduce.comparison import COLOURS, CONTESTS, DRAW, Sized, best_rates, draw, interval, sizes, spread
from mlpmixer.reproduce.experiment import Lab
from mlpmixer.reproduce.page import Cells, Page, Plot
from mlpmixer.training.augment import normalise, prepare_eval
from mlpmixer.weights.run_folder import read_metrics

Mode = Literal["original", "patches", "pixels"]
MODES: dict[Mode, str] = {
    "original": "the images as they are",
    "patches": "patches shuffled, and the pixels in each of them alike",
    "pixels": "all pixels shuffled",
}
NAMES = ("Mixer", "ResNet")
CHECKED = 256  # images of the identity
SCALES = CONTESTS | {  # fewer runs than elsewhere, longer ones
    "small": dataclasses.replace(CONTESTS["small"], steps=900, rate_steps=180, evaluations=10),
    "long": dataclasses.replace(CONTESTS["long"], steps=1500),
}


def orders(cfg: MixerConfig, seed: int) -> tuple[Tensor, Tensor]:
    """A permutation of the patches (S,) and one of the pixels of a patch (P*P,)."""
    rng, (p, q) = np.random.default_rng(seed), pair(cfg.patch_size)
    return torch.from_numpy(rng.permutation(cfg.num_patches)), torch.from_numpy(rng.permutation(p * q))


def pixel_order(mode: Mode, cfg: MixerConfig, seed: int) -> Tensor:
    """For each place of the flattened image (H*W,) the place that its pixel comes from."""
    h, w = pair(cfg.image_size)
    places = torch.arange(h * w)
    if mode == "original":
        return places
    if mode == "pixels":
        return torch.from_numpy(np.random.default_rng(seed).permutation(h * w))
    (rows, cols), (p, q), (patches, inside) = cfg.grid, pair(cfg.patch_size), orders(cfg, seed)
    cut = places.reshape(rows, p, cols, q).permute(0, 2, 1, 3).reshape(rows * cols, p * q)  # (S, P*P)
    return cut[patches][:, inside].reshape(rows, cols, p, q).permute(0, 2, 1, 3).flatten()


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """A network that sees every image, in training and afterwards, with its pixels in another order; for
    `train(network=)`.

    The order is part of the network, behind augmentation: where the paper has it, since a crop of a shuffled image
    would take pixels from one patch to another.
    """

    mode: Mode
    seed: int = 0
    of: Sized | None = None
    """None: a Mixer."""

    def __call__(self, cfg: MixerConfig) -> nn.Module:
        order = pixel_order(self.mode, cfg, self.seed)
        return ShuffledMixer(cfg, order) if self.of is None else ShuffledNetwork(self.of(cfg), order)


def reordered(images: Tensor, order: Tensor) -> Tensor:
    """(B, C, H, W) with the pixels of each channel in another order."""
    return images.flatten(2).index_select(2, order).reshape(images.shape)


class ShuffledMixer(Mixer):
    def __init__(self, cfg: MixerConfig, order: Tensor) -> None:
        super().__init__(cfg)
        self.order: Tensor
        self.register_buffer("order", order, persistent=False)  # it follows from the seed

    def patches(self, images: Tensor) -> Tensor:
        return super().patches(reordered(images, self.order))


class ShuffledNetwork(nn.Module):
    def __init__(self, network: Any, order: Tensor) -> None:
        super().__init__()
        self.network = network
        self.order: Tensor
        self.register_buffer("order", order, persistent=False)

    def pre_logits(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.pre_logits(reordered(images, self.order))
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(reordered(images, self.order))
        return logits


@torch.no_grad()
def for_shuffled(model: Mixer, seed: int) -> ShuffledMixer:
    """The same function of the plain images, made for shuffled ones ("patches"): stem, W1, W2 and b2 permuted alike, in
    every block.

    The identity behind the figure: a Mixer has no order of patches or of pixels in them but that which its weights have
    learnt.
    """
    cfg = model.cfg
    (patches, inside), (p, q) = orders(cfg, seed), pair(cfg.patch_size)
    twin = ShuffledMixer(cfg, pixel_order("patches", cfg, seed))
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    stem = state["stem.weight"].reshape(cfg.hidden_dim, cfg.in_channels, p * q)
    state["stem.weight"] = stem[:, :, inside].reshape(cfg.hidden_dim, -1)
    for i in range(cfg.num_blocks):
        mixing = f"blocks.{i}.token_mixing"
        state[f"{mixing}.fc1.weight"] = state[f"{mixing}.fc1.weight"][:, patches]
        for name in ("weight", "bias"):
            state[f"{mixing}.fc2.{name}"] = state[f"{mixing}.fc2.{name}"][patches]
    twin.load_state_dict(state)
    return twin.eval()


def run(lab: Lab) -> Page:
    contest = SCALES[lab.scale]
    data = contest.data(lab)
    splits = open_data(data)
    train_images = len(splits.train)
    lab.parts = sum(len(contest.rates[name]) for name in NAMES) + len(NAMES) * len(MODES) * contest.seeds + 1
    rates, tried = best_rates(lab, contest, NAMES, data, train_images)

    top1: dict[str, dict[str, list[float]]] = {name: {mode: [] for mode in MODES} for name in NAMES}
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {name: {} for name in NAMES}
    n = 0
    for seed in range(lab.seed, lab.seed + contest.seeds):
        for name in NAMES:
            for mode in MODES:
                inner = contest.network(name)
                assert inner is None or isinstance(inner, Sized)
                network: Build = Shuffled(mode=mode, of=inner)
                recipe = contest.recipe(data, train_images, rates[name], seed)
                result = lab.train(f"{name}-{mode}-{seed}", recipe, network)
                top1[name][mode].append(result.summary["top1"])
                n = result.summary["test"]["n"]
                lines = read_metrics(result.path / "metrics.jsonl")
                curves[name].setdefault(
                    mode, [(line["step"], line["top1"]) for line in lines if line["kind"] == "eval"]
                )
    difference = lab.measure("identity", lambda: _identity(lab, f"Mixer-original-{lab.seed}", splits.val))
    measured, size = sizes(contest, NAMES)
    mean = {name: {mode: sum(v) / len(v) for mode, v in modes.items()} for name, modes in top1.items()}

    def fall(name: str, mode: Mode) -> str:
        before, after = mean[name]["original"], mean[name][mode]
        change = (
            "a draw"
            if draw(before, after, n)
            else f"{100 * abs(after / before - 1):.0f} % of it {'lost' if after < before else 'gained'}"
        )
        return f"{name} {100 * before:.1f} % to {100 * after:.1f} % ({change})"

    rows = tuple(
        (name, text, spread(top1[name][mode]), interval(mean[name][mode], n))
        for name in NAMES
        for mode, text in MODES.items()
    )
    return Page(
        claim=(
            "figure 4, JFT-300M, linear 5-shot ImageNet top-1: with patches and the pixels in them shuffled, "
            "Mixer-B/16's curve is the "
            "original one, and ResNet50x1's drops strongly; with all pixels shuffled the Mixer loses about 45 % and "
            "the ResNet about 75 %."
        ),
        findings=(
            f"Patches and the pixels in them shuffled: {'; '.join(fall(name, 'patches') for name in NAMES)}.",
            f"All pixels shuffled: {'; '.join(fall(name, 'pixels') for name in NAMES)}.",
            f"The identity: the trained Mixer with stem, W1, W2 and b2 permuted gives on shuffled images the logits of "
            f"the original, "
            f"to {difference['max_abs_difference']:.1e} (logits up to {difference['max_abs_logit']:.1f}).",
        ),
        tables=(
            Cells(title="Test top-1", header=("network", "images", "top-1", "95 % interval"), rows=rows),
            tried,
        ),
        plots=(
            Plot(
                name="curves",
                caption="Validation top-1, first seed",
                draw=lambda figure: _draw(figure, curves),
                size=(9, 4),
            ),
        ),
        notes=(
            f"CIFAR-10 at 32 px, patches of {pair(contest.mixer.patch_size)[0]} px; {contest.steps:,} steps of "
            f"{contest.batch_size} images "
            f"for every run, {train_images:,} training images, n = {contest.seeds}. Accuracy is on all {n:,} test "
            f"images, not 5-shot.",
            size,
            "One permutation for all images, in training and test, applied to what the network sees: after random "
            "crops and flips. The "
            "other way round a crop would carry pixels from patch to patch.",
            "The learning rate of each network was chosen on validation images with the original images, and is the "
            "same for all three.",
            DRAW,
        ),
        figures={"top1": top1, "curves": curves, "sizes": measured, "rates": rates, "n": n, "identity": difference},
    )


def _identity(lab: Lab, name: str, images: Any) -> dict[str, float]:
    """The trained Mixer and its twin for shuffled images, on some validation images."""
    classifier = load(lab.out / "runs" / name, network=Shuffled(mode="original"))
    model: Any = classifier.network
    pixels = np.stack([classifier.preprocess_image(images.source(i)) for i in range(min(CHECKED, len(images)))])
    seen = normalise(prepare_eval(torch.from_numpy(pixels)), classifier.preprocess)
    with torch.no_grad():
        logits, twins = model(seen), for_shuffled(model, seed=0)(seen)
    return {"max_abs_difference": float((logits - twins).abs().max()), "max_abs_logit": float(logits.abs().max())}


def _draw(figure: Any, curves: dict[str, dict[str, list[tuple[int, float]]]]) -> None:
    styles = {"original": "-", "patches": "--", "pixels": ":"}
    shared = None
    for column, name in enumerate(NAMES, 1):
        axes = figure.add_subplot(1, 2, column, xlabel="step", title=name, sharey=shared)
        shared = shared or axes
        for mode, points in curves[name].items():
            axes.plot(*zip(*points, strict=True), styles[mode], color=COLOURS[name], label=mode)
        axes.set_ylabel("validation top-1")
        axes.legend()

"""Figures 5, 6 and 7: hidden units of token mixing and the stem's filters, with and without augmentation, beside the
weights they started from.

Letters: S patches in a grid, D_S tokens_mlp_dim, N blocks, P patch_size.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from mlpmixer.data.datasets import open_data
from mlpmixer.explanation.pictures import stem_picture, units_picture
from mlpmixer.inference.load import load
from mlpmixer.models.architecture import configured, create_model
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.models.mixing import frequency, hidden_units, opposite_pairs, stem_filters
from mlpmixer.reproduce.chance import describe_difference
from mlpmixer.reproduce.comparison import COMPARISONS, Comparison, cifar10, nano
from mlpmixer.reproduce.experiment import ExperimentContext, Scale
from mlpmixer.reproduce.page import Page, Panel, Plot, Series, make_table, percent
from mlpmixer.training.recipe import Augment, Recipe

RATE = 0.003  # the paper's for S and B on JFT-300M, table 4
# the kinds of augmentation in the paper's ImageNet runs, table 4
AUGMENT = Augment(pad_crop_px=4, flip=True, randaugment_layers=2, mixup=0.5)
OPPOSITE = (-0.5, -0.9)  # our choice: cosines from which a pair is called opposite, and nearly exactly so
ERRORS = 3  # frequencies are called different from so many standard errors on; there are many blocks
PLAIN, AUGMENTED, START = "without augmentation", "with augmentation", "at the start"
COLOURS = {START: "0.6", PLAIN: "tab:orange", AUGMENTED: "tab:blue"}


def _scale(scale: Scale, mixer: MixerConfig, *coarser: int, **training: Any) -> tuple[Comparison, tuple[int, ...]]:
    """The Mixer and its training, and further patch sizes, of which only the stem is looked at."""
    return dataclasses.replace(COMPARISONS[scale], networks={"Mixer": mixer}, **training), coarser


SCALES: dict[Scale, tuple[Comparison, tuple[int, ...]]] = {
    "small": _scale("small", nano(6, 64, 128), 8, steps=800),
    "long": _scale("long", nano(8, 128, 128), 8, steps=10_000),
    "full": _scale("full", dataclasses.replace(nano(8, 256, 256), patch_size=2), 4, 8),  # 16x16 patches
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """Statistics of a set of maps."""

    frequency: float
    """Mean over the maps in cycles a patch (hidden units) or cycles a pixel (stem)."""
    error: float
    """Standard error of the frequency."""
    opposite: tuple[float, ...] = ()
    """Share of the units in a pair with a cosine below each value of OPPOSITE."""
    median_cosine: float = 0.0
    """Median cosine of the pairs."""

    def unlike(self, other: "Look") -> str:
        """The word lower or higher, or nothing within ERRORS standard errors of the difference."""
        apart = self.frequency - other.frequency
        return "" if abs(apart) <= ERRORS * math.hypot(self.error, other.error) else "lower" if apart < 0 else "higher"


def look_at(maps: Tensor) -> Look:
    """Statistics of maps (n, ..., h, w), n > 1; pairs are sought among hidden units (n, h, w) only."""
    values = frequency(maps)
    look = Look(frequency=float(values.mean()), error=float(values.std() / math.sqrt(len(values))))
    if maps.ndim > 3:
        return look
    cosines = opposite_pairs(maps)[1]
    shares = tuple(2 * int((cosines < limit).sum()) / len(maps) for limit in OPPOSITE)
    return dataclasses.replace(look, opposite=shares, median_cosine=float(cosines.median()))


def untrained(recipe: Recipe) -> Mixer:
    """The network that a run of `recipe` starts from, if it starts by the official rule."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        model: Mixer = create_model(recipe.model)
        return model


def inspect_weights(context: ExperimentContext) -> Page:
    comparison, coarser = SCALES[context.scale]
    data = cifar10(context)
    cfg: Any = comparison.networks["Mixer"]
    train_images = len(open_data(data).train)
    base = comparison.recipe("Mixer", data, train_images, RATE, context.seed)
    own_px = cfg.cell[0]
    patches = {"plain": own_px, "augmented": own_px} | {f"patch-{px}": px for px in coarser}
    context.num_parts = len(patches)
    start: dict[str, Any] = {}
    trained: dict[str, Any] = {}
    top1, n = {}, 0
    for name, px in patches.items():
        model = configured(base.model, patch_size=px)
        recipe = dataclasses.replace(base, model=model, augment=Augment() if name == "plain" else AUGMENT)
        result = context.train(name, recipe)
        start[name], trained[name] = untrained(recipe), load(result.path).network
        top1[name], n = result.summary["top1"], result.summary["test"]["n"]

    networks = {START: start["plain"], PLAIN: trained["plain"], AUGMENTED: trained["augmented"]}
    units = {name: [look_at(hidden_units(model, i)) for i in range(cfg.num_blocks)] for name, model in networks.items()}
    stems = {px: {"trained": trained[name], START: start[name]} for name, px in patches.items() if name != "plain"}
    filters = {px: {when: look_at(stem_filters(m)) for when, m in models.items()} for px, models in stems.items()}
    frequencies = [f"{name} {', '.join(f'{look.frequency:.3f}' for look in looks)}" for name, looks in units.items()]
    changed = [f"{name} {_different_blocks(units[name], units[START])}" for name in (PLAIN, AUGMENTED)]
    difference = describe_difference(AUGMENTED, top1["augmented"], PLAIN, top1["plain"], n)
    return Page(
        template="weights.md",
        values={"comparison": comparison, "coarser": coarser, "images": train_images, "rate": RATE, "errors": ERRORS},
        findings=(
            "Mean frequency of the hidden units, cycles a patch, from the first block to the last: "
            f"{'; '.join(frequencies)}. Different from the start: {'; '.join(changed)}.",
            f"Hidden units in a pair of opposite phase (cosine below {OPPOSITE[0]}): "
            f"{'; '.join(f'{name} {_opposites(looks)}' for name, looks in units.items())}.",
            "Frequency with augmentation, different from without: "
            f"{_different_blocks(units[AUGMENTED], units[PLAIN])}. Test top-1: {difference}.",
            f"Stem, mean frequency in cycles a pixel: {'; '.join(_stem(px, looks) for px, looks in filters.items())}.",
        ),
        tables=(
            make_table(
                "Hidden units of token mixing (± standard error)",
                [
                    {
                        "network": name,
                        "block": i,
                        "frequency, cycles a patch": f"{look.frequency:.3f} ± {look.error:.3f}",
                        **{f"in pairs below {c}": percent(s) for c, s in zip(OPPOSITE, look.opposite, strict=True)},
                        "median cosine of pairs": f"{look.median_cosine:.2f}",
                    }
                    for name, looks in units.items()
                    for i, look in enumerate(looks, 1)
                ],
            ),
        ),
        plots=(
            _units_plot("units-plain", PLAIN, networks),
            _units_plot("units-augmented", AUGMENTED, networks),
            _blocks_plot(units),
            _stems_plot(stems),
        ),
        figures={
            "units": {name: [dataclasses.asdict(look) for look in looks] for name, looks in units.items()},
            "stems": {
                f"{px}": {when: dataclasses.asdict(look) for when, look in looks.items()}
                for px, looks in filters.items()
            },
            "top1": top1,
            "n": n,
        },
    )


def _different_blocks(looks: Sequence[Look], others: Sequence[Look]) -> str:
    found = [f"{i} {word}" for i, (a, b) in enumerate(zip(looks, others, strict=True), 1) if (word := a.unlike(b))]
    return f"block {', '.join(found)}" if found else "no block"


def _opposites(looks: list[Look]) -> str:
    shares, nearly = [look.opposite[0] for look in looks], fmean(look.opposite[1] for look in looks)
    most = max(shares)
    where = f"most in block {shares.index(most) + 1}: {percent(most)}" if most else "none in any block"
    return f"{percent(fmean(shares))} ({where}; below {OPPOSITE[1]}: {percent(nearly)})"


def _stem(px: int, looks: dict[str, Look]) -> str:
    trained, start = looks.values()
    change = trained.unlike(start) or "no difference"
    return f"patches of {px} px {trained.frequency:.3f}, {START} {start.frequency:.3f} ({change})"


def _units_plot(file: str, name: str, networks: dict[str, Mixer]) -> Plot:
    last = networks[name].cfg.num_blocks - 1
    blocks = sorted({i for i in (0, 1, 2, last - 1, last) if 0 <= i <= last})
    shown = [(f"block {i + 1}", name, i) for i in blocks] + [("block 1 at the start", START, 0)]
    panels = []
    for title, network, block in shown:
        units = hidden_units(networks[network], block)
        panels.append(Panel(title=title, picture=units_picture(units[opposite_pairs(units)[0]].numpy())))
    caption = f"Figures 5 and 6, {name}: hidden units by frequency, each before the one that is nearest its inverse"
    return Plot(file, caption, panels, num_rows=2, size=(12, 8.4))


def _blocks_plot(units: dict[str, list[Look]]) -> Plot:
    frequencies, pairs = [], []
    for name, looks in units.items():
        errors = [ERRORS * look.error for look in looks]
        points = [(i, look.frequency) for i, look in enumerate(looks, 1)]
        frequencies.append(Series(points, name, "-", COLOURS[name], errors))
        pairs.append(Series([(i, look.opposite[0]) for i, look in enumerate(looks, 1)], name, "-o", COLOURS[name]))
    panels = (
        Panel("block", "mean frequency, cycles a patch", frequencies),
        Panel("block", f"share in pairs below {OPPOSITE[0]}", pairs),
    )
    return Plot("blocks", f"Hidden units by block; bars are {ERRORS} standard errors", panels)


def _stems_plot(stems: dict[int, dict[str, Mixer]]) -> Plot:
    panels = []
    for when in ("trained", START):
        for px, models in stems.items():
            filters = stem_filters(models[when])
            picture = stem_picture(filters[frequency(filters).argsort()].numpy())
            panels.append(Panel(title=f"{px} px, {when}", picture=picture))
    caption = "Figure 7: the stem's filters by frequency, trained with augmentation (above) and at the start (below)"
    return Plot("stems", caption, panels, num_rows=2, size=(4.2 * len(stems), 8.4))

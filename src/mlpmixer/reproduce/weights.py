"""Figures 5, 6 and 7: what the hidden units of token mixing and the stem look for, with and without augmentation,
beside their start.

Letters: S patches in a grid, D_S tokens_mlp_dim, N blocks, P patch_size.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpmixer.config import pair
from mlpmixer.data.datasets import open_data
from mlpmixer.explanation.pictures import stem_picture, units_picture
from mlpmixer.inference.classifier import load
from mlpmixer.models.architecture import configured, create_model
from mlpmixer.models.mixer import Mixer
from mlpmixer.models.mixing import frequency, hidden_units, opposite_pairs, stem_filters
from mlpmixer.reproduce.comparison import CONTESTS, DRAW, Contest, against, nano
from mlpmixer.reproduce.experiment import Lab, Scale
from mlpmixer.reproduce.page import Cells, Page, Plot
from mlpmixer.training.recipe import Augment, Recipe

RATE = 0.003  # the paper's for S and B on JFT-300M, table 4
AUGMENT = Augment(
    pad_crop_px=4, flip=True, randaugment_layers=2, mixup=0.5
)  # the kinds of the paper's ImageNet runs, table 4
OPPOSITE = (-0.5, -0.9)  # ours: a cosine from which a pair is called opposite, and nearly exactly so
ERRORS = 3  # so many standard errors apart is called different; there are many blocks
PLAIN, AUGMENTED, START = "without augmentation", "with augmentation", "at the start"


# Of each scale the Mixer and its training (nobody else in the contest), and further patch sizes, of which the stem
# alone is looked at.
SCALES: dict[Scale, tuple[Contest, tuple[int, ...]]] = {
    "small": (dataclasses.replace(CONTESTS["small"], mixer=nano(6, 64, 128), steps=800), (8,)),
    "long": (dataclasses.replace(CONTESTS["long"], mixer=nano(8, 128, 128), steps=10_000), (8,)),
    "full": (
        dataclasses.replace(CONTESTS["full"], mixer=dataclasses.replace(nano(8, 256, 256), patch_size=2)),
        (4, 8),
    ),  # 16x16 patches
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """A set of maps in numbers."""

    frequency: float
    """Mean over the maps, cycles a step: a patch for hidden units, a pixel for the stem."""
    error: float
    """Its standard error."""
    opposite: tuple[float, ...] = ()
    """Shares of the units that are in a pair with a cosine below each of OPPOSITE."""
    median_cosine: float = 0.0
    """Of the pairs."""

    def unlike(self, other: "Look") -> str:
        """lower, higher, or nothing when the frequencies are within ERRORS standard errors of their difference."""
        apart = self.frequency - other.frequency
        return "" if abs(apart) <= ERRORS * math.hypot(self.error, other.error) else "lower" if apart < 0 else "higher"


def look_at(maps: Tensor) -> Look:
    """Maps (n, ..., h, w), n > 1; pairs are of hidden units (n, h, w) only."""
    values = frequency(maps)
    look = Look(frequency=float(values.mean()), error=float(values.std() / math.sqrt(len(values))))
    if maps.ndim > 3:
        return look
    cosines = opposite_pairs(maps)[1]
    shares = tuple(2 * int((cosines < limit).sum()) / len(maps) for limit in OPPOSITE)
    return dataclasses.replace(look, opposite=shares, median_cosine=float(cosines.median()))


def untrained(recipe: Recipe) -> Mixer:
    """What a run of `recipe` starts from, when its start is the official one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        model: Mixer = create_model(recipe.model)
        return model


def run(lab: Lab) -> Page:
    contest, coarser = SCALES[lab.scale]
    data, cfg = contest.data(lab), contest.mixer
    splits = open_data(data)
    base = contest.recipe(data, len(splits.train), RATE, lab.seed)
    patches = {"plain": pair(cfg.patch_size)[0], "augmented": pair(cfg.patch_size)[0]} | {
        f"patch-{px}": px for px in coarser
    }
    lab.parts = len(patches)
    start, trained, top1, n = {}, {}, {}, 0
    for name, px in patches.items():
        model = configured(base.model, patch_size=px)
        recipe = dataclasses.replace(base, model=model, augment=Augment() if name == "plain" else AUGMENT)
        result = lab.train(name, recipe)
        start[name], trained[name] = untrained(recipe), _mixer(result.path)
        top1[name], n = result.summary["top1"], result.summary["test"]["n"]

    networks = {START: start["plain"], PLAIN: trained["plain"], AUGMENTED: trained["augmented"]}
    units = {name: [look_at(hidden_units(model, i)) for i in range(cfg.num_blocks)] for name, model in networks.items()}
    stems = {px: {"trained": trained[name], START: start[name]} for name, px in patches.items() if name != "plain"}
    filters = {
        px: {when: look_at(stem_filters(model)) for when, model in models.items()} for px, models in stems.items()
    }
    meeting = against(AUGMENTED, top1["augmented"], PLAIN, top1["plain"], n)
    return Page(
        claim=(
            "figure 5, Mixer-B/16 on JFT-300M: of the first three token-mixing MLPs many hidden units come in pairs of "
            "opposite phase, of "
            "low and of high frequency; deeper ones show no clear structure. Figure 6: three pre-training sets; "
            "augmentation changes the "
            "look strongly. Figure 7: the stem's filters of B/32 are Gabor-like and of low frequency, those of B/16 "
            "mostly of high "
            "frequency or without structure. The paper shows pictures and gives no figures."
        ),
        findings=(
            f"Mean frequency of the hidden units, cycles a patch, from the first block to the last: "
            f"{'; '.join(map(_line, units.items()))}."
            f" Other than at the start: "
            f"{'; '.join(f'{name} {_unlike(units[name], units[START])}' for name in (PLAIN, AUGMENTED))}.",
            f"Hidden units in a pair of opposite phase (cosine below {OPPOSITE[0]}): "
            f"{'; '.join(map(_opposites, units.items()))}.",
            f"Frequency with augmentation, other than without: {_unlike(units[AUGMENTED], units[PLAIN])}. Test top-1: "
            f"{meeting}.",
            f"Stem, mean frequency in cycles a pixel: {'; '.join(map(_stem, filters.items()))}.",
        ),
        tables=(_table(units),),
        plots=(
            *(
                _units_plot(file, name, networks)
                for file, name in (("units-plain", PLAIN), ("units-augmented", AUGMENTED))
            ),
            Plot(
                name="blocks",
                caption=f"Hidden units by block; bars are {ERRORS} standard errors",
                draw=lambda figure: _draw_blocks(figure, units),
                size=(9, 4),
            ),
            Plot(
                name="stems",
                caption="Figure 7: the stem's filters from low to high frequency, trained with augmentation (above), at the start (below)",
                draw=lambda figure: _draw_stems(figure, stems),
                size=(4.2 * len(stems), 8.4),
            ),
        ),
        notes=(
            f"A plain Mixer of {cfg.num_blocks} blocks, {cfg.hidden_dim} channels, D_S {cfg.tokens_mlp_dim}, "
            f"{patches['plain']}-px patches,"
            " from the official start. Locality, mirror symmetry and the whitened stem, which other recipes here have, "
            "are left out: they "
            f"would put structure into these weights. Adam as in the paper's pre-training, rate {RATE:g}, not tuned.",
            f"CIFAR-10 at 32 px, {len(splits.train):,} training images, {contest.steps:,} steps of "
            f"{contest.batch_size} each, n = 1. With "
            "augmentation: shifts, flips, two operations of RandAugment, mixup; without: none. All else of the two "
            "runs is equal, and "
            f"so is their start. Stems of {', '.join(map(str, coarser))} px: the same network with such patches, with "
            f"augmentation.",
            "Order and pairs as in appendix D: the lowest frequency first, then the unit most nearly its inverse, and "
            "so on. Random units "
            "pair up, too, so all is beside the weights that the runs started from. In the pictures red is positive, "
            "and each unit has its "
            "own scale. The frequency of a unit is the mean over its power spectrum.",
            f"Called different: more than {ERRORS} standard errors of the difference apart, over the units of one "
            f"network; another seed "
            "was not tried.",
            DRAW,
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


def _mixer(run: Any) -> Mixer:
    model = load(run).network
    assert isinstance(model, Mixer)
    return model


def _line(of: tuple[str, list[Look]]) -> str:
    return f"{of[0]} {', '.join(f'{look.frequency:.3f}' for look in of[1])}"


def _unlike(looks: Sequence[Look], others: Sequence[Look]) -> str:
    found = [f"{i} {word}" for i, (a, b) in enumerate(zip(looks, others, strict=True), 1) if (word := a.unlike(b))]
    return f"block {', '.join(found)}" if found else "no block"


def _opposites(of: tuple[str, list[Look]]) -> str:
    name, looks = of
    shares = [look.opposite[0] for look in looks]
    most = f"most in block {shares.index(max(shares)) + 1}: {max(shares):.1%}" if any(shares) else "none in any block"
    return f"{name} {fmean(shares):.1%} ({most}; below {OPPOSITE[1]}: {fmean(look.opposite[1] for look in looks):.1%})".replace(
        "%", " %"
    )


def _stem(of: tuple[int, dict[str, Look]]) -> str:
    trained, start = of[1].values()
    return f"patches of {of[0]} px {trained.frequency:.3f}, {START} {start.frequency:.3f} ({trained.unlike(start) or 'no difference'})"


def _table(units: dict[str, list[Look]]) -> Cells:
    header = (
        "network",
        "block",
        "frequency, cycles a patch",
        *(f"in pairs below {c}" for c in OPPOSITE),
        "median cosine of pairs",
    )
    rows = []
    for name, looks in units.items():
        for i, look in enumerate(looks, 1):
            shares = (f"{100 * share:.1f} %" for share in look.opposite)
            rows.append(
                (name, f"{i}", f"{look.frequency:.3f} ± {look.error:.3f}", *shares, f"{look.median_cosine:.2f}")
            )
    return Cells(title="Hidden units of token mixing (± standard error)", header=header, rows=tuple(rows))


def _units_plot(file: str, name: str, networks: dict[str, Mixer]) -> Plot:
    last = networks[name].cfg.num_blocks - 1
    shown = sorted({i for i in (0, 1, 2, last - 1, last) if 0 <= i <= last})
    panels = [(f"block {i + 1}", networks[name], i) for i in shown] + [("block 1 at the start", networks[START], 0)]

    def draw(figure: Any) -> None:
        for number, (title, model, block) in enumerate(panels, 1):
            units = hidden_units(model, block)
            _panel(figure, (2, 3, number), title, units_picture(units[opposite_pairs(units)[0]].numpy()))

    caption = f"Figures 5 and 6, {name}: hidden units of token mixing from low to high frequency, each before that nearest to its inverse"
    return Plot(name=file, caption=caption, draw=draw, size=(12, 8.4))


def _draw_stems(figure: Any, stems: dict[int, dict[str, Mixer]]) -> None:
    for column, (px, models) in enumerate(stems.items(), 1):
        for row, (when, model) in enumerate(models.items()):
            filters = stem_filters(model)
            picture = stem_picture(filters[frequency(filters).argsort()].numpy())
            _panel(figure, (2, len(stems), row * len(stems) + column), f"{px} px, {when}", picture)


def _panel(figure: Any, place: tuple[int, int, int], title: str, picture: Any) -> None:
    axes = figure.add_subplot(*place, title=title)
    axes.imshow(np.asarray(picture))
    axes.set_axis_off()


def _draw_blocks(figure: Any, units: dict[str, list[Look]]) -> None:
    frequencies = figure.add_subplot(1, 2, 1, xlabel="block", ylabel="mean frequency, cycles a patch")
    pairs = figure.add_subplot(1, 2, 2, xlabel="block", ylabel=f"share in pairs below {OPPOSITE[0]}")
    for (name, looks), colour in zip(units.items(), ("0.6", "tab:orange", "tab:blue"), strict=True):
        blocks = range(1, len(looks) + 1)
        errors = [ERRORS * look.error for look in looks]
        frequencies.errorbar(blocks, [look.frequency for look in looks], errors, color=colour, label=name, capsize=2)
        pairs.plot(blocks, [look.opposite[0] for look in looks], marker="o", color=colour, label=name)
    frequencies.legend()

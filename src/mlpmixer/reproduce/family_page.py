"""The comparison of the Mixer and its relatives: all runs in their order, and the page of what they found."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mlpmixer.exporters.job import require_packages
from mlpmixer.models.names import MODELS
from mlpmixer.reproduce.comparison import describe_difference, interval, is_tie, mean_and_range
from mlpmixer.reproduce.experiment import ExperimentContext
from mlpmixer.reproduce.family import (
    BASELINES,
    FORWARD_BATCH,
    LENGTHS,
    LOCAL,
    NETWORKS,
    RELATIVES,
    Length,
    best_rates,
    export_both,
    forward_speeds,
    num_steps,
    rates_of,
    recipe,
    run_name,
    training_speeds,
    uses_muon,
)
from mlpmixer.reproduce.page import Page, Panel, Plot, Series, Table, make_table, percent
from mlpmixer.training.recipes import cifar10

if TYPE_CHECKING:
    from mlpmixer.training.run import RunResult

NO_RESULT = "a check of the pipeline, not a result"
BESIDE = (LOCAL, *BASELINES)
KINDS = {  # colours that the colour-blind can tell apart (Okabe and Ito), and markers
    "all-MLP networks": ("#0072B2", "o", tuple(RELATIVES)),
    LOCAL: ("#D55E00", "s", (LOCAL,)),
    "ViT and ResNet": ("#595959", "^", tuple(BASELINES)),
}
MIXING = """
Mixer     | all | an MLP, one for all channels | fixed | an MLP | 8
ResMLP    | all | a matrix, one for all channels | fixed | an MLP | 8
gMLP      | all | a matrix for half of the channels | fixed; it gates the other half | both in one branch | 8
S2-MLP    | 4 neighbours | shifts of four groups | none | two layers, an MLP | 8
S2-MLPv2  | 4 neighbours | shifts of two parts of three | none; their shares: content | two layers, an MLP | 16, 8
AS-MLP    | 2 steps along row, column | shifts | none; a norm over the map: content | four layers, an MLP | 16, 8
ViP       | row, column | matrices, also across channels | fixed; their shares: content | a third branch, an MLP | 16, 8
RepMLPNet | all | a matrix, one for each set of channels | fixed; a factor: content | an MLP | 16, 8
EAMLP     | all | a memory of 64 slots | fixed memory, addressed by content | an MLP | 8
ViT       | all | attention | content | an MLP | 8
ResNet    | 3 x 3 | convolutions, also across channels | fixed | nothing apart | 32 to 4
"""
MIXES = ("network", "across locations", "by", "weights across locations", "per location", "grid at 32 px, side")
# name in MODELS or parameters, multiply-adds | top-1, % | arXiv | recipe; what another paper measured is said there
PUBLISHED = """
Mixer-B/16     | B/16          | 76.44 | 2105.01601 | 300 epochs, RandAugment, mixup
ResMLP-S12     | resmlp-s12    | 76.6  | 2105.03404 | 400 epochs, LAMB, otherwise as DeiT
ResMLP-S24     | resmlp-s24    | 79.4  | 2105.03404 | the same
gMLP-Ti        | gmlp-ti/16    | 72.3  | 2105.08050 | 300 epochs, AutoAugment, mixup, CutMix
gMLP-S         | gmlp-s/16     | 79.6  | 2105.08050 | the same
gMLP-B         | gmlp-b/16     | 81.6  | 2105.08050 | the same
S2-MLP-wide    | s2-mlp-wide   | 80.0  | 2106.07477 | 300 epochs, as DeiT
S2-MLP-deep    | s2-mlp-deep   | 80.7  | 2106.07477 | the same
S2-MLPv2-S/7   | s2-mlpv2-s/7  | 82.0  | 2108.01072 | 300 epochs, RandAugment, mixup, CutMix, CutOut, average of weights
S2-MLPv2-M/7   | s2-mlpv2-m/7  | 83.6  | 2108.01072 | the same
AS-MLP-T       | as-mlp-t      | 81.3  | 2107.08391 | 300 epochs, as Swin
AS-MLP-S       | as-mlp-s      | 83.1  | 2107.08391 | the same
AS-MLP-B       | as-mlp-b      | 83.3  | 2107.08391 | the same
ViP-S/7        | vip-s/7       | 81.5  | 2106.12368 | 300 epochs, RandAugment, erasing, mixup, CutMix
ViP-M/7        | vip-m/7       | 82.7  | 2106.12368 | the same
ViP-L/7        | vip-l/7       | 83.2  | 2106.12368 | the same
RepMLPNet-T224 | repmlpnet-t224| 76.4  | 2112.11081 | 100 epochs, RandAugment, mixup, CutMix
RepMLPNet-B224 | repmlpnet-b224| 80.1  | 2112.11081 | the same
RepMLPNet-L256 | repmlpnet-l256| 81.8  | 2112.11081 | the same, at 256 px
EAMLP-14       | 29,877,070, 6.45 | 78.9 | 2105.02358 | 300 epochs; stem of T2T-ViT; figure as quoted in 2106.12368
EAMLP-19       | 54,559,054, 11.60 | 79.4 | 2105.02358 | the same
Mixer-B/16     | B/16          | 76.7  | 2112.11081 | RepMLPNet's, by its authors
Mixer-B/16     | B/16          | 77.3  | 2105.08050 | gMLP's, by its authors
Mixer-B/16     | B/16          | 78.5  | 2106.12368 | ViP's, by its authors
"""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the page is made of, for each network."""

    tried: dict[str, dict[float, float]]
    """Validation top-1 of each rate; none for the Mixer with locality."""
    equal: dict[str, list[dict[str, Any]]]
    """Summaries of the runs of equally many images, one for each seed."""
    speeds: dict[str, dict[str, float]]
    """Training images/s with operations of "torch" and as "shipped"."""
    timed: dict[str, dict[str, Any]]
    """The summary of the run of equal time."""
    exported: dict[str, dict[str, Any]]
    """What `export_both` found."""
    forward: dict[str, dict[str, float]]
    """Images/s of the exports, in "float32" and "int8"."""

    @property
    def rates(self) -> dict[str, float]:
        """The best rate of each network; the Mixer with locality takes the Mixer's."""
        return best_of(self.tried)

    @property
    def num_test(self) -> int:
        n: int = self.equal["Mixer"][0]["test"]["n"]
        return n

    @property
    def seeds_differ(self) -> float:
        """The largest difference of test top-1 between two seeds of one network."""
        return max(max(top1) - min(top1) for top1 in map(_tops, self.equal.values()))

    @property
    def pairs(self) -> list[str]:
        """Networks with more than one seed."""
        return [name for name, runs in self.equal.items() if len(runs) > 1]


SCORES = ("top1", "val_top1", "steps", "seed", "train_images", "train_s", "images_per_s", "precision", "device")


def _kept(run: "RunResult") -> dict[str, Any]:
    """What the page takes from a summary."""
    numbers = {part: {"n": run.summary[part]["n"], "nll": run.summary[part]["nll"]} for part in ("test", "val")}
    return {name: run.summary[name] for name in SCORES} | numbers


def best_of(tried: Mapping[str, Mapping[float, float]]) -> dict[str, float]:
    rates = {name: max(found, key=lambda rate: found[rate]) for name, found in tried.items()}
    return rates | {LOCAL: rates["Mixer"]}


def compare_relatives(context: ExperimentContext) -> Page:
    require_packages("ONNX", "onnx", "onnx", "onnxscript", "onnxruntime")  # at the end, hours from now
    length = LENGTHS[context.scale]
    num_rates = sum(len(rates_of(name)) for name in NETWORKS)
    context.num_parts = num_rates + 3 * len(NETWORKS) + length.second_seeds + 2
    tried = best_rates(context, length)
    rates, steps, batch = best_of(tried), num_steps(length), cifar10().run.images_per_step

    def equal(names: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
        runs = {run_name("images", name, seed): recipe(name, context, rates[name], steps, seed=seed) for name in names}
        return {name: _kept(found) for name, found in zip(names, context.train_all(runs).values(), strict=True)}

    firsts = equal(tuple(NETWORKS), context.seed)
    best = sorted(NETWORKS, key=lambda name: firsts[name]["val_top1"], reverse=True)[: length.second_seeds]
    seconds = equal(best, context.seed + 1)
    speeds = context.measure("training-speed", lambda: training_speeds(context, rates, length.turns))
    budget_s = steps * batch / speeds["Mixer"]["shipped"]
    timed = {}
    for name in NETWORKS:
        affordable = max(round(budget_s * speeds[name]["shipped"] / batch), 1)
        shipped = recipe(name, context, rates[name], affordable, seed=context.seed, shipped=True)
        timed[run_name("time", name)] = shipped
    in_time = context.train_all(timed)
    exported = {
        name: context.measure(f"export-{name.replace(' ', '-')}", partial(export_both, context, name, length))
        for name in NETWORKS
    }
    measured = Measured(
        tried=tried,
        equal={name: [of[name] for of in (firsts, seconds) if name in of] for name in NETWORKS},
        speeds=speeds,
        timed={name: _kept(in_time[run_name("time", name)]) for name in NETWORKS},
        exported=exported,
        forward=context.measure("forward-speed", lambda: forward_speeds(context, exported)),
    )
    return make_page(length, measured, result=context.scale != "small")


# --- the page -----------------------------------------------------------------------------------------------------


def make_page(length: Length, found: Measured, *, result: bool = True) -> Page:
    """The page. result: False for runs that only check the pipeline, which title, tables and plots then say."""
    batch = cifar10().run.images_per_step
    images = num_steps(length) * batch
    budget_min = images / found.speeds["Mixer"]["shipped"] / 60
    equal, timed = _means(found.equal), {name: run["top1"] for name, run in found.timed.items()}
    minutes = {name: images / speed["torch"] / 60 for name, speed in found.speeds.items()}
    seen = {name: run["steps"] * batch for name, run in found.timed.items()}
    thousands = {name: number / 1000 for name, number in seen.items()}
    apart = f"each {images:,} images, torch's operations, no locality, no mirror symmetry"
    tables = [
        make_table(f"Equal images: {apart}", _equal_rows(found, tuple(RELATIVES), minutes)),
        make_table(
            f"Beside them, {images:,} images: {LOCAL} and mirror symmetry; ViT; ResNet, trained with AdamW",
            _equal_rows(found, BESIDE, minutes),
        ),
        make_table(
            f"Equal time, as shipped: the images that fit into {budget_min:.1f} min, in which the Mixer with its "
            f"compiled kernels sees {images:,}",
            _timed_rows(found, tuple(RELATIVES), seen),
        ),
        make_table("Beside them, in the same time", _timed_rows(found, BESIDE, seen)),
        make_table(f"Rates tried: validation top-1 after {length.rate_steps:,} steps", _rate_rows(found)),
        make_table("Forward, images/s of one thread, from the export to ONNX", _forward_rows(found)),
        make_table("What mixes where", _split(MIXING, MIXES)),
        make_table("Published: ImageNet-1k top-1 by the authors, each in a recipe of its own", _published_rows()),
    ]
    plots = [
        Plot(
            "training",
            f"Test top-1 over training time; bars: 95 % intervals from {found.num_test:,} test images",
            [
                _panel(f"minutes for {images:,} images, torch's operations", equal, minutes, found.num_test),
                _panel(
                    f"thousand images, seen in {budget_min:.1f} minutes, as shipped", timed, thousands, found.num_test
                ),
            ],
            size=(11, 5),
        ),
        Plot(
            "speed",
            f"Test top-1 after {images:,} images over forward speed, one thread, ONNX",
            [
                _panel(f"images/s, {form}", equal, _of_form(found, form), found.num_test)
                for form in ("float32", "int8")
                if _of_form(found, form)
            ],
            size=(11, 5),
        ),
    ]
    findings = _findings(found, equal, timed, seen, images, budget_min)
    if not result:
        tables = [_marked(table) for table in tables[:-2]] + tables[-2:]
        plots = [dataclasses.replace(plot, caption=f"{plot.caption} ({NO_RESULT})") for plot in plots]
        findings = [
            f"Nothing: this is {NO_RESULT}. {num_steps(length):,} steps teach a network next to nothing, and who is "
            "ahead after them is chance. --scale long is the comparison."
        ]
    return Page(
        template="family.md",
        title="" if result else f"The family: {NO_RESULT}",
        values={
            "length": length,
            "images": images,
            "batch": FORWARD_BATCH,
            "budget_min": budget_min,
            "n": found.num_test,
            "num_val": found.equal["Mixer"][0]["val"]["n"],
            "precision": found.equal["Mixer"][0]["precision"],
            "pairs": found.pairs,
            "local": LOCAL,
            "sizes": [cfg.num_params / 1e6 for cfg in RELATIVES.values()],
        },
        findings=findings,
        tables=tables,
        plots=plots,
        figures=dataclasses.asdict(found)
        | {"tried": {name: {f"{r:g}": top1 for r, top1 in of.items()} for name, of in found.tried.items()}}
        | {"rates": found.rates, "images": images, "budget_s": 60 * budget_min, "seeds_differ": found.seeds_differ}
        | {"is_result": result, "sizes": {name: _size(name) for name in NETWORKS}, "published": _published_rows()},
    )


def _findings(
    found: Measured,
    equal: Mapping[str, float],
    timed: Mapping[str, float],
    seen: Mapping[str, int],
    images: int,
    budget_min: float,
) -> list[str]:
    n, spread, family = found.num_test, found.seeds_differ, tuple(RELATIVES)
    least, *_, most = sorted(seen, key=lambda name: seen[name])
    ends = [name for name, tried in found.tried.items() if found.rates[name] in (min(tried), max(tried))]
    fastest = []
    for form in ("float32", "int8"):
        speeds = _of_form(found, form)
        order = sorted(speeds, key=lambda name: speeds[name], reverse=True)
        fastest.append(f"{form} {', '.join(f'{name} {speeds[name]:,.0f}' for name in order[:3])}")
    refused = [name for name, of in found.exported.items() if of["int8"]]
    return [
        f"After equally many images {verdict({name: equal[name] for name in family}, n, spread)}.",
        f"After equal time {verdict({name: timed[name] for name in family}, n, spread)}. In {budget_min:.0f} minutes "
        f"{least} sees {seen[least]:,} images, {most} {seen[most]:,}.",
        f"The yardstick: two seeds of one network differ by up to {points(spread)} ({', '.join(found.pairs)}; n = 2 "
        "each). All other figures are of one seed.",
        f"Beside the best of the family at equal images: {_beside(equal, n)}.",
        f"Beside the best of the family at equal time: {_beside(timed, n)}.",
        f"Fastest forward, images/s: {'; '.join(fastest)}." + (f" No int8: {', '.join(refused)}." if refused else ""),
        f"The best rate is an end of what was tried for {', '.join(ends)}, which might do better beyond it."
        if ends
        else "No best rate is an end of what was tried.",
    ]


def verdict(scores: Mapping[str, float], n: int, spread: float) -> str:
    """Which network wins, or that none does: a lead must exceed what two seeds differ by (`spread`) and what chance
    in `n` test images allows."""
    first, *others = sorted(scores, key=lambda name: scores[name], reverse=True)

    def with_score(name: str) -> str:
        return f"{name} ({percent(scores[name])})"

    near = [o for o in others if scores[first] - scores[o] <= spread or is_tie(scores[first], scores[o], n)]
    if near:
        rest = [name for name in others if name not in near]
        behind = f"; behind them {', '.join(map(with_score, rest))}" if rest else ""
        names = " and ".join([", ".join(map(with_score, [first, *near][:-1])), with_score(near[-1])])
        return f"no network wins: {names} are within the noise of seeds or test images{behind}"
    lead = scores[first] - scores[others[0]]
    return (
        f"{with_score(first)} wins, {points(lead)} above {with_score(others[0])}: more than two seeds differ "
        f"({points(spread)}) and more than chance in {n:,} test images"
    )


def points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _beside(scores: Mapping[str, float], n: int) -> str:
    best = max(RELATIVES, key=lambda name: scores[name])
    return "; ".join(describe_difference(name, scores[name], best, scores[best], n) for name in BESIDE)


def _tops(runs: Sequence[Mapping[str, Any]], what: str = "top1") -> list[float]:
    return [run[what] for run in runs]


def _means(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    return {name: fmean(_tops(of)) for name, of in runs.items()}


def _size(name: str) -> dict[str, int]:
    """Parameters and FLOPs (2 for each multiply-add) of an image, as the config counts them; RepMLPNet folded."""
    cfg = NETWORKS[name].deployed()
    return {"params": cfg.num_params, "flops": sum(layer.flops for layer in cfg.layers())}


def _of_form(found: Measured, form: str) -> dict[str, float]:
    return {name: of[form] for name, of in found.forward.items() if form in of}


def _equal_rows(found: Measured, names: Sequence[str], minutes: Mapping[str, float]) -> list[dict[str, object]]:
    rows = []
    for name in sorted(names, key=_means(found.equal).__getitem__, reverse=True):
        runs, size = found.equal[name], _size(name)
        rows.append(
            {
                "network": name,
                "test top-1": mean_and_range(_tops(runs)),
                "95 %": interval(fmean(_tops(runs)), found.num_test),
                "n": len(runs),
                "validation": mean_and_range(_tops(runs, "val_top1")),
                "parameters": f"{size['params']:,}",
                "MFLOPs": f"{size['flops'] / 1e6:.0f}",
                "training images/s": f"{found.speeds[name]['torch']:,.0f}",
                "training, min": f"{minutes[name]:.1f}",
            }
        )
    return rows


def _timed_rows(found: Measured, names: Sequence[str], seen: Mapping[str, int]) -> list[dict[str, object]]:
    return [
        {
            "network": name,
            "test top-1": percent(found.timed[name]["top1"], 2),
            "95 %": interval(found.timed[name]["top1"], found.num_test),
            "validation": percent(found.timed[name]["val_top1"], 2),
            "images seen": f"{seen[name]:,}",
            "training images/s as shipped": f"{found.speeds[name]['shipped']:,.0f}",
        }
        for name in sorted(names, key=lambda name: float(found.timed[name]["top1"]), reverse=True)
    ]


def _rate_rows(found: Measured) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, tried in found.tried.items():
        best = found.rates[name]
        end = "" if min(tried) < best < max(tried) else " (an end of what was tried)"
        rows.append(
            {
                "network": name,
                "optimizer": "Muon" if uses_muon(name) else "AdamW",
                "tried": ", ".join(f"{rate:g}: {percent(top1)}" for rate, top1 in tried.items()),
                "taken": f"{best:g}{end}",
            }
        )
    return rows


def _forward_rows(found: Measured) -> list[dict[str, object]]:
    rows = []
    for name, of in found.exported.items():
        speeds = found.forward[name]
        row: dict[str, object] = {"network": name}
        row |= {form: f"{speeds[form]:,.0f}" if form in speeds else "refused" for form in ("float32", "int8")}
        if of["int8"] or of["float32"]:
            row |= {"int8 / float32": "", "layers in int8": "", "validation, points": "", "same top-1 as torch": ""}
        else:
            lost = 100 * (of["right"] - of["right_float"]) / of["n"]
            row |= {
                "int8 / float32": f"{speeds['int8'] / speeds['float32']:.2f}",
                "layers in int8": f"{of['layers']} of {of['layers'] + len(of['float_layers'])}",
                "validation, points": f"{lost:+.1f}",
                "same top-1 as torch": f"{of['agreeing']:,} of {of['checked']:,}",
            }
        rows.append(row | {"refused": " ".join(filter(None, dict.fromkeys((of["float32"], of["int8"]))))})
    return rows


def _published_rows() -> list[Mapping[str, object]]:
    rows: list[Mapping[str, object]] = []
    for cells in _split(PUBLISHED, ("network", "size", "top1", "arxiv", "recipe")):
        if cells["size"] in MODELS:
            cfg = MODELS[cells["size"]]
            params, gmacs = f"{cfg.num_params:,}", f"{sum(x.flops for x in cfg.deployed().layers()) / 2e9:.2f}"
        else:
            params, gmacs = cells["size"].rsplit(", ", 1)
        row = {"network": cells["network"], "top-1, %": cells["top1"], "parameters": params, "multiply-adds, G": gmacs}
        rows.append(row | {"source": f"arXiv:{cells['arxiv']}", "recipe": cells["recipe"]})
    return rows


def _split(text: str, names: Sequence[str]) -> list[Mapping[str, str]]:
    return [
        dict(zip(names, (cell.strip() for cell in line.split("|")), strict=True)) for line in text.strip().splitlines()
    ]


def _marked(table: Table) -> Table:
    return dataclasses.replace(table, title=f"{table.title} ({NO_RESULT})")


def _panel(xlabel: str, scores: Mapping[str, float], x: Mapping[str, float], n: int) -> Panel:
    """A labelled point for each network, with the interval of its accuracy."""
    series = []
    for label, (colour, marker, names) in KINDS.items():
        shown = [name for name in names if name in x]
        if shown:
            ends = [[float(end) / 100 for end in interval(scores[name], n).split("-")] for name in shown]
            error = [[scores[name] - low for name, (low, _) in zip(shown, ends, strict=True)],
                     [high - scores[name] for name, (_, high) in zip(shown, ends, strict=True)]]  # fmt: skip
            places = [(x[name], scores[name]) for name in shown]
            series.append(Series(places, label, marker, colour, error, names=shown))
    return Panel(xlabel, "test top-1", series)

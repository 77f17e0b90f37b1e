"""The page of the family: its tables, plots and findings."""

import dataclasses
from collections.abc import Mapping

from mlpmixer.reproduce.chance import describe_difference, interval, points, verdict
from mlpmixer.reproduce.family.measured import Measured, deployed_size, means, of_form
from mlpmixer.reproduce.family.published import MIXES, MIXING, published_rows, split
from mlpmixer.reproduce.family.recipes import BASELINES, LOCAL, NETWORKS, RELATIVES, Length, num_steps
from mlpmixer.reproduce.family.speeds import FORWARD_BATCH
from mlpmixer.reproduce.family.tables import equal_rows, forward_rows, rate_rows, timed_rows
from mlpmixer.reproduce.page import Page, Panel, Plot, Series, Table, make_table
from mlpmixer.training.recipes import cifar10

NO_RESULT = "a check of the pipeline, not a result"
BESIDE = (LOCAL, *BASELINES)
KINDS = {  # colours that the colour-blind can tell apart (Okabe and Ito), and markers
    "all-MLP networks": ("#0072B2", "o", tuple(RELATIVES)),
    LOCAL: ("#D55E00", "s", (LOCAL,)),
    "ViT and ResNet": ("#595959", "^", tuple(BASELINES)),
}


def make_page(length: Length, found: Measured, *, result: bool = True) -> Page:
    """The page. result: False for runs that only check the pipeline, which title, tables and plots then say."""
    batch = cifar10().run.images_per_step
    images = num_steps(length) * batch
    budget_min = images / found.speeds["Mixer"]["shipped"] / 60
    equal, timed = means(found.equal), {name: run["top1"] for name, run in found.timed.items()}
    minutes = {name: images / speed["torch"] / 60 for name, speed in found.speeds.items()}
    seen = {name: run["steps"] * batch for name, run in found.timed.items()}
    thousands = {name: number / 1000 for name, number in seen.items()}
    apart = f"each {images:,} images, torch's operations, no locality, no mirror symmetry"
    tables = [
        make_table(f"Equal images: {apart}", equal_rows(found, tuple(RELATIVES), minutes)),
        make_table(
            f"Beside them, {images:,} images: {LOCAL} and mirror symmetry; ViT; ResNet, trained with AdamW",
            equal_rows(found, BESIDE, minutes),
        ),
        make_table(
            f"Equal time, as shipped: the images that fit into {budget_min:.1f} min, in which the Mixer with its "
            f"compiled kernels sees {images:,}",
            timed_rows(found, tuple(RELATIVES), seen),
        ),
        make_table("Beside them, in the same time", timed_rows(found, BESIDE, seen)),
        make_table(f"Rates tried: validation top-1 after {length.rate_steps:,} steps", rate_rows(found)),
        make_table("Forward, images/s of one thread, from the export to ONNX", forward_rows(found)),
        make_table("What mixes where", split(MIXING, MIXES)),
        make_table("Published: ImageNet-1k top-1 by the authors, each in a recipe of its own", published_rows()),
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
                _panel(f"images/s, {form}", equal, of_form(found, form), found.num_test)
                for form in ("float32", "int8")
                if of_form(found, form)
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
        | {
            "is_result": result,
            "sizes": {name: deployed_size(name) for name in NETWORKS},
            "published": published_rows(),
        },
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
        speeds = of_form(found, form)
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


def _beside(scores: Mapping[str, float], n: int) -> str:
    best = max(RELATIVES, key=lambda name: scores[name])
    return "; ".join(describe_difference(name, scores[name], best, scores[best], n) for name in BESIDE)


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

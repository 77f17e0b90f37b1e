"""The page of the family: its tables and plots, and what its template mentions."""

import dataclasses
from collections.abc import Mapping

from mlpmixer.reproduce.chance import error_bars
from mlpmixer.reproduce.family.findings import findings
from mlpmixer.reproduce.family.measured import Measured, deployed_size
from mlpmixer.reproduce.family.published import mixing_rows, published_rows
from mlpmixer.reproduce.family.recipes import BASELINES, BESIDE, LOCAL, NETWORKS, RELATIVES, Length
from mlpmixer.reproduce.family.speeds import FORWARD_BATCH
from mlpmixer.reproduce.family.tables import equal_rows, forward_rows, rate_rows, timed_rows
from mlpmixer.reproduce.page import Page, Panel, Plot, Series, Table, make_table

NO_RESULT = "a check of the pipeline, not a result"
KINDS = {  # colours that the colour-blind can tell apart (Okabe and Ito), and markers
    "all-MLP networks": ("#0072B2", "o", tuple(RELATIVES)),
    LOCAL: ("#D55E00", "s", (LOCAL,)),
    "ViT and ResNet": ("#595959", "^", tuple(BASELINES)),
}


def make_page(length: Length, found: Measured, *, result: bool = True) -> Page:
    """The page. result: False for runs that only check the pipeline, which title, tables and plots then say."""
    tables, plots, says, title = measured_tables(length, found), measured_plots(found), findings(found), ""
    if not result:
        tables = [dataclasses.replace(table, title=f"{table.title} ({NO_RESULT})") for table in tables]
        plots = [dataclasses.replace(plot, caption=f"{plot.caption} ({NO_RESULT})") for plot in plots]
        says = [
            f"Nothing: this is {NO_RESULT}. {found.images:,} images teach a network next to nothing, and who is ahead "
            "after them is chance. --scale long is the comparison."
        ]
        title = f"The family: {NO_RESULT}"
    published = published_rows()
    mixer = found.equal["Mixer"][0]
    return Page(
        template="family.md",
        title=title,
        values={
            "length": length,
            "images": found.images,
            "batch": FORWARD_BATCH,
            "budget_min": found.budget_s / 60,
            "n": found.num_test,
            "num_val": mixer["val"]["n"],
            "precision": mixer["precision"],
            "pairs": found.pairs,
            "local": LOCAL,
            "sizes": [deployed_size(cfg)["params"] / 1e6 for cfg in RELATIVES.values()],
        },
        findings=says,
        tables=[
            *tables,
            make_table("What mixes where", mixing_rows()),
            make_table("Published: ImageNet-1k top-1 by the authors, each in a recipe of its own", published),
        ],
        plots=plots,
        figures=dataclasses.asdict(found)
        | {"tried": {name: {f"{r:g}": top1 for r, top1 in tried.items()} for name, tried in found.tried.items()}}
        | {"rates": found.rates, "images": found.images, "budget_s": found.budget_s}
        | {"seeds_differ": found.seeds_differ, "is_result": result}
        | {"sizes": {name: deployed_size(cfg) for name, cfg in NETWORKS.items()}, "published": published},
    )


def measured_tables(length: Length, found: Measured) -> list[Table]:
    images = f"{found.images:,} images"
    return [
        make_table(
            f"Equal images: each {images}, torch's operations, no locality, no mirror symmetry",
            equal_rows(found, tuple(RELATIVES)),
        ),
        make_table(
            f"Beside them, {images}: {LOCAL} and mirror symmetry; ViT; ResNet, trained with AdamW",
            equal_rows(found, BESIDE),
        ),
        make_table(
            f"Equal time, as shipped: the images that fit into {found.budget_s / 60:.1f} min, in which the Mixer with "
            f"its compiled kernels sees {found.images:,}",
            timed_rows(found, tuple(RELATIVES)),
        ),
        make_table("Beside them, in the same time", timed_rows(found, BESIDE)),
        make_table(f"Rates tried: validation top-1 after {length.rate_steps:,} steps", rate_rows(found)),
        make_table("Forward, images/s of one thread, from the export to ONNX", forward_rows(found)),
    ]


def measured_plots(found: Measured) -> list[Plot]:
    n, images = found.num_test, f"{found.images:,} images"
    thousands = {name: number / 1000 for name, number in found.images_in_time.items()}
    in_time = f"thousand images, seen in {found.budget_s / 60:.1f} minutes, as shipped"
    return [
        Plot(
            "training",
            f"Test top-1 over training time; bars: 95 % intervals from {n:,} test images",
            [
                _panel(f"minutes for {images}, torch's operations", found.top1, found.minutes, n),
                _panel(in_time, found.top1_in_time, thousands, n),
            ],
            size=(11, 5),
        ),
        Plot(
            "speed",
            f"Test top-1 after {images} over forward speed, one thread, ONNX",
            [
                _panel(f"images/s, {form}", found.top1, found.forward_of(form), n)
                for form in ("float32", "int8")
                if found.forward_of(form)
            ],
            size=(11, 5),
        ),
    ]


def _panel(xlabel: str, scores: Mapping[str, float], x: Mapping[str, float], n: int) -> Panel:
    """A labelled point for each network, with the interval of its accuracy."""
    series = []
    for label, (colour, marker, names) in KINDS.items():
        shown = [name for name in names if name in x]
        if shown:
            error = error_bars([scores[name] for name in shown], n)
            series.append(Series([(x[name], scores[name]) for name in shown], label, marker, colour, error, shown))
    return Panel(xlabel, "test top-1", series)

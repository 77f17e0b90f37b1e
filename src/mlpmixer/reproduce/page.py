"""The page of an experiment: README.md with tables and plots, and table.json with every figure.

An experiment returns a `Page`: plain data, and the name of a template in templates/ that says what the paper claims and
how it was done. The templates extend page.md, which writes everything else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlpmixer.durable import write_json, write_text
from mlpmixer.templates import render
from mlpmixer.weights import run_folder

README, FIGURES_JSON = "README.md", "table.json"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def make_table(title: str, rows: Sequence[Mapping[str, object]]) -> Table:
    """A table of rows that map each heading to a cell. All rows have the headings of the first one."""
    header = tuple(rows[0])
    return Table(title=title, header=header, rows=tuple(tuple(str(row[name]) for name in header) for row in rows))


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


@dataclass(frozen=True)
class Series:
    """Points with one label in a panel; style, colour and error are matplotlib's fmt, color and yerr."""

    points: Sequence[tuple[float, float]]
    label: str = ""
    style: str = "-"
    colour: str | None = None
    error: Any = None
    names: Sequence[str] = ()
    """Words beside the points."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes with series, or a picture."""

    xlabel: str = ""
    ylabel: str = ""
    series: Sequence[Series] = ()
    title: str = ""
    log: str = ""
    """Logarithmic axes: "", "x" or "xy"."""
    picture: Any = None


@dataclass(frozen=True)
class Plot:
    """Panels in one file, row by row."""

    name: str
    """File name without .png."""
    caption: str
    panels: Sequence[Panel]
    num_rows: int = 1
    share_y: bool = False
    size: tuple[float, float] = (9, 4)
    """Width and height in inches."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What an experiment has found."""

    template: str = "page.md"
    """What the paper claims, and how it was measured here and how far it reaches."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What the template mentions."""
    findings: Sequence[str]
    """What was measured here, one sentence each."""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    figures: Any = None
    """All numbers, as plain JSON values."""


def write(page: Page, title: str, out: Path, command: str, device: str) -> Path:
    """Write the page into the folder `out`; the path of README.md."""
    out.mkdir(parents=True, exist_ok=True)
    for plot in page.plots:
        _draw(plot, out / f"{plot.name}.png")
    made = _made_with(device)
    figures = {"title": title, "command": command, **made, "findings": page.findings, "figures": page.figures}
    write_json(out / FIGURES_JSON, figures)
    text = render(
        Path(__file__).with_name("templates") / page.template,
        filters={"commas": "{:,}".format},
        **page.values,
        page=page,
        title=title[0].upper() + title[1:],
        command=command,
        made=made,
    )
    write_text(out / README, text)
    return out / README


def _made_with(device: str) -> dict[str, Any]:
    from mlpmixer.hardware import choose_device, device_name

    env = run_folder.environment(device_name(choose_device(device)), "", "")
    return {"device": env["device"], "date": env["date"][:10], "commit": env["commit"] or "unknown"} | {
        package: env["packages"][package] for package in ("mlpmixer", "torch")
    }


def _draw(plot: Plot, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=plot.size, layout="constrained")
    FigureCanvasAgg(figure)
    first, columns = None, math.ceil(len(plot.panels) / plot.num_rows)
    for number, panel in enumerate(plot.panels, 1):
        axis = figure.add_subplot(plot.num_rows, columns, number, sharey=first if plot.share_y else None)
        first = first or axis
        axis.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
        if panel.picture is not None:
            axis.imshow(panel.picture)
            axis.set_axis_off()
            continue
        for letter in panel.log:
            axis.set(**{f"{letter}scale": "log"})
        axis.tick_params(which="both", labelsize="small")
        for s in panel.series:
            x, y = zip(*s.points, strict=True)
            axis.errorbar(x, y, s.error, fmt=s.style, color=s.colour, label=s.label, markersize=4, capsize=2)
            for point, name in zip(s.points, s.names, strict=False):
                axis.annotate(name, point, textcoords="offset points", xytext=(6, -3))
        axis.margins(x=0.1)
        if any(s.label for s in panel.series):
            axis.legend(fontsize="small")
    figure.savefig(path, format="png", dpi=120)

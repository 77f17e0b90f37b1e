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
PLACES = [  # of a name beside its point, in 1/72 inch, and its alignment; those far off get a line
    ((x, y), "left" if x > 0 else "right" if x < 0 else "center")
    for x, y in [(6, -3), (-6, -3), (0, 6), (0, -12), (5, 5), (-5, 5), (5, -11), (-5, -11)]
    + [
        (x, y)
        for far in range(16, 80, 4)
        for y in (far, -far, far // 2, -far // 2, 0)
        for x in (far, -far, 0)
        if x or y
    ]
]


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
    """The results of an experiment, as a page."""

    template: str = "page.md"
    """Template with the paper's claim, the method, and its limits."""
    title: str = ""
    """Instead of the experiment's."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Values for the template."""
    findings: Sequence[str]
    """Results, one sentence each."""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    figures: Any = None
    """All numbers, as plain JSON values."""


def write(page: Page, title: str, out: Path, command: str, device: str) -> Path:
    """Write the page into the folder `out`; the path of README.md."""
    title = page.title or title
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
    first, columns, drawn = None, math.ceil(len(plot.panels) / plot.num_rows), []
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
        axis.margins(x=0.1)
        if any(s.label for s in panel.series):
            axis.legend(fontsize="small")
        drawn.append((axis, panel))
    figure.draw_without_rendering()  # fixes where everything lies
    figure.set_layout_engine("none")
    for axis, panel in drawn:
        _name_points(axis, panel)
    figure.savefig(path, format="png", dpi=120)


def _name_points(axis: Any, panel: Panel) -> None:
    """Write the names beside their points, each at the first place that is free of other names, points and bars."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    named, taken = [], []
    for s in panel.series:
        below, above = s.error if s.names and s.error is not None else ([0] * len(s.points), [0] * len(s.points))
        for (x, y), name, down, up in zip(s.points, s.names, below, above, strict=False):
            (left, low), (_, high) = axis.transData.transform([(x, y - down), (x, y + up)])
            named.append(((x, y), name))
            taken.append(Bbox.from_extents(left - 4, low - 4, left + 4, high + 4))
    taken += [axis.get_legend().get_window_extent()] if axis.get_legend() else []
    for point, name in named:
        for offset, side in (*PLACES, PLACES[0]):  # where none is free, the first
            line = {"arrowstyle": "-", "color": "0.6", "lw": 0.5} if max(map(abs, offset)) > 12 else None
            where = {"textcoords": "offset points", "xytext": offset, "ha": side, "arrowprops": line}
            label = axis.annotate(name, point, fontsize="small", **where)
            label.update_positions(axis.figure.canvas.get_renderer())
            box = Text.get_window_extent(label)  # without its line
            inside = axis.bbox.x0 < box.x0 and box.x1 < axis.bbox.x1 and axis.bbox.y0 < box.y0 and box.y1 < axis.bbox.y1
            if inside and not box.count_overlaps(taken):
                break
            label.remove()
        else:
            axis.add_artist(label)
        taken.append(box)

"""What an experiment leaves: README.md with its tables and plots, table.json with the figures, and what they come
from."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpmixer.weights import run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

README, FIGURES_JSON = "README.md", "table.json"


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A table as text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_markdown(self) -> str:
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture, drawn into an empty figure."""

    name: str
    """Of the file, without .png."""
    caption: str
    draw: Callable[["Figure"], None]
    size: tuple[float, float] = (6.4, 4.0)
    """Inches."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What an experiment has found."""

    claim: str
    """What the paper says, with its figures."""
    claimed_by: str = "The paper"
    """Who else says it."""
    findings: tuple[str, ...]
    """What was measured here, a sentence each; a draw is called a draw."""
    tables: tuple[Cells, ...] = ()
    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = ()
    """How it was done and how far it reaches: what was held equal, seeds, scale."""
    figures: Any = None
    """All numbers, as plain JSON values."""


def write(page: Page, title: str, out: Path, command: str, device: str) -> Path:
    """Write the page into the folder `out`; the path of README.md."""
    out.mkdir(parents=True, exist_ok=True)
    made = _made_with(device)
    for plot in page.plots:
        _draw(plot, out / f"{plot.name}.png")
    run_folder.write_json(
        out / FIGURES_JSON,
        {"title": title, "command": command, **made, "findings": page.findings, "figures": page.figures},
    )
    hardware = f"{made['device']}; torch {made['torch']}, mlpmixer {made['mlpmixer']} at commit {made['commit']}, {made['date']}"
    parts = [
        f"# {title[0].upper()}{title[1:]}",
        f"    {command}",
        f"{page.claimed_by}: {page.claim}",
        "Here:\n\n" + "\n".join(f"- {finding}" for finding in page.findings),
        *(f"![{plot.caption}]({plot.name}.png)\n\n*{plot.caption}*" for plot in page.plots),
        *(cells.to_markdown() for cells in page.tables),
        "How it was done:\n\n"
        + "\n".join(f"- {note}" for note in (*page.notes, f"Hardware and versions: {hardware}.")),
    ]
    path = out / README
    part = path.with_name(f".{README}.part")
    part.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    os.replace(part, path)
    return path


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
    plot.draw(figure)
    figure.savefig(path, format="png", dpi=120)

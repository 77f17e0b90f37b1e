"""mlpmixer list."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.options import WeightsDir
from mlpmixer.cli.printing import first_line, multiply_adds, percent, print_table
from mlpmixer.config import pair
from mlpmixer.registry import matching, shown, suggest


@dataclass(frozen=True, kw_only=True)
class List(Command):
    """List the names of models, weights, datasets or recipes."""

    what: Annotated[Literal["models", "weights", "datasets", "recipes"], Arg("WHAT", positional=True)]
    """models, weights, datasets or recipes"""
    pattern: Annotated[str, Arg("PATTERN", positional=True)] = ""
    """only those whose name, or the column beside it, matches a pattern such as "*16*" or "mixer*\""""

    weights_dir: WeightsDir = ""

    def __call__(self) -> int:
        tables = [table() for table in TABLES[self.what]]
        fitting = [(head, [r for r in rows if matching(r[:2], self.pattern)], note) for head, rows, note in tables]
        shown_tables = [table for table in fitting if table[1]]
        if not shown_tables:
            names = [row[0] for _, rows, _ in tables for row in rows]
            raise ValueError(f"no {self.what} have a name like {shown(self.pattern)}; {suggest(self.pattern, names)}")
        for number, (header, rows, note) in enumerate(shown_tables):
            if number:
                print()
            print_table(header, rows)
            if note:
                print(f"\n{note}")
        return 0


Table = tuple[Sequence[str], list[Sequence[str]], str]
"""Header, rows, and a note below them."""


def models() -> Table:
    from mlpmixer.models.names import MODELS

    rows = []
    for name, c in MODELS.items():
        size, layers = (size_text(c.image_size), size_text(c.grid)), c.layers()
        amount = multiply_adds(sum(layer.flops for layer in layers))
        rows.append((name, c.architecture, *size, f"{sum(layer.params for layer in layers):,}", amount))
    note = (
        "mlpmixer summary MODEL lists its layers; names with _ are timm's, and compute what timm computes\n"
        "grid: patches down x across; for a network with stages, places of the last stage"
    )
    return ("model", "architecture", "image px", "grid", "parameters", "multiply-adds"), [*rows], note


def own_weights() -> Table:
    from mlpmixer.weights.own import OWN, SOURCE, VARIABLE, find

    def place(name: str) -> str:
        try:
            return str(find(name) or "not here")
        except ValueError:
            return "not here: another file has its name"

    rows = [
        (name, w.data, w.terms, percent(w.top1), w.measured_on, f"{w.num_classes:,}", size_text(w.image_size),
         f"{w.num_params:,}", f"{w.num_bytes:,}", place(name))
        for name, w in OWN.items()
    ]  # fmt: skip
    header = ("ours", "trained on", "its terms", "top-1", "on", "classes", "image px", "parameters", "bytes", "file")
    return header, [*rows], f"{SOURCE}; what is not in the package is looked for in --weights-dir or ${VARIABLE}"


def published_weights() -> Table:
    from mlpmixer.weights.published import WEIGHTS

    rows: list[Sequence[str]] = []
    timms = {w.url: name for name, w in WEIGHTS.items() if ":" not in name}
    for name, w in WEIGHTS.items():
        if ":" in name:
            size, top1 = f"{w.num_bytes:,}" if w.num_bytes else "", percent(w.top1) if w.top1 else ""
            address = "" if w.url in timms else w.url
            rows.append((name, timms.get(w.url, ""), f"{w.num_classes:,}", top1, size, w.preprocess, address))
    note = (
        "top-1: on ImageNet-1k, as reported by others; weights.published has sources and licences. timm's files are at "
        "hf:timm/NAME"
    )
    return ("others' weights", "in timm", "classes", "top-1", "bytes", "preprocess", "address"), [*rows], note


def datasets() -> Table:
    from mlpmixer.data.catalog import DATASETS

    rows = [(name, d.title, size_text(d.image_size), str(len(d.classes))) for name, d in DATASETS.items()]
    note = "or a folder with a subfolder for each class, a Parquet file or folder, or hf:owner/name"
    return ("dataset", "", "image px", "classes"), [*rows], note


def recipes() -> Table:
    from mlpmixer.training.recipes import RECIPES

    return ("recipe", ""), [(name, first_line(recipe)) for name, recipe in RECIPES.items()], ""


TABLES: dict[str, Sequence[Callable[[], Table]]] = {
    "models": [models],
    "weights": [own_weights, published_weights],
    "datasets": [datasets],
    "recipes": [recipes],
}


def size_text(size: int | tuple[int, int]) -> str:
    return "x".join(map(str, pair(size)))

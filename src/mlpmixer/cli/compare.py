"""The command about two models: compare."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from mlpmixer.cli.arguments import Flag
from mlpmixer.cli.options import Computing, Sizes, print_bad
from mlpmixer.cli.printing import between, percent, print_json, print_table

if TYPE_CHECKING:
    from mlpmixer.evaluation.compare import Comparison

DIFFERENCES = 10  # rows of the table of classes


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Which of two models is better on DATA, and whether chance could have done it: an exact paired test on the same
    images.

    The test is over images, not over seeds: what it finds is about these two networks, not about the recipes behind
    them.
    """

    run_a: Annotated[Positional[str], arg(metavar="RUN_A")]
    """A run, a weight file (.safetensors, .npz, .pth), hf:owner/name, a name of `mlpmixer list weights`, or an export
    (file or bundle)."""
    run_b: Annotated[Positional[str], arg(metavar="RUN_B")]
    """The other one."""
    data: Annotated[Positional[str], arg(metavar="DATA")] = ""
    """A data set's name, a path, or hf:owner/name; default: the data that RUN_A was trained on."""
    split: Literal["test", "val", "train", "all"] = "test"
    """Which part of the data; all: a plain folder, whole."""
    data_dir: Annotated[str, arg(metavar="DIR")] = ""
    """Where the files of a named data set are."""
    batch_size: int = 256
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: Flag = False
    """Print all numbers as JSON."""
    computing: Annotated[Computing, arg(name="")] = field(default_factory=Computing)

    def __call__(self) -> int:
        from mlpmixer.evaluation.compare import compare
        from mlpmixer.evaluation.data import resolve_data

        a, b = (Sizes().load(run, self.device, self.computing) for run in (self.run_a, self.run_b))
        data = resolve_data(a, self.data or None, self.data_dir)
        comparison = dataclasses.replace(
            compare(a, b, data, split=self.split, batch_size=self.batch_size), a=self.run_a, b=self.run_b
        )
        if self.json:
            print_json(comparison.to_json())
        else:
            print_comparison(comparison)
        return 1 if comparison.bad else 0


def print_comparison(c: "Comparison") -> None:
    rows = [
        ("A", c.a, percent(c.top1_a), between(c.top1_a_interval)),
        ("B", c.b, percent(c.top1_b), between(c.top1_b_interval)),
    ]
    print_table(("", "", "top-1", "95 %"), rows)
    print(
        f"{c.n:,} images: {c.both_right:,} both right, {c.only_a:,} only A, {c.only_b:,} only B, {c.both_wrong:,} "
        f"neither\n"
    )
    print(c.verdict)
    if c.seeds_apart:
        print("The two are one recipe with two seeds: this tells the networks apart, and says nothing of the recipe")
    most = sorted((row for row in c.per_class if row.difference), key=lambda row: -abs(row.difference))[:DIFFERENCES]
    if most:
        print("\nlargest differences")
        cells = [
            (
                row.name,
                f"{row.n:,}",
                percent(row.recall_a),
                percent(row.recall_b),
                f"{100 * row.difference:+.2f}",
                f"{row.p:.3f}" if row.p >= 0.001 else "<0.001",
            )
            for row in most
        ]
        print_table(("class", "images", "A", "B", "difference", "p"), cells)
        print(f"p: exact McNemar on the class alone, made up for looking at {len(c.per_class)} classes (Holm)")
    print_bad(c.bad)

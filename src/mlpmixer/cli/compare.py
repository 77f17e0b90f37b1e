"""mlpmixer compare."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.options import (
    MODEL,
    BatchSize,
    DataDir,
    Device,
    EvaluatedData,
    InputOptions,
    Json,
    RuntimeOptions,
    Split,
    WeightsDir,
    load_model,
    print_changes,
    print_unreadable,
)
from mlpmixer.cli.printing import between, percent, print_json, print_table

if TYPE_CHECKING:
    from mlpmixer.evaluation.compare import Comparison

DIFFERENCES = 10  # rows of the table of classes


@dataclass(frozen=True, kw_only=True)
class Compare(Command):
    """Compare two models on DATA with an exact paired test.

    The test is over images, not over seeds: it tells these two networks apart, not the recipes behind them.
    """

    run_a: Annotated[str, Arg("RUN_A", MODEL, positional=True)]
    run_b: Annotated[str, Arg("RUN_B", "the other model", positional=True)]
    data: EvaluatedData = ""
    split: Split = None
    json: Json = False
    data_dir: DataDir = ""
    batch_size: BatchSize = 256
    device: Device = "auto"
    weights_dir: WeightsDir = ""
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)

    def __call__(self) -> int:
        from mlpmixer.evaluation.compare import compare
        from mlpmixer.evaluation.data import resolve_data

        a, b = (load_model(run, self.device, InputOptions(), self.runtime) for run in (self.run_a, self.run_b))
        data = resolve_data(a, self.data or None, self.data_dir)
        comparison = dataclasses.replace(
            compare(a, b, data, split=self.split, batch_size=self.batch_size), a=self.run_a, b=self.run_b
        )
        print_changes(comparison.scored)
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
    if c.scored:
        print(f"scored {c.scored}")
    for name, n in (("A", c.trained_on_a), ("B", c.trained_on_b)):
        if n:
            print(f"{name} was trained on {n:,} of these {c.n:,} images")
    print_table(("", "", "top-1", "95 %"), rows)
    counts = f"{c.both_right:,} both right, {c.only_a:,} only A, {c.only_b:,} only B, {c.both_wrong:,} neither"
    print(f"{c.n:,} images: {counts}\n")
    print(c.verdict)
    if c.seeds_apart:
        print("The two are one recipe with two seeds: this compares the networks and says nothing about the recipe")
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
        print(f"p: exact McNemar test within the class, corrected for {len(c.per_class)} classes (Holm)")
    print_unreadable(c.bad)

"""The command lr-find."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional, arg

from mlpmixer.cli.arguments import Flag, read, with_data
from mlpmixer.cli.options import OnData, with_start
from mlpmixer.cli.printing import print_json
from mlpmixer.cli.progress import reporter
from mlpmixer.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class LrFind(OnData):
    """Look for a learning rate for DATA: train a throw-away copy while the rate grows, and see where the loss stops
    falling.

    The options of train change the recipe; its schedule plays no part. With Muon both rates grow by the same factor.
    The suggestion is a tenth of the rate with the lowest loss: a place to start from, to be compared with its
    neighbours on validation images.
    """

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """A data set's name, a folder with a folder for each class, a Parquet file or folder, or hf:owner/name."""
    recipe: Annotated[str, arg(metavar="NAME")] = ""
    """Where to start from (mlpmixer list recipes); the default fits the data."""
    model: Annotated[str, arg(metavar="NAME")] = ""
    """An architecture (mlpmixer list models) instead of the recipe's."""
    out: Annotated[str, arg(metavar="FILE")] = "lr-find.png"
    """The plot to write, a PNG file."""
    sweep_steps: int = 100
    """Steps from the lowest to the highest rate."""
    low: float = 1e-5
    """The first rate."""
    high: float = 10.0
    """The last rate; the sweep ends earlier when the loss has blown up."""
    json: Flag = False
    """Print all numbers as JSON."""
    config: Annotated[Recipe, arg(name="")] = field(default_factory=Recipe)

    @classmethod
    def parse(cls, args: Sequence[str]) -> "LrFind":
        return with_start(with_data(read(cls, "mlpmixer lr-find", args)))

    def __call__(self) -> int:
        from mlpmixer.training.lr_finder import find_lr, plot

        with reporter() as report:
            sweep = find_lr(self.config, steps=self.sweep_steps, low=self.low, high=self.high, report=report)
        path = plot(sweep, self.out)
        if self.json:
            print_json(sweep.to_json())
            return 0
        muon = f" --optim.muon-lr {sweep.suggested * sweep.muon_per_lr:.2g}" if sweep.muon_per_lr else ""
        print(f"lowest loss at a rate of {sweep.lowest:.2g}, after {len(sweep.lr)} of {self.sweep_steps} steps")
        print(f"try     --lr {sweep.suggested:.2g}{muon}")
        print(f"plot    {path}")
        return 0

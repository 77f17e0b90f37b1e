"""mlpmixer lr-find."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from mlpmixer.cli.arguments import Arg
from mlpmixer.cli.options import Json, require_writable
from mlpmixer.cli.printing import print_json
from mlpmixer.cli.progress import reporter
from mlpmixer.cli.recipe_options import SHORT, RecipeCommand


@dataclass(frozen=True, kw_only=True)
class LrFind(RecipeCommand):
    """Find a learning rate for DATA.

    A throw-away copy of the network is trained while the rate grows to --high, or until the loss diverges. The options
    of `train` change the recipe; its schedule is not used. With Muon, both rates grow by the same factor. The
    suggestion is a tenth of the rate with the lowest loss: a starting point, to be compared with its neighbours on
    validation images.
    """

    common: ClassVar[Sequence[str]] = tuple(
        name
        for name in SHORT
        if name not in ("epochs", "steps", "time", "lr", "patience", "progressive", "folds", "test")
    )

    out: Annotated[str, Arg("FILE")] = "lr-find.png"
    """PNG file for the plot."""
    sweep_steps: int = 100
    """Steps from the lowest to the highest rate."""
    low: float = 1e-5
    """Lowest rate."""
    high: float = 10.0
    """Highest rate. The sweep ends earlier when the loss diverges."""
    json: Json = False

    def __call__(self) -> int:
        from mlpmixer.training.lr_finder import find_lr, plot

        require_writable("--out", self.out, suffixes=(".png",))
        with reporter() as report:
            sweep = find_lr(self.config, steps=self.sweep_steps, low=self.low, high=self.high, report=report)
        path = plot(sweep, self.out)
        if self.json:
            print_json(sweep.to_json())
            return 0
        muon = f" --optim.muon-lr {sweep.suggested * sweep.muon_per_lr:.2g}" if sweep.muon_per_lr else ""
        print(f"lowest loss at rate {sweep.lowest:.2g}, in {len(sweep.lr)} of {self.sweep_steps} steps")
        print(f"try     --lr {sweep.suggested:.2g}{muon}")
        print(f"plot    {path}")
        return 0

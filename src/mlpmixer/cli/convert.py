"""The command convert."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from mlpmixer.cli.arguments import Flag
from mlpmixer.cli.printing import print_error
from mlpmixer.cli.progress import reporter


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a model in another form: official .npz, timm's state dict, or a file of this package, which keeps all that
    belongs to it."""

    model: Annotated[Positional[str], arg(metavar="RUN")]
    """A run, a weight file (.safetensors, .npz, .pth), hf:owner/name, or a name of `mlpmixer list weights`."""
    out: Annotated[Positional[str], arg(metavar="FILE")]
    """What to write: FILE.npz is official, FILE.safetensors is of this package unless --timm is given."""
    timm: Flag = False
    """Write FILE.safetensors with timm's names."""

    def __call__(self) -> int:
        from mlpmixer.weights.load import convert

        with reporter() as report:
            notes = convert(self.model, self.out, timm=self.timm, report=report)
        for note in notes:
            print_error(f"note: {note}")
        print(self.out)
        return 0

"""mlpmixer convert."""

from dataclasses import dataclass
from typing import Annotated

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.options import WEIGHTS, require_writable
from mlpmixer.cli.printing import print_error
from mlpmixer.cli.progress import reporter


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Convert weights to the official .npz, timm's or this package's format."""

    model: Annotated[str, Arg("RUN", WEIGHTS, positional=True)]
    out: Annotated[str, Arg("FILE", positional=True)]
    """the file to write: FILE.npz is official, FILE.safetensors is of this package unless --timm is given"""
    timm: bool = False
    """Write FILE.safetensors with timm's names."""

    def __call__(self) -> int:
        require_writable("FILE", self.out)
        from mlpmixer.weights.load import convert

        with reporter() as report:
            notes = convert(self.model, self.out, timm=self.timm, report=report)
        for note in notes:
            print_error(f"note: {note}")
        print(self.out)
        return 0

"""mlpmixer push."""

from dataclasses import dataclass
from typing import Annotated

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.options import WeightsDir


@dataclass(frozen=True, kw_only=True)
class Push(Command):
    """Publish a model, with a model card, to the Hugging Face Hub or to a folder."""

    run: Annotated[str, Arg("RUN", positional=True)]
    """a run's folder, its model.safetensors, or the name of our own weights (mlpmixer list weights)"""
    target: Annotated[str, Arg("TARGET", positional=True)]
    """a new folder, or hf:owner/name (log in first: hf auth login)"""
    licence: Annotated[str, Arg("NAME")] = ""
    """The model's licence, such as apache-2.0 or mit; default: the card says that none is stated."""
    private: bool = False
    """Make the repository private, if it is new."""
    weights_dir: WeightsDir = ""

    def __call__(self) -> int:
        from mlpmixer.weights.hub import push

        print(push(self.run, self.target, licence=self.licence, private=self.private))
        return 0

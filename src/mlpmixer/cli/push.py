"""The command push."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from mlpmixer.cli.arguments import Flag


@dataclass(frozen=True, kw_only=True)
class Push:
    """Publish the model in RUN, with a model card, as a repository of the Hugging Face Hub or as a folder of that
    form."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run's folder, or its model.safetensors."""
    target: Annotated[Positional[str], arg(metavar="TARGET")]
    """A new folder, or hf:owner/name; for the Hub, log in before: hf auth login."""
    licence: Annotated[str, arg(metavar="NAME")] = ""
    """The model's licence as the Hub writes it: apache-2.0, mit, cc-by-4.0, ...; without it the card says that none is
    stated."""
    private: Flag = False
    """If the repository is new, make it private."""

    def __call__(self) -> int:
        from mlpmixer.weights.hub import push

        print(push(self.run, self.target, licence=self.licence, private=self.private))
        return 0

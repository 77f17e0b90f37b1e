"""mlpmixer summary."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any

from mlpmixer.cli.arguments import Arg, Command, Line, require_words
from mlpmixer.cli.printing import print_json, print_table
from mlpmixer.cli.recipe_options import architecture_of
from mlpmixer.models.configs import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class Summary(Command):
    """Print a network layer by layer: shapes, parameters, FLOPs.

    Options change it: mlpmixer summary B/16 --image-size 384. Those of a model: mlpmixer summary MODEL --help
    """

    model: Annotated[str, Arg("MODEL|RUN", positional=True)]
    """an architecture's name (mlpmixer list models), a run's folder, or its model.safetensors"""
    json: Annotated[bool, Arg(help="Print as JSON.")] = False
    config: NetworkConfig = field(default_factory=NetworkConfig)

    @classmethod
    def configs(cls, line: Line) -> dict[str, Any]:
        require_words(line)
        return {"config": architecture_of(line.words[0])}

    def __call__(self) -> int:
        layers = self.config.layers()
        params, flops = sum(layer.params for layer in layers), sum(layer.flops for layer in layers)
        if self.json:
            print_json(
                {
                    "model": self.model,
                    "params": params,
                    "flops": flops,
                    "layers": [dataclasses.asdict(layer) for layer in layers],
                }
            )
            return 0
        rows = [(x.name, " x ".join(map(str, x.output)), f"{x.params:,}", f"{x.flops:,}") for x in layers]
        print_table(("layer", "output", "params", "FLOPs"), rows)
        print(f"\n{params:,} parameters, {flops / 1e9:.4g} GFLOPs per image (2 per multiply-add)")
        return 0

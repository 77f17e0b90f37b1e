"""mlpmixer summary."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from mlpmixer.cli.arguments import Arg, Command, Line, require_words
from mlpmixer.cli.options import WeightsDir
from mlpmixer.cli.printing import multiply_adds, print_json, print_table
from mlpmixer.cli.recipe_options import architecture_of
from mlpmixer.models.configs import Layer, NetworkConfig


@dataclass(frozen=True, kw_only=True)
class Summary(Command):
    """Print the shapes, parameters and multiply-adds of a network.

    The options of MODEL (mlpmixer summary MODEL --help) change it.
    """

    model: Annotated[str, Arg("MODEL|RUN", positional=True)]
    """a name (mlpmixer list models), a run, or a model file"""
    layers: bool = False
    """Print every layer, instead of a line for each kind."""
    json: Annotated[bool, Arg(help="Print every layer as JSON.")] = False
    weights_dir: WeightsDir = ""
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
        print(f"{self.model}  {self.config.title or self.config.architecture}")
        print(f"{shape(layers[0].output)} images -> {shape(layers[-1].output)} {self.output_name}")
        print(f"{params:,} parameters, {multiply_adds(flops)} multiply-adds for an image ({flops / 1e9:.3g} GFLOPs)\n")
        groups = [(x.name, [x]) for x in layers] if self.layers else kinds(layers)
        rows = [
            (
                name,
                str(len(alike)),
                shape(alike[0].output),
                f"{sum(x.params for x in alike):,}",
                f"{sum(x.flops for x in alike) // 2:,}",
            )
            for name, alike in groups
        ]
        print_table(("layer", "number", "output", "parameters", "multiply-adds"), rows)
        return 0

    @property
    def output_name(self) -> str:
        return "logits" if self.config.num_classes else "features"


def shape(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def kinds(layers: Iterable[Layer]) -> list[tuple[str, list[Layer]]]:
    """Layers of the same name, whatever the number of their block, and the same output: blocks.*.norm1."""
    found: dict[tuple[str, tuple[int, ...]], list[Layer]] = {}
    for layer in layers:
        found.setdefault((re.sub(r"\b\d+\b(\.\d+)*", "*", layer.name), layer.output), []).append(layer)
    return [(name, alike) for (name, _), alike in found.items()]

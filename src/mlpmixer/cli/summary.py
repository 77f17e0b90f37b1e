"""The command summary."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional, arg

from mlpmixer.cli.arguments import (
    Flag,
    architecture_of,
    parse_line,
    read,
)
from mlpmixer.cli.printing import (
    print_json,
    print_table,
)
from mlpmixer.models.configs import MixerConfig, NetworkConfig


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A network line by line: shapes, parameters, FLOPs. Options change it: `mlpmixer summary B/16 --image-size
    384`."""

    model: Annotated[Positional[str], arg(metavar="MODEL|RUN")]
    """An architecture's name (mlpmixer list models), a run's folder, or its model.safetensors."""
    json: Flag = False
    """Print as JSON."""
    config: Annotated[NetworkConfig, arg(name="")] = field(default_factory=MixerConfig)

    @classmethod
    def parse(cls, args: Sequence[str]) -> "Summary":
        line = read(cls, "mlpmixer summary", args)
        if line.asks_for_help:
            return parse_line(line)
        line.require_words()
        name = line.words[0]
        return parse_line(line, default=cls(model=name, config=architecture_of(name)))

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
        print(f"\n{params:,} parameters, {flops / 1e9:.4g} GFLOPs an image (2 for each multiply-add)")
        return 0

"""What several commands share: options, and how they are used."""

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Optional, TypeVar, Union

import tyro

from mlpmixer.cli.arguments import (
    Flag,
    Line,
    parse_line,
    start_from,
    with_short,
)
from mlpmixer.cli.printing import (
    print_error,
)
from mlpmixer.cli.progress import reporter
from mlpmixer.models.configs import Method
from mlpmixer.training.recipe import Recipe

if TYPE_CHECKING:
    from mlpmixer.inference.classifier import Classifier

# Written so that tyro sees at once that a default is of its type: else it imports typeguard for that, and `predict`
# waits.
Size = Union[int, None, tuple[int, int]]  # noqa: UP007
if TYPE_CHECKING:
    Texts = tuple[str, ...]
else:
    Texts = tuple


class OnData:
    """DATA and a recipe that names the same data: what `train`, `lr-find` and `data preview` share."""

    data: str
    config: Recipe

    def __post_init__(self) -> None:
        if self.data is not tyro.MISSING and self.data != self.config.data.name:
            raise ValueError(f"DATA is {self.data}, and the recipe is for {self.config.data.name}")


D = TypeVar("D", bound=OnData)


def with_start(line: Line[D], **more: Any) -> D:
    """The command of the line, with its options over the recipe that it starts from."""
    config = start_from(line)
    data = tyro.MISSING if line.asks_for_help else config.data.name
    default = typing.cast(Any, line.command)(data=data, config=config, **more)
    return parse_line(line, description=with_short(line.command), default=default)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Use the model at other sizes than its own, without training."""

    image_size: Size = None
    """Pixels, or height and width, without training. The patch is kept, so a larger image has more of them: that costs
    accuracy."""
    patch_size: Size = None
    """Pixels, or height and width; without --image-size the image grows with it. Costs the least accuracy."""
    in_channels: Optional[int] = None  # noqa: UP045
    """1 grey, 3 RGB, any other number for multispectral arrays."""
    resize: Method = "bicubic"
    """How token mixing comes to another grid of patches, see transfer.adapt."""
    magnified: Flag = False
    """The images at the new size are enlargements of small ones and show no more than those did."""

    def load(self, run: str, device: str, computing: "Computing | None" = None, streams: int = 1) -> "Classifier":
        if self.image_size is None and self.patch_size is None and (self.resize != "bicubic" or self.magnified):
            raise ValueError("--resize and --magnified are about another size: give --image-size or --patch-size, too")
        from mlpmixer.inference.classifier import load
        from mlpmixer.inference.exported import export_at

        if not export_at(run):
            from mlpmixer.hardware import choose_device

            device = str(choose_device(device))
        how = computing or Computing()
        engine = None if how.engine == "auto" else how.engine
        with reporter() as report:
            sizes = dataclasses.asdict(self)
            more: dict[str, Any] = {"precision": how.precision, "streams": streams, "threads": how.threads}
            loaded = load(run, device=device, engine=engine, report=report, **more, **sizes)
        if computing and (export_at(run) or how != Computing() or streams > 1):
            print_error(f"{run} is computed by {loaded.runtime}")
        return loaded


@dataclass(frozen=True, kw_only=True)
class Computing:
    """What computes the model, and how."""

    engine: Literal["auto", "onnxruntime", "openvino", "torch"] = "auto"
    """What runs an export. auto: onnxruntime for an .onnx file or a bundle (openvino takes those, too), openvino for an
    .xml, torch for a .pt2. `mlpmixer bench` says which is the fastest here."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: faster on processors that have it, with about three digits; in openvino and torch. Layers in int8 stay
    that."""
    threads: int = 0
    """On the CPU (of each of several --streams); 0: as many as the engine chooses."""


def print_bad(bad: Sequence[tuple[str, str]]) -> None:
    for name, reason in bad[:10]:
        print_error(f"{name}: {reason}")
    if bad:
        print_error(f"{len(bad)} images could not be read; they are counted nowhere above")

"""The options that commands share, and the model that they load."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.printing import print_error
from mlpmixer.cli.progress import reporter
from mlpmixer.data.paths import Layout, count
from mlpmixer.models.configs import Method

if TYPE_CHECKING:
    from mlpmixer.evaluation.metrics import Scored
    from mlpmixer.inference.classifier import Classifier

DATA = (
    "the name of a data set, such as digits (mlpmixer list datasets), a folder with a subfolder for each class, a "
    "Parquet file or folder, a .csv of files and classes, or hf:owner/name"
)
WEIGHTS = (
    "a run's folder, a weight file (.safetensors, .npz or .pth; FILE:KEY for one of several networks in it), "
    "hf:owner/name, or a name (mlpmixer list weights)"
)
MODEL = f"{WEIGHTS}; or an export (a file or a bundle)"

DataArg = Annotated[str, Arg("DATA", DATA, positional=True)]
WeightsArg = Annotated[str, Arg("RUN", WEIGHTS, positional=True)]
EvaluatedData = Annotated[
    str, Arg("DATA", "data to evaluate on, named as for train; default: the data RUN was trained on", positional=True)
]
Split = Annotated[
    Literal["test", "val", "train", "all"] | None,
    Arg(
        help="Part of the data: test, val, train, or all. Default: test, or all of a plain folder that RUN was not "
        "trained on."
    ),
]
DataDir = Annotated[str, Arg("DIR", "Folder with the files of a named data set.")]
DataLabels = Annotated[str, Arg("FILE", "CSV or TSV file of files and classes.", name="data.labels")]
DataMultiLabel = Annotated[
    Literal["auto", "yes", "no"],
    Arg(name="data.multi-label", help="Whether an image may have several classes, or none; auto: as the table says."),
]
Threshold = Annotated[
    float | None,
    Arg(
        help="Lowest probability at which a class counts as present, for images that may have several; default: the "
        "model's, chosen on validation images."
    ),
]
DataLayout = Annotated[
    Layout, Arg(name="data.layout", help="Whether folders and files named train, val or test are splits or classes.")
]
WeightsDir = Annotated[str, Arg("DIR", "Folder with our weights; default: $MLPMIXER_WEIGHTS.")]
BatchSize = Annotated[int, Arg(help="Batch size.")]
Device = Annotated[str, Arg(help="auto, cpu, cuda, cuda:1 or mps.")]
Json = Annotated[bool, Arg(help="Print all numbers as JSON.")]
JsonLines = Annotated[bool, Arg(help="Print one JSON object per line.")]
Quiet = Annotated[bool, Arg(help="Print the result only.")]


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Input of another size, without training."""

    image_size: int | tuple[int, int] | None = None
    """Image size in pixels; two numbers: height, width. The patch size stays, so a larger image has more patches, which
    costs accuracy."""
    patch_size: int | tuple[int, int] | None = None
    """Patch size in pixels; two numbers: height, width. Without --image-size, the image grows with it, which costs the
    least accuracy."""
    in_channels: int | None = None
    """1 for grey images, 3 for RGB, any other number for multispectral arrays."""
    resize: Method = "bicubic"
    """How token mixing adapts to another grid of patches (docs/how-to/transfer.md)."""
    magnified: bool = False
    """Images at the new size are upsampled from the old size and show no more detail."""


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Runtime."""

    engine: Literal["auto", "onnxruntime", "openvino", "torch", "compiled"] = "auto"
    """Engine that computes the model. auto, for an export: onnxruntime for an .onnx file or a bundle (openvino opens
    those too), openvino for an .xml, torch for a .pt2; for a run: torch, except that `predict` uses compiled where it
    can: a plain Mixer in float32 on the CPU, without importing torch. `mlpmixer bench` says which is fastest here."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Data type of the computation. bfloat16, in openvino and torch, is faster on processors that support it and keeps
    about three digits; int8 layers stay int8."""
    threads: int = 0
    """CPU threads; with several --streams, threads per stream. 0: the engine's default."""


@dataclass(frozen=True, kw_only=True)
class ModelCommand(Command):
    """A command that uses a model."""

    run: Annotated[str, Arg("RUN", MODEL, positional=True)]
    device: Device = "auto"
    weights_dir: WeightsDir = ""
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    inputs: InputOptions = field(default_factory=InputOptions)

    torch_free: ClassVar[bool] = False
    """Whether a run may be computed without torch by default, and so without the torch network."""

    def load(self, streams: int = 1) -> "Classifier":
        return load_model(self.run, self.device, self.inputs, self.runtime, streams, torch_free=self.torch_free)


@dataclass(frozen=True, kw_only=True)
class EvaluationCommand(ModelCommand):
    """A command that measures a model on data."""

    data: EvaluatedData = ""
    data_dir: DataDir = ""
    batch_size: BatchSize = 256
    json: Json = False


def load_model(
    run: str,
    device: str,
    inputs: InputOptions,
    runtime: RuntimeOptions | None = None,
    streams: int = 1,
    *,
    torch_free: bool = False,
) -> "Classifier":
    """The model at a path, address or name. What computes it is said if `runtime` is given, except for plain torch.

    torch_free: a run may be computed without torch where nobody says what computes it.
    """
    from mlpmixer.inference.exported import export_at
    from mlpmixer.inference.load import load

    is_export, chosen = bool(export_at(run)), runtime or RuntimeOptions()
    engine = None if chosen.engine == "auto" and not torch_free else chosen.engine
    if not is_export and (engine in (None, "torch") or device not in ("auto", "cpu")):
        from mlpmixer.hardware import choose_device

        device = str(choose_device(device))
    with reporter() as report:
        classifier = load(
            run,
            device=device,
            engine=engine,
            precision=chosen.precision,
            threads=chosen.threads,
            streams=streams,
            report=report,
            **dataclasses.asdict(inputs),
        )
    if runtime and (is_export or runtime != RuntimeOptions() or streams > 1):
        print_error(f"{run} is computed by {classifier.runtime}")
    return classifier


def set_threshold(classifier: "Classifier", threshold: float | None) -> None:
    """Give a model the threshold, if there is one. ValueError for a model that gives an image one class."""
    if threshold is None:
        return
    if classifier.threshold is None:
        raise ValueError("--threshold is for models of several classes per image; this one gives each image one class")
    classifier.threshold = threshold


def require_writable(option: str, path: str, *, suffixes: Sequence[str] = (), folder: bool = False) -> None:
    """Refuse the name of a file, or of a folder, that cannot be written: before the work, and not after it.

    Folders above it that do not exist will be made. ValueError.
    """
    target = Path(path).expanduser()
    if suffixes and target.suffix not in suffixes:
        raise ValueError(f"{option} {path}: expected a name that ends in {' or '.join(suffixes)}")
    if target.exists() and target.is_dir() != folder:
        is_a, name_a = ("file", "folder") if folder else ("folder", "file")
        raise ValueError(f"{option} {path} is a {is_a}: name a {name_a}")
    try:
        if target.exists() and not folder:
            open(target, "ab").close()
        else:
            place = next(above for above in (target, *target.absolute().parents) if above.exists())
            TemporaryFile(dir=place).close()
    except OSError as e:
        raise ValueError(f"{option} {path} cannot be written: {e.strerror}; name another") from e


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """1,5,10 -> (1, 5, 10)"""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f"{option} {text}: expected whole numbers separated by commas, such as {option} 1,5,10,25")
    return tuple(map(int, text.split(",")))


def print_changes(scored: "Scored | None") -> None:
    """Print the changes in a run's data since its training."""
    for note in scored.notes if scored else ():
        print_error(note)


def print_unreadable(images: Sequence[tuple[str, str]]) -> None:
    """The first ten images that could not be read, with the reason, and how many they are."""
    for name, reason in images[:10]:
        print_error(f"{name}: {reason}")
    if images:
        print_error(f"{count(len(images), 'image')} could not be read (excluded from the numbers above)")

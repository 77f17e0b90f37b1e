"""mlpmixer convert."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.options import WEIGHTS, DataDir, WeightsDir, require_writable
from mlpmixer.cli.printing import percent, print_error
from mlpmixer.cli.progress import megabytes, reporter

COMPARED = 1000  # images


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Convert weights to the official, timm's or this package's format."""

    model: Annotated[str, Arg("RUN", WEIGHTS, positional=True)]
    out: Annotated[str, Arg("FILE", positional=True)]
    """the file to write: FILE.npz in the official format (Mixers only), FILE.safetensors in this package's format
    unless --timm or --official is given"""
    timm: bool = False
    """Write FILE.safetensors with timm's names."""
    official: bool = False
    """Write FILE.safetensors with the names of the authors' code: ViP, AS-MLP, RepMLPNet, ResMLP."""
    precision: Literal["float32", "float16"] = "float32"
    """Precision of the stored weights, in the format of this package. float16 halves the file; what that changes is
    measured on images and printed."""
    data: Annotated[str, Arg("DATA")] = ""
    """Data to measure float16 on, named as for train; default: the data RUN was trained on."""
    data_dir: DataDir = ""
    weights_dir: WeightsDir = ""

    def __call__(self) -> int:
        if self.precision == "float32" and (self.data or self.data_dir):
            raise ValueError("--data and --data-dir are for --precision float16, which is measured on images")
        require_writable("FILE", self.out)
        from mlpmixer.weights.convert import convert

        with reporter() as report:
            notes = convert(
                self.model, self.out, timm=self.timm, official=self.official, precision=self.precision, report=report
            )
        if self.precision == "float16":
            notes.append(self.difference())
        for note in notes:
            print_error(f"note: {note}")
        print(self.out)
        return 0

    def difference(self) -> str:
        """The effect of half precision, in a sentence."""
        from mlpmixer.evaluation.data import open_for
        from mlpmixer.evaluation.evaluate import match_classes, require_one_class, targets_of
        from mlpmixer.evaluation.multi_label import mean_average_precision
        from mlpmixer.inference.files import map_images
        from mlpmixer.inference.load import load

        before, after = load(self.model), load(self.out)
        size = f"float16: {megabytes(Path(self.out).stat().st_size)}"
        try:
            images = open_for(before, self.data or None, self.data_dir).held_out().spread(COMPARED)
            targets = targets_of(images, match_classes(images.classes, before.classes), len(before.classes))
            if not before.multi_label:
                require_one_class(images)
        except ValueError as e:
            if self.data:
                raise
            return f"{size}; the difference to float32 was not measured: {e}"
        (index, p, _), (_, q, _) = (map_images(model, images, model.probabilities, 64) for model in (before, after))
        targets = targets[index]
        metric, scores = "top-1", [targets[range(len(index)), found.argmax(1)].mean() for found in (p, q)]
        if before.multi_label:
            metric, scores = "mAP", [mean_average_precision(found, targets) for found in (p, q)]
        return (
            f"{size}; on {len(index):,} images that the model was not trained on, {metric} is {percent(scores[0])} in "
            f"float32 and {percent(scores[1])} in float16, and no probability differs by more than "
            f"{abs(p - q).max():.1e}"
        )

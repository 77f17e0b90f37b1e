"""An export answers as the model it was made from, without torch, or there is none."""

import dataclasses
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.preprocessing import BICUBIC, MODELS, cases
from helpers.exports import CASES, web_runtime
from helpers.models import DIGITS, GREY, PARTS, Flat, classifier_of, mixer, pixels_for
from helpers.processes import OF_THE_COMMAND, alone
from PIL import Image
from torch import nn

from mlpmixer import cli
from mlpmixer.data.config import Data
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.explanation.attribution import network_input, patch_evidence
from mlpmixer.exporters import graph as graph_module
from mlpmixer.exporters.check import PIXEL_TOLERANCE, check, check_evidence, check_fit, sample
from mlpmixer.exporters.export import TARGETS, ExportMismatch, export
from mlpmixer.exporters.graph import Graph, plain
from mlpmixer.exporters.graph_resize import Fitted
from mlpmixer.exporters.job import new_job
from mlpmixer.inference.classifier import Classifier, Exported, from_network, load
from mlpmixer.inference.engines import Runtime, open_session
from mlpmixer.inference.exported import Export, digest, metadata, open_export
from mlpmixer.models import kernels
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer, MixerBlock
from mlpmixer.weights.model_file import ModelMeta

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


@pytest.mark.parametrize("case", CASES)
def test_an_export_answers_as_the_model_and_knows_all_that_belongs_to_it(case: str, tmp_path: Path) -> None:
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
    assert (found.classes, found.preprocess, found.multi_label) == (model.classes, model.preprocess, model.multi_label)
    assert found.export.batch == options.get("batch") and found.export.made == written.made
    assert written.made["check"]["agreeing"] == 40
    with pytest.raises(ValueError, match=r"expected (uint8|float32) images of shape"):
        found.probabilities(np.zeros((1, 3, 3, 1), np.uint8))


def test_a_file_holds_nothing_of_the_machine_it_was_made_on(bundle: Path) -> None:
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
def test_a_graph_with_evidence_says_what_each_patch_adds_and_is_checked_for_it(
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
        check_evidence(model, found, sample(Data(name="digits"), 20))
    with pytest.raises(ValueError, match=r"Flat has no tokens .* which evidence needs"):
        export(classifier_of(GREY, Flat()), out=tmp_path / "other.onnx", data="digits", evidence=True)


def test_compiled_kernels_stay_out_of_the_graph_and_in_the_model() -> None:
    network = mixer(GREY)
    kernels.install(network)
    copied = plain(network)
    assert [type(b) for b in copied.blocks] == [MixerBlock] * 2  # type: ignore[attr-defined]
    assert [type(b) for b in network.blocks] == [kernels.FastBlock] * 2
    assert all(a is b for a, b in zip(copied.parameters(), network.parameters(), strict=True))
    assert [type(b) for b in plain(mixer(PARTS)).blocks] == [MixerBlock] * 2  # type: ignore[attr-defined]
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(copied(images), mixer(GREY)(images))


# --- resize and fit in the graph ----------------------------------------------------------------------------------


def test_resize_and_fit_in_the_graph_are_the_definition_but_for_rounding() -> None:
    different = []
    for case in cases(*MODELS):
        found = Fitted(case.preprocess)(torch.from_numpy(case.decoded[None].copy()))[0].permute(1, 2, 0).numpy()
        off = np.abs(found - case.pixels)
        assert off.max() <= PIXEL_TOLERANCE, case
        different.append((off > 0).mean())
    assert np.mean(different) < 0.03


def test_a_graph_of_any_size_sees_what_pillow_shows(tmp_path: Path) -> None:
    cfg = dataclasses.replace(PARTS, in_channels=3)
    model = classifier_of(cfg, fit="pad")
    written = export(model, out=tmp_path / "model.onnx", data="digits", images=30, any_size=True)
    fit = written.checked.fit
    assert fit and fit.n == 60 and fit.pixel_max_diff <= 1 and fit.pixels_different < 0.03 and fit.agreeing == 60
    found = load(written.path)
    assert isinstance(found, Exported)
    own = pixels_for(model, 3)
    np.testing.assert_array_equal(found.export(own, "pixels")[0], own)  # an image of the model's size passes unchanged
    np.testing.assert_allclose(found.probabilities(own), model.probabilities(own), atol=1e-5)
    for case in cases(model.preprocess):
        pixels, p = found.export(np.stack([case.decoded, 255 - case.decoded]), "pixels", "probabilities")
        assert pixels.dtype == np.uint8 and np.abs(pixels[0].astype(int) - case.pixels).max() <= PIXEL_TOLERANCE, case
        np.testing.assert_allclose(p, model.probabilities(pixels), atol=1e-5)


def test_images_at_two_thirds_of_the_models_size_pass_the_check(tmp_path: Path) -> None:
    """There many values lie just between two levels, after each axis."""
    rng = np.random.default_rng(0)
    for i in range(6):
        folder = tmp_path / "photos" / "test" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(folder / f"{i}.png")
    model = classifier_of(dataclasses.replace(GREY, image_size=48, patch_size=12))
    graph = Graph(new_job(model, top_k=2, any_size=True))

    def compute(images: Any, outputs: tuple[str, ...]) -> list[Any]:
        with torch.inference_mode():
            found = graph(torch.tensor(images))
        return [found[name].numpy() for name in outputs]

    exported = dataclasses.replace(answering(model), outputs=("pixels", "probabilities"), compute=compute)
    assert check_fit(model, exported, sample(Data(name=str(tmp_path / "photos")), 6)).pixel_max_diff == 2


def test_a_resize_that_is_not_pillows_fails_and_a_rule_that_is_not_there_is_refused(tmp_path: Path) -> None:
    model = classifier_of(GREY)
    own = answering(model)

    def compute(images: Any, outputs: tuple[str, ...]) -> list[Any]:
        pixels = np.stack([model.preprocess_image(image) for image in images])
        pixels[..., 0, 0, 0] ^= 4
        return [pixels if name == "pixels" else own.compute(pixels, (name,))[0] for name in outputs]

    wrong = dataclasses.replace(own, outputs=(*own.outputs, "pixels"), compute=compute)
    with pytest.raises(ExportMismatch, match="differ from Pillow's by up to 4 levels of 255; expected at most 2"):
        check_fit(model, wrong, sample(Data(name="digits"), 5))
    with pytest.raises(ValueError, match="this model has short_side_crop, bicubic"):
        bicubic = classifier_of(GREY, fit="short_side_crop", interpolation="bicubic")
        export(bicubic, out=tmp_path / "a.onnx", data="digits", any_size=True)


# --- the check ----------------------------------------------------------------------------------------------------


def answering(model: Classifier, change: Any = lambda p, i: p) -> Export:
    """An export in numpy, whose probabilities (K,) of image i of a batch are changed."""
    assert model.meta is not None

    def compute(images: Any, outputs: tuple[str, ...]) -> list[Any]:
        p = np.stack([change(p, i) for i, p in enumerate(model.probabilities(images))])
        top = np.argsort(-p, axis=1, kind="stable")[:, :3]
        known = {"probabilities": p, "top_probabilities": np.take_along_axis(p, top, 1), "top_classes": top}
        return [known[name] if name in known else model.features(images) for name in outputs]

    runtime = Runtime(engine="numpy", version="2", precision="float32", threads=1)
    outputs = ("probabilities", "top_probabilities", "top_classes", "features")
    return Export(Path("x.onnx"), model.meta, {}, None, outputs, runtime, compute)


def test_one_answer_in_a_hundred_that_differs_fails_the_check() -> None:
    model, given = classifier_of(GREY), sample(Data(name="digits"), 100)
    same = check(model, answering(model), given)
    same.require_float()
    assert (same.n, same.agreeing, same.agreement, same.probability_max_diff, same.unreadable) == (
        100,
        100,
        1.0,
        0.0,
        0,
    )
    labels = given.images.labels
    right = sum(
        p.label == DIGITS[y]
        for p, y in zip(model.predict([given.images.source(i) for i in range(100)]), labels, strict=True)
    )
    assert same.right == right

    def swapped(p: np.ndarray, i: int) -> np.ndarray:  # the second batch holds 36 images
        order = np.argsort(-p)
        p[order[:2]] = p[order[1::-1]] if i == 50 else p[order[:2]]
        return p

    other = check(model, answering(model, swapped), given)
    assert other.agreeing == 99
    with pytest.raises(ExportMismatch, match=r"on 100 images of digits top-1 is the same for 99"):
        other.require_float()
    blurred = check(model, answering(model, lambda p, i: p * np.float32(1 - 2e-4)), given)
    assert blurred.agreeing == 100
    with pytest.raises(ExportMismatch, match="expected all of them, and less than 1e-04"):
        blurred.require_float()
    with pytest.raises(ExportMismatch, match="features differ by up to nan"):
        dataclasses.replace(same, feature_max_diff=float("nan")).require_float()


def test_it_is_checked_on_test_images_first_and_on_all_there_are() -> None:
    few, many, all_ = (sample(Data(name="digits"), n) for n in (10, 400, 10_000))
    assert (len(few.images), few.n_test) == (10, 10)
    assert (len(many.images), many.n_test) == (400, 360)
    assert all_.n_test == 360 and len(all_.images) == 360 + 1293
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        sample(Data(name="digits"), 0)


def test_a_lone_test_split_will_do_and_the_folder_it_lies_in_stays_unsaid(tmp_path: Path) -> None:
    for i in range(6):
        folder = tmp_path / "photos" / "test" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (i, i, i)).save(folder / f"{i}.png")
    given = sample(Data(name=str(tmp_path / "photos")), 10)
    assert (given.data, len(given.images), given.n_test) == ("photos", 6, 6)
    model = classifier_of(GREY)
    (tmp_path / "photos" / "test" / "a" / "0.png").write_bytes(b"broken")
    checked = check(model, answering(model), given)
    assert (checked.n, checked.unreadable, checked.right) == (5, 1, None)  # its classes are others


@pytest.mark.parametrize(
    "to", [to if to in ("onnx", "pt2") else pytest.param(to, marks=pytest.mark.exports) for to in TARGETS]
)
def test_an_export_that_disagrees_leaves_nothing(
    to: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Brighter(Graph):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return super().forward((images // 2 * 2 + 1).to(images.dtype))

    monkeypatch.setattr(graph_module, "Graph", Brighter)
    web = {"page_runtime": web_runtime(tmp_path_factory.mktemp("runtime") / "package")} if to == "web" else {}
    with pytest.raises(ExportMismatch, match="the export disagrees with the model"):
        export(
            classifier_of(GREY), to, **web, out=tmp_path / f"a{Path(TARGETS[to].name).suffix}", data="digits", images=20
        )
    assert not list(tmp_path.iterdir())


# --- the bundle ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(digits_bundle: Path) -> Path:
    return digits_bundle


@pytest.fixture(scope="module")
def run(bundle: Path) -> Path:
    return bundle.parent


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One image of each kind that needs care."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    rgb = Image.fromarray(noise[..., :3])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    rgb.resize((200, 90)).save(folder / "turned.jpg", exif=exif)
    rgb.save(folder / "rgb.png")
    rgb.resize((8, 8)).save(folder / "of-its-size.png")
    Image.fromarray(noise).save(folder / "alpha.png")
    rgb.convert("P").save(folder / "palette.png", transparency=3)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("1").save(folder / "bits.png")
    Image.fromarray(noise[:, :30, 0].astype(np.uint16) * 200).save(folder / "sixteen.png")
    return sorted(map(str, folder.iterdir()))


def program(bundle: Path) -> Any:
    spec = importlib.util.spec_from_file_location("bundled_predict", bundle / "predict.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_bundle_is_all_one_needs_and_says_what_was_measured(bundle: Path, run: Path) -> None:
    assert bundle == run / "bundle"
    files = ["Dockerfile", "README.md", "bundle.json", "labels.json", "model.onnx", "predict.py", "requirements.txt"]
    assert sorted(os.listdir(bundle)) == files
    assert json.loads((bundle / "labels.json").read_text()) == list(DIGITS)
    readme = (bundle / "README.md").read_text()
    assert re.search(r"Accuracy: [\d.]+ % \(.*\) of 50 test images of digits", readme)
    assert (
        "on 50 images the likeliest class is the same for 100.00 %" in readme and "Licence of the model: mit" in readme
    )
    assert re.search(r"Speed: [\d.]+ ms for one image, [\d,]+ images/s in batches of 32", readme)
    assert len((bundle / "predict.py").read_text().splitlines()) < 130
    assert re.fullmatch(r"(\w+==[\w.]+\n){3}", (bundle / "requirements.txt").read_text())
    assert not [f for f in files if f != "model.onnx" and str(bundle) in (bundle / f).read_text()]


def test_its_program_makes_the_pixels_of_the_definition(bundle: Path) -> None:
    model = program(bundle).Model()
    for case in cases(*MODELS, *BICUBIC):
        model.preprocess = json.loads(json.dumps(dataclasses.asdict(case.preprocess)))
        np.testing.assert_array_equal(model.pixels(io.BytesIO(case.file)), case.pixels, err_msg=str(case))


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("channels", [1, 3])
def test_its_program_decodes_jpegs_as_we_do(fit: Any, channels: int, bundle: Path, pictures: list[str]) -> None:
    """A large one at a fraction of its size."""
    ours = Preprocess(image_size=(8, 12), in_channels=channels, fit=fit)
    model = program(bundle).Model()
    model.preprocess = json.loads(json.dumps(dataclasses.asdict(ours)))
    jpegs = [path for path in pictures if path.endswith(".jpg")]
    assert len(jpegs) == 2
    for path in jpegs:
        np.testing.assert_array_equal(model.pixels(path), ours.array(path), err_msg=path)


def test_its_program_answers_as_the_model_with_three_packages(
    bundle: Path, run: Path, pictures: list[str], tmp_path: Path
) -> None:
    moved = shutil.copytree(bundle, tmp_path / "elsewhere")
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    done = alone(
        f"import runpy; sys.argv = ['predict.py', '--json', '--top', '3', {str(bad)!r}, *{pictures!r}]; "
        f"runpy.run_path({str(moved / 'predict.py')!r}, run_name='__main__')"
    )
    assert done.returncode == 1 and "bad.jpg" in done.stderr and "Traceback" not in done.stderr, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line, wanted in zip(lines, load(run).predict(pictures, top_k=3), strict=True):
        assert line["image"] == wanted.name
        assert [t["label"] for t in line["top"]] == [label for label, _ in wanted.top]
        assert [t["probability"] for t in line["top"]] == pytest.approx([p for _, p in wanted.top], abs=1e-5)


def test_the_command_predicts_where_there_is_no_torch(
    bundle: Path, run: Path, pictures: list[str], tmp_path: Path
) -> None:
    code = (
        "from mlpmixer.cli import main; code = main(['predict', {!r}, *{!r}, '--format', 'jsonl', "
        "'--features', {!r}]); "
    )
    code += "assert 'torch' not in sys.modules; sys.exit(code)"
    for of, features in ((bundle, "a.npz"), (bundle / "model.onnx", "b.npz")):
        done = alone(code.format(str(of), pictures, str(tmp_path / features)), OF_THE_COMMAND)
        assert done.returncode == 0, done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        wanted = load(run).predict(pictures)
        assert [a["label"] for a in answers] == [w.label for w in wanted]
        assert [a["probability"] for a in answers] == pytest.approx([w.probability for w in wanted], abs=1e-5)
        assert np.load(tmp_path / features)["features"].shape == (len(pictures), 16)


def test_the_service_answers_where_there_is_no_torch(bundle: Path, run: Path, pictures: list[str]) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    pytest.importorskip("httpx2", reason="the extra test is not installed")
    code = f"""
import sys
sys.modules["torch"] = None  # importing it fails
from starlette.testclient import TestClient
from mlpmixer.cli.serve import Serve
with TestClient(Serve(run={str(bundle)!r}).app()) as client, open({pictures[0]!r}, "rb") as file:
    print(client.post("/predict", content=file.read(), headers={{"content-type": "image/png"}}).text)
    print(client.get("/").status_code, client.get("/docs").status_code, client.get("/ready").text)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer, pages = done.stdout.splitlines()
    [found], [wanted] = json.loads(answer)["results"], load(run).predict(pictures[0])
    assert found["label"] == wanted.label and found["probability"] == pytest.approx(wanted.probability, abs=1e-5)
    assert pages == "200 200 ok"


def test_what_needs_torch_says_so_where_there_is_none(run: Path) -> None:
    done = alone(f"from mlpmixer.cli import main; sys.exit(main(['predict', {str(run)!r}, 'x.png']))", OF_THE_COMMAND)
    assert done.returncode == 2 and "this command needs torch, which is not installed here" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_predicting_from_python_imports_no_torch(bundle: Path, pictures: list[str]) -> None:
    code = (
        f"import sys, mlpmixer.inference.classifier; "
        f"print(mlpmixer.inference.classifier.load({str(bundle)!r}).predict({pictures[0]!r})[0].label)\n"
    )
    code += "assert not {'torch', 'onnx', 'onnxscript', 'sklearn'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() in DIGITS, done.stderr


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_writes_checks_and_says_so_and_evaluate_agrees(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
        ("export {run} --top-k 0 --out {tmp}/model.onnx", "top_k must be at least 1, got 0"),
        ("export {run} --data nowhere --out {tmp}/model.onnx", "no data set, file or folder named 'nowhere'"),
        ("export {run}/model.safetensors --data digits", "exists already"),
        ("predict {bundle} x.png --image-size 16", "is an export, whose size is fixed"),
        ("predict {bundle} x.png --device cuda", "is an export, which runs on the CPU"),
        ("predict {bundle}/modle.onnx x.png", "did you mean {bundle}/model.onnx?"),
        ("explain {bundle} x.png", "an export cannot be explained"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
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


def test_a_model_without_a_head_or_of_another_kind_is_refused(tmp_path: Path, bundle: Path) -> None:
    headless = classifier_of(dataclasses.replace(GREY, num_classes=0))
    assert headless.meta is not None
    bare = from_network(mixer(headless.meta.config), dataclasses.replace(headless.meta, classes=()))
    with pytest.raises(ValueError, match="no head"):
        export(bare, out=tmp_path / "a.onnx", data="digits")
    with pytest.raises(ValueError, match="only a torch model can be exported"):
        export(load(bundle), out=tmp_path / "a.onnx", data="digits")
    with pytest.raises(
        ValueError, match="does not support fit='bv_resmall_crop', only crop, pad, squash: export to onnx"
    ):
        export(classifier_of(GREY, fit="bv_resmall_crop"), "bundle", out=tmp_path / "a", data="digits")
    with pytest.raises(ValueError, match="not in a run, beside which an export goes"):
        export(classifier_of(GREY), data="digits")


# --- what is no export --------------------------------------------------------------------------------------------


def test_a_swapped_model_or_a_damaged_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        return shutil.copytree(bundle, tmp_path / name)

    swapped = damaged("swapped")
    model = onnx.load(str(swapped / "model.onnx"))
    model.doc_string = "another"
    onnx.save(model, str(swapped / "model.onnx"))
    for name in (swapped, swapped / "model.onnx"):
        with pytest.raises(ValueError, match="is not the file that the bundle was made with"):
            load(name)
    with pytest.raises(ValueError, match="is not the file that this bundle was made with"):
        program(swapped).Model()
    (damaged("gone") / "model.onnx").unlink()
    with pytest.raises(ValueError, match="the bundle is incomplete"):
        load(tmp_path / "gone")
    for i, text in enumerate(("", "[]", "{}", '{"format": 7, "files": {}}', '{"format": 1, "files": []}')):
        (damaged(str(i)) / "bundle.json").write_text(text)
        with pytest.raises(ValueError, match=r"bundle.json cannot be read"):
            load(tmp_path / str(i))


def test_metadata_that_are_not_those_of_an_export_are_refused(bundle: Path, tmp_path: Path) -> None:
    model, path = onnx.load(str(bundle / "model.onnx")), tmp_path / "model.onnx"
    meta, made = open_export(bundle / "model.onnx").meta, {"batch": None}
    good = json.loads(metadata(meta, made))
    larger = dataclasses.replace(meta.preprocess, image_size=(16, 16))
    cases = [
        (None, "not an export of this package: its metadata has no entry 'format'"),
        ("{", "its metadata cannot be read"),
        ("[]", "its metadata cannot be read"),
        (json.dumps(good | {"format": 2}), "this version reads format 1"),
        (json.dumps({k: v for k, v in good.items() if k != "export"}), "no entry 'export'"),
        (json.dumps(good | {"model": good["model"] | {"run": "rm"}}), "has no field 'run'"),
        (json.dumps(good | {"model": {}}), "its metadata cannot be read"),
        (metadata(dataclasses.replace(meta, classes=DIGITS[:3]), made), "names 3 classes"),
        (metadata(dataclasses.replace(meta, preprocess=larger), made), r"says images \[16, 16, 1\]"),
    ]
    for text, says in cases:
        del model.metadata_props[:]
        if text is not None:
            onnx.helper.set_model_props(model, {"mlpmixer": text})
        onnx.save(model, str(path))
        with pytest.raises(ValueError, match=says):
            load(path)
    path.write_bytes((bundle / "model.onnx").read_bytes()[:1000])
    with pytest.raises(ValueError, match="onnxruntime cannot open"):
        load(path)


def with_metadata(model: Any, path: Path, text: str) -> Path:
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {"mlpmixer": text})
    onnx.save(model, str(path))
    return path


WRONG = (None, -1, 10**400, float("nan"), "../../etc/passwd", [[]], ["a", 5], [10**9, 10**9], {"a": 1})
FINE = (("mean", [10**9, 10**9]), ("std", [10**9, 10**9]))
DECIDES = (  # what the answers depend on; the rest of the metadata is told, not used
    ["format"],
    ["model"],
    ["export"],
    ["model", "classes"],
    ["model", "preprocess"],
    ["model", "provenance"],
    ["model", "config", "hidden_dim"],
    *(["model", "preprocess", field] for field in ("image_size", "in_channels", "fit", "mean", "std", "interpolation")),
)


def test_no_value_of_a_wrong_type_or_size_gets_by(bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(str(bundle / "model.onnx"))
    found = open_export(bundle / "model.onnx")
    good = metadata(found.meta, {"batch": None})
    for place in DECIDES:
        for value in WRONG:
            if (isinstance(value, dict) and place[-1] in ("export", "provenance")) or (place[-1], value) in FINE:
                continue  # an object of anything, and numbers that may be
            stored = json.loads(good)
            inside = stored
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = value
            with pytest.raises(ValueError, match=r"expected an \.onnx") as e:
                load(with_metadata(model, tmp_path / "model.onnx", json.dumps(stored)))
            assert len(str(e.value)) < 1000, place
    for text in ("[" * 100_000, good.replace("10", "9" * 5000), json.dumps("x" * 10**6)):
        with pytest.raises(ValueError, match=r"expected an \.onnx") as e:
            load(with_metadata(model, tmp_path / "model.onnx", text))
        assert len(str(e.value)) < 1000


def graph_with(path: Path, meta: ModelMeta, batch: Any, *outputs: Any) -> Path:
    """A graph without a network, which takes images of 8x8 px, with outputs (name, declared shape, value)."""
    from onnx import TensorProto, helper, numpy_helper

    values = {name: numpy_helper.from_array(np.asarray(value, np.float32)) for name, _, value in outputs}
    constants = [helper.make_node("Constant", [], [name], value=value) for name, value in values.items()]
    takes = [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, 8, 8, 1])]
    gives = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape, _ in outputs]
    model = helper.make_model(
        helper.make_graph(constants, "g", takes, gives), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    return with_metadata(model, path, metadata(meta, {}))


def test_a_graph_that_is_not_what_its_metadata_say_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta, path, p = (
        open_export(bundle / "model.onnx").meta,
        tmp_path / "model.onnx",
        ("probabilities", ["b", 10], np.full((1, 10), 0.1)),
    )
    assert load(graph_with(path, meta, "b", p)).probabilities(np.zeros((1, 8, 8, 1), np.uint8)).shape == (1, 10)
    for outputs, says in (
        ([("probability", ["b", 10], np.ones((1, 10)))], "names 10 classes, its graph gives 'probability'"),
        ([p, ("features", ["b", 17], np.ones((1, 17)))], r"says features of shape \(16,\), its graph gives"),
        ([p, ("logits", ["b", 3], np.ones((1, 3)))], r"says logits of shape \(10,\)"),
        ([p, ("evidence", ["b", 9, 10], np.ones((1, 9, 10)))], r"says evidence of shape \(16, 10\)"),
    ):
        with pytest.raises(ValueError, match=says):
            load(graph_with(path, meta, "b", *outputs))
    with pytest.raises(ValueError, match=r"takes 1,000,000,000 images at a time, more than fit into 2 GiB"):
        load(graph_with(path, meta, 10**9, p))
    larger = dataclasses.replace(meta, preprocess=dataclasses.replace(meta.preprocess, image_size=(10**9, 10**9)))
    with pytest.raises(ValueError, match="says images"):
        load(graph_with(path, larger, "b", p))
    session, runtime = open_session(graph_with(path, meta, "b", p), None, "float32", 1, 1)
    lying = dataclasses.replace(session, compute=lambda images, outputs: [np.ones((1, 3), np.float32)])
    monkeypatch.setattr("mlpmixer.inference.exported.open_session", lambda *_: (lying, runtime))
    with pytest.raises(ValueError, match=r"answers 1 images with probabilities of shape \(1, 3\)"):
        load(path).probabilities(np.zeros((1, 8, 8, 1), np.uint8))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_weights_outside_the_folder_are_not_read(engine: str, bundle: Path, tmp_path: Path) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    model = onnx.load(str(bundle / "model.onnx"))
    weights = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    (tmp_path / "secret").write_bytes(weights.raw_data)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "secret")
    length = str(len(weights.raw_data))
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for place in ("../secret", str(tmp_path / "secret"), "link", "/dev/zero", "missing"):
        del weights.external_data[:]
        for key, value in (("location", place), ("offset", "0"), ("length", length)):
            weights.external_data.add(key=key, value=value)
        (tmp_path / "folder" / "model.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ValueError, match=f"{engine} cannot open .*model.onnx"):
            load(tmp_path / "folder" / "model.onnx", engine=engine)


def test_a_manifest_is_not_believed_and_not_read_further_than_a_mebibyte(bundle: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(bundle, tmp_path / "bundle")
    other = json.dumps({"format": 1, "files": {"../model.onnx": "0" * 64, "/etc/passwd": "0" * 64}})
    for text in ("[" * 100_000, " " * 2**21, json.dumps({"format": 1, "files": {"model.onnx": {}}}), other):
        (moved / "bundle.json").write_text(text)
        with pytest.raises(
            ValueError, match=r"bundle.json cannot be read|is not the file that the bundle was made with"
        ) as e:
            load(moved)
        assert len(str(e.value)) < 1000
        with pytest.raises((ValueError, KeyError, RecursionError)):
            program(moved).Model()


def test_class_names_do_not_steer_the_terminal(
    bundle: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(bundle, tmp_path / "bundle")
    names = tuple(f"\x1b[2J\x9b31m{i}\r\n\u202e" for i in range(10))
    found = open_export(bundle / "model.onnx")
    with_metadata(
        onnx.load(str(bundle / "model.onnx")),
        moved / "model.onnx",
        metadata(dataclasses.replace(found.meta, classes=names), {}),
    )
    (moved / "bundle.json").write_text(json.dumps({"format": 1, "files": {"model.onnx": digest(moved / "model.onnx")}}))
    assert load(moved).classes == names
    assert cli.main(["predict", str(moved), pictures[0]]) == 0
    code = f"import runpy; sys.argv = ['predict.py', {pictures[0]!r}]; "
    done = alone(code + f"runpy.run_path({str(moved / 'predict.py')!r}, run_name='__main__')")
    assert done.returncode == 0, done.stderr
    for text in (capsys.readouterr().out, done.stdout):
        assert len(text.splitlines()) == 6 and all(line.isprintable() for line in text.splitlines()) and "31m" in text


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_packages_the_answer_is_how_to_get_them(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf'no {package} here\): pip install "mlpmixer\[onnx\]"'):
        export(classifier_of(GREY), out=tmp_path / "model.onnx", data="digits", images=5)
    assert not list(tmp_path.iterdir())

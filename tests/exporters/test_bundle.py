"""A bundle classifies with three packages, and every command takes it without torch."""

import dataclasses
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
from fixtures.preprocessing import BICUBIC, MODELS, cases
from helpers.exports import program, with_metadata
from helpers.models import DIGITS
from helpers.processes import OF_THE_COMMAND, alone
from PIL import Image

from mlpmixer import cli
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.exported import digest, metadata, open_export
from mlpmixer.inference.load import load

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


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


def test_a_bundle_is_complete(bundle: Path, run: Path) -> None:
    assert bundle == run / "bundle"
    texts = ["Dockerfile", "LICENSE", "README.md", "bundle.json", "labels.json", "predict.py", "requirements.txt"]
    assert sorted(os.listdir(bundle)) == sorted([*texts, "model.onnx"])
    assert "Apache License" in (bundle / "LICENSE").read_text()
    assert json.loads((bundle / "labels.json").read_text()) == list(DIGITS)
    readme = (bundle / "README.md").read_text()
    assert re.search(r"Accuracy: [\d.]+ % \(.*\) of 50 test images of digits", readme)
    assert (
        "on 50 images the likeliest class is the same for 100.00 %" in readme and "Licence of the model: mit" in readme
    )
    assert re.search(r"Speed: [\d.]+ ms for one image, [\d,]+ images/s in batches of 32", readme)
    assert len((bundle / "predict.py").read_text().splitlines()) < 130
    assert re.fullmatch(r"(\w+==[\w.]+\n){3}", (bundle / "requirements.txt").read_text())
    assert not [f for f in texts if str(bundle) in (bundle / f).read_text()]


def test_the_program_equals_the_preprocessing(bundle: Path) -> None:
    model = program(bundle).Model()
    for case in cases(*MODELS, *BICUBIC):
        model.preprocess = json.loads(json.dumps(dataclasses.asdict(case.preprocess)))
        np.testing.assert_array_equal(model.pixels(io.BytesIO(case.file)), case.pixels, err_msg=str(case))


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_program_decodes_jpegs_alike(fit: Any, channels: int, bundle: Path, pictures: list[str]) -> None:
    """A large one at a fraction of its size."""
    ours = Preprocess(image_size=(8, 12), in_channels=channels, fit=fit)
    model = program(bundle).Model()
    model.preprocess = json.loads(json.dumps(dataclasses.asdict(ours)))
    jpegs = [path for path in pictures if path.endswith(".jpg")]
    assert len(jpegs) == 2
    for path in jpegs:
        np.testing.assert_array_equal(model.pixels(path), ours.array(path), err_msg=path)


def test_the_program_needs_three_packages(bundle: Path, run: Path, pictures: list[str], tmp_path: Path) -> None:
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


def test_predict_without_torch(bundle: Path, run: Path, pictures: list[str], tmp_path: Path) -> None:
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


def test_serve_without_torch(bundle: Path, run: Path, pictures: list[str]) -> None:
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


def test_a_run_without_torch_is_one_line(run: Path) -> None:
    done = alone(f"from mlpmixer.cli import main; sys.exit(main(['predict', {str(run)!r}, 'x.png']))", OF_THE_COMMAND)
    assert done.returncode == 2 and "this command needs torch, which is not installed here" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_load_imports_no_torch(bundle: Path, pictures: list[str]) -> None:
    code = (
        f"import sys, mlpmixer.inference.load; "
        f"print(mlpmixer.inference.load.load({str(bundle)!r}).predict({pictures[0]!r})[0].label)\n"
    )
    code += "assert not {'torch', 'onnx', 'onnxscript', 'sklearn'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() in DIGITS, done.stderr


def test_class_names_do_not_control_the_terminal(
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

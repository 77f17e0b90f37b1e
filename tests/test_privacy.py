"""Nothing that is made to be passed on says where on this machine it was made: no folder, no user, no host."""

import getpass
import io
import json
import shutil
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers.models import GREY
from helpers.shared import Once
from PIL import Image

from mlpmixer import cli
from mlpmixer.cli.serve import Serve
from mlpmixer.data.config import Data
from mlpmixer.exporters.export import export
from mlpmixer.inference.exported import metadata
from mlpmixer.training.recipe import Init, Recipe, Run
from mlpmixer.training.run import train
from mlpmixer.training.run_report import write_report
from mlpmixer.weights.model_file import read_meta
from mlpmixer.weights.run_folder import write_json

SECRET = "Folder-of-Ada"


@pytest.fixture(scope="session")
def secret(once: Once, digits_run: Path) -> Path:
    """A folder whose name must not get out, with the run `birds` on the images in `photos`."""

    def make(folder: Path) -> None:
        photos, before, names = (folder / SECRET / name for name in ("photos", "before", "names.txt"))
        for name, brightest in (("crow", 256), ("owl", 128)):
            (photos / name).mkdir(parents=True)
            for i, pixels in enumerate(np.random.default_rng(0).integers(0, brightest, (20, 8, 8), dtype=np.uint8)):
                Image.fromarray(pixels).save(photos / name / f"{i}.png")
            (photos / name / "broken.png").write_bytes(b"no image")
        shutil.copytree(digits_run, before)
        recipe = Recipe(
            name="birds",
            model=GREY,
            data=Data(name=str(photos), data_dir=str(folder / SECRET)),
            init=Init(weights=str(before)),
            run=Run(steps=2, batch_size=8, device="cpu"),
        )
        run = train(recipe, out=folder / SECRET / "birds").path
        stored, env = (json.loads((run / name).read_text()) for name in ("recipe.json", "env.json"))
        stored["data"]["classes"], stored["distill"]["teacher"] = str(names), str(before)
        options = [f"--out={run}", "--data-dir", str(folder / SECRET), "--init", str(before)]
        env["command"] = ["mlpmixer", "train", str(photos), *options]
        write_json(run / "recipe.json", stored)
        write_json(run / "env.json", env)

    return once("secret", make) / SECRET


def contents(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file, and the files in it if it is an archive."""
    yield name, data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for inner in archive.namelist():
                yield from contents(f"{name}:{inner}", archive.read(inner))


def assert_silent(*places: Path) -> None:
    """Neither a name nor a content of the files at these places says where they were made."""
    told = [str(Path.home()).encode() + b"/", f"{getpass.getuser()}@".encode(), f"@{socket.gethostname()}".encode()]
    told += [SECRET.encode(), str(Path.cwd()).encode()]
    files = [file for place in places for file in (place.rglob("*") if place.is_dir() else [place]) if file.is_file()]
    assert files
    for file in files:
        for name, data in contents(file.name, file.read_bytes()):
            assert not [word for word in told if word in data or word in name.encode()], name


def test_the_run_itself_knows_its_places(secret: Path) -> None:
    for name in ("recipe.json", "env.json", "model.safetensors"):
        assert SECRET.encode() in (secret / "birds" / name).read_bytes(), "what follows would prove nothing"


def test_a_pushed_repository(secret: Path, tmp_path: Path) -> None:
    assert cli.main(["push", str(secret / "birds"), str(tmp_path / "out")]) == 0
    assert_silent(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert '"name": "photos"' in card and '"weights": "before"' in card and '"teacher": "before"' in card
    assert '"classes": "names.txt"' in card and '"data_dir": "DIR"' in card


def test_the_page_of_a_run(secret: Path, tmp_path: Path) -> None:
    page = write_report(shutil.copytree(secret / "birds", tmp_path / SECRET / "birds"))
    assert_silent(page)
    text = page.read_text()
    assert "mlpmixer train photos --out=birds --data-dir DIR --init before" in text and "broken.png" in text


def test_the_page_of_an_evaluation(secret: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    evaluate = ["evaluate", str(secret / "birds"), str(secret / "photos"), "--split", "all", "--device", "cpu"]
    assert cli.main([*evaluate, "--html", str(page)]) == 1, "two images cannot be read"
    assert_silent(page)
    assert "<dd>birds</dd>" in page.read_text() and "images of photos" in page.read_text()


def test_the_page_of_an_explanation(secret: Path, tmp_path: Path) -> None:
    photos = secret / "photos"
    images = [str(photos / "owl" / name) for name in ("1.png", "broken.png")]
    measure = ["--faithfulness", str(photos), "--faithfulness-images", "2", "--method", "occlusion"]
    explain = ["explain", str(secret / "birds"), *images, *measure, "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(explain) == 1, "one image cannot be read"
    assert_silent(tmp_path)
    assert "1.png" in (tmp_path / "explanation.html").read_text()


def test_the_answers_of_a_service(secret: Path) -> None:
    with TestClient(Serve(run=str(secret / "birds"), device="cpu").app()) as client:
        answers = [client.get(path) for path in ("/", "/model", "/docs", "/openapi.json", "/metrics", "/nowhere")]
        answers.append(client.post("/predict", content=b"no image", headers={"content-type": "image/png"}))
    assert answers[1].json()["name"] == "birds"
    assert not [answer.url for answer in answers if SECRET in answer.text]


def test_the_metadata_of_an_export(secret: Path) -> None:
    assert SECRET not in metadata(read_meta(secret / "birds" / "model.safetensors"), {})


@pytest.mark.exports
@pytest.mark.parametrize("target", ["model.onnx", "model.xml", "model.pt2", "bundle", "web"])
def test_an_export(target: str, secret: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    if target == "web" and not shutil.which("npm"):
        pytest.skip("npm is not installed")
    to = {"model.onnx": "onnx", "model.xml": "openvino", "model.pt2": "pt2"}.get(target, target)
    written = export(secret / "birds", to, out=secret / "exports" / target)
    assert_silent(written.path, *written.beside)

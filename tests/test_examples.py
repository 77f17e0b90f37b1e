"""The scripts in examples/ run."""

import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
from helpers.models import digits_classifier
from PIL import Image

from mlpmixer import cli
from mlpmixer.weights.model_file import save_model

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NEEDS = {"lightning_module.py": "lightning", "hf_trainer.py": "accelerate"}


@pytest.mark.parametrize(
    ("script", "args", "says"),
    [
        ("train_and_use.py", ["run", "0.2"], "of 360 images"),
        ("own_architecture.py", [], "parameters"),
        ("save_images.py", ["digits", "images", "3"], ""),
        ("learn.py", ["model.safetensors", "7.png", "steps"], "6-head.png"),
        ("plain_pytorch.py", ["photos", "trained", "1"], "Prediction(name='photos/0/0.png', label="),
        ("plain_pytorch.py", ["digits-images", "fresh", "1"], "Prediction(name='digits-images/0/0000.png', label="),
        ("lightning_module.py", ["trained", "1"], "Prediction(name='image[0]', label="),
        ("hf_trainer.py", ["trained", "1"], "Prediction(name='image[0]', label="),
        ("teacher.py", ["--help"], "--student-size"),
        ("scale.py", ["--model", "L/16", "--images", "14e6", "--epochs", "300", "--gpus", "8", "16"], "| 16 | 55% |"),
    ],
)
def test_example_runs(
    script: str,
    args: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    classifier = digits_classifier()
    save_model("model.safetensors", classifier.network, classifier.meta)
    Image.new("L", (8, 8), 120).save("7.png")
    for i in range(20):
        path = Path("photos", str(i % 2), f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 255 * (i % 2)).save(path)
    monkeypatch.setattr(sys, "argv", [script, *args])
    with warnings.catch_warnings():
        if script in NEEDS:
            pytest.importorskip(NEEDS[script], reason="what the example is about is not installed")
            warnings.simplefilter("ignore")
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert says in capsys.readouterr().out
    if "trained" in args:
        assert cli.main(["predict", "trained", "photos", "--format", "csv"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1 + 20


def test_every_example_is_tested() -> None:
    tested = {args[0] for args in test_example_runs.pytestmark[0].args[1]}
    assert tested == {p.name for p in EXAMPLES.glob("*.py")}


def test_learning_page_quotes_the_model() -> None:
    page = (ROOT / "docs/concepts/learn.md").read_text(encoding="utf-8")
    homes = ("mixer", "patch_networks", "layers", "network")
    model = "\n".join((ROOT / f"src/mlpmixer/models/{name}.py").read_text(encoding="utf-8") for name in homes)
    quoted = [line for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    lines = {line.strip() for line in model.splitlines()}
    assert len(quoted) == 9 and [line for line in quoted if line not in lines] == []
    drawings = runpy.run_path(str(EXAMPLES / "learn.py"))["DRAWINGS"]
    assert re.findall(r"\]\(learn/(.*?)\.png\)", page) == list(drawings)

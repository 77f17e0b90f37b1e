"""What the README says is so: its commands run, its tables are what is stored, its links lead somewhere."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.datasets import write_cifar10, write_idx
from helpers.shared import Once
from PIL import Image

from mlpmixer import cli
from mlpmixer.models.names import MODELS
from mlpmixer.weights.own import OWN
from mlpmixer.weights.published import WEIGHTS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)
LINES = [
    line.split("  #")[0].strip() for language, text in BLOCKS if not language for line in text.splitlines() if line
]
COMMANDS = list(dict.fromkeys([*LINES, *re.findall(r"`((?:mlpmixer|torchrun) [^`]+)`", README)]))
MLPMIXER = [command for command in COMMANDS if command.startswith("mlpmixer ")]
OWN_ENVIRONMENT = "python3 -m venv .venv && . .venv/bin/activate"
SHORTER = {"train": ["--steps", "2", "--device", "cpu"], "bench": ["--seconds", "0.1"], "serve": ["--port", "0"]}
SLOW = ("--to ", "--int8", "bench", "lr-find", "--faithfulness", "--folds", "mnist", "cifar10", "DIR/")
"""Words of commands that are left to `make test-all`."""


def collect() -> Any:
    spec = importlib.util.spec_from_file_location("collect", ROOT / "results" / "collect.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_photos(folder: Path, colour: int) -> None:
    """Noise of two colours as photographs of two classes."""
    rng = np.random.default_rng(0)
    for label in range(2):
        (folder / "ab"[label]).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 120, (24, 32, 3), dtype=np.uint8)
            pixels[..., (colour + label) % 3] += 10
            Image.fromarray(pixels).save(folder / "ab"[label] / f"{i}.jpg")


@pytest.fixture(scope="session")
def desk(once: Once) -> Path:
    """A folder in which the README's names exist: photos/, runs/photos, new.jpg and so on, all tiny. Read only."""

    def make(folder: Path) -> None:
        from helpers.models import SMALL

        from mlpmixer.data.config import Data
        from mlpmixer.models.configs import MixerConfig
        from mlpmixer.training.recipe import Optim, Recipe, Run
        from mlpmixer.training.run import train

        folder.mkdir(exist_ok=True)
        write_photos(folder / "photos", 0)
        write_photos(folder / "other-photos", 1)
        shutil.copytree(folder / "photos" / "a", folder / "more")
        shutil.copy(folder / "more" / "0.jpg", folder / "new.jpg")
        shutil.copytree(ROOT / "examples", folder / "examples")
        write_cifar10(folder / "DIR" / "cifar10")
        write_idx(folder / "DIR" / "mnist")
        for name in ("trashnet", "flowers89"):
            shutil.copytree(folder / "photos", folder / "DIR" / name)
        model = MixerConfig(image_size=32, patch_size=8, **SMALL | {"num_classes": 2})
        run = Run(steps=2, batch_size=16, device="cpu")
        data = Data(name=str(folder / "photos"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mlpmixer.training.finish.write_report", lambda *_: None)
            train(
                Recipe(name="photos", model=model, data=data, optim=Optim(name="adamw"), run=run),
                out=folder / "runs" / "photos",
            )
        shutil.copytree(folder / "runs" / "photos", folder / "runs" / "other")

    return once("readme", make)


@pytest.fixture
def at_desk(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(desk, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def answer_once(make: Callable[[], Any], *_: Any, **__: Any) -> int:
    """In place of the server that runs until it is stopped: the page and one prediction."""
    from starlette.testclient import TestClient

    with TestClient(make(), base_url="http://localhost") as client:
        assert "<html" in client.get("/").text
        answer = client.post("/predict", files={"file": Path("examples/digit.png").read_bytes()})
        assert answer.status_code == 200, answer.text
        assert answer.json()
    return 0


def slow(command: str) -> Any:
    return pytest.param(command, marks=pytest.mark.slow) if any(word in command for word in SLOW) else command


@pytest.mark.parametrize("command", [slow(command) for command in MLPMIXER])
def test_command_runs(command: str, at_desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)[1:]
    words = ["3s" if word == "30m" else word for word in words]
    if words[0] == "train" and "--out" in words:
        shutil.rmtree(words[words.index("--out") + 1])
    if words[0] == "serve":
        monkeypatch.setattr("mlpmixer.serve.server.run", answer_once)
    timed = "--time" in words or "--resume" in words
    assert cli.main([*words, *([] if timed else SHORTER.get(words[0], []))]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("torchrun ")])
def test_torchrun_runs(command: str, at_desk: Path) -> None:
    words = [str(Path(sys.executable).with_name("torchrun")), *shlex.split(command)[1:], *SHORTER["train"]]
    subprocess.run(words, check=True, timeout=240)
    assert (at_desk / "runs" / "two" / "model.safetensors").exists()


def test_every_other_line_of_a_block_is_known() -> None:
    others = [command for command in COMMANDS if command.split()[0] not in ("mlpmixer", "torchrun")]
    assert others == [f'{OWN_ENVIRONMENT} && pip install ".[serve,onnx]"', "make demo", "make test"]
    extras = re.search(r"\[([a-z,]+)\]", others[0])[1].split(",")
    assert set(extras) <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    subprocess.run(["make", "--dry-run", "demo", "test"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("code", [text for language, text in BLOCKS if language == "python"])
def test_python_runs(code: str, at_desk: Path) -> None:
    exec(code, {})


@pytest.mark.parametrize("page", ["README.md", "docs/results/cifar10.md"])
def test_tables_equal_what_is_stored(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert collect().with_tables(page, text) == text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["optim", "lr", 0.5], "differ in more than their seeds: optim"),
        (["run", "steps", 9], "differ in more than their seeds: run"),
        (["run", "seed", 0], r"different seeds, got \[\(0, 0\), \(0, 0\)\]"),
    ],
)
def test_a_result_is_of_one_recipe_and_of_different_seeds(change: list[Any], says: str, tmp_path: Path) -> None:
    stored = next((ROOT / "results/cifar10/cifar10").glob("*/recipe.json"))
    runs = [tmp_path / "first", tmp_path / "second"]
    for seed, run in enumerate(runs):
        run.mkdir()
        recipe = json.loads(stored.read_text())
        recipe["run"] |= {"seed": seed, "threads": seed}
        if seed:
            recipe[change[0]][change[1]] = change[2]
        (run / "recipe.json").write_text(json.dumps(recipe))
        (run / "summary.json").write_text(json.dumps({}))
        (run / "env.json").write_text(json.dumps({}))
    with pytest.raises(SystemExit, match=says):
        collect().add("claim", "what changed", runs)


def test_views_of_a_result_are_of_all_its_runs_and_of_test(tmp_path: Path) -> None:
    runs = [tmp_path / "first", tmp_path / "second"]
    for seed, run in enumerate(runs):
        run.mkdir()
        scores = {"tta": {"kinds": ["shift"], "views": 5, "top1": 0.8 + seed / 10}, "scored": {"split": "test"}}
        (run / "views.json").write_text(json.dumps(scores))
    found = collect().over_views(runs)
    assert found == {"kinds": ["shift"], "views": 5, "top1": {"mean": 0.85, "range": [0.8, 0.9], "n": 2}}
    (runs[1] / "views.json").write_text(json.dumps({**scores, "scored": {"split": "val"}}))
    with pytest.raises(SystemExit, match="of the same views of test images"):
        collect().over_views(runs)
    (runs[1] / "views.json").unlink()
    with pytest.raises(SystemExit, match="in all 2 runs"):
        collect().over_views(runs)
    assert collect().over_views(runs[1:]) is None


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!https?:)[^)#]+)", README))))
def test_link_leads_to_a_file(link: str) -> None:
    assert (ROOT / link).exists()


def test_counts_of_names_are_right() -> None:
    assert f"| architectures | {sum(bool(set('/-') & set(name)) for name in MODELS)} (t) |" in README
    named = sum(":" in name for name in WEIGHTS) + len(OWN)  # beside timm's names for the same
    features = (ROOT / "docs" / "reference" / "features.md").read_text(encoding="utf-8")
    assert f"| pretrained weights by name | {named}, {len(OWN)} of them ours (t) |" in README
    assert f"| {named} names, {len(OWN)} of them ours (`digits` comes with the package)" in features


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_rivals_are_dated_and_each_cell_says_how_it_is_known() -> None:
    table = README[README.index("## Compared") :].split("\n\n")[1].splitlines()
    assert re.search(r"^On 20\d\d-\d\d-\d\d\.", README[README.index("## Compared") :].split("\n")[1])
    assert len({row.count("|") for row in table}) == 1
    for row in table[2:]:
        for cell in row.split("|")[2:-1]:
            assert re.search(r"\((t|r)\)$", cell.strip()), f"{cell} in {row}"

"""The scripts in examples/ run."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("script", "args", "says"),
    [
        ("train_and_use.py", ["run", "0.2"], "of 360 images"),
        ("own_architecture.py", [], "parameters"),
        ("save_images.py", ["digits", "images", "3"], ""),
        ("scale.py", ["--model", "L/16", "--images", "14e6", "--epochs", "300", "--gpus", "8", "16"], "| 16 | 55% |"),
    ],
)
def test_an_example_runs(
    script: str, args: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *args])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert says in capsys.readouterr().out


def test_every_example_is_run() -> None:
    tested = {args[0] for args in test_an_example_runs.pytestmark[0].args[1]}
    assert tested == {p.name for p in EXAMPLES.glob("*.py")}

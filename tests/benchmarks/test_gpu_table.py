"""benchmarks/gpu_table.py and its teacher, at tiny size: every row trains, stops, goes on, and is told as what it
is."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mlpmixer.training.loop import Interrupted
from mlpmixer.weights.model_file import load_model, read_tensors

pytestmark = pytest.mark.slow  # scripts for a machine with a GPU, outside the package
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["gpu_table.py"])
    import gpu_table

    return gpu_table


@pytest.fixture
def args(table: ModuleType, tmp_path: Path) -> argparse.Namespace:
    table.noise(tmp_path / "out" / "noise")
    parsed: argparse.Namespace = table.parse(["--tiny", "--device", "cpu", "--out", str(tmp_path / "out")])
    return parsed


def in_pieces(piece: Callable[[], object]) -> int:
    """How many pieces it takes to the end when each has time for one step."""
    for pieces in range(1, 100):
        try:
            piece()
            return pieces
        except Interrupted:
            continue
    raise AssertionError("it makes no progress")


@pytest.mark.parametrize(
    "name", ["1m", "distilled", *(pytest.param(name, marks=pytest.mark.slow) for name in ("wide", "90", "94"))]
)
def test_row_trains_one_step_at_a_time(name: str, table: ModuleType, args: argparse.Namespace) -> None:
    assert table.line_of(name, args)["n"] == 0
    assert in_pieces(lambda: table.work(name, 0, args, 0.0)) >= 3
    line = table.line_of(name, args)
    assert line["n"] == 1 and 0 <= line["test"]["mean"] <= 1 and line["steps"] == 4 and "reached" not in line
    run = table.run_folder(Path(args.out), name, 0)
    network, meta = load_model(run / "model.safetensors")
    assert not [key for key in network.state_dict() if key.endswith("kernel")], "what is saved is a plain Mixer"
    assert meta.config.patch_size == table.RECIPES[table.ROWS[name].recipe]().model.patch_size
    assert f"1 of {table.ROWS[name].seeds}" in table.write_table(args)
    stored = json.loads((Path(args.out) / "table.json").read_text())
    assert stored["tiny"] and [row["row"] for row in stored["rows"]] == list(table.ROWS)


def test_rows_and_their_order(table: ModuleType) -> None:
    assert [(row.reach, row.seeds, row.within_s) for row in table.ROWS.values()] == [
        (0.925, 3, None), (0.95, 1, None), (0.965, 1, None), (0.90, 5, 30), (0.94, 5, 300)
    ]  # fmt: skip
    assert table.RECIPES[table.ROWS["1m"].recipe]().model.num_params <= 1_200_000
    for row in table.ROWS.values():
        recipe = table.RECIPES[row.recipe]()
        assert recipe.run.batch_size % 8 == 0 and recipe.optim.locality == 3 and recipe.run.test


def test_started_run_keeps_its_compilation(table: ModuleType, tmp_path: Path) -> None:
    words = ["--data-dir", "DIR", "--out", str(tmp_path)]
    plain, other = (
        table.recipe_of(table.ROWS["1m"], 0, table.parse([*words, *more])) for more in ([], ["--compile", "none"])
    )
    assert (plain.run.compile, plain.run.compile_mode, other.run.compile) == (True, "reduce-overhead", False)


def test_teacher_is_the_same_in_pieces(table: ModuleType, args: argparse.Namespace) -> None:
    import teacher

    recipe = table.recipe_of(table.ROWS["distilled"], 0, args)
    settings = teacher.Settings(depth=10, width=1, epochs=0.8, batch_size=64)
    out = Path(args.out)
    said: list[str] = []
    whole = teacher.train_teacher(recipe, settings, out / "whole", say=said.append)
    assert "validation top-1" in said[-1]
    assert (
        in_pieces(lambda: teacher.train_teacher(recipe, settings, out / "pieces", stop_after_s=0.0, say=said.append))
        == 4
    )
    first, second = (read_tensors(out / folder / teacher.FILE)[0] for folder in ("whole", "pieces"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    before = (out / "whole" / teacher.FILE).stat().st_mtime_ns
    again = teacher.train_teacher(recipe, settings, out / "whole", say=said.append)
    images = torch.rand(4, 3, 32, 32) * 255
    assert torch.equal(again(images), whole(images)) and again(images).shape == (4, 10)
    assert (out / "whole" / teacher.FILE).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="depth is 6 n"):
        teacher.WideResNet(3, 10, 12, 1)


def test_wide_resnet_has_the_papers_size(table: ModuleType) -> None:
    import teacher

    with torch.device("meta"):
        network = teacher.WideResNet(3, 10, 16, 8)
    assert sum(p.numel() for p in network.parameters()) == 10_961_370  # WRN-16-8, "11.0 M" in table 4 of the paper


def test_mistakes_get_an_answer(table: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert table.main(["--data-dir", "DIR", "--row", "wid"]) == 2
    assert "wide" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        table.main(["--out", str(tmp_path)])
    assert "--data-dir is needed" in capsys.readouterr().err
    assert (
        table.main(["--data-dir", str(tmp_path / "nothing"), "--out", str(tmp_path / "out"), "--worker", "1m", "0"])
        == 2
    )
    assert "nothing" in capsys.readouterr().out
    assert sys.argv[1:] == ["--data-dir", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")], (
        "what a run says it was started by"
    )


def test_script_runs_in_pieces(tmp_path: Path) -> None:
    import subprocess

    def piece(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [
            sys.executable,
            str(BENCHMARKS / "gpu_table.py"),
            "--tiny",
            "--device",
            "cpu",
            "--out",
            str(tmp_path / "out"),
            *words,
        ]
        return subprocess.run(command, capture_output=True, text=True)

    first = piece("--max-minutes", "0.05")
    assert first.returncode == 3 and "left: " in first.stdout and "the same command goes on" in first.stdout
    last = piece()
    assert last.returncode == 0, last.stderr
    assert "everything is done" in last.stdout and "2 of 5" in last.stdout

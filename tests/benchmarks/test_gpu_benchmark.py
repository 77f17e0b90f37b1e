"""benchmarks/gpu.py at tiny size: what it writes, that it goes on, and that it measures a step as the loop takes it."""

import csv
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.slow  # scripts for a machine with a GPU, outside the package
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def run(gpu: ModuleType, out: Path, *words: str) -> int:
    code: int = gpu.main(["--tiny", "--device", "cpu", "--seconds", "0.01", "--out", str(out), *words])
    return code


def test_rows_are_measured_once_and_carry_their_environment(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(gpu, tmp_path, "--section", "train", "--max-minutes", "1e-9") == 3
    assert "the same command goes on" in capsys.readouterr().out
    assert run(gpu, tmp_path, "--section", "matrix") == 0
    (path,) = tmp_path.glob("gpu_*.csv")
    assert f"torch-{torch.__version__.split('+')[0]}" in path.name and path.name.endswith("_tiny.csv")
    (row,) = rows(path)
    assert float(row["tflops"]) == pytest.approx(2 * 256**3 / float(row["ms"]) / 1e9, rel=0.1, abs=1e-3)
    before = path.read_text()
    assert run(gpu, tmp_path, "--section", "matrix") == 0 and path.read_text() == before


def test_step_is_split_into_network_and_rest(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "RECIPES", {"small-images-1m": gpu.RECIPES["small-images-30s"]})
    profile = gpu.Table(tmp_path / "profile.csv", gpu.PROFILE_FIELDS, keys=2)
    arguments = type("Arguments", (), {"tiny": True, "seconds": 0.01})
    row = gpu.step_row("small-images-1m", "none", arguments, torch.device("cpu"), profile)
    assert row["ms"] > 0 and row["images_per_s"] == pytest.approx(16e3 / row["ms"], rel=0.01)
    assert row["outside_network"] < 1
    stored = rows(tmp_path / "profile.csv")
    assert len(stored) > 5 and stored[-1]["kernel"].startswith("all kernels") and ("small-images-1m", "none") in profile


@pytest.mark.parametrize("precision", ["autocast", "weights"])
def test_plain_step_changes_weights(gpu: ModuleType, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = gpu.names.MIXERS["Pico/2"]
    model = gpu.create_model(cfg)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    monkeypatch.setattr(gpu, "create_model", lambda _: model)
    gpu.training_step(cfg, "none", precision, 4, torch.device("cpu"), True)()
    assert any(not torch.equal(start[k].to(v.dtype), v) for k, v in model.state_dict().items())
    assert next(model.parameters()).dtype == (torch.bfloat16 if precision == "weights" else torch.float32)


def test_failure_is_a_row(gpu: ModuleType) -> None:
    def fails() -> dict[str, object]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert gpu.measured(fails, torch.device("cpu")) == {"ms": "OutOfMemoryError"}


@pytest.mark.filterwarnings("ignore")
def test_script_runs_at_tiny_size(gpu: ModuleType, tmp_path: Path) -> None:
    assert run(gpu, tmp_path) == 0
    (path,) = tmp_path.glob("gpu_*.csv")
    assert {row["section"] for row in rows(path)} == {"matrix", "train", "step"}
    assert all(float(row["ms"]) > 0 for row in rows(path))

"""Each engine is measured in a process of its own, and the fastest one that gives the right answers is recommended."""

import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mlpmixer
from mlpmixer import cli, hardware
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.exporters import benchmark as bench_module
from mlpmixer.exporters.benchmark import Kind, Limits, Row, Started, Worker, bench, choose, images_for, limits_of

pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("openvino", reason="the extra openvino is not installed")


@pytest.fixture(scope="module")
def run(digits_run: Path) -> Path:
    return digits_run


@pytest.fixture(scope="module")
def bundle(digits_bundle: Path) -> Path:
    return digits_bundle


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a user who has measured nothing yet."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@dataclasses.dataclass
class Invented:
    """Stands for the processes: an engine has these seconds a call, and gives these answers. Whatever has none
    fails."""

    seconds: dict[str, float]
    answers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    kinds: list[tuple[Kind, int]] = dataclasses.field(default_factory=list)

    @contextmanager
    def running(self, kind: Kind, threads: int, batches: Sequence[int]) -> "Iterator[Any]":
        self.kinds.append((kind, threads))
        yield dataclasses.replace(self, kinds=[(kind, threads)])

    def started(self) -> Started:
        kind = self.kinds[0][0]
        if kind.engine not in self.seconds:
            raise ValueError(f"{kind.engine} does not want to")
        right = np.eye(10, dtype=np.float32)[np.arange(bench_module.IMAGES) % 10]
        off = np.float32(0.01 if kind.precision == "bfloat16" else 0)
        return Started(
            version="1.0",
            numbers=kind.precision,
            start_s=0.1,
            peak_mib={1: 50.0, 8: None},
            answers=self.answers.get(kind.engine, right) - off,
            limits=Limits(),
        )

    def turn(self, batch: int) -> list[float]:
        return [batch * self.seconds[self.kinds[0][0].engine]]


def invent(monkeypatch: pytest.MonkeyPatch, **of: Any) -> Invented:
    invented = Invented(**of)
    monkeypatch.setattr(bench_module, "Worker", invented)
    return invented


def row(engine: str, images_per_s: float, **of: Any) -> Row:
    plain: dict[str, Any] = {
        "version": "1",
        "precision": "float32",
        "threads": 0,
        "batch": 1,
        "calls": 3,
        "start_s": 1.0,
        "peak_mib": 1.0,
    }
    plain |= {"p50_ms": 1.0, "p90_ms": 1.0, "p99_ms": 1.0, "agreement": 1.0, "probability_max_diff": 0.0}
    return Row(engine=engine, images_per_s=images_per_s, **plain | of)


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_engine_that_opens_an_export_has_its_rows_and_its_own_process(bundle: Path) -> None:
    found = mlpmixer.bench(bundle, batches=(8, 1), threads=(1,), seconds=0.3)
    assert found.reference.startswith("onnxruntime 1.") and found.reference.endswith(" in float32")
    measured = [(r.engine, r.precision, r.threads, r.batch) for r in found.rows]
    assert measured[:4] == [(engine, "float32", 1, batch) for engine in ("onnxruntime", "openvino") for batch in (1, 8)]
    assert len(measured) == 6 or [f.reason for f in found.failed if "has no bfloat16" in f.reason]
    for r in found.rows:
        assert 0 < r.p50_ms <= r.p90_ms <= r.p99_ms and r.images_per_s == pytest.approx(1e3 * r.batch / r.p50_ms)
        assert r.calls >= 3 and r.start_s > 0 and r.peak_mib and 20 < r.peak_mib < 1000
        assert r.precision != "float32" or (r.agreement == 1 and r.probability_max_diff < 1e-5)
    assert found.choice and found.choice.engine in ("onnxruntime", "openvino") and not found.choice.wrong
    json.dumps(found.to_json())
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(lines) == len(found.rows) + len(found.failed)
    assert (lines[0]["engine"], lines[0]["batch"], lines[0]["cpu"]) == ("onnxruntime", "1", hardware.cpu_name())


@pytest.mark.processes
def test_a_run_is_measured_in_torch_and_its_export_beside_it(run: Path) -> None:
    found = bench(run, batches=(1,), threads=(1,), seconds=0.3)
    assert [r.engine for r in found.rows if r.precision == "float32"] == ["torch", "onnxruntime", "openvino"]
    assert all(r.probability_max_diff < 1e-5 for r in found.rows if r.precision == "float32")


def test_a_run_is_compared_with_its_export_and_what_is_not_installed_is_said(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invented = invent(monkeypatch, seconds={"torch": 0.004, "onnxruntime": 0.002})
    found = bench(run, batches=(1, 8), threads=(1, 0), seconds=0.01)
    assert [(kind.engine, kind.precision, threads) for kind, threads in invented.kinds[:5]] == [
        ("torch", "float32", 1),
        ("torch", "bfloat16", 1),
        ("onnxruntime", "float32", 1),
        ("openvino", "float32", 1),
        ("openvino", "bfloat16", 1),
    ]
    assert (
        found.reference == "torch 1.0 in float32"
        and found.choice is None
        and found.exported == ("onnxruntime", pytest.approx(2))
    )
    assert [(f.engine, f.precision, f.reason) for f in found.failed] == [
        ("openvino", precision, "openvino does not want to") for precision in ("float32", "bfloat16")
    ]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    lacking = bench(run, batches=(1,), threads=(1,), seconds=0.01)
    assert {r.engine for r in lacking.rows} == {"torch"} and lacking.exported is None
    assert [f.engine for f in lacking.failed] == ["onnxruntime", "openvino"]
    assert all('pip install "mlpmixer[onnx]"' in f.reason for f in lacking.failed)


def test_an_engine_that_is_not_installed_is_a_line_with_the_command_that_installs_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "installed", lambda name: None if name == "openvino" else "1.0")
    invent(monkeypatch, seconds={"onnxruntime": 0.1})
    found = bench(bundle, batches=(1,), threads=(0,), seconds=0.01)
    assert [f.reason for f in found.failed] == ['openvino is not installed: pip install "mlpmixer[openvino]"']
    assert found.choice and found.choice.why == "the only one that computes this file here"


def test_a_process_that_dies_is_said_and_the_others_go_on(bundle: Path) -> None:
    with Worker.running(Kind(str(bundle), "onnxruntime", "float32"), 1, (1,)) as worker:
        assert worker.started().answers.shape == (bench_module.IMAGES, 10)
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(ValueError, match=r"its process ended by itself \(exit code -9\)"):
            worker.turn(1)


def test_an_export_is_measured_without_torch(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")  # in each of the processes
    done = subprocess.run(
        [sys.executable, "-m", "mlpmixer", "bench", str(bundle), "--seconds", "0.1", "--threads", "1", "--batch", "1"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert done.returncode == 0 and "torch" not in done.stdout + done.stderr.replace(str(tmp_path), ""), done.stderr
    assert "\nrecommended: --engine " in done.stdout


@pytest.mark.parametrize("name", ["digits-bundel", "nothing.onnx"])
def test_a_model_that_is_not_there_is_said_before_anything_is_measured(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", name]) == 2
    said = capsys.readouterr()
    assert (
        said.err.startswith(f"mlpmixer: {name} does not exist: expected a")
        and not said.out
        and said.err.count("\n") == 1
    )


def test_the_made_up_images_are_the_same_each_time_and_of_the_models_kind() -> None:
    for pre in (Preprocess(image_size=(5, 9), in_channels=4), Preprocess(image_size=(8, 8), fit="vit_jax_eval")):
        images = images_for(pre, 7)
        assert images.shape == (7, *pre.image_size, pre.in_channels) and images.dtype == pre.dtype
        np.testing.assert_array_equal(images, images_for(pre, 7))


# --- the choice -------------------------------------------------------------------------------------------------------


def test_the_fastest_is_chosen_by_all_batches_on_its_own_number_of_threads() -> None:
    rows = [
        *(row("onnxruntime", speed, batch=batch) for batch, speed in ((1, 100), (32, 100))),
        *(row("openvino", speed, batch=batch) for batch, speed in ((1, 90), (32, 160))),
        row("openvino", 9999, precision="bfloat16", probability_max_diff=0.01),
        row("onnxruntime", 9999, threads=1),
    ]
    chosen = choose(rows, Limits())
    assert chosen and (chosen.engine, chosen.wrong, chosen.threads) == ("openvino", (), 0)
    assert chosen.images_per_s == pytest.approx({"onnxruntime": 100, "openvino": 120})
    assert chosen.why == "1.20 times the speed of onnxruntime"


@pytest.mark.parametrize(
    ("other", "engine", "why"),
    [
        (row("openvino", 104), "onnxruntime", "openvino has 1.04 times its speed, and less than 1.05 changes nothing"),
        (row("openvino", 50), "onnxruntime", "openvino has 0.50 times its speed"),
        (row("openvino", 200, probability_max_diff=2e-4), "onnxruntime", "openvino answers otherwise"),
        (row("openvino", 200, agreement=31 / 32), "onnxruntime", "openvino answers otherwise"),
        (row("openvino", 200), "openvino", "2.00 times the speed of onnxruntime"),
    ],
)
def test_another_engine_is_taken_if_it_is_faster_and_answers_the_same(other: Row, engine: str, why: str) -> None:
    chosen = choose([row("onnxruntime", 100), other], Limits())
    assert chosen and (chosen.engine, chosen.why) == (engine, why)


def test_an_engine_that_lies_is_found_out_by_its_answers(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lie = np.full((bench_module.IMAGES, 10), 0.1, np.float32)
    invent(monkeypatch, seconds={"onnxruntime": 0.1, "openvino": 0.001}, answers={"openvino": lie})
    found = bench(bundle, batches=(1, 8), threads=(0,), seconds=0.01)
    assert found.choice and (found.choice.engine, found.choice.wrong) == ("onnxruntime", ("openvino",))
    [first, *_] = [r for r in found.rows if r.engine == "openvino"]
    assert first.agreement == pytest.approx(4 / 32) and first.probability_max_diff == pytest.approx(0.9)


def test_layers_in_int8_may_differ_by_what_rounding_was_found_to_do() -> None:
    check = {"agreeing": 98, "n": 100, "probability_max_diff": 0.08}
    assert limits_of({"check": check}) == limits_of({"int8": {}, "check": check}) == Limits(1, 1e-4)
    assert limits_of({"int8": {"layers": 1}, "check": check}) == Limits(pytest.approx(0.96), pytest.approx(0.16))
    assert (
        limits_of({"int8": {"layers": 1}, "check": {"n": 0}}) == limits_of({"int8": {"layers": 1}}) == Limits(1, 1e-4)
    )


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_option_to_type_and_leaves_nothing_behind(
    bundle: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    invent(monkeypatch, seconds={"onnxruntime": 0.1, "openvino": 0.05})
    assert cli.main(["bench", str(bundle), "--seconds", "0.01", "--batch", "1,8"]) == 0
    option = "recommended: --engine openvino (2.00 times the speed of onnxruntime)"
    assert capsys.readouterr().out.splitlines()[-1] == option
    assert not list(home.iterdir())
    Image.new("L", (9, 9), 90).save(home / "grey.png")
    for typed, engine in ((["--engine", "openvino"], "openvino"), ([], "onnxruntime")):
        assert cli.main(["predict", str(bundle), str(home / "grey.png"), *typed]) == 0
        assert f" is computed by {engine} " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{bundle} --batch 0", "batches must be at least 1 image, got 0"),
        ("{bundle} --batch one", "--batch one: expected whole numbers with commas between them"),
        ("{bundle} --threads -1", "--threads -1: expected whole numbers"),
        ("{bundle} --seconds 0", "seconds must be positive, got 0"),
        ("{bundle} --csv nowhere/x.csv", "--csv nowhere/x.csv: there is no such folder"),
        ("{bundle}/modle.onnx", "did you mean {bundle}/model.onnx?"),
        ("nothing", "expected a run folder"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    line: str, says: str, run: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *line.format(run=run, bundle=bundle).split()]) == 2
    err = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert says.format(run=run, bundle=bundle) in err and "Traceback" not in err


def test_what_no_engine_can_open_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text("<other/>")
    with pytest.raises(ValueError, match=r"no engine computes .*x.xml here: .*x.xml is no model of OpenVINO"):
        bench(tmp_path / "x.xml", batches=(1,), threads=(1,), seconds=0.1)

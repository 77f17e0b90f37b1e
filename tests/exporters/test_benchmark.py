"""Each engine is measured in a process of its own, and the fastest one that gives the right answers is recommended."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mlpmixer
from mlpmixer import cli, hardware
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.exporters import benchmark
from mlpmixer.exporters.benchmark import Row, Worker, bench, choose, tolerances
from mlpmixer.inference.measure import IMAGES, sample_images

pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("openvino", reason="the extra openvino is not installed")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home: bench leaves nothing in it."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@dataclasses.dataclass
class FakeEngines:
    """Stands for the processes: seconds per image and answers, by engine. Engines without seconds fail."""

    seconds: dict[str, float]
    answers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    started: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)

    def __call__(self, path: str, engine: str, precision: Any, threads: int, batches: Any) -> "FakeWorker":
        self.started.append((engine, precision, threads))
        return FakeWorker(self, engine, precision, threads, {batch: [] for batch in batches})


@dataclasses.dataclass
class FakeWorker(contextlib.AbstractContextManager["FakeWorker"]):
    engines: FakeEngines
    engine: str
    precision: str
    threads: int
    times: dict[int, list[float]]
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __exit__(self, *_: object) -> None:
        pass

    def start(self) -> None:
        if self.engine not in self.engines.seconds:
            raise ValueError(f"{self.engine} does not want to")
        right = np.eye(10)[np.arange(IMAGES) % 10]
        answers = self.engines.answers.get(self.engine, right) - (0.01 if self.precision == "bfloat16" else 0)
        self.about = {"version": "1.0", "precision": self.precision, "start_s": 0.1, "peak_mib": {"1": 50.0, "8": None}}
        self.about |= {"answers": answers.tolist(), "made": {}}

    def turn(self) -> None:
        for batch, times in self.times.items():
            times.append(batch * self.engines.seconds[self.engine])


def fake(monkeypatch: pytest.MonkeyPatch, **given: Any) -> FakeEngines:
    engines = FakeEngines(**given)
    monkeypatch.setattr(benchmark, "Worker", engines)
    return engines


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


def test_every_engine_that_opens_an_export_has_rows(digits_bundle: Path) -> None:
    found = mlpmixer.bench(digits_bundle, batches=(8, 1), threads=(1,), seconds=0.3)
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


@pytest.mark.slow
def test_a_run_is_measured_beside_its_export(digits_run: Path) -> None:
    found = bench(digits_run, batches=(1,), threads=(1,), seconds=0.3)
    engines = [r.engine for r in found.rows if r.precision == "float32"]
    assert engines == ["torch", "compiled", "onnxruntime", "openvino"]
    assert all(r.probability_max_diff < 1e-5 for r in found.rows if r.precision == "float32")


def test_engines_that_fail_are_reported(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = fake(monkeypatch, seconds={"torch": 0.004, "onnxruntime": 0.002})
    found = bench(digits_run, batches=(1, 8), threads=(1, 0), seconds=0.01)
    assert engines.started[:6] == [
        ("torch", "float32", 1),
        ("torch", "bfloat16", 1),
        ("compiled", "float32", 1),
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
        (engine, precision, f"{engine} does not want to")
        for engine, precision in (("compiled", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"))
    ]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    lacking = bench(digits_run, batches=(1,), threads=(1,), seconds=0.01)
    assert {r.engine for r in lacking.rows} == {"torch"} and lacking.exported is None
    assert [f.engine for f in lacking.failed] == ["onnxruntime", "openvino", "compiled"]  # the last by the fake above
    assert all('pip install "mlpmixer[onnx]"' in f.reason for f in lacking.failed[:2])


def test_a_missing_engine_is_reported_with_its_install_command(
    digits_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None if name == "openvino" else name)
    fake(monkeypatch, seconds={"onnxruntime": 0.1})
    found = bench(digits_bundle, batches=(1,), threads=(0,), seconds=0.01)
    assert [f.reason for f in found.failed] == ['openvino is not installed: pip install "mlpmixer[openvino]"']
    assert found.choice and found.choice.why == "the only one that runs this file here"


def test_a_process_that_dies_is_an_error(digits_bundle: Path) -> None:
    with Worker(str(digits_bundle), "onnxruntime", "float32", 1, [1]) as worker:
        worker.start()
        assert np.shape(worker.about["answers"]) == (IMAGES, 10)
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(ValueError, match=r"its process ended by itself \(exit code -9\)"):
            worker.turn()


def test_an_export_is_measured_without_torch(digits_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")  # in each of the processes
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mlpmixer",
            "bench",
            str(digits_bundle),
            "--seconds",
            "0.1",
            "--threads",
            "1",
            "--batch",
            "1",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert done.returncode == 0 and "torch" not in done.stdout + done.stderr.replace(str(tmp_path), ""), done.stderr
    assert "\nrecommended: --engine " in done.stdout


@pytest.mark.parametrize("name", ["digits-bundel", "nothing.onnx"])
def test_a_missing_model_is_reported_before_measuring(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", name]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"mlpmixer: {name} does not exist") and not said.out and said.err.count("\n") == 1


def test_sample_images_are_the_same_each_time() -> None:
    for pre in (Preprocess(image_size=(5, 9), in_channels=4), Preprocess(image_size=(8, 8), fit="vit_jax_eval")):
        images = sample_images(pre, 7)
        assert images.shape == (7, *pre.image_size, pre.in_channels) and images.dtype == pre.dtype
        np.testing.assert_array_equal(images, sample_images(pre, 7))


# --- the choice -------------------------------------------------------------------------------------------------------


def test_the_fastest_over_all_batches_is_chosen() -> None:
    rows = [
        *(row("onnxruntime", speed, batch=batch) for batch, speed in ((1, 100), (32, 100))),
        *(row("openvino", speed, batch=batch) for batch, speed in ((1, 90), (32, 160))),
        row("openvino", 9999, precision="bfloat16", probability_max_diff=0.01),
        row("onnxruntime", 9999, threads=1),
    ]
    chosen = choose(rows)
    assert chosen and (chosen.engine, chosen.wrong, chosen.threads) == ("openvino", (), 0)
    assert chosen.images_per_s == pytest.approx({"onnxruntime": 100, "openvino": 120})
    assert chosen.why == "1.20 times the speed of onnxruntime"


@pytest.mark.parametrize(
    ("other", "engine", "why"),
    [
        (row("openvino", 104), "onnxruntime", "openvino has 1.04 times its speed, and less than 1.05 changes nothing"),
        (row("openvino", 50), "onnxruntime", "openvino has 0.50 times its speed"),
        (row("openvino", 200, probability_max_diff=2e-4), "onnxruntime", "the answers of openvino differ"),
        (row("openvino", 200, agreement=31 / 32), "onnxruntime", "the answers of openvino differ"),
        (row("openvino", 200), "openvino", "2.00 times the speed of onnxruntime"),
    ],
)
def test_another_engine_must_be_faster_and_right(other: Row, engine: str, why: str) -> None:
    chosen = choose([row("onnxruntime", 100), other])
    assert chosen and (chosen.engine, chosen.why) == (engine, why)


def test_wrong_answers_are_not_recommended(digits_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lie = np.full((IMAGES, 10), 0.1, np.float32)
    fake(monkeypatch, seconds={"onnxruntime": 0.1, "openvino": 0.001}, answers={"openvino": lie})
    found = bench(digits_bundle, batches=(1, 8), threads=(0,), seconds=0.01)
    assert found.choice and (found.choice.engine, found.choice.wrong) == ("onnxruntime", ("openvino",))
    [first, *_] = [r for r in found.rows if r.engine == "openvino"]
    assert first.agreement == pytest.approx(4 / 32) and first.probability_max_diff == pytest.approx(0.9)


def test_int8_tolerances_come_from_the_check() -> None:
    check = {"agreeing": 98, "n": 100, "probability_max_diff": 0.08}
    assert tolerances({"check": check}) == tolerances({"int8": {}, "check": check}) == (1, 1e-4)
    assert tolerances({"int8": {"layers": 1}, "check": check}) == pytest.approx((0.96, 0.16))
    assert tolerances({"int8": {"layers": 1}, "check": {"n": 0}}) == tolerances({"int8": {"layers": 1}}) == (1, 1e-4)


# --- the command ------------------------------------------------------------------------------------------------------


def test_bench_prints_the_option_to_type(
    digits_bundle: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, seconds={"onnxruntime": 0.1, "openvino": 0.05})
    assert cli.main(["bench", str(digits_bundle), "--seconds", "0.01", "--batch", "1,8"]) == 0
    option = "recommended: --engine openvino (2.00 times the speed of onnxruntime)"
    assert capsys.readouterr().out.splitlines()[-1] == option
    assert not list(home.iterdir())
    Image.new("L", (9, 9), 90).save(home / "grey.png")
    for typed, engine in ((["--engine", "openvino"], "openvino"), ([], "onnxruntime")):
        assert cli.main(["predict", str(digits_bundle), str(home / "grey.png"), *typed]) == 0
        assert f" is computed by {engine} " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{bundle} --batch 0", "batches must be at least 1 image, got 0"),
        ("{bundle} --batch one", "--batch one: expected whole numbers separated by commas"),
        ("{bundle} --threads -1", "--threads -1: expected whole numbers"),
        ("{bundle} --seconds 0", "seconds must be positive, got 0"),
        ("{bundle} --csv /dev", "--csv /dev is a folder: name a file"),
        ("{bundle}/modle.onnx", "did you mean {bundle}/model.onnx?"),
        ("nothing", "expected a run folder"),
    ],
)
def test_mistakes_are_one_line(
    line: str, says: str, digits_run: Path, digits_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *line.format(run=digits_run, bundle=digits_bundle).split()]) == 2
    err = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert says.format(run=digits_run, bundle=digits_bundle) in err and "Traceback" not in err


def test_a_file_no_engine_opens_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text("<other/>")
    with pytest.raises(ValueError, match=r"no engine computes .*x.xml here: .*x.xml is not a model of OpenVINO"):
        bench(tmp_path / "x.xml", batches=(1,), threads=(1,), seconds=0.1)

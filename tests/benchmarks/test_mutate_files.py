"""The attack on all that reads files, small."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.processes import SOURCES

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mutate_files.py"


@pytest.mark.slow
def test_mutated_files_of_every_format_end_in_a_result_or_one_line(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--files", "100"],
        env={"PYTHONPATH": str(SOURCES), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

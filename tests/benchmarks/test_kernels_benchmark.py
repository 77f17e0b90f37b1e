"""benchmarks/kernels.py and what it shares with benchmarks/busy.py: words that are wrong end it at once."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_model_needs_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from table import model_and_batch

    assert model_and_batch("S/16:8") == ("S/16", 8)
    for words in ("S/16", "S/16:", ":8", "S/16:0", "S/16:many"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected NAME:BATCH"):
            model_and_batch(words)


@pytest.mark.slow
def test_a_network_without_kernels_is_not_waited_for() -> None:
    words = [BENCHMARKS / "kernels.py", "--avx2", "--models", "resmlp-s12:1", "--rounds", "1", "--threads", "1"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=200, env=os.environ)
    assert done.returncode == 1 and "resmlp has no compiled kernels" in done.stderr
    assert "Traceback" not in done.stderr

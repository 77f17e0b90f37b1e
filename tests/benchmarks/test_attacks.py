"""The attacks on the service, in small: a few hundred requests each."""

import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_good_and_damaged_requests() -> None:
    assert import_module("fuzz_http").main(["--requests", "300"]) == 0


@pytest.mark.skipif(not SCHEMATHESIS.exists(), reason="the extra dev is not installed")
def test_service_keeps_to_its_openapi() -> None:
    assert import_module("contract").main(["--examples", "10"]) == 0

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the page of a run takes longer than a tiny run. Runs of wider fixtures have theirs, as here comes later."""

    def write(run: Path, *_: Any) -> None:
        (run / "report.html").touch()

    monkeypatch.setattr("mlpmixer.training.run.write_report", write)

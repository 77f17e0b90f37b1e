from pathlib import Path
from typing import Any

import pytest

from mlpmixer.training import run


@pytest.fixture(autouse=True)
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the page of a run takes longer than a tiny run, so only the runs of wider fixtures have a real one."""

    def write(folder: Path, *_: Any) -> None:
        (folder / "report.html").touch()

    monkeypatch.setattr(run, "write_report", write)

"""`mlpmixer explain` writes each image as it is done, says how far it is, and keeps what is done when stopped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.lines import RunLine
from PIL import Image

from mlpmixer.cli import progress
from mlpmixer.download import Report
from mlpmixer.explanation import attribution


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    for i in range(3):
        Image.fromarray(np.full((8, 8), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return [str(tmp_path / f"{i}.png") for i in range(3)]


def test_images_are_written_as_they_come_and_counted(
    images: list[str], digits_run: Path, run: RunLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, int, int]] = []

    def shown() -> Report:
        def report(event: dict[str, Any]) -> None:
            if event["kind"] == "progress":
                written.append((event["done"], event["of"], len(list(tmp_path.glob("out/*-seen.png")))))

        return report

    monkeypatch.setattr(progress, "shown", shown)
    code, out, _ = run("explain", str(digits_run), *images, "--out", str(tmp_path / "out"))
    assert code == 0 and written == [(0, 3, 0), (1, 3, 1), (2, 3, 2), (3, 3, 3)]
    assert out.endswith(f"page    {tmp_path / 'out' / 'explanation.html'}\n")


def test_ctrl_c_leaves_what_is_done_and_says_so(
    images: list[str], digits_run: Path, run: RunLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain = attribution.explain

    def interrupted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield next(explain(*args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr(attribution, "explain", interrupted)
    code, _, err = run("explain", str(digits_run), *images, "--out", str(tmp_path / "out"))
    page = tmp_path / "out" / "explanation.html"
    assert code == 130 and page.read_text().count("What spoke for") == 1
    assert err == f"mlpmixer: stopped after 1 of 3 images, which are on the page {page}\n"

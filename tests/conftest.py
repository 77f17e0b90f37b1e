"""What all tests share: one thread each, Ctrl-C as Python has it, and one tiny run with its export, made once.

A shell that starts a command in the background lets it ignore Ctrl-C, and Python leaves that as it is.
"""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import chromium, shared
from helpers.processes import Forks
from helpers.shared import Once

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.accelerator.is_available():
            pytest.skip("no accelerator here")
    if item.get_closest_marker("browser") and chromium.PROGRAM is None:
        pytest.skip("Chromium is not installed")


@pytest.fixture(autouse=True)
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the page of a run takes longer than a tiny run, so only the runs of wider fixtures have a real one."""

    def write(folder: Path, *_: object) -> None:
        (folder / "report.html").write_text("a page", encoding="utf-8")

    for name in ("mlpmixer.training.finish", "mlpmixer.training.resume"):
        if module := sys.modules.get(name):
            monkeypatch.setattr(module, "write_report", write)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)` is a folder that `make` fills the first time that any worker of this test run asks for it."""
    base = tmp_path_factory.getbasetemp()
    return shared.once(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(scope="session")
def forked() -> Iterator[Forks]:
    """`forked(code, *args, input="")` runs code in a process that has all that training needs imported."""
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def digits_run(once: Once) -> Path:
    """A finished run: a Mixer of 2 blocks of 16 channels (`helpers.models.GREY`) after a few steps on the digits.

    Read only, as all that tests share: what writes beside it copies it first.
    """

    def make(folder: Path) -> None:
        from helpers.models import GREY

        from mlpmixer.data.config import Data
        from mlpmixer.training.recipe import Optim, Recipe, Run
        from mlpmixer.training.run import train

        optim, run = Optim(name="adamw", lr=0.02, warmup_steps=2), Run(steps=40, batch_size=128, device="cpu")
        train(Recipe(name="digits", model=GREY, data=Data(name="digits"), optim=optim, run=run), out=folder)

    return once("digits", make)


@pytest.fixture(scope="session")
def digits_bundle(once: Once, digits_run: Path) -> Path:
    """What `export --to bundle` leaves in a copy of `digits_run`; model.onnx in it is the export alone. Read only."""

    def make(folder: Path) -> None:
        from mlpmixer.exporters.export import export

        export(shutil.copytree(digits_run, folder), "bundle", images=50, licence="mit")

    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    return once("digits-exported", make) / "bundle"


@pytest.fixture(scope="session")
def squares_run(once: Once) -> Path:
    """A finished run on `helpers.multi_label.write_squares`, whose images have several classes; they are beside it, in
    images/. Read only."""

    def make(folder: Path) -> None:
        from helpers.models import GREY
        from helpers.multi_label import write_squares

        from mlpmixer.data.config import Data
        from mlpmixer.training.recipe import Optim, Recipe, Run
        from mlpmixer.training.run import train

        model = GREY.adapted(image_size=16, in_channels=3)
        data = Data(name=str(write_squares(folder / "images", 200)), val_fraction=0.3)
        optim, run = (
            Optim(name="adamw", lr=0.02, warmup_steps=2),
            Run(steps=60, batch_size=50, device="cpu", eval_every=5),
        )
        train(Recipe(name="squares", model=model, data=data, optim=optim, run=run), out=folder / "run")

    return once("squares", make) / "run"

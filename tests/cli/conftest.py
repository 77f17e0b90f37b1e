"""What the tests of the command line share: running a line as from a shell."""

import pytest
from helpers.lines import RunLine

from mlpmixer import cli


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> RunLine:
    def call(*args: str) -> tuple[int, str, str]:
        code = cli.main(list(args))
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def quick() -> list[str]:
    """Options that make a training short."""
    sizes = ["--model.num-blocks", "1", "--model.hidden-dim", "8"]
    return ["--steps", "2", "--batch-size", "16", *sizes, "--device", "cpu"]

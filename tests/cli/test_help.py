"""The help pages: complete, short enough, light, and clear about where a default comes from."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.lines import RunLine

from mlpmixer import cli
from mlpmixer.cli.arguments import arguments_of, with_defaults
from mlpmixer.cli.recipe_options import SHORT

COMMANDS = sorted(cli.COMMANDS)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_overview_names_every_command(run: RunLine) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"  {name} " in out for name in COMMANDS)
    assert run()[0] == 2
    assert run("--version")[1].startswith("mlpmixer 0.")


@pytest.mark.parametrize("command", COMMANDS)
def test_overview_has_the_first_line_of_each_docstring(command: str) -> None:
    assert (cli.command(command).__doc__ or "").partition("\n")[0] == cli.COMMANDS[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_on_a_screen(command: str, run: RunLine) -> None:
    code, out, err = run(*command.split(), "--help")
    assert (code, err) == (0, "") and out.startswith(f"usage: mlpmixer {command} ")
    assert len(out.splitlines()) <= 46


@pytest.mark.parametrize("command", COMMANDS)
def test_help_all_has_every_option_with_a_text(command: str, run: RunLine) -> None:
    _, out, _ = run(*command.split(), "--help-all")
    rows = re.findall(r"^  (--.*?)(?:  |\n {26})\S", out, re.M)
    shown = {name for row in rows for name in re.findall(r"--\w[\w.-]*", row)}
    kind = cli.command(command)
    options = [
        a for a in arguments_of(kind, with_defaults(kind, {})) if not a.arg.positional and a.name not in kind.refused
    ]
    short = {f"--{no}{name}" for name in kind.short for no in ("", "no-")}
    assert shown - short == {a.name for a in options} | {a.off for a in options} - {""}


def test_help_of_train_has_every_short_option_it_promises(run: RunLine) -> None:
    out = run("train", "--help")[1]
    shown = set(re.findall(r"^  --(?:\[no-\])?([\w-]+)", out, re.M))
    assert shown >= set(SHORT) - {"resize", "magnified", "threads"}
    assert run("train", "--help-all")[1].count("--") > 4 * out.count("--")


def test_defaults_are_those_of_the_recipe_that_is_named(run: RunLine) -> None:
    assert "(default: 64)" not in run("train", "--help")[1]
    assert "--batch-size N|auto     Images per step. (default: 64)" in run("train", "cifar10", "--help")[1]
    assert "--epochs X              Passes over the training images. (default: 14)" in run("train", "mnist", "-h")[1]
    assert "(default: 384)" in run("summary", "B/16", "--help")[1]
    assert "(default: 0.9 0.999)" in run("train", "digits", "--help-all")[1]
    assert "Batch size. (default: 256)" in run("evaluate", "--help")[1]


def test_help_of_another_architecture(run: RunLine) -> None:
    page = run("train", "digits", "--model", "resnet-18", "--help-all")[1]
    assert "--image-size, --model.image-size N [N]" in page and "tokens-mlp-dim" not in page


def imported(*args: str) -> set[str]:
    """The modules that a line imports."""
    code = f"import sys, mlpmixer.cli; mlpmixer.cli.main({list(args)}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_says_which_options_take_several_numbers(run: RunLine) -> None:
    out = run("summary", "vip-s/7", "--help")[1]
    assert re.search(r"^  --hidden-dims N\.\.\.  ", out, re.M) and re.search(r"^  --mlp-ratio N  ", out, re.M)


def test_overview_imports_no_command() -> None:
    modules = imported("--help")
    assert {name for name in modules if name.startswith("mlpmixer")} == {"mlpmixer", "mlpmixer.cli"}
    assert not modules & {"numpy", "dataclasses", "argparse", "importlib.metadata"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_its_command_only(command: str) -> None:
    modules, this = imported(*command.split(), "--help"), re.sub("[ -]", "_", command)
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    names = {re.sub("[ -]", "_", name) for name in COMMANDS} & files
    assert {name for name in names if f"mlpmixer.cli.{name}" in modules} == {this}
    assert not modules & {"torch", "PIL", "sklearn", "matplotlib", "onnx", "onnxruntime", "rich"}

"""The command line: parses, calls one function, prints. Torch is imported by the commands that need it, never for help.

Each command is a frozen dataclass: its fields are the arguments, calling it runs it and gives the exit code.
0: done; 1: done, with failures that were printed; 2: a wrong command, name, value or path; 3: the time that was given
is over, and the same command goes on; 130: interrupted.
"""

import os
import sys
import typing
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, Protocol

from mlpmixer.cli.arguments import parse_line, read
from mlpmixer.cli.bench import Bench
from mlpmixer.cli.compare import Compare
from mlpmixer.cli.convert import Convert
from mlpmixer.cli.data_check import DataCheck
from mlpmixer.cli.data_preview import DataPreview
from mlpmixer.cli.data_shards import DataShards
from mlpmixer.cli.doctor import Doctor
from mlpmixer.cli.evaluate import Evaluate
from mlpmixer.cli.explain import Explain
from mlpmixer.cli.export import Export
from mlpmixer.cli.list import List
from mlpmixer.cli.lr_find import LrFind
from mlpmixer.cli.predict import Predict
from mlpmixer.cli.printing import first_line, let_another_speak, print_error
from mlpmixer.cli.probe import Probe
from mlpmixer.cli.push import Push
from mlpmixer.cli.reproduce import Reproduce
from mlpmixer.cli.serve import Serve
from mlpmixer.cli.summary import Summary
from mlpmixer.cli.train import Train
from mlpmixer.registry import suggest


class Command(Protocol):
    def __call__(self) -> int: ...


COMMANDS: dict[str, Any] = {
    "train": Train,
    "lr-find": LrFind,
    "evaluate": Evaluate,
    "compare": Compare,
    "predict": Predict,
    "probe": Probe,
    "explain": Explain,
    "export": Export,
    "bench": Bench,
    "serve": Serve,
    "convert": Convert,
    "push": Push,
    "reproduce": Reproduce,
    "summary": Summary,
    "list": List,
    "data check": DataCheck,
    "data preview": DataPreview,
    "data shards": DataShards,
    "doctor": Doctor,
}


DEPENDENCIES = ("torch", "safetensors", "sklearn", "matplotlib", "rich")  # that an installation for exports may lack


def help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {first_line(command)}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mlpmixer COMMAND ...",
            "",
            "MLP-Mixer: train on your own pictures, evaluate, predict.",
            "",
            *lines,
            "",
            "mlpmixer COMMAND --help says more; mlpmixer --version; a first try: mlpmixer train digits",
        ]
    )


def parse(args: Sequence[str]) -> Command:
    """The command that the arguments ask for. ValueError for an unknown one; SystemExit after help (0) or a wrong
    option (2)."""
    name, rest = (args[0], args[1:]) if args else ("", [])
    if name == "data":
        name, rest = f"data {rest[0]}" if rest else "data", rest[1:]
    if name not in COMMANDS:
        raise ValueError(f"no command {name!r}; {suggest(name, COMMANDS)} (mlpmixer --help tells what they do)")
    command = COMMANDS[name]
    if hasattr(command, "parse"):
        return typing.cast(Command, command.parse(rest))
    return typing.cast(Command, parse_line(read(command, f"mlpmixer {name}", rest)))


def _parse_once(args: Sequence[str]) -> Command:
    """As `parse`. Of several processes on a machine (torchrun) the first one tells what is wrong with the command they
    all have."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return parse(args)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            return parse(args)
        except (ValueError, SystemExit) as e:
            if isinstance(e, SystemExit) and not e.code:  # help
                raise
            let_another_speak()
            raise SystemExit(2) from None


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code."""
    # Torch's threads wait for each other in a busy loop. When another process holds a core, the loop burns whole time
    # slices: a
    # step of the digits model took 3.6 s instead of 0.05 s. A bounded loop (0.25 s then, the same on an idle machine)
    # mends that.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help", "help"):
        print(help())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from mlpmixer import __version__

        print(f"mlpmixer {__version__}")
        return 0
    try:
        return _parse_once(args)()
    except SystemExit as e:
        return int(e.code or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as e:
        if e.name not in DEPENDENCIES:
            raise
        print_error(
            f"this command needs {e.name}, which is not installed here: pip install mlpmixer, with all it depends on. "
            f"What does without: "
            "mlpmixer predict on an .onnx or .xml file or a bundle that `mlpmixer export` wrote"
        )
        return 2
    except ValueError as e:
        print_error(str(e))
        return 2
    except OSError as e:
        print_error(str(e))
        return 2 if isinstance(e, FileNotFoundError | NotADirectoryError | IsADirectoryError) else 1

"""The command line: parse, call one function, print.

Each command is a file of this folder and is imported when it is named. Torch is imported by the commands that need it,
never for help. Exit codes: 0 done; 1 done, with failures that were printed; 2 a wrong command, name, value or path;
3 the time is up, and the same command resumes; 130 interrupted.
"""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlpmixer.cli.arguments import Command, Line

COMMANDS = {  # each with the first line of its docstring, so that listing them imports none
    "train": "Train a network on DATA.",
    "lr-find": "Find a learning rate for DATA.",
    "evaluate": "Measure accuracy and calibration of a model on DATA.",
    "compare": "Compare two models on DATA with an exact paired test.",
    "predict": "Print the class probabilities of images.",
    "probe": "Measure how well the features of a model transfer to DATA.",
    "explain": "Show which patches of an image contribute to its class.",
    "export": "Export a model to ONNX, OpenVINO, PT2, a bundle or a web page.",
    "bench": "Measure how fast each engine runs a model on this machine.",
    "serve": "Serve a model over HTTP.",
    "convert": "Convert weights to the official, timm's or this package's format.",
    "push": "Publish a model, with a model card, to the Hugging Face Hub or to a folder.",
    "reproduce": "Reproduce a claim of the paper.",
    "summary": "Print the shapes, parameters and multiply-adds of a network.",
    "runs": "List the runs in FOLDER: data, network, accuracy, time, state.",
    "list": "List the names of models, weights, datasets or recipes.",
    "data check": "Find broken, duplicate and misplaced images in DATA.",
    "data preview": "Draw training images of DATA as the network sees them.",
    "data shards": "Write DATA as shards for streaming.",
    "doctor": "Show the environment and diagnose problems.",
}

DEPENDENCIES = ("torch", "safetensors", "sklearn", "matplotlib")  # that an installation for exports may lack


def overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "usage: mlpmixer COMMAND ...",
        "",
        "MLP-Mixer: train on your own pictures, evaluate, predict.",
        "",
        *(f"  {name:{width}}  {text}" for name, text in COMMANDS.items()),
        "",
        "mlpmixer COMMAND --help shows its options. A first try: mlpmixer serve digits",
    ]
    return "\n".join(lines)


def command(name: str) -> "type[Command]":
    """The class of a command: "data check" is DataCheck in data_check.py."""
    from importlib import import_module

    words = name.replace("-", " ").split()
    found: type[Command] = getattr(import_module(f"mlpmixer.cli.{'_'.join(words)}"), "".join(map(str.title, words)))
    return found


def parse(args: Sequence[str]) -> "Line":
    """The words of a line. ValueError for an unknown command or option."""
    name, rest = (args[0], args[1:]) if args else ("", [])
    if name == "data":
        if not rest:
            raise ValueError("which command? mlpmixer data check, mlpmixer data preview or mlpmixer data shards")
        name, rest = f"data {rest[0]}", rest[1:]
    if name not in COMMANDS:
        from mlpmixer.registry import suggest

        raise ValueError(f"no command {name!r}; {suggest(name, COMMANDS)} (mlpmixer --help explains them)")
    from mlpmixer.cli.arguments import read

    return read(command(name), f"mlpmixer {name}", rest)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    # Torch's threads wait for each other in a busy loop. When another process holds a core, the loop burns whole time
    # slices: a step of the digits model took 3.6 s instead of 0.05 s. A bounded loop avoids that (0.25 s then, and no
    # difference on an idle machine). A training lets them sleep as well (`training.threads`).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with ExitStack() as stack:
        if sys.stdout is None:  # closed by the shell: >&-
            sys.stdout = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        if isinstance(sys.stdout, io.TextIOWrapper):  # as standard error: it may not have the letters of a class's name
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return _run(sys.argv[1:] if args is None else args, stack)
        except SystemExit as e:
            return int(e.code or 0)
        except KeyboardInterrupt:
            from mlpmixer.cli.printing import print_error

            print_error("interrupted")
            return 130
        except BrokenPipeError:  # the reader, such as head, has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1


@contextmanager
def weights_in(folder: str) -> Iterator[None]:
    """Let this process, and those that it starts, look for our weights in a folder."""
    from mlpmixer.weights.own import VARIABLE

    before = os.environ.get(VARIABLE, "")
    os.environ[VARIABLE] = folder
    try:
        yield
    finally:
        os.environ[VARIABLE] = before


def _require_folder(option: str, folder: str) -> None:
    from mlpmixer.data.paths import printable, similar_paths

    if not (path := Path(folder).expanduser()).is_dir():
        if path.exists():
            raise ValueError(
                f"{printable(folder)} is a file ({option}): name its folder, {printable(str(path.parent))}"
            )
        close = f"; did you mean {', '.join(near)}?" if (near := similar_paths(folder)) else ""
        raise ValueError(f"no folder {printable(folder)!r} ({option}){close}")


def _run(args: Sequence[str], stack: ExitStack) -> int:
    if not args or args[0] in ("-h", "--help") or [*args] in (["help"], ["data", "--help"], ["data", "-h"]):
        print(overview(), flush=True)
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from mlpmixer import __version__

        print(f"mlpmixer {__version__}", flush=True)
        return 0
    from mlpmixer.cli.printing import let_another_speak, print_error

    line: Line | None = None
    try:
        try:
            line = parse([*args[1:], "--help"] if args[0] == "help" else args)
            if line.help:
                from mlpmixer.cli.help import page

                print(page(line), flush=True)
                return 0
            if folder := line.value("--weights-dir"):
                if line.prog != "mlpmixer reproduce":  # whose finished rows need no weights
                    _require_folder("--weights-dir", folder)
                stack.enter_context(weights_in(folder))
            command = line.make()
        except ValueError:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                raise
            let_another_speak()  # all processes of torchrun have this command: the first of the machine reports it
            return 2
        code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        raise
    except ModuleNotFoundError as e:
        if e.name not in DEPENDENCIES:
            raise
        print_error(
            f"this command needs {e.name}, which is not installed here: pip install mlpmixer, with its dependencies. "
            f"Without {e.name}, mlpmixer predict works on an .onnx or .xml file or a bundle that mlpmixer export wrote"
        )
        return 2
    except (MemoryError, RuntimeError) as e:
        from mlpmixer.hardware import is_out_of_memory

        if not is_out_of_memory(e):
            raise
        print_error("not enough memory: try a smaller --batch-size or --image-size, or close other programs")
        return 1
    except (ValueError, OSError) as e:
        from mlpmixer.cli.arguments import as_typed

        about = filter(None, (e.filename, e.strerror)) if isinstance(e, OSError) else ()
        text = ": ".join(map(str, about)) or str(e)
        print_error(as_typed(text, line) if line else text)
        wrong = isinstance(e, ValueError | FileNotFoundError | NotADirectoryError | IsADirectoryError)
        return 2 if wrong else 1

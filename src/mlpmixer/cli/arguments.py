"""A command line taken apart, its short forms, and the recipe or architecture that its options override.

tyro needs a default before it parses, and the default depends on the DATA, recipe, model and weights that the line
names. So the line is parsed in two stages that share one description of it, the fields of the command: `read` assigns
each word to the option it belongs to, `parse_line` hands the result to tyro.
"""

import dataclasses
import difflib
import itertools
import math
import os
import re
import types
import typing
from collections import deque
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import tyro
from tyro.conf import FlagCreatePairsOff, Positional

from mlpmixer.models.configs import Method, NetworkConfig
from mlpmixer.training.recipe import Init, Recipe

C = TypeVar("C")

Flag = FlagCreatePairsOff[bool]
SHORT = {
    "epochs": "run.epochs",
    "steps": "run.steps",
    "time": "run.time",
    "batch-size": "run.batch-size",
    "seed": "run.seed",
    "progressive": "run.progressive",
    "device": "run.device",
    "precision": "run.precision",
    "patience": "run.patience",
    "compile": "run.compile",
    "test": "run.test",
    "lr": "optim.lr",
    "image-size": "model.image-size",
    "patch-size": "model.patch-size",
    "in-channels": "model.in-channels",
    "data-dir": "data.data-dir",
    "fit": "data.fit",
    "init": "init.weights",
    "resize": "init.resize",
    "magnified": "init.magnified",
    "teacher": "distill.teacher",
}


HELP = ("-h", "--help")
DATA = (
    "a folder with a folder for each class, a Parquet file or folder, hf:owner/name, "
    "or the name of a data set such as digits (mlpmixer list datasets)"
)


@dataclass(frozen=True)
class Arguments:
    """The positional arguments and the options of a command, each with the fewest and the most values it takes."""

    positional: dict[str, tuple[int, float]]
    options: dict[str, tuple[int, int]]

    @property
    def usage(self) -> str:
        shown = ((name, fewest or name.endswith("...")) for name, (fewest, _) in self.positional.items())
        return " ".join(name if plain else f"[{name}]" for name, plain in shown)


def arguments_of(command: type, prefix: str = "--") -> Arguments:
    """What a command takes, read off its fields; names follow tyro's rules."""
    positional: dict[str, tuple[int, float]] = {}
    options: dict[str, tuple[int, int]] = {}
    hints = typing.get_type_hints(command, include_extras=True)
    for field in dataclasses.fields(command):
        hint = hints[field.name]
        notes = getattr(hint, "__metadata__", ())
        hint = hint.__origin__ if notes else hint
        given = [note.name for note in notes if getattr(note, "name", None) is not None]
        name = given[0] if given else field.name.replace("_", "-")
        if Positional in notes:
            metavar = next((note.metavar for note in notes if getattr(note, "metavar", None)), name.upper())
            many = hint is tuple or typing.get_origin(hint) is tuple
            optional = many or field.default is not dataclasses.MISSING
            positional[metavar] = (0 if optional else 1, math.inf if many else 1)
        elif dataclasses.is_dataclass(hint):
            for kind in kinds_of(typing.cast(type, hint)):  # which one it is decides another option, such as --model
                inner = arguments_of(kind, f"{prefix}{name}." if name else prefix)
                positional |= inner.positional
                options |= inner.options
        else:
            options[prefix + name] = number_of_values(hint)
            if hint is bool and FlagCreatePairsOff not in notes:
                options[f"{prefix}no-{name}"] = (0, 0)
    return Arguments(positional, options)


def kinds_of(cls: type) -> list[type]:
    """A class and all its subclasses."""
    subclasses: list[type] = type.__subclasses__(cls)
    return [cls, *(kind for sub in subclasses for kind in kinds_of(sub))]


def number_of_values(hint: Any) -> tuple[int, int]:
    """The fewest and the most words that an option of this type takes."""
    if hint is bool:
        return 0, 0
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and Ellipsis not in parts:
        return len(parts), len(parts)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        counts = [number_of_values(part) for part in parts if part is not types.NoneType]
        return min(fewest for fewest, _ in counts), max(most for _, most in counts)
    return 1, 1


@dataclass(frozen=True)
class Line(Generic[C]):
    """A command line taken apart: words that belong to no option, and the options with their values, as they came."""

    command: type[C]
    prog: str
    words: tuple[str, ...]
    options: tuple[tuple[str, tuple[str, ...]], ...]

    def values(self, option: str) -> tuple[str, ...]:
        """The values of an option. The last ones count when it is given twice, as they do for tyro."""
        return next((values for name, values in reversed(self.options) if name == option), ())

    def value(self, option: str) -> str:
        return next(iter(self.values(option)), "")

    def size(self, option: str) -> int | tuple[int, int] | None:
        """One or two whole numbers; None for anything else, of which tyro says what is wrong with it."""
        values = self.values(option)
        numbers = [int(value) for value in values if value.isdecimal()]
        if not values or len(numbers) < len(values):
            return None
        return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])

    @property
    def asks_for_help(self) -> bool:
        return any(name in HELP for name, _ in self.options)

    def require_words(self) -> None:
        """ValueError unless there are as many words as the command has positional arguments."""
        arguments = arguments_of(self.command)
        usage = f"{self.prog} {arguments.usage}".strip()
        needed = [name for name, (fewest, _) in arguments.positional.items() if fewest]
        given = len([*itertools.takewhile(bool, self.words)])  # an unset variable leaves an empty word
        if given < len(needed):
            which = needed[given]
            more = f", where DATA is {DATA}" if which == "DATA" else f" ({self.prog} --help says more)"
            raise ValueError(f"which {which}? {usage}{more}")
        if len(self.words) > sum(most for _, most in arguments.positional.values()):
            raise ValueError(f"too many arguments: {', '.join(self.words)}; expected {usage}")


def read(command: type[C], prog: str, args: Sequence[str], without_value: dict[str, str] | None = None) -> Line[C]:
    """Take the arguments of a command apart. ValueError for an option that it does not have.

    without_value: the values of options that may be given without one.
    """
    known = arguments_of(command).options | dict.fromkeys(HELP, (0, 0))
    words: list[str] = []
    options: list[tuple[str, tuple[str, ...]]] = []
    rest = deque(args)
    while rest:
        if rest[0] == "--":  # all that follows are words
            words += list(rest)[1:]
            break
        if not is_option(rest[0]):
            words.append(rest.popleft())
            continue
        word, equals, value = rest.popleft().partition("=")
        name = long_form(word, known)
        if name not in known:
            short_forms = [f"--{short}" for short, long in SHORT.items() if f"--{long}" in known]
            close = ", ".join(difflib.get_close_matches(word, [*known, *short_forms]))
            help = f"did you mean {close}?" if close else f"{prog} --help lists them"
            raise ValueError(f"no option {word}; {help}")
        fewest, most = known[name]
        if equals and not most:
            raise ValueError(f"{word}={value}: {word} takes no value")
        values = [value] if equals else []
        while rest and not is_option(rest[0]) and len(values) < (most if is_number(rest[0]) else fewest):
            values.append(rest.popleft())
        if not values and without_value and name in without_value:
            values = [without_value[name]]
        options.append((name, tuple(values)))
    return Line(command, prog, tuple(words), tuple(options))


def parse_line(line: Line[C], *, default: Any = tyro.MISSING_NONPROP, description: str | None = None) -> C:
    """The command with its fields set; SystemExit after help (0) or a wrong value (2)."""
    args = ["--help"]
    if not line.asks_for_help:
        line.require_words()
        args = [*line.words]
        for name, values in line.options:
            args += [f"{name}={values[0]}", *values[1:]] if values else [name]
    return tyro.cli(line.command, prog=line.prog, description=description, args=args, default=typing.cast(C, default))


def is_option(word: str) -> bool:
    """Whether a word has the form of an option: -5 and - (standard input) have not."""
    return word.startswith("-") and word != "-" and not is_number(word)


def is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def long_form(word: str, known: Container[str]) -> str:
    """--batch_size -> --run.batch-size, --no-compile -> --run.no-compile; an option of the command's own stays."""
    word = word.replace("_", "-")
    name = word.removeprefix("--")
    no = "no-" if name.removeprefix("no-") in SHORT and name.startswith("no-") else ""
    owner, _, leaf = SHORT.get(name.removeprefix(no), "").rpartition(".")
    return word if word in known or not leaf else f"--{owner}.{no}{leaf}"


def with_data(line: Line[C]) -> Line[C]:
    """The line with DATA as its one word, also where it was written --data.name."""
    named = [value for name, values in line.options if name == "--data.name" for value in values]
    options = tuple((name, values) for name, values in line.options if name != "--data.name")
    return dataclasses.replace(line, words=(*line.words, *named), options=options)


def start_from(line: Line[C]) -> Recipe:
    """The recipe that the options override: of DATA or --recipe, with --model, --augreg and --init."""
    from mlpmixer.training.recipes import RECIPES, augreg, recipe_for

    if not line.asks_for_help:
        line.require_words()
    data = line.words[0] if line.words else "digits"  # whose recipe the help shows
    name, model, weights = line.value("--recipe"), line.value("--model"), line.value("--init.weights")
    recipe = RECIPES[name]() if name else recipe_for(data, kind_of_start(weights, data))
    if model:
        from mlpmixer.models.names import MODELS

        recipe = dataclasses.replace(recipe, model=MODELS[model])
    if level := line.value("--augreg"):
        recipe = dataclasses.replace(recipe, augment=augreg(recipe.augment, level))
    if weights:
        trained = architecture_of_weights(
            weights
        ).adapted(  # with --patch-size alone the image follows, with --resize blocks a width
            image_size=line.size("--model.image-size"),
            patch_size=line.size("--model.patch-size"),
            method=typing.cast(Method, line.value("--init.resize") or "bicubic"),
        )
        recipe = dataclasses.replace(recipe, model=trained, init=Init(weights=weights))
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, name=data))


def kind_of_start(weights: str, data: str) -> Literal["scratch", "same data", "other data", "published"]:
    if not weights:
        return "scratch"
    from mlpmixer.weights.load import trained_on

    before = trained_on(weights)
    return "published" if before is None else "same data" if before == Path(data).name else "other data"


def with_short(command: type) -> str:
    return f"{command.__doc__}\n\nShort forms of the options below: {', '.join(f'--{s}' for s in SHORT)}."


def ranks_here() -> dict[str, int]:
    """The fields of `distributed.Ranks`, as torchrun passes them to each process it starts; none when nobody did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return {}
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        size = os.environ["WORLD_SIZE"]
        raise ValueError(
            f"WORLD_SIZE={size}, but {', '.join(missing)} is not set; start several processes with torchrun"
        )
    return {
        field: int(os.environ[name])
        for field, name in (("rank", "RANK"), ("size", "WORLD_SIZE"), ("local_rank", "LOCAL_RANK"))
    }


def restarts_by_itself() -> bool:
    """Whether torchrun is to start this command again when it fails."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """1,5,10 -> (1, 5, 10)"""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(
            f"{option} {text}: expected whole numbers with commas between them, such as {option} 1,5,10,25"
        )
    return tuple(map(int, text.split(",")))


def architecture_of(name: str) -> NetworkConfig:
    """Of a model's name, or of whatever holds weights."""
    from mlpmixer.models.names import MODELS
    from mlpmixer.weights.published import WEIGHTS

    is_weights = name in WEIGHTS or name.startswith("hf:") or (name not in MODELS and Path(name).exists())
    return architecture_of_weights(name) if is_weights else MODELS[name]


def architecture_of_weights(name: str) -> NetworkConfig:
    """Without fetching what has a name."""
    from mlpmixer.weights.published import WEIGHTS

    if name in WEIGHTS:
        return WEIGHTS[name].config
    from mlpmixer.weights.load import architecture

    return architecture(name)

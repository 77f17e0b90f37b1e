"""A command line, as the fields of its command describe it.

A command is a frozen dataclass. Each of its fields is a positional argument or an option, and the fields of a config in
it are options too (`--optim.lr`). `read` gives each word of a line to its argument; `build` converts the words and
makes the command. In between a command looks at the line and chooses the configs that the options override.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, ClassVar, Self, TypeVar

from mlpmixer.config import checked, did_you_mean

C = TypeVar("C")
Values = Mapping[tuple[str, ...], Any]
ELSEWHERE = {  # what timm, ultralytics and others call our options
    "imgsz img imgsize inputsize size resolution": "--image-size",
    "b bs batch batchsize trainbatchsize perdevicetrainbatchsize": "--batch-size --batch",
    "learningrate lr0 baselr blr": "--lr",
    "e epoch numepochs numtrainepochs maxepochs": "--epochs",
    "maxsteps iterations iters numsteps": "--steps",
    "earlystopping earlystop": "--patience",
    "opt optimizer optimiser": "--optim.name",
    "sched scheduler coslr lrscheduler": "--optim.schedule",
    "warmup warmupepochs": "--optim.warmup-steps",
    "wd": "--optim.weight-decay",
    "smoothing": "--optim.label-smoothing",
    "clipgrad gradclip maxgradnorm": "--optim.clip-norm",
    "ema modelema": "--optim.ema-decay",
    "gradaccumsteps gradientaccumulationsteps": "--run.accumulate",
    "evalinterval evalsteps valinterval": "--run.eval-every",
    "loginterval logfreq printfreq": "--run.log-every",
    "drop dropout": "--model.dropout",
    "aa autoaugment randaugment": "--augreg --augment.randaugment-layers",
    "noaug noaugmentation": "--augreg=none",
    "valsplit valsize valratio": "--data.val-fraction",
    "j workers numworkers": "--data.workers --threads",
    "numthreads nthreads cpus cores": "--threads",
    "amp half fp16 bf16 dtype": "--precision=bfloat16",
    "gpu gpus cuda cpu accelerator": "--device",
    "m arch architecture net": "--model",
    "pretrained weights checkpoint initialcheckpoint finetune": "--init --resume RUN",
    "data dataset datapath datafolder root": "DATA --data-dir",
    "o output outputdir savedir project dest": "--out",
    "inchans channels": "--in-channels",
    "k topk top": "--top-k",
    "csv": "--format=csv",
    "json": "--format=json",
    "parquet": "--format=parquet",
    "quantize quantise quantization": "--int8",
    "format": "--to",
    "bind address ip": "--host",
    "p": "--port",
    "verbose": "--log",
}
HELP = {"-h": "--help", "--help": "--help", "--help-all": "--help-all"}


@dataclass(frozen=True)
class Arg:
    """Annotation of a field: `Annotated[str, Arg("DIR")]`."""

    metavar: str = ""
    help: str = ""
    """Instead of the docstring below the field."""
    positional: bool = False
    name: str = ""
    """Name of the option, if it is not the field's; of a positional argument, an option that it may be written as."""
    bare: str = ""
    """Value of the option where it is given without one."""


@dataclass(frozen=True)
class Argument:
    """A positional argument or an option."""

    name: str
    """--optim.lr, or DATA."""
    path: tuple[str, ...]
    """The fields that lead to it, from the command on: config, optim, lr."""
    type: Any
    arg: Arg
    owner: type
    """The dataclass that has the field."""
    default: Any
    """MISSING for an argument that must be given."""

    @property
    def off(self) -> str:
        """--optim.no-mirror for --optim.mirror: a recipe may switch it on. The command's own switches start off."""
        owner, dot, leaf = self.name.rpartition(".")
        return f"{owner}.no-{leaf}" if dot and self.type is bool else ""

    @property
    def num_words(self) -> tuple[float, float]:
        """The fewest and the most words that it takes."""
        counts = [math.inf if Ellipsis in form else 0 if form == (bool,) else len(form) for form in forms(self.type)]
        return (1 if math.inf in counts else min(counts)), max(counts)

    @property
    def is_variadic(self) -> bool:
        return self.num_words[1] == math.inf


@dataclass(frozen=True)
class Short:
    """A short name of an option, for those that most people need."""

    option: str
    help: str
    metavar: str = ""


@dataclass(frozen=True)
class Line:
    """A command line, each word with its argument."""

    command: type["Command"]
    prog: str
    words: tuple[str, ...]
    """The positional ones."""
    options: Mapping[str, tuple[str, ...]]
    """The options by name: the spelling of each, and its values. Where it is given twice, the last one counts."""
    help: str
    """--help, --help-all, or empty."""

    def value(self, option: str) -> str:
        """The value of an option as it stands there; empty where it is not given."""
        return next(iter(self.options.get(option, ())[1:]), "")

    def make(self) -> "Command":
        """The command that the line describes. ValueError for a wrong value."""
        return self.command.of(self)


class Command:
    """Base of the commands: frozen dataclasses, made from a line and called for their exit code."""

    short: ClassVar[Mapping[str, Short]] = {}
    common: ClassVar[Sequence[str]] = ()
    """The short names that --help lists."""
    heading: ClassVar[str] = ""
    """The heading above them."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Options of its configs that it does not take, and why."""

    @classmethod
    def of(cls, line: Line) -> Self:
        return build(cls, line, **cls.configs(line))

    @classmethod
    def configs(cls, line: Line) -> dict[str, Any]:
        """The configs that the words of a line choose, for its options to override."""
        return {}

    def __call__(self) -> int:
        raise NotImplementedError


def arguments_of(
    owner: type, configs: Mapping[str, Any] | None = None, path: tuple[str, ...] = ()
) -> Iterator[Argument]:
    """Every argument of a command, or of a config at a path within it.

    configs: the values of fields. Where one is a config, its class decides which fields it has. Without any, those of
    all its subclasses count: a line may name a model of any architecture.
    """
    prefix = "--" + "".join(f"{name}." for name in path[1:])  # a config of the command's own has no part in the name
    hints = typing.get_type_hints(owner, include_extras=True)
    for field in dataclasses.fields(owner):
        hint, arg = hints[field.name], Arg()
        if typing.get_origin(hint) is Annotated:
            hint, arg = typing.get_args(hint)
        here = (*path, field.name)
        if not dataclasses.is_dataclass(hint):
            name = arg.metavar if arg.positional else prefix + (arg.name or field.name.replace("_", "-"))
            yield Argument(name, here, hint, arg, owner, (configs or {}).get(field.name, field.default))
        elif configs is None:
            for kind in _with_subclasses(typing.cast(type, hint)):
                yield from arguments_of(kind, None, here)
        else:
            config = configs[field.name]
            yield from arguments_of(type(config), vars(config), here)


def _with_subclasses(kind: type[object]) -> Iterator[type[object]]:
    yield kind
    for subclass in type.__subclasses__(kind):
        yield from _with_subclasses(subclass)


def forms(hint: Any) -> list[tuple[Any, ...]]:
    """The forms of a value, each a type for every word: `int | tuple[int, int]` has (int,) and (int, int)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [form for part in typing.get_args(hint) for form in forms(part)]
    return [typing.get_args(hint)] if typing.get_origin(hint) is tuple else [(hint,)]


def spellings_of(command: type[Command]) -> dict[str, tuple[Argument, tuple[str, ...]]]:
    """Every name of an option, short ones too: the option, and the words that the name alone stands for."""
    spellings: dict[str, tuple[Argument, tuple[str, ...]]] = {}
    for option in arguments_of(command):
        known = spellings.get(option.name, (option, ()))[0]
        if not option.arg.positional and option.num_words[1] >= known.num_words[1]:
            spellings[option.name] = option, ("True",) if option.type is bool else ()
            if option.off:
                spellings[option.off] = option, ("False",)
    for name, short in command.short.items():
        spellings[f"--{name}"] = spellings[f"--{short.option}"]
        if off := spellings[f"--{name}"][0].off:
            spellings[f"--no-{name}"] = spellings[off]
    return spellings


def read(command: type[Command], prog: str, args: Sequence[str]) -> Line:
    """Give each word to its argument. ValueError for an option that the command does not have.

    An option takes as many words as its type needs, and further ones only if they are numbers: the last word of
    `--image-size 64 32 photos/` is DATA.
    """
    spellings = spellings_of(command)
    words: list[str] = []
    options: dict[str, tuple[str, ...]] = {}
    help, rest = "", deque(args)
    while rest:
        word = rest.popleft()
        if word == "--":  # nothing after it is an option
            words += rest
            break
        if not is_option(word):
            words.append(word)
            continue
        spelling, equals, value = word.partition("=")
        spelling = spelling.replace("_", "-")
        if spelling in HELP:
            help = max(help, HELP[spelling], key=len)
            continue
        if spelling not in spellings:
            close = similar_options(spelling, command)
            advice = f"did you mean {', '.join(close)}?" if close else f"{prog} --help-all lists them"
            raise ValueError(f"no option {spelling}; {advice}")
        if spelling in command.refused:
            raise ValueError(f"{spelling} is not an option here: {command.refused[spelling]}")
        option, implied = spellings[spelling]
        if equals and implied:
            raise ValueError(f"{word}: {spelling} takes no value")
        values = [value] if equals else [*implied]
        fewest, most = option.num_words
        while rest and not is_option(rest[0]) and len(values) < (most if is_number(rest[0]) else fewest):
            values.append(rest.popleft())
        if not values and option.arg.bare:
            values = [option.arg.bare]
        before = options.get(option.name, ())[1:] if option.is_variadic else ()
        options[option.name] = (spelling, *before, *values)
    for argument in positional(command):
        words += options.pop(f"--{argument.arg.name}", ())[1:]
    return Line(command, prog, tuple(words), options, help)


def similar_options(word: str, command: type[Command]) -> list[str]:
    """Candidates for a wrong option: what other programs call so, else what is spelt so, each by its shortest name."""
    bare, spellings = re.sub(r"\W", "", word), spellings_of(command)
    known = {*spellings, *(a.name for a in positional(command))}
    meant = next((names.split() for words, names in ELSEWHERE.items() if bare in words.split()), [])
    if meant := [name for name in meant if name.partition("=")[0] in known]:
        return meant
    nearest: dict[str, tuple[float, str]] = {}
    for name in sorted(spellings, key=len):
        parts = (re.sub(r"\W", "", part) for part in (name, name.rpartition(".")[2]))  # imagesize is --image-size
        ratio = max(difflib.SequenceMatcher(None, bare, part).ratio() for part in parts)
        option = spellings[name][0].name
        if ratio > max(0.65, nearest.get(option, (0.0, ""))[0]):
            nearest[option] = ratio, name
    ranked = sorted(nearest.values(), key=lambda found: -found[0])
    return [name for ratio, name in ranked if ratio >= ranked[0][0] - 0.1][:3]


def as_typed(message: str, line: Line) -> str:
    """A message about options that are on the line, which names them as they are spelt there: run.epochs, --epochs.

    It also names the others so. A message about none of them, such as one about a file, stays as it is.
    """
    short = {f"--{short.option}": f"--{name}" for name, short in line.command.short.items()}
    names: dict[str, str] = {}
    typed: set[str] = set()
    for option in sorted(arguments_of(line.command), key=lambda option: option.name in line.options):
        key = option.name.removeprefix("--").replace("-", "_")
        leaf, given = key.rpartition(".")[2], line.options.get(option.name)
        names[key] = names[leaf] = given[0] if given else short.get(option.name, option.name)
        typed |= {key, leaf} if given else set()
    words = re.compile(r"(?<![\w./-])[a-z]\w*[._]\w+(?![\w/-]|\.\w)")  # not the words of a sentence, nor of a path
    if typed.isdisjoint(words.findall(message)):
        return message
    return words.sub(lambda found: names.get(found[0], found[0]), message)


def is_option(word: str) -> bool:
    """Whether a word has the form of an option: -5 and - (standard input) do not."""
    return word.startswith("-") and word != "-" and not is_number(word)


def is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def positional(command: type) -> list[Argument]:
    return [argument for argument in arguments_of(command) if argument.arg.positional]


def usage_of(prog: str, command: type) -> str:
    """Usage of a command: what must be on a line, and what may be, apart from options."""
    arguments = arguments_of(command)
    words = [a.name if a.arg.positional else f"{a.name} {a.arg.metavar}" for a in arguments if a.default is MISSING]
    optional = [a.name if a.is_variadic else f"[{a.name}]" for a in positional(command) if a.default is not MISSING]
    return " ".join([prog, *words, *optional])


def require_words(line: Line) -> None:
    """ValueError unless there are as many words as the command has positional arguments."""
    arguments, usage = positional(line.command), usage_of(line.prog, line.command)
    needed = [argument for argument in arguments if argument.default is MISSING]
    given = [*line.words, ""].index("")  # an unset variable leaves an empty word
    if given < len(needed):
        from mlpmixer.cli.help import help_of

        raise ValueError(f"which {needed[given].name}? {usage}, where {needed[given].name} is {help_of(needed[given])}")
    if len(line.words) > len(arguments) and not any(argument.is_variadic for argument in arguments):
        raise ValueError(f"too many arguments: {', '.join(line.words)}; expected {usage}")


def with_defaults(command: type, configs: Mapping[str, Any]) -> dict[str, Any]:
    """The configs of all fields of a command, from their defaults where they are not given."""
    fields = dataclasses.fields(command)
    return {f.name: f.default_factory() for f in fields if f.default_factory is not MISSING} | dict(configs)


def build(command: type[C], line: Line, **configs: Any) -> C:
    """The command of a line, with its options over `configs`, or over the defaults. ValueError for a wrong value."""
    require_words(line)
    configs = with_defaults(command, configs)
    values: dict[tuple[str, ...], Any] = {}
    words, options = deque(line.words), dict(line.options)
    arguments = list(arguments_of(command, configs))
    for a in arguments:
        if a.arg.positional and a.is_variadic:
            if "" in words:  # an unset variable
                raise ValueError(f"{a.name.rstrip('.')}: expected a value")
            values[a.path] = tuple(words)
        elif a.arg.positional and words:
            values[a.path] = converted(a.type, (a.name, words.popleft()))
        elif a.name in options:
            values[a.path] = converted(a.type, options.pop(a.name))
        elif a.default is MISSING:
            raise ValueError(f"which {a.arg.metavar}? {usage_of(line.prog, command)}")
    for option in arguments_of(command):
        if option.name in options:  # of another architecture
            others = [a for a in arguments if a.path[:-1] == option.path[:-1]]
            spelling, kind, has = options[option.name][0], others[0].owner.__name__, ", ".join(a.name for a in others)
            raise ValueError(f"{spelling} is not an option of {kind}; it has {has}")
    own = {path[0]: value for path, value in values.items() if len(path) == 1}
    return command(**own, **{name: _overridden(config, _below(values, name)) for name, config in configs.items()})


def _overridden(config: Any, values: Values) -> Any:
    changes = {
        name: _overridden(getattr(config, name), _below(values, name)) if path else value
        for (name, *path), value in values.items()
    }
    return dataclasses.replace(config, **changes)


def _below(values: Values, name: str) -> Values:
    return {path[1:]: value for path, value in values.items() if path[0] == name}


def converted(hint: Any, given: Sequence[str]) -> Any:
    """An option as its type, from its spelling and its words. ValueError says what was expected."""
    spelling, *words = given
    if words == [""]:  # an unset variable
        raise ValueError(f"{spelling}: expected a value")
    for values in ([_literal(word) for word in words], words):  # 5 may be a number, or the name of a folder
        for value in (*values[: len(values) == 1], tuple(values)):
            with suppress(ValueError):
                return checked(hint, value, spelling)
    choices = [choice for form in forms(hint) for choice in typing.get_args(form[0])]
    raise ValueError(f"{' '.join(given)}: expected {expected(hint)}{did_you_mean(' '.join(words), choices)}")


def _literal(word: str) -> Any:
    """The number or constant that a word may stand for."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(word)
    return {"True": True, "False": False, "None": None}.get(word, word)


def expected(hint: Any) -> str:
    """A type in words."""
    nouns = {int: "whole number", float: "number", str: "value"}

    def text(form: tuple[Any, ...]) -> str:
        kind, *more = form
        if choices := typing.get_args(kind):
            return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
        return f"{len(form)} {nouns[kind]}s" if more else f"a {nouns[kind]}"

    return " or ".join(text(form) for form in forms(hint) if form != (types.NoneType,))

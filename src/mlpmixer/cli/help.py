"""Help pages: --help shows on one screen what most people need, --help-all shows everything."""

import ast
import itertools
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import get_args

from mlpmixer.cli.arguments import Arg, Argument, Line, arguments_of, forms, usage_of, with_defaults

SCREEN = 45  # lines; a page that is no longer than this is shown whole
WIDEST = 100  # columns
INDENT = 26  # of the texts
NBSP = "\N{NO-BREAK SPACE}"

Rows = list[tuple[str, str]]


def page(line: Line) -> str:
    """The page that a line asks for. Where it names DATA or a model, the defaults are those of its recipe or model."""
    whole = _text(line, everything(line))
    if line.help == "--help-all" or whole.count("\n") < SCREEN:
        return whole
    return f"{_text(line, most_needed(line))}\n\nMore options: {line.prog} --help-all"


def _arguments(line: Line) -> list[Argument]:
    command, configs = line.command, line.command.configs(line) if line.words else {}
    return [
        a if configs or a.path[0] != "config" else replace(a, default=None)
        for a in arguments_of(command, with_defaults(command, configs))
        if a.name not in command.refused
    ]


def _text(line: Line, sections: Iterable[tuple[str, Rows]]) -> str:
    width = max(min(shutil.get_terminal_size().columns, WIDEST), 2 * INDENT)
    lines = [f"usage: {usage_of(line.prog, line.command)} [OPTION]..."]
    for paragraph in (line.command.__doc__ or "").split("\n\n"):
        lines += ["", *_wrapped(" ".join(paragraph.split()), width)]
    for heading, rows in sections:
        lines += ["", *([f"{heading}:"] if heading else [])] if rows else []
        for usage, text in rows:
            if len(usage) > INDENT - 4:
                lines.append(f"  {usage}")
                usage = ""
            columns = itertools.zip_longest([usage], _wrapped(text, width - INDENT), fillvalue="")
            lines += [f"  {left:{INDENT - 2}}{right}".rstrip() for left, right in columns]
    return "\n".join(lines).replace(NBSP, " ")


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)


def everything(line: Line) -> Iterator[tuple[str, Rows]]:
    """Every argument with all that is to be said about it, below the config that has it."""
    command = line.command
    short = {f"--{short.option}": f"--{name}" for name, short in command.short.items()}
    arguments = sorted(_arguments(line), key=_place)
    for (owner, positional), group in itertools.groupby(arguments, key=lambda a: (a.owner, a.arg.positional)):
        heading = "" if positional else "options" if owner is command else first_sentence(owner.__doc__ or "")
        rows = []
        for a in group:
            names = ", ".join(filter(None, [short.get(a.name), a.name, a.off]))
            rows.append((f"{names} {_metavar(a)}", help_of(a) + _default(a)))
        yield re.split(r" \(|:|\.$", heading)[0], rows


def most_needed(line: Line) -> Iterator[tuple[str, Rows]]:
    """The command's own arguments and the common options, in a line each."""
    command, arguments = line.command, _arguments(line)
    own = sorted((a for a in arguments if len(a.path) == 1), key=_place)
    by_name, common = {a.name: a for a in arguments}, []
    for name in command.common:
        short = command.short[name]
        if option := by_name.get(f"--{short.option}"):  # not every architecture has a patch size
            spelling = f"--[no-]{name}" if option.off else f"--{name}"
            common.append(replace(option, name=spelling, arg=Arg(short.metavar, short.help)))

    def row(a: Argument) -> tuple[str, str]:
        metavar = _metavar(a)
        if metavar.startswith("{") and len(f"{a.name} {metavar}") > INDENT - 4:
            metavar = f"{metavar.partition(',')[0]},...}}"
        return f"{a.name} {metavar}", first_sentence(help_of(a)) + (_default(a) if a.default != 0 else "")

    yield "", [row(a) for a in own if a.arg.positional]
    yield "options", [row(a) for a in own if not a.arg.positional]
    yield command.heading, [row(a) for a in common]


def _place(argument: Argument) -> tuple[bool, bool, bool]:
    """Positional arguments come first; the options that commands share come last, before those of configs."""
    return len(argument.path) > 1, not argument.arg.positional, bool(argument.arg.help) and not argument.arg.positional


def _metavar(argument: Argument) -> str:
    """Placeholder for a value: N, X (any number), {crop,pad} or DIR."""
    if argument.type is bool or argument.arg.positional:
        return ""
    word = argument.arg.metavar or argument.path[-1].rpartition("_")[2].upper()
    *_, longest = sorted(
        (form for form in forms(argument.type) if form != (types.NoneType,)),
        key=lambda form: (len(form), form[0] in (int, float)),
    )
    if choices := get_args(longest[0]):
        return f"{{{','.join(choices)}}}"
    if not argument.arg.metavar:
        word = {int: "N", float: "X"}.get(longest[0], word)
        word = "|".join([word, *(choice for form in forms(argument.type) for choice in get_args(form[0]))])
    if argument.arg.bare or len({len(form) for form in forms(argument.type)}) > 1:  # [DIR], or N [N]
        return f"[{word}]" if argument.arg.bare else f"{word} [{word}]"
    if Ellipsis in longest:
        return f"{word}..."
    return " ".join(word for _ in longest)


def _default(argument: Argument) -> str:
    """The default, to end a text; nothing where it means off."""
    value = argument.default
    if any(value is off for off in (MISSING, None, False)) or value in ("", ()):
        return ""
    values = value if isinstance(value, tuple) else ["on"] if value is True else [value]
    text = " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
    return f" (default:{NBSP}{text})"


def help_of(argument: Argument) -> str:
    return " ".join((argument.arg.help or field_docs(argument.owner)[argument.path[-1]]).split())


def first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)(?<! al\.) ", " ".join(text.split()))[0]


@cache
def field_docs(owner: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass, inherited ones too."""
    docs: dict[str, str] = {}
    for cls in reversed(owner.__mro__):
        if is_dataclass(cls):
            body = next(
                n for n in ast.walk(_source(cls.__module__)) if isinstance(n, ast.ClassDef) and n.name == cls.__name__
            ).body
            for field, after in itertools.pairwise(body):
                match field, after:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        docs[name] = text
                    case ast.AnnAssign(target=ast.Name(id=name)), _:
                        docs[name] = ""
    return docs


@cache
def _source(module: str) -> ast.Module:
    return ast.parse(Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8"))

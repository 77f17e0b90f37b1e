"""How results are printed: tables, JSON, errors, numbers with their units."""

import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

Event = dict[str, Any]
MOST_LINES, MOST_CHARACTERS = 12, 1000  # of a message
MAX_ROWS = 40  # longer tables of classes are cut; --json has all


class StatusLine:
    """The last line of the terminal, which tells how far something has come. It is written over, and never wraps."""

    def __init__(self) -> None:
        self._width = 0  # of what stands there

    @property
    def is_live(self) -> bool:
        return sys.stderr.isatty()

    def show(self, parts: Sequence[str]) -> None:
        """The first part and the last one stay where the terminal is too narrow for all."""
        columns, parts = columns_of(sys.stderr), list(parts)
        while len(parts) > 1 and len("  ".join(parts)) >= columns:
            del parts[max(len(parts) - 2, 1)]
        text = visible("  ".join(parts)[: columns - 1])
        print(f"\r{text:{min(self._width, columns - 1)}}", end="", file=sys.stderr, flush=True)
        self._width = len(text)

    def clear(self) -> None:
        if self._width:
            print(f"\r{'':{self._width}}\r", end="", file=sys.stderr, flush=True)
            self._width = 0


def columns_of(stream: TextIO) -> int:
    """The columns of the terminal that a stream writes to, or the variable COLUMNS; 80 where it is none."""
    found = 0
    with suppress(OSError, ValueError):
        found = os.get_terminal_size(stream.fileno()).columns
    return shutil.get_terminal_size((found or 80, 24)).columns


STATUS = StatusLine()


def print_error(message: str) -> None:
    STATUS.clear()
    rank = os.environ.get("RANK", "0")  # of several processes, those that are not the first say which they are
    lines = "\n".join(map(visible, within_a_screen(message).split("\n")))
    print(f"mlpmixer: {f'rank {rank}: ' if rank != '0' else ''}{lines}", file=sys.stderr, flush=True)


def within_a_screen(message: str) -> str:
    """A message of at most a screen. Its start says what is wrong and its end what to type: what came, which is often
    a value of someone else's file, goes from the middle."""
    lines = message.split("\n")
    if len(lines) > MOST_LINES:
        lines = [
            *lines[: MOST_LINES // 2],
            f"... ({len(lines) - MOST_LINES + 1:,} lines)",
            *lines[-MOST_LINES // 2 + 1 :],
        ]
    text = "\n".join(lines)
    if len(text) <= MOST_CHARACTERS:
        return text
    start, end = text[: MOST_CHARACTERS // 2], text[-MOST_CHARACTERS // 2 :]
    return f"{start} ... ({len(text) - MOST_CHARACTERS:,} characters) ... {end}"


SPEAKING_S = 30.0


def let_another_speak() -> None:
    """While another process says what is wrong for all, wait: torchrun ends all when one has ended, which must not be
    this one."""
    time.sleep(SPEAKING_S)


def print_json(value: Any) -> None:
    print(json.dumps(finite(value), ensure_ascii=False, default=str), flush=True)


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def visible(text: str) -> str:
    """Names come from files of others: what would steer the terminal, such as an escape sequence or a line break, is
    shown as a box."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{WHITE SQUARE}" for c in text)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of text, numbers to the right."""
    rows = [tuple(map(visible, row)) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    right = [
        bool(rows) and all(re.fullmatch(r"[<+-]?[\d.,]*( [%GM])?", row[i]) for row in rows) for i in range(len(header))
    ]
    for row in (header, *rows):
        cells = (f"{c:>{w}}" if r else f"{c:{w}}" for c, w, r in zip(row, widths, right, strict=True))
        print("  ".join(cells).rstrip())


def first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def multiply_adds(flops: int) -> str:
    """For an image, as papers write them: 3.78 G, 80.1 M."""
    return f"{flops / 2e9:.2f} G" if flops >= 2e9 else f"{flops / 2e6:.1f} M"


def between(interval: Sequence[float]) -> str:
    """A 95 % interval of a share: (84.4-85.8)"""
    low, high = (f"{100 * share:.1f}" for share in interval)
    return f"({low}-{high})"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    s = round(seconds)
    return (
        f"{s} s"
        if s < 60
        else f"{s // 60} min {s % 60:02d} s"
        if s < 3600
        else f"{s // 3600} h {s % 3600 // 60:02d} min"
    )

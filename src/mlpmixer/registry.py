"""Names for things: one dict per kind, filled by a decorator, looked up with a helpful error."""

import difflib
import fnmatch
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")
MOST_NAMES = 40  # that a message lists
MUCH_LESS = 0.2  # of difflib's likeness: "trian" means train (0.8), not lr-find (0.5)


def shortened(text: object, most: int = 300) -> str:
    """Text of unknown origin on one line, cut to `most` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[:most]}..."


def shown(value: object) -> str:
    """A value from a file or a command line, as an error quotes it."""
    try:
        return shortened(repr(value), 80)
    except ValueError:  # Python prints no whole number of more than 4,300 digits
        return "a number of thousands of digits"


def matching(names: Iterable[str], patterns: str | Iterable[str] | None) -> list[str]:
    """The names that fit a pattern such as "*16*", or one of several, whatever their case; all where there is none."""
    patterns = [patterns] if isinstance(patterns, str) else list(patterns or ())
    folded = [p.casefold() for p in patterns if p]
    return [n for n in names if not folded or any(fnmatch.fnmatchcase(n.casefold(), p) for p in folded)]


def nearest(name: str, known: Iterable[str], at_most: int = 3) -> list[str]:
    """The known names that are most like `name`, whatever their case; none that is much less like it than the first."""
    folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(name.casefold(), folded, at_most, 0.5)
    ratios = [difflib.SequenceMatcher(None, c, name.casefold()).ratio() for c in close]
    return [folded[c] for c, ratio in zip(close, ratios, strict=True) if ratio > ratios[0] - MUCH_LESS]


def suggest(name: str, known: Iterable[str]) -> str:
    """The nearest known names as a sentence: "did you mean B/16, B/32?" or "known: ..."."""
    known = sorted(known)
    if close := nearest(name, known):
        return f"did you mean {', '.join(close)}?"
    more = f" and {len(known) - MOST_NAMES:,} more" if len(known) > MOST_NAMES else ""
    return f"known: {', '.join(known[:MOST_NAMES])}{more}"


class UnknownName(ValueError):
    """A name that is not in the registry; the message suggests the nearest ones."""


class Registry(dict[str, T], Generic[T]):
    """Things of one kind by name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """The decorator that adds a thing under this name."""

        def add(thing: T) -> T:
            assert name not in self, f"{self.kind} {name!r} is already registered"
            self[name] = thing
            return thing

        return add

    def __missing__(self, name: str) -> T:
        raise UnknownName(f"no {self.kind} named {shown(name)}; {suggest(name, self)}")

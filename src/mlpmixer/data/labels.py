"""Labels as files hold them, numbers or names, and the classes that they mean."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mlpmixer.registry import shortened, shown

Label = int | str | None
"""None and -1 mean that there is no label."""
MAX_NAME = 1000  # characters of a class's name
Meaning = Literal["numbers", "names"]
"""Meaning of whole numbers: places in the list of classes from 0 on, or classes whose names are digits."""


def nfc(text: str) -> str:
    """A name as names are compared: macOS writes accents as characters of their own."""
    return unicodedata.normalize("NFC", text)


def class_name(text: str) -> str:
    """The name in NFC. ValueError for one that no line can hold."""
    name = nfc(text)
    if len(name) > MAX_NAME:
        raise ValueError(f"a class is named {shown(text)}; expected at most {MAX_NAME:,} characters, got {len(name):,}")
    if not name.strip() or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        raise ValueError(f"a class is named {shown(text)}; expected a name that can be printed in one line: rename it")
    return name


def read_label(text: bytes) -> Label:
    """A label from a file of text: a number if it is spelt as Python prints it, else a name, as it is: 007, +1, 1_1."""
    name = text.decode("utf-8-sig", "backslashreplace").removesuffix("\n").removesuffix("\r")
    digits = name.removeprefix("-")
    plain = digits.isascii() and digits.isdecimal() and len(digits) < 19
    return int(name) if plain and str(int(name)) == name else name or None


def used_labels(labels: Iterable[Label]) -> tuple[int | str, ...]:
    """The different labels, sorted, numbers first; without None and -1."""
    different = {class_name(v) if isinstance(v, str) else v for v in labels if v is not None and v != -1}
    return tuple(sorted(different, key=lambda v: (isinstance(v, str), v)))


@dataclass(frozen=True)
class LabelEncoder:
    """The names of the classes, and the class of each label."""

    classes: tuple[str, ...]
    indices: dict[int | str, int]

    @classmethod
    def of_classes(cls, names: Sequence[str], meaning: Meaning = "numbers") -> "LabelEncoder":
        """Labels are these names, or whole numbers with that meaning. ValueError when two are the same."""
        classes = tuple(map(class_name, names))
        if twice := next((name for name, n in Counter(classes).items() if n > 1), None):
            raise ValueError(f"two classes have the same name, {shown(twice)}: rename one of them")
        numbers = {i: i for i in range(len(classes))} if meaning == "numbers" else _spelt(classes)
        return cls(classes, numbers | {name: i for i, name in enumerate(classes)})

    @classmethod
    def of_labels(cls, labels: Iterable[Label]) -> "LabelEncoder":
        """The labels that occur are the classes, in their order."""
        used = used_labels(labels)
        places = {name: i for i, name in enumerate(dict.fromkeys(map(str, used)))}
        return cls(tuple(places), {v: places[str(v)] for v in used})

    def encode(self, label: Label, where: str) -> int:
        """The index of the class, -1 without a label. ValueError, which names `where`, for an unknown one."""
        if label is None or label == -1:
            return -1
        index = self.indices.get(nfc(label) if isinstance(label, str) else label)
        if index is None:
            names = shortened(", ".join(self.classes[:5])) + (", ..." if len(self.classes) > 5 else "")
            raise ValueError(
                f"{where} has the label {shown(label)}, which is none of the {len(self.classes)} classes: {names}"
            )
        return index


def meaning_of(labels: Iterable[int | str], classes: Sequence[str]) -> tuple[Meaning, bool]:
    """Meaning of the whole numbers among `labels` (all that occur), and whether the other one would fit, too.

    They mean names if each label is the name of a class or some label is not a number, else numbers.
    """
    used, spelt = set(labels), _spelt(classes)
    numbers, named = {v for v in used if isinstance(v, int)}, used <= {*spelt, *classes}
    in_range = used == numbers and used <= set(range(len(classes)))
    meaning: Meaning = "names" if named or used != numbers else "numbers"
    return meaning, named and in_range and any(spelt[v] != v for v in numbers)


def _spelt(classes: Sequence[str]) -> dict[int | str, int]:
    """The classes whose names are digits, by the number that these spell."""
    return {n: i for i, name in enumerate(classes) if isinstance(n := read_label(name.encode()), int)}

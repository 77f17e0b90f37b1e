"""Images whose classes are in a table: a CSV or TSV file with a column of files, and a column of classes or many of 0
and 1.

An image has several classes where a cell names them (cat;dog or cat|dog), where the file has a row for each, or where
columns titled after the classes hold 0 and 1.
"""

import csv
import io
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np

from mlpmixer.data.image_set import ImageSet, RawSplits, multi_hot
from mlpmixer.data.images import IMAGE_SUFFIXES
from mlpmixer.data.labels import LabelEncoder, read_label
from mlpmixer.data.paths import SPLIT_WORDS, TRAIN, VAL, count, printable
from mlpmixer.data.readers.folder import image_files

FILE_COLUMNS = ("file", "filename", "file_name", "image", "path", "filepath", "image_path", "image_id", "img", "id")
CLASS_COLUMNS: tuple[str, ...] = ("label", "class", "labels", "classes", "class_name", "tags", "category", "target")
CLASS_COLUMNS += ("species", "breed", "name")
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "is_valid")
SPLIT_CELLS = SPLIT_WORDS | {"true": VAL, "1": VAL, "false": TRAIN, "0": TRAIN}  # is_valid
ZERO_ONE = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
DELIMITERS = ",\t;|"
SEVERAL = 0.1  # of the files in rows of different classes: these are then several classes of an image, and no mistakes
SHOWN = 10  # names in a note

Row = tuple[str, ...]
Find = Callable[[str], str | None]
MultiLabel = Literal["auto", "yes", "no"]


@dataclass
class Listed:
    """The rows of a table about one file."""

    shown: str
    split: str
    classes: Row = ()
    clash: str = ""
    """Two splits that it is in."""
    in_rows: bool = False
    """Whether it has classes in several rows."""


class Listing:
    """The rows of a table, by the path of the file."""

    def __init__(self) -> None:
        self.files: dict[str, Listed] = {}
        self.missing: list[str] = []
        self.repeated = self.unlabelled = 0

    def add(self, path: str | None, cell: str, classes: Row, split: str) -> None:
        """Add a row of the table. path: None where there is no such file."""
        if path is None:
            self.missing.append(cell)
            return
        one = self.files.setdefault(path, Listed(printable(cell), split))
        new = set(classes) - set(one.classes)
        self.unlabelled += not classes
        self.repeated += bool(classes) and not new
        one.in_rows |= bool(new and one.classes)
        one.classes = tuple(dict.fromkeys([*one.classes, *classes]))
        if split != one.split:
            one.clash = f"{one.split} and {split}"

    def has_several(self) -> bool:
        """Whether images have several classes: in one row, or enough of them in several rows."""
        in_rows = sum(one.in_rows for one in self.files.values())
        in_a_row = any(len(one.classes) > 1 and not one.in_rows for one in self.files.values())
        return in_a_row or in_rows >= SEVERAL * max(len(self.files), 1)

    def clashes(self, multi_label: bool) -> dict[str, str]:
        """The files that are in two splits or, but for `multi_label`, in two classes, and in which."""
        found = {path: one.clash for path, one in self.files.items() if one.clash}
        if not multi_label:
            found |= {path: " and ".join(one.classes) for path, one in self.files.items() if len(one.classes) > 1}
        return found


def read_table(file: str, folder: str, name: str, multi_label: MultiLabel = "auto") -> RawSplits:
    """The images that a table lists, with or without a line of titles and a column of splits.

    Files are relative to `folder` or to the table, or lie below the folder under a name that is there once, with or
    without its suffix. What is listed and is not there, listed with two classes (unless images have several), or there
    and not listed is left out, with a note. multi_label: see `Data`. ValueError when no columns of files and of classes
    can be told, and when cells may be one class or several.
    """
    where, found = printable(os.path.basename(file)), list(image_files(folder))
    exactly, find = _finders((folder, os.path.dirname(file)), folder, found)
    rows = _rows(file, exactly)
    files, classes, splits, titles = _columns(rows, exactly, find, where, printable(folder))
    body = rows[len(titles) > 0 :]
    if len(classes) > 1:
        cells = [tuple(titles[k] for k in classes if ZERO_ONE[row[k].casefold()]) for row in body]
    else:
        cells = _cells([row[classes[0]] for row in body], multi_label, where)
    listing = Listing()
    for number, (row, own) in enumerate(zip(body, cells, strict=True), 1 + (len(titles) > 0)):
        split = "all" if splits is None else SPLIT_CELLS.get(row[splits].casefold(), "")
        if not split:
            raise ValueError(f"{where}, row {number}: expected train, val or test, got {row[splits or 0]!r}")
        listing.add(find(row[files]), row[files], own, split)
    zeros = len(classes) > 1 and listing.unlabelled > 0  # such a row says that the image has none of the classes
    is_multi_label = multi_label == "yes" or (multi_label == "auto" and (zeros or listing.has_several()))
    clashes = listing.clashes(is_multi_label)
    used = {p: one for p, one in listing.files.items() if p not in clashes and (one.classes or is_multi_label)}
    titled = [titles[k] for k in classes] if len(classes) > 1 and is_multi_label else []
    whole = _image_set(used, titled, is_multi_label)
    if not used or not whole.classes:
        raise ValueError(f"{where} lists no existing image that has exactly one class")
    of_split = np.array([one.split for one in used.values()])
    sets = {s: whole.subset(np.flatnonzero(of_split == s)).labelled() for s in dict.fromkeys(of_split.tolist())}
    in_rows = any(one.in_rows for one in listing.files.values())
    two = f"are listed in {where} with two classes or splits" + (
        "; if images have several classes: --data.multi-label yes" if multi_label == "auto" and in_rows else ""
    )
    left_out = {
        f"are listed in {where}, but not there": listing.missing,
        two: [f"{listing.files[p].shown} ({clash})" for p, clash in clashes.items()],
        f"are not listed in {where}": [label for path, label in found if path not in listing.files],
    }
    columns = [titles[files], *(titles[k] for k in classes[:5])] if titles else []
    more_columns = ", ..." if len(classes) > 5 else ""
    notes = [f"classes from {where}" + (f", columns {', '.join(map(repr, columns))}{more_columns}" if columns else "")]
    notes += [f"{_some(names)}: {what}" for what, names in left_out.items() if names]
    repeated, unlabelled = listing.repeated, 0 if is_multi_label else listing.unlabelled
    if repeated or unlabelled:
        hint = "; if these images have none of the classes: --data.multi-label yes" if unlabelled else ""
        notes.append(
            f"{where}: {count(repeated, 'row')} repeated, {count(unlabelled, 'row')} without a class left out{hint}"
        )
    stray = [(printable(n), what.replace("are ", "", 1)) for what, names in left_out.items() for n in names]
    return RawSplits(name, {s: images for s, images in sets.items() if len(images)}, notes, stray)


def _image_set(used: Mapping[str, Listed], titles: Sequence[str], multi_label: bool) -> ImageSet:
    """The files as images, each with its class; multi_label: with its classes, of which `titles` are some."""
    labels = [[read_label(text.encode()) for text in one.classes] for one in used.values()]
    titled = [read_label(title.encode()) for title in titles]
    encoder, names = LabelEncoder.of_labels([*titled, *chain.from_iterable(labels)]), [o.shown for o in used.values()]
    numbers = [[encoder.encode(label, name) for label in own] for own, name in zip(labels, names, strict=True)]
    targets = multi_hot(numbers, len(encoder.classes)) if multi_label else np.array([k for k, *_ in numbers])
    return ImageSet(encoder.classes, targets, names, [*used])


def _finders(places: Sequence[str], folder: str, found: Sequence[tuple[str, str]]) -> tuple[Find, Find]:
    """Two functions from a cell to the path of the listed file: as it is written, and also by the rest of its name.

    found: (path, name relative to `folder`) of the images below it.
    """
    by_name: dict[str, str | None] = {}
    for path, label in found:
        short = unicodedata.normalize("NFC", os.path.basename(label))
        for key in {short, *(os.path.splitext(n)[0] for n in (short, unicodedata.normalize("NFC", label)))}:
            by_name[key] = None if key in by_name else path

    def exactly(cell: str) -> str | None:
        spellings = dict.fromkeys((cell, *(unicodedata.normalize(form, cell) for form in ("NFC", "NFD"))))
        paths = (os.path.normpath(os.path.join(place, text)) for place in places for text in spellings)
        return next((path for path in paths if cell and "\0" not in cell and os.path.isfile(path)), None)

    return exactly, lambda cell: exactly(cell) or by_name.get(unicodedata.normalize("NFC", cell))


def _cells(cells: Sequence[str], multi_label: MultiLabel, where: str) -> list[Row]:
    """The classes that each cell names. ValueError when that cannot be told."""
    different = sorted({*cells} - {""})
    if multi_label != "no" and different and all(cell[0] + cell[-1] == "[]" for cell in different):
        raise ValueError(
            f"{where} has lists such as {different[0]} in its cells: separate the classes of an image by ; as in "
            "cat;dog, or take each cell for one class with --data.multi-label no"
        )
    separators = [s for s in ";|" if multi_label != "no" and any(s in cell for cell in different)]
    if len(separators) > 1:
        raise ValueError(
            f"{where} has cells with ; and cells with |: separate the classes of an image by one of them, or take each "
            "cell for one class with --data.multi-label no"
        )
    for separator in () if separators or multi_label == "no" else ", ":
        parts = {cell: [part.strip() for part in cell.split(separator) if part.strip()] for cell in different}
        lists = [cell for cell, own in parts.items() if len(own) > 1]
        alone = [cell for cell in lists if set(parts[cell]) <= set(different)]
        is_list = alone or len({word for own in parts.values() for word in own}) < len(different)
        example = next(iter(alone or lists), "") if is_list else ""
        if example and multi_label == "auto":
            several = " and ".join(map(repr, parts[example]))
            raise ValueError(
                f"{where}: is {example!r} one class, or {several}? Take it for one with --data.multi-label no, for "
                "several with --data.multi-label yes"
            )
        if example:
            separators = [separator]
            break
    if not separators:
        return [(cell,) if cell else () for cell in cells]
    split = ((part.strip() for part in cell.split(separators[0])) for cell in cells)
    return [tuple(dict.fromkeys(part for part in parts if part)) for parts in split]


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return f"{count(len(names), 'file')} left out, {', '.join(map(printable, names[:SHOWN]))}{more}"


def _rows(file: str, find: Find) -> list[Row]:
    """The cells of each line that is not empty, without spaces around them."""
    where = printable(file)
    try:
        with open(file, "rb") as content:
            text = content.read()
        encoding = "utf-16" if text[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # UTF-16: spreadsheets
        lines = list(io.StringIO(text.decode(encoding), newline=""))
    except OSError as e:
        raise ValueError(f"{where} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ValueError(f"{where} is not text in UTF-8 (byte {e.start}): save it as CSV, in UTF-8") from e
    first = "".join(lines[:1])
    delimiter = max(DELIMITERS, key=lambda delimiter: _fits(lines, delimiter, find))
    try:
        table = [tuple(map(str.strip, row)) for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)]
    except csv.Error as e:
        raise ValueError(f"{where} is not a table: {e}") from e
    table = [row for row in table if any(row)]
    width = len(table[0]) if table else 0
    if width < 2:
        raise ValueError(
            f"{where}: expected rows of a file and its class, such as photos/1.jpg,cat; got {first[:80]!r}"
        )
    if odd := next((number for number, row in enumerate(table, 1) if len(row) != width), 0):
        raise ValueError(f"{where}, row {odd}: expected {width} cells as in the first row, got {len(table[odd - 1])}")
    return table


def _fits(lines: Sequence[str], delimiter: str, find: Find) -> tuple[bool, int]:
    """Whether the first rows have as many cells each, more than one, if this is what separates them; how many files
    are then named in one column."""
    try:
        rows = [row for row in csv.reader(lines[:200], delimiter=delimiter, skipinitialspace=True) if any(row)]
    except csv.Error:
        return False, 0
    rows = rows[:-1] if len(lines) > 200 else rows  # a cell may go on in the next line
    widths = {len(row) for row in rows}
    columns = zip(*rows, strict=False)
    named = max((sum(find(cell.strip()) is not None for cell in column) for column in columns), default=0)
    return len(widths) == 1 and min(widths) > 1, named if max(widths, default=0) > 1 else 0


def _columns(
    rows: Sequence[Row], exactly: Find, find: Find, where: str, folder: str
) -> tuple[int, list[int], int | None, Row]:
    """The columns of files, of classes (several: 0 and 1 for each class) and, if there is one, of splits, and the
    titles; () without titles."""
    width = range(len(rows[0]))
    words = [cell.casefold() for cell in rows[0]]
    exact, loose = ([sum(f(row[k]) is not None for row in rows[:200]) for k in width] for f in (exactly, find))
    files = max(width, key=lambda k: (exact[k], loose[k] > 0 and words[k] in FILE_COLUMNS, loose[k]))
    if not loose[files]:
        raise ValueError(f"{where} names no file that is in {folder} or beside it, e.g. {rows[-1][0]!r}")
    first = rows[0][files]
    titled = find(first) is None and os.path.splitext(first)[1].lower() not in IMAGE_SUFFIXES
    titles, others = rows[0] if titled else (), [k for k in width if k != files]
    words = words if titled else []
    splits = next((words.index(word) for word in SPLIT_COLUMNS if word in words), None)
    if not titled and len(others) > 1:
        splits = next((k for k in others if all(row[k].casefold() in SPLIT_WORDS for row in rows)), None)
    others = [k for k in others if k != splits]
    others = [k for k in others if titles and titles[k]] or others  # pandas writes the number of a row without a title
    named = (words.index(word) for word in CLASS_COLUMNS if word in words and words.index(word) in others)
    classes = next(named, others[0] if len(others) == 1 else None)
    if classes is not None:
        return files, [classes], splits, tuple(titles)
    odd = [k for k in others if not all(row[k].casefold() in ZERO_ONE for row in rows[titled:])]
    if not titled or odd:
        zeros = f", or keep only columns of 0 and 1, one for each class ({titles[odd[0]]} has others)" if titled else ""
        raise ValueError(
            f"{where} has the columns {', '.join(titles or rows[0])}; which one has the classes? Title it label{zeros}"
        )
    return files, others, splits, tuple(titles)

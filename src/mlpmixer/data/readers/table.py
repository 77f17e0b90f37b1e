"""Images whose classes are in a table: a CSV or TSV file with a column of files and a column of classes."""

import csv
import io
import os
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from mlpmixer.data.image_set import ImageSet, RawSplits
from mlpmixer.data.images import IMAGE_SUFFIXES
from mlpmixer.data.labels import LabelEncoder, read_label
from mlpmixer.data.paths import SPLIT_WORDS, count, printable
from mlpmixer.data.readers.folder import image_files

CLASS_COLUMNS = ("label", "class", "labels", "classes", "class_name", "category", "target", "species", "breed", "name")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
DELIMITERS = ",\t;|"
SHOWN = 10  # names in a note

Row = tuple[str, ...]


def read_table(file: str, folder: str, name: str) -> RawSplits:
    """The images that a table lists, with or without a line of titles and a column of splits.

    Files are relative to `folder` or to the table. What is listed and is not there, listed with two classes, or there
    and not listed is left out, with a note. ValueError when no columns of files and of classes can be told.
    """
    rows, where = _rows(file), printable(os.path.basename(file))
    places = (folder, os.path.dirname(file))

    def find(cell: str) -> str | None:
        """The path of a listed file."""
        spellings = dict.fromkeys((cell, *(unicodedata.normalize(form, cell) for form in ("NFC", "NFD"))))
        paths = (os.path.normpath(os.path.join(place, text)) for place in places for text in spellings)
        return next((path for path in paths if cell and "\0" not in cell and os.path.isfile(path)), None)

    files, classes, splits, titles = _columns(rows, find, where, printable(folder))
    listed: dict[str, tuple[str, str]] = {}  # path -> class, split
    shown: dict[str, str] = {}
    missing: list[str] = []
    clashes: dict[str, str] = {}
    repeated = unlabelled = 0
    for number, row in enumerate(rows[len(titles) > 0 :], 1 + (len(titles) > 0)):
        split = "all" if splits is None else SPLIT_WORDS.get(row[splits].casefold(), "")
        if not split:
            raise ValueError(f"{where}, row {number}: expected train, val or test, got {row[splits or 0]!r}")
        path, entry = find(row[files]), (row[classes], split)
        if path is None:
            missing.append(row[files])
        elif not row[classes]:
            unlabelled += 1
        elif (before := listed.setdefault(path, entry)) != entry:
            k = int(before[0] == entry[0])
            clashes[path] = f"{before[k]} and {entry[k]}"
        else:
            repeated += path in shown
            shown.setdefault(path, printable(row[files]))
    used = [path for path in listed if path not in clashes]
    if not used:
        raise ValueError(f"{where} lists no image that is there and has one class")
    labels = [read_label(listed[path][0].encode()) for path in used]
    encoder = LabelEncoder.of_labels(labels)
    numbers = np.array([encoder.encode(label, shown[path]) for label, path in zip(labels, used, strict=True)])
    whole = ImageSet(encoder.classes, numbers, [shown[path] for path in used], used)
    of_split = np.array([listed[path][1] for path in used])
    sets = {s: whole.subset(np.flatnonzero(of_split == s)).labelled() for s in dict.fromkeys(of_split.tolist())}
    unlisted = [label for path, label in image_files(folder) if path not in listed]
    left_out = {
        f"are listed in {where}, but not there": missing,
        f"are listed in {where} with two classes or splits": [f"{shown[p]} ({c})" for p, c in clashes.items()],
        f"are not listed in {where}": unlisted,
    }
    notes = [f"classes from {where}" + (f", columns {titles[files]!r} and {titles[classes]!r}" if titles else "")]
    notes += [f"{_some(names)}: {what}" for what, names in left_out.items() if names]
    if repeated or unlabelled:
        notes.append(f"{where}: {count(repeated, 'row')} repeated, {count(unlabelled, 'row')} without a class left out")
    stray = [(printable(n), what.replace("are ", "", 1)) for what, names in left_out.items() for n in names]
    return RawSplits(name, {s: images for s, images in sets.items() if len(images)}, notes, stray)


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return f"{count(len(names), 'file')} left out, {', '.join(map(printable, names[:SHOWN]))}{more}"


def _rows(file: str) -> list[Row]:
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
    try:
        delimiter = csv.Sniffer().sniff("".join(lines[:100]), DELIMITERS).delimiter
    except csv.Error:  # too few lines, or too even
        delimiter = max(DELIMITERS, key=first.count)
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


def _columns(
    rows: Sequence[Row], find: Callable[[str], str | None], where: str, folder: str
) -> tuple[int, int, int | None, Row]:
    """The columns of files, of classes and, if there is one, of splits, and the titles; () without titles."""
    width = range(len(rows[0]))
    found = [sum(find(row[k]) is not None for row in rows[:200]) for k in width]
    files = int(np.argmax(found))
    if not found[files]:
        raise ValueError(f"{where} names no file that is in {folder} or beside it, e.g. {rows[-1][0]!r}")
    first = rows[0][files]
    titled = find(first) is None and os.path.splitext(first)[1].lower() not in IMAGE_SUFFIXES
    titles, others = rows[0] if titled else (), [k for k in width if k != files]
    words = [title.casefold() for title in titles]
    splits = next((words.index(word) for word in SPLIT_COLUMNS if word in words), None)
    if not titled and len(others) > 1:
        splits = next((k for k in others if all(row[k].casefold() in SPLIT_WORDS for row in rows)), None)
    others = [k for k in others if k != splits]
    named = (words.index(word) for word in CLASS_COLUMNS if word in words and words.index(word) in others)
    classes = next(named, others[0] if len(others) == 1 else None)
    if classes is None:
        raise ValueError(
            f"{where} has the columns {', '.join(titles or rows[0])}; which one has the classes? Title it label"
        )
    return files, classes, splits, tuple(titles)

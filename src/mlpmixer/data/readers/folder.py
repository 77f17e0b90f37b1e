"""A folder per class."""

import difflib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlpmixer.data.image_set import SPLIT_WORDS, ImageSet, RawSplits
from mlpmixer.data.images import IMAGE_SUFFIXES, Source
from mlpmixer.data.readers.cifar import CIFAR_FILES

_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


def readable(text: str) -> str:
    """A file name that can be printed and stored, whatever bytes it is made of."""
    return os.fsencode(text).decode("utf-8", "replace")


def neighbours(name: str) -> list[str]:
    """Paths beside a missing one whose names are like its name."""
    parent = os.path.dirname(os.path.expanduser(name))
    try:
        siblings = sorted(os.listdir(parent or "."))
    except (OSError, ValueError):
        return []
    return [
        readable(os.path.join(parent, s)) for s in difflib.get_close_matches(os.path.basename(name), siblings, 3, 0.6)
    ]


def class_name(folder: str) -> str:
    return unicodedata.normalize("NFC", readable(folder))  # macOS writes accents apart


def _entries(folder: str, seen: frozenset[tuple[int, int]]) -> tuple[list[str], list[str]]:
    """Names of (subfolders, everything else), sorted; links are followed, except back into a folder we came through."""
    folders: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            try:
                is_folder = entry.is_dir()
                loops = is_folder and (s := os.stat(entry.path)) and (s.st_dev, s.st_ino) in seen
            except OSError:  # a link to itself
                is_folder, loops = False, False
            if not loops:
                (folders if is_folder else others).append(entry.name)
    return folders, others


def _inode(path: str) -> tuple[int, int]:
    s = os.stat(path)
    return s.st_dev, s.st_ino


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


@dataclass
class _Scan:
    hidden: int = 0
    stray: list[tuple[str, str]] = field(default_factory=list)


def _files_below(folder: str, shown: str, scan: _Scan, seen: frozenset[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """(path, readable name) of the images below a class folder."""
    seen = seen | {_inode(folder)}
    try:
        folders, others = _entries(folder, seen)
    except OSError as e:
        scan.stray.append((readable(shown), f"cannot be listed: {e.strerror}"))
        return
    for name in others:
        path, label = os.path.join(folder, name), readable(f"{shown}/{name}")
        if _hidden(name):
            scan.hidden += 1
        elif os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
            scan.stray.append((label, "not an image file, by its name"))
        elif os.path.isfile(path) or os.path.islink(path):
            yield path, label
        else:
            scan.stray.append((label, "not a regular file"))
    for name in folders:
        if _hidden(name):
            scan.hidden += 1
        else:
            yield from _files_below(os.path.join(folder, name), f"{shown}/{name}", scan, seen)


def _split_folders(root: str, folders: Sequence[str], seen: frozenset[tuple[int, int]]) -> dict[str, str]:
    """Split -> subfolder, for subfolders with the name of a split that hold folders themselves ("train" can be a
    class)."""
    found: dict[str, str] = {}
    for folder in folders:
        split = SPLIT_WORDS.get(folder.casefold())
        if split and any(not _hidden(f) for f in _entries(os.path.join(root, folder), seen)[0]):
            if split in found:
                raise ValueError(
                    f"{readable(root)} has both {found[split]!r} and {folder!r}: which one is {split}? Keep one of them"
                )
            found[split] = folder
    return found


def read_folder(root: str, name: str) -> RawSplits:
    """A folder with one subfolder per class, with or without train/val/test folders above them."""
    seen = frozenset({_inode(root)})
    folders, others = _entries(root, seen)
    scan = _Scan(hidden=sum(map(_hidden, folders)) + sum(map(_hidden, others)))
    folders = [f for f in folders if not _hidden(f)]
    split_folders = _split_folders(root, folders, seen)
    _note_loose(scan, "", [o for o in others if not _hidden(o)])
    notes = []
    if split_folders:
        unused = [f for f in folders if f not in split_folders.values()]
        notes += [f"folder {readable(f)!r} beside {', '.join(split_folders.values())} is not used" for f in unused]
    images: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for split, sub in (split_folders or {"all": ""}).items():
        base = os.path.join(root, sub) if sub else root
        class_folders = folders
        if sub:
            class_folders, loose = _entries(base, seen)
            scan.hidden += sum(map(_hidden, class_folders)) + sum(map(_hidden, loose))
            _note_loose(scan, sub + "/", [o for o in loose if not _hidden(o)])
        of_class = images.setdefault(split, {})
        for folder in class_folders:
            if not _hidden(folder):
                shown = f"{sub}/{folder}" if sub else folder
                of_class.setdefault(class_name(folder), []).extend(
                    _files_below(os.path.join(base, folder), shown, scan, seen)
                )
    classes = sorted({c for of_class in images.values() for c in of_class})
    if not any(files for of_class in images.values() for files in of_class.values()):
        raise ValueError(
            f"{readable(root)} holds no images in class folders; expected "
            f"{readable(name)}/CLASS/image.jpg{_hint(others)}"
        )
    sets = {}
    for split, of_class in images.items():
        items = [(path, shown, k) for k, c in enumerate(classes) for path, shown in of_class.get(c, ())]
        sources: list[Source] = [path for path, _, _ in items]
        if items:
            sets[split] = ImageSet(
                classes, np.array([k for _, _, k in items]), [shown for _, shown, _ in items], sources
            )
        else:
            notes.append(f"folder {split_folders[split]!r} holds no images")
    if scan.hidden:
        notes.append(f"{scan.hidden} hidden files or folders skipped")
    if scan.stray:
        notes.append(
            f"{len(scan.stray)} files are not images of a class and are left out, e.g. {scan.stray[0][0]} "
            f"({scan.stray[0][1]})"
        )
    return RawSplits(name, sets, notes, scan.stray)


def _note_loose(scan: _Scan, prefix: str, names: Sequence[str]) -> None:
    for name in names:
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            scan.stray.append((readable(prefix + name), "an image outside of the class folders"))


def _hint(others: Sequence[str]) -> str:
    if any("ubyte" in o for o in others):
        return ". These look like MNIST's original files: use mnist or fashion-mnist with --data-dir"
    if any(CIFAR_FILES.fullmatch(o.lower()) for o in others):
        return ". These look like CIFAR's original files: use cifar10 or cifar100 with --data-dir"
    if any(os.path.splitext(o)[1].lower() in IMAGE_SUFFIXES for o in others):
        return ". The images lie side by side: put those of each class into a folder of its own"
    return ""

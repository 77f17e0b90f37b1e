"""A folder with a subfolder of images for each class, with or without train, val and test folders above them."""

import os
from collections.abc import Iterator, Sequence
from operator import itemgetter

import numpy as np

from mlpmixer.data.image_set import ImageSet, RawSplits
from mlpmixer.data.images import is_image_file
from mlpmixer.data.labels import class_name
from mlpmixer.data.paths import SPLIT_WORDS, Layout, count, printable

TABLES = (".csv", ".tsv")
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
Inodes = frozenset[tuple[int, int]]


def read_folder(root: str, name: str, layout: Layout = "auto") -> RawSplits:
    """ROOT/CLASS/.../image or ROOT/SPLIT/CLASS/.../image. ValueError when there are no images in such folders."""
    scan = _Scan()
    folders, others = scan.entries(root)
    splits, notes = _split_folders(root, folders) if layout != "classes" else ({}, [])
    if layout == "auto" and (beside := _beside(root, splits, folders)):
        notes = [
            f"folder {one!r} is taken for a class like those beside it, {beside}, and not for the {split} images "
            "(--data.layout splits)"
            for split, one in splits.items()
        ]
        splits = {}
    scan.note_loose(root, "", others)
    if splits:
        unused = ", ".join(repr(printable(f)) for f in folders if f not in splits.values())
        if unused:
            beside = f"beside {', '.join(splits.values())}, which are taken for splits (--data.layout classes)"
            notes = [f"not used: {unused}, {beside}"]
    elif layout == "splits":
        unused = ", ".join(repr(f) for f in folders if f.casefold() in SPLIT_WORDS)
        if not unused:
            raise ValueError(
                f"{printable(root)} has no folder named train, val or test (data.layout=splits); expected "
                f"{printable(name)}/train/CLASS/image.jpg"
            )
        folders = [f for f in folders if f.casefold() not in SPLIT_WORDS]
        notes = [f"not used: {unused}, with no class folders in it (--data.layout classes takes it for a class)"]
    classes: set[str] = set()
    found: dict[str, list[tuple[str, str, str]]] = {}  # split -> (class, path, readable name)
    for split, folder in (splits or {"all": ""}).items():
        if folder:
            folders, loose = scan.entries(os.path.join(root, folder))
            scan.note_loose(os.path.join(root, folder), f"{folder}/", loose)
        above = frozenset({_inode(root), _inode(os.path.join(root, folder))})
        images = found[split] = []
        by_class: dict[str, str] = {}
        for sub in folders:
            path, name_of_class = os.path.join(folder, sub), class_name(printable(sub))
            if (other := by_class.setdefault(name_of_class, sub)) != sub:
                raise ValueError(
                    f"{printable(os.path.join(root, folder))}: the folders {other!a} and {sub!a} are the "
                    f"same class {name_of_class!r}; put their images into one of them"
                )
            images += [(name_of_class, *image) for image in scan.images(os.path.join(root, path), path, above)]
        classes.update(by_class)
        images.sort(key=itemgetter(0))
    index = {c: i for i, c in enumerate(sorted(classes))}
    sets = {}
    for split, images in found.items():
        if images:
            labels = np.array([index[c] for c, _, _ in images])
            sets[split] = ImageSet(
                list(index), labels, [shown for *_, shown in images], [path for _, path, _ in images]
            )
        elif splits:
            notes.append(f"folder {splits[split]!r} holds no images")
    tables = [printable(n) for n in others if n.lower().endswith(TABLES)]
    if not sets:
        raise ValueError(
            f"{printable(root)} holds no images in class folders; expected {printable(name)}/CLASS/image.jpg"
            + (". The images lie side by side: put those of each class into a folder of its own" if scan.loose else "")
            + (f". To take the classes from a table: --data.labels {tables[0]}" if tables else "")
        )
    if tables:
        notes.append(f"{tables[0]} is not read (--data.labels {tables[0]} takes the classes from it)")
    if scan.hidden:
        notes.append(f"{scan.hidden} hidden files or folders skipped")
    if scan.stray:
        notes.append(
            f"left out: {count(len(scan.stray), 'file')} that no class has, e.g. {scan.stray[0][0]} "
            f"({scan.stray[0][1]})"
        )
    return RawSplits(name, sets, notes, scan.stray)


def _split_folders(root: str, folders: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(split -> subfolder with such a name, notes about those that are classes): "train" can be a vehicle."""
    found: dict[str, str] = {}
    notes = []
    for folder in folders:
        split = SPLIT_WORDS.get(folder.casefold())
        if split and _Scan().entries(os.path.join(root, folder))[0]:
            if split in found:
                both = f"{found[split]!r} and {folder!r}"
                raise ValueError(f"{printable(root)} has both {both}: which one is {split}? Keep one of them")
            found[split] = folder
        elif split:
            notes.append(
                f"folder {folder!r} is taken for a class, as it has no folders in it; if it holds the {split} images, "
                "put those of each class into a folder of its own there, or leave it out: --data.layout splits"
            )
    return found, notes


def _beside(root: str, splits: dict[str, str], folders: Sequence[str]) -> str:
    """The folders of images beside the only one that is named after a split, unless it holds folders of such names."""
    if len(splits) != 1:
        return ""
    (named,) = splits.values()
    inside = _Scan().entries(os.path.join(root, named))[0]
    others = [f for f in folders if f.casefold() not in SPLIT_WORDS]
    images = [f for f in others if next(_Scan().images(os.path.join(root, f), f, frozenset()), None)]
    return "" if set(inside) & set(others) else ", ".join(map(repr, map(printable, images[:3])))


def image_files(folder: str) -> Iterator[tuple[str, str]]:
    """(path, name relative to the folder) of all images in it and below."""
    for path, label in _Scan().images(folder, "", frozenset()):
        yield os.path.normpath(path), label.lstrip("/")


def _inode(path: str) -> tuple[int, int]:
    info = os.stat(path)
    return info.st_dev, info.st_ino


class _Scan:
    """A walk through folders, which keeps account of what it leaves out."""

    def __init__(self) -> None:
        self.hidden = 0
        self.loose = False
        self.stray: list[tuple[str, str]] = []

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Names of (subfolders, everything else), sorted, without hidden ones; links are followed."""
        folders: list[str] = []
        others: list[str] = []
        for name in sorted(os.listdir(folder)):
            if name.startswith(".") or name.lower() in _SYSTEM_FILES:
                self.hidden += 1
            else:
                (folders if os.path.isdir(os.path.join(folder, name)) else others).append(name)
        return folders, others

    def images(self, folder: str, shown: str, above: Inodes) -> Iterator[tuple[str, str]]:
        """(path, readable name) of the images in a folder and below it, except through a link back to one above."""
        try:
            inode = _inode(folder)
            folders, others = ([], []) if inode in above else self.entries(folder)
        except OSError as e:
            self.stray.append((printable(shown), f"cannot be listed: {e.strerror}"))
            return
        for name in others:
            path, label = os.path.join(folder, name), printable(f"{shown}/{name}")
            if not is_image_file(path):
                self.stray.append((label, "not an image file, by its name" if "." in name else "not an image file"))
            elif os.path.isfile(path) or os.path.islink(path):
                yield path, label
            else:
                self.stray.append((label, "not a regular file"))
        for name in folders:
            yield from self.images(os.path.join(folder, name), f"{shown}/{name}", above | {inode})

    def note_loose(self, folder: str, prefix: str, names: Sequence[str]) -> None:
        """Images where only class folders are expected."""
        reason = "an image outside of the class folders"
        loose = [(printable(prefix + n), reason) for n in names if is_image_file(os.path.join(folder, n))]
        self.loose |= bool(loose)
        self.stray += loose

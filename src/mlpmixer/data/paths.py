"""Meanings of file and folder names: splits, shards of a whole, names like a missing one."""

import difflib
import os
import re
from collections.abc import Container, Sequence
from typing import Literal

TRAIN, VAL, TEST = "train", "val", "test"
Layout = Literal["auto", "classes", "splits"]
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "testing"), TEST),
}


def split_from_path(path: str) -> str | None:
    """train, val or test, if the file's name or that of its folder says so."""
    folder, base = os.path.split(path)
    words = [*re.split(r"[^a-z]+", base.lower()), os.path.basename(folder).lower()]
    return next((SPLIT_WORDS[w] for w in words if w in SPLIT_WORDS), None)


def split_of(path: str, layout: Layout) -> str:
    """The split that a file belongs to, "all" where its name says none, or is not to say one."""
    return "all" if layout == "classes" else split_from_path(path) or "all"


def count(n: int, what: str, plural: str = "s") -> str:
    """1 image, 2 images."""
    return f"{n:,} {what}{plural if n != 1 else ''}"


def printable(path: str) -> str:
    """A path that can be printed and stored, whatever bytes it is made of."""
    return os.fsencode(path).decode("utf-8", "replace")


def similar_paths(path: str) -> list[str]:
    """Paths beside a missing one whose names are similar."""
    parent, base = os.path.split(os.path.expanduser(path).rstrip(os.sep))
    try:
        siblings = sorted(os.listdir(parent or "."))
    except (OSError, ValueError):
        return []
    return [printable(os.path.join(parent, s)) for s in difflib.get_close_matches(base, siblings, 3, 0.6)]


def find_files(
    folder: str, suffixes: str | tuple[str, ...], depth: int, into: Container[str] | None = None
) -> list[str]:
    """The files of a folder; if it has none, of its subfolders (named in `into`), at most `depth` levels down."""
    level = [folder]
    for _ in range(depth + 1):
        entries = [os.path.join(d, e) for d in level for e in sorted(os.listdir(d)) if not e.startswith(".")]
        if files := [e for e in entries if e.lower().endswith(suffixes) and os.path.isfile(e)]:
            return files
        folders = [e for e in entries if into is None or os.path.basename(e).lower() in into]
        level = [f for f in folders if os.path.isdir(f)][:200]
    return []


def require_all_shards(paths: Sequence[str]) -> None:
    """ValueError if some of the files named NAME-00003-of-00010 are missing."""
    shards = [m for p in paths if (m := re.search(r"^(.*)-(\d+)-of-(\d+)", os.path.basename(p)))]
    suffix = os.path.splitext(paths[0])[1]
    for stem, total in {(m[1], m[3]) for m in shards}:
        present = {int(m[2]) for m in shards if (m[1], m[3]) == (stem, total)}
        if int(total) < 100_000 and len(present) < int(total):
            missing = [f"{stem}-{i:05d}-of-{total}{suffix}" for i in range(int(total)) if i not in present]
            raise ValueError(f"incomplete: {', '.join(missing[:5])} missing beside {paths[0]}")

"""The file formats of data sets: IDX, CIFAR's three, Parquet as on the Hugging Face Hub, a folder per class.

Each reader returns what is there as `Parts`; cutting splits and checking classes is done by `datasets`.
"""

import difflib
import gzip
import io
import json
import lzma
import os
import pickle
import re
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from mlpmixer.data.image_set import ArrayImages, ArrowImages, ImageSet, Numbered, chain
from mlpmixer.data.images import IMAGE_SUFFIXES, Source

TRAIN, VAL, TEST = "train", "val", "test"
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "testing"), TEST),
}
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_MAX_BYTES = 1 << 32  # no file of the original data sets comes near it

Files = Mapping[str, Callable[[], bytes]]
"""Lower-case file name -> its bytes, unpacked."""


@dataclass
class Parts:
    """What the files hold: "train", "val", "test", whichever there are, or "all" when nothing says which."""

    name: str
    sets: dict[str, ImageSet]
    notes: list[str] = field(default_factory=list)
    stray: list[tuple[str, str]] = field(default_factory=list)
    """Files inside that are not images of a class, with the reason."""

    def __post_init__(self) -> None:
        self.sets = {split: self.sets[split] for split in ("all", TRAIN, VAL, TEST) if split in self.sets}


# ---- the original files of MNIST and CIFAR


def unpacked(file: io.BufferedIOBase, name: str) -> bytes:
    """The bytes of a plain, .gz or .xz file. Raises ValueError naming it when it is damaged or absurdly large."""
    opener: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        stream = opener.get(os.path.splitext(name)[1].lower(), lambda f: f)(file)
        content = cast(bytes, stream.read(_MAX_BYTES))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as e:
        raise ValueError(f"{name} is damaged or cut short ({e}): fetch it again") from e
    if len(content) == _MAX_BYTES:
        raise ValueError(f"{name} unpacks to more than {_MAX_BYTES >> 30} GiB: not a file of this data set")
    return content


def files_in(folder: str) -> Files:
    """The files of a folder; .gz and .xz are listed without that suffix."""

    def reader(path: str) -> Callable[[], bytes]:
        def read() -> bytes:
            with open(path, "rb") as f:
                return unpacked(f, path)

        return read

    found: dict[str, Callable[[], bytes]] = {}
    for entry in sorted(os.listdir(folder)):
        path = os.path.join(folder, entry)
        if os.path.isfile(path) and not entry.startswith("."):
            stem, suffix = os.path.splitext(entry.lower())
            found.setdefault(
                stem if suffix in (".gz", ".xz") and not stem.endswith(".tar") else entry.lower(), reader(path)
            )
    return found


def files_in_tar(path: str, wanted: re.Pattern[str]) -> Files:
    """The wanted files of a .tar.gz, by base name; nothing is written to disk."""
    found: dict[str, Callable[[], bytes]] = {}
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                base = os.path.basename(member.name).lower()
                if (
                    member.isfile()
                    and wanted.fullmatch(base)
                    and member.size < _MAX_BYTES
                    and (f := tar.extractfile(member))
                ):
                    content = f.read()
                    found.setdefault(base, lambda content=content: content)  # type: ignore[misc]
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as e:
        raise ValueError(f"{path} is damaged or cut short ({e}): fetch it again") from e
    return found


def _idx(files: Files, stem: str, kind: str, dims: int) -> np.ndarray:
    names = [f"{stem}-{kind}{dot}idx{dims}-ubyte" for dot in "-."]
    name = next((n for n in names if n in files), None)
    if name is None:
        raise ValueError(f"{names[0]} is missing (also looked for as {names[1]}, .gz and .xz)")
    content = files[name]()
    header = 4 + 4 * dims
    if len(content) < header or content[:4] != bytes([0, 0, 8, dims]):
        raise ValueError(f"{name} is not an IDX file of {dims} dimensions of bytes")
    shape = [int.from_bytes(content[4 + 4 * d : 8 + 4 * d], "big") for d in range(dims)]
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise ValueError(
            f"{name} has {len(content)} bytes, its header says {expected}: it is cut short or damaged, fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_idx(files: Files, name: str, classes: Sequence[str]) -> Parts | None:
    """MNIST's layout; None when the folder has no such file."""
    if not any(re.match(r"(train|t10k)-(images|labels)[-.]idx", f) for f in files):
        return None
    sets = {}
    for split, stem in ((TRAIN, "train"), (TEST, "t10k")):
        pixels, labels = _idx(files, stem, "images", 3), _idx(files, stem, "labels", 1)
        if len(pixels) != len(labels):
            raise ValueError(f"{name}: {len(pixels)} {split} images but {len(labels)} labels")
        sets[split] = _from_arrays(split, pixels, labels, classes, 1)
    return Parts(name, sets)


def _from_arrays(split: str, pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str], channels: int) -> ImageSet:
    if not len(labels):
        raise ValueError(f"the {split} files hold no images")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"{split} has a label {labels.max()}, but there are {len(classes)} classes: these are the files of another "
            f"data set"
        )
    return ImageSet(classes, labels, Numbered(split, len(labels)), ArrayImages(pixels), channels=channels)


CIFAR_FILES = re.compile(
    r"(data_batch_[1-5]|test_batch|train|test)(\.bin)?|batches\.meta(\.txt)?|fine_label_names\.txt|meta"
)


def read_cifar(files: Files, name: str, classes: Sequence[str]) -> Parts | None:
    """CIFAR's binary and Python layouts; None when the folder has neither."""
    tens = len(classes) == 10
    stems = {
        TRAIN: [f"data_batch_{i}" for i in range(1, 6)] if tens else ["train"],
        TEST: ["test_batch"] if tens else ["test"],
    }
    for suffix, read in ((".bin", _cifar_binary), ("", _cifar_python)):
        wanted = {split: [s + suffix for s in names] for split, names in stems.items()}
        everything = [f for names in wanted.values() for f in names]
        if not any(f in files for f in everything):
            continue
        if missing := [f for f in everything if f not in files]:
            raise ValueError(f"{name}: {', '.join(missing)} missing beside {next(f for f in everything if f in files)}")
        sets = {}
        for split, names in wanted.items():
            batches = [read(files[f](), f, tens) for f in names]
            flat = np.concatenate([pixels for pixels, _ in batches])
            pixels = np.ascontiguousarray(flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            sets[split] = _from_arrays(split, pixels, np.concatenate([labels for _, labels in batches]), classes, 3)
        return Parts(name, sets)
    return None


def _cifar_binary(content: bytes, name: str, tens: bool) -> tuple[np.ndarray, np.ndarray]:
    skip = 1 if tens else 2  # CIFAR-100: coarse label, fine label
    if not content or len(content) % (skip + 3072):
        raise ValueError(
            f"{name} has {len(content)} bytes, not a multiple of {skip + 3072}: it is cut short or of another data set"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, skip + 3072)
    return rows[:, skip:], rows[:, skip - 1]


def _cifar_python(content: bytes, name: str, tens: bool) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _NumpyOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as e:  # a hostile or damaged pickle can raise anything
        raise ValueError(f"{name} is not a CIFAR batch: {e}") from e
    if not isinstance(batch, dict):
        raise ValueError(f"{name} is not a CIFAR batch: a {type(batch).__name__}")
    plain = {
        k.decode("latin1") if isinstance(k, bytes) else k: getattr(v, "value", None) if isinstance(v, _Array) else v
        for k, v in batch.items()
    }
    key = "labels" if tens else "fine_labels"
    pixels, labels = plain.get("data"), plain.get(key)
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != 3072
        or labels is None
    ):
        raise ValueError(
            f"{name} is not a CIFAR batch: expected data (uint8, N x 3072) and {key}, got {', '.join(map(str, plain))}"
        )
    try:
        labels = np.asarray(labels).astype(np.int64)
    except (ValueError, TypeError, OverflowError) as e:
        raise ValueError(f"{name}: {key} are not whole numbers") from e
    if labels.shape != (len(pixels),):
        raise ValueError(f"{name}: {len(pixels)} images but {key} of shape {labels.shape}")
    return pixels, labels


class _Dtype:
    """Stands in for numpy.dtype: plain numbers only."""

    def __init__(self, spec: object, *_: object) -> None:
        if not isinstance(spec, str) or not re.fullmatch(r"[<>|=]?[iuf][1248]", spec):
            raise pickle.UnpicklingError(f"it holds arrays of {spec!r}")
        self.value: np.dtype[Any] = np.dtype(spec)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands in for numpy.ndarray while unpickling; `value` is the real one."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.fill(raw.encode("latin1") if isinstance(raw, str) else raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: _Dtype, shape: Any, order: Any) -> "_Array":
        self.value = np.frombuffer(raw, dtype.value).reshape(shape, order=order)
        return self


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


class _NumpyOnly(pickle.Unpickler):
    """Knows what rebuilding plain numpy arrays takes, as the stand-ins above, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *_: _Array()
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return lambda raw, dtype, shape, order="C": _Array().fill(raw, dtype, shape, order)
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _Array if name == "ndarray" else _Dtype
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in an old pickle
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; only plain numpy arrays are read")


# ---- Parquet


def require_pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise ValueError('reading Parquet files needs pyarrow: pip install "mlpmixer[hf]"') from e
    return pyarrow


def split_of(path: str) -> str | None:
    """train, val or test, when that is a word of the file's name or the name of its folder; None when it does not
    say."""
    folder, base = os.path.split(path)
    words = [*re.split(r"[^a-z]+", base.lower()), os.path.basename(folder).lower()]
    return next((SPLIT_WORDS[w] for w in words if w in SPLIT_WORDS), None)


def parquet_files(folder: str, depth: int = 2) -> list[str]:
    """The .parquet files of a folder, or when it has none of its subfolders, `depth` levels down at most."""
    level = [folder]
    for _ in range(depth + 1):
        entries = [os.path.join(d, e) for d in level for e in sorted(os.listdir(d)) if not e.startswith(".")]
        if files := [e for e in entries if e.lower().endswith(".parquet") and os.path.isfile(e)]:
            return files
        level = [e for e in entries if os.path.isdir(e)][:200]
    return []


def read_parquet(files: Sequence[str], name: str, classes: Sequence[str] | None, channels: int = 3) -> Parts:
    """Parquet files in the Hub's layout. `classes`: what to call the labels when the files do not say."""
    pa = require_pyarrow()
    by_split: dict[str, list[str]] = {}
    for path in files:
        by_split.setdefault(split_of(path) or "all", []).append(path)
    notes = [f"{split}: {', '.join(map(os.path.basename, paths))}" for split, paths in by_split.items()]
    if "all" in by_split and len(by_split) > 1:
        unused = by_split.pop("all")
        notes = [n for n in notes if not n.startswith("all: ")]
        notes.append(f"not used, as the name says no split: {', '.join(map(os.path.basename, unused))}")
    tables: dict[str, list[Any]] = {}
    for split, paths in by_split.items():
        require_all_shards(paths)
        for path in paths:
            try:
                parquet = pa.parquet.ParquetFile(path)
                columns = [c for c in parquet.schema_arrow.names if c in IMAGE_COLUMNS + LABEL_COLUMNS]
                table = parquet.read(columns=columns, use_threads=False)
            except (pa.ArrowException, OSError, ValueError) as e:
                raise ValueError(
                    f"{path} is not a readable Parquet file: {str(e).splitlines()[0] if str(e) else type(e).__name__}"
                ) from e
            tables.setdefault(split, []).append((table, parquet.schema_arrow, path))
    return tables_to_parts(tables, name, classes, channels, notes)


def require_all_shards(paths: Sequence[str]) -> None:
    """ValueError when files named NAME-00003-of-00010 lack some of their number."""
    shards = [m for p in paths if (m := re.search(r"^(.*)-(\d+)-of-(\d+)", os.path.basename(p)))]
    suffix = os.path.splitext(paths[0])[1]
    for stem, total in {(m[1], m[3]) for m in shards}:
        have = {int(m[2]) for m in shards if (m[1], m[3]) == (stem, total)}
        if int(total) < 100_000 and (
            missing := [f"{stem}-{i:05d}-of-{total}{suffix}" for i in range(int(total)) if i not in have]
        ):
            raise ValueError(f"incomplete: {', '.join(missing[:5])} missing beside {paths[0]}")


IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "labels")


def tables_to_parts(
    tables: Mapping[str, Sequence[tuple[Any, Any, str]]],
    name: str,
    classes: Sequence[str] | None,
    channels: int,
    notes: list[str],
) -> Parts:
    """Arrow tables with their schema and path, by split -> Parts."""
    columns: dict[str, list[tuple[np.ndarray | list[str | None], ArrowImages]]] = {}
    named: list[str] | None = None
    for split, pieces in tables.items():
        for table, schema, path in pieces:
            image, label = (next((c for c in cs if c in schema.names), None) for cs in (IMAGE_COLUMNS, LABEL_COLUMNS))
            if image is None or label is None:
                raise ValueError(
                    f"{path}: expected a column {' or '.join(IMAGE_COLUMNS)} and a column "
                    f"{' or '.join(LABEL_COLUMNS)}, "
                    f"found {', '.join(schema.names)}"
                )
            here = class_names(schema, label)
            if named and here and named != here:
                raise ValueError(
                    f"{path}: its class names differ from the other files' ({here[:3]}... and {named[:3]}...)"
                )
            named = named or here
            columns.setdefault(split, []).append((_label_values(table[label], path), _image_column(table[image], path)))
    texts = {isinstance(values, list) for pieces in columns.values() for values, _ in pieces}
    if len(texts) > 1:
        raise ValueError(f"{name}: labels are text in some files and numbers in others")
    if texts == {True}:
        found = sorted({v for pieces in columns.values() for values, _ in pieces for v in values if v is not None})
        names = list(classes) if classes and set(found) <= set(classes) else [str(v) for v in found]
        number = {v: i for i, v in enumerate(names)}
    else:
        numbers = np.concatenate([cast(np.ndarray, values) for pieces in columns.values() for values, _ in pieces])
        used = [int(v) for v in np.unique(numbers) if v >= 0]
        if named or classes:
            names, number = list(named or classes or ()), {}
        else:
            names, number = [str(v) for v in used], {v: i for i, v in enumerate(used)}  # type: ignore[misc]
        if not number and used and used[-1] >= len(names):
            raise ValueError(
                f"{name}: label {used[-1]} is outside of the {len(names)} classes: these are the files of another data "
                f"set"
            )
    if classes is not None and len(names) != len(classes):
        raise ValueError(
            f"{name} has {len(classes)} classes, these files have {len(names)} ({', '.join(names[:3])}, ...): they "
            f"hold another data set"
        )
    if len(set(names)) != len(names):
        raise ValueError(f"{name}: two classes have the same name")
    sets = {}
    for split, column_pairs in columns.items():
        parts, start = [], 0
        for values, images in column_pairs:
            labels = np.asarray([number.get(cast(Any, v), -1) for v in values] if number else values, dtype=np.int64)
            total = len(labels)
            piece = ImageSet(
                names, labels, Numbered(split, start + total).__getitem__(slice(start, None)), images, channels=channels
            )
            parts.append(piece if labels.size and labels.min() >= 0 else piece.subset(np.flatnonzero(labels >= 0)))
            start += total
        whole = chain(parts)
        if len(whole) < start:
            notes.append(f"{split}: {start - len(whole)} rows without a label left out")
        if len(whole):
            sets[split] = whole
    if not sets:
        raise ValueError(f"{name}: no labelled images in it")
    return Parts(name, sets, notes)


def class_names(schema: Any, column: str) -> list[str] | None:
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(n) for n in names] if isinstance(names, list) and names else None


def _label_values(column: Any, path: str) -> np.ndarray | list[str | None]:
    """int64 with -1 for "none", or a list of str."""
    pa = require_pyarrow()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type):
        return cast(np.ndarray, column.fill_null(-1).to_numpy().astype(np.int64))
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return cast("list[str | None]", column.to_pylist())
    raise ValueError(f"{path}: labels must be whole numbers or text, got {column.type}")


def _image_column(column: Any, path: str) -> ArrowImages:
    pa = require_pyarrow()

    def is_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    if (
        pa.types.is_struct(column.type)
        and (at := column.type.get_field_index("bytes")) >= 0
        and is_bytes(column.type.field(at).type)
    ):
        import pyarrow.compute as pc

        content = pc.struct_field(column, "bytes")
        paths = pc.struct_field(column, "path") if column.type.get_field_index("path") >= 0 else None
        return ArrowImages(content, paths, os.path.dirname(path) or ".")
    if is_bytes(column.type):
        return ArrowImages(column)
    raise ValueError(f"{path}: images must be struct(bytes, path) or bytes, got {column.type}")


# ---- a folder per class


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


def read_folder(root: str, name: str) -> Parts:
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
    return Parts(name, sets, notes, scan.stray)


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

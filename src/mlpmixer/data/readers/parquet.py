"""Parquet as on the Hugging Face Hub."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from mlpmixer.data.image_set import ArrowImages, ImageSet, Numbered, RawSplits, chain, split_of


def require_pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise ValueError('reading Parquet files needs pyarrow: pip install "mlpmixer[hf]"') from e
    return pyarrow


def parquet_files(folder: str, depth: int = 2) -> list[str]:
    """The .parquet files of a folder, or when it has none of its subfolders, `depth` levels down at most."""
    level = [folder]
    for _ in range(depth + 1):
        entries = [os.path.join(d, e) for d in level for e in sorted(os.listdir(d)) if not e.startswith(".")]
        if files := [e for e in entries if e.lower().endswith(".parquet") and os.path.isfile(e)]:
            return files
        level = [e for e in entries if os.path.isdir(e)][:200]
    return []


def read_parquet(files: Sequence[str], name: str, classes: Sequence[str] | None, channels: int = 3) -> RawSplits:
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
) -> RawSplits:
    """Arrow tables with their schema and path, by split -> RawSplits."""
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
    return RawSplits(name, sets, notes)


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

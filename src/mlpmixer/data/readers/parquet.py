"""Parquet files as on the Hugging Face Hub: a column of images and a column of labels."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlpmixer.config import parse_json, require
from mlpmixer.data.bounded import file_below
from mlpmixer.data.image_set import ImageSet, LazySequence, RawSplits, chain, multi_hot, numbered
from mlpmixer.data.images import Source
from mlpmixer.data.labels import Label, LabelEncoder, class_name, used_labels
from mlpmixer.data.paths import Layout, count, require_all_shards, split_of
from mlpmixer.download import first_line
from mlpmixer.registry import shortened

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "labels")
MAX_EXPANSION, SPARE_BYTES = 100, 1 << 26
"""A file may take so many times its own bytes in memory, and so many more."""


def import_pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise ValueError('Parquet files need pyarrow: pip install "mlpmixer[hf]"') from e
    return pyarrow


def find_columns(names: Sequence[str], path: str) -> tuple[str, str]:
    """The image column and the label column. ValueError when either is missing."""
    image, label = (next((c for c in known if c in names), None) for known in (IMAGE_COLUMNS, LABEL_COLUMNS))
    if image is None or label is None:
        raise ValueError(
            f"{path}: expected a column {' or '.join(IMAGE_COLUMNS)} and a column {' or '.join(LABEL_COLUMNS)}, "
            f"got {shortened(', '.join(names))}"
        )
    return image, label


def is_list(kind: Any) -> bool:
    """Whether a column of this type has several labels per image, or none."""
    types = import_pyarrow().types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def require_labels(kind: Any, path: str, *, lists: bool = False) -> None:
    """ValueError unless a column of this type can be labels; `lists` of them, too, if it says so."""
    types = import_pyarrow().types
    of_each = kind.value_type if is_list(kind) or types.is_dictionary(kind) else kind
    if not (types.is_integer(of_each) or types.is_string(of_each) or types.is_large_string(of_each)):
        raise ValueError(f"{path}: labels must be whole numbers or text, got {shortened(kind)}")
    one = f"{path}: labels must be one per image to be read as shards, got {shortened(kind)}: train without streaming"
    require(lists or not is_list(kind), one)


def read_columns(file: Any, columns: Sequence[str], num_bytes: int, row_groups: Sequence[int] | None = None) -> Any:
    """Columns of an open Parquet file of `num_bytes` as an Arrow table, a few rows at a time.

    ValueError when they take far more memory than the file, as one image in a million rows does.
    """
    batches, most = [], SPARE_BYTES + MAX_EXPANSION * num_bytes
    groups = range(file.num_row_groups) if row_groups is None else row_groups
    for batch in file.iter_batches(batch_size=64, row_groups=list(groups), columns=list(columns), use_threads=False):
        batches.append(batch)
        if (most := most - batch.nbytes) < 0:
            raise ValueError(f"its {num_bytes:,} bytes unpack to more than {MAX_EXPANSION} times as much")
    schema = import_pyarrow().schema([field for field in file.schema_arrow if field.name in columns])
    return import_pyarrow().Table.from_batches(batches, batches[0].schema if batches else schema)


def class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """The names of the classes, if the schema has them, as `datasets` writes it."""
    try:
        feature = parse_json(schema.metadata[b"huggingface"])["info"]["features"][column]
        feature = feature[0] if isinstance(feature, list) else feature.get("feature", feature)  # of lists
        names = feature["names"]
    except (KeyError, IndexError, AttributeError, TypeError, ValueError):
        return None
    return tuple(class_name(str(name)) for name in names) if isinstance(names, list) and names else None


def encoded_images(column: Any, path: str) -> tuple[Any, Any]:
    """(bytes, paths or None) of a column that is struct(bytes, path) or bytes."""
    pa = import_pyarrow()
    kind, paths = column.type, None
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        import pyarrow.compute as pc

        paths = pc.struct_field(column, "path") if kind.get_field_index("path") >= 0 else None
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise ValueError(f"{path}: images must be struct(bytes, path) or bytes, got {shortened(kind)}")
    return column, paths


def _arrow_images(content: Any, paths: Any, folder: str) -> Sequence[Source]:
    """Encoded images, left in Arrow's memory. A row without bytes but with a path is that file inside `folder`."""

    def item(i: int) -> Source:
        encoded: bytes | None = content[i].as_py()
        if encoded is None and paths is not None and (path := paths[i].as_py()):
            return file_below(folder, path) or b""
        return encoded or b""

    return LazySequence(len(content), item)


class Table(NamedTuple):
    """The rows of one file."""

    path: str
    images: Sequence[Source]
    labels: list[list[Label]]
    """The labels of each image: one, but for `multi_label`."""
    multi_label: bool
    classes: tuple[str, ...] | None
    """Names that the schema states."""

    @classmethod
    def of(cls, table: Any, schema: Any, path: str) -> "Table":
        """The rows of an Arrow table. ValueError, which names the path, for columns of other kinds."""
        types = import_pyarrow().types
        image, label = find_columns(schema.names, path)
        column = table[label]
        if types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        require_labels(column.type, path, lists=True)
        images = _arrow_images(*encoded_images(table[image], path), os.path.dirname(path))
        values, several = column.to_pylist(), is_list(column.type)
        labels = [own or [] for own in values] if several else [[own] for own in values]
        try:
            return cls(path, images, labels, several, class_names(schema, label))
        except ValueError as e:  # about a name
            raise ValueError(f"{path}: {e}") from e


def read_parquet(
    files: Sequence[str], name: str, classes: Sequence[str] | None, channels: int = 3, layout: Layout = "auto"
) -> RawSplits:
    """Parquet files whose names, or whose folders' names, say the split; `classes` as in `raw_splits`."""
    pa = import_pyarrow()
    by_split: dict[str, list[str]] = {}
    for path in files:
        by_split.setdefault(split_of(path, layout), []).append(path)
    named = layout != "splits" or set(by_split) != {"all"}
    require(named, f"{name}: no file's name says train, val or test (data.layout=splits)")
    unused = by_split.pop("all") if "all" in by_split and len(by_split) > 1 else []
    notes = [f"{split}: {', '.join(map(os.path.basename, paths))}" for split, paths in by_split.items()]
    if unused:
        names = ", ".join(map(os.path.basename, unused))
        notes.append(f"not used, as the name says no split: {names} (--data.layout classes uses all files alike)")
    tables: dict[str, list[Table]] = {}
    for split, paths in by_split.items():
        require_all_shards(paths)
        for path in paths:
            try:
                file = pa.parquet.ParquetFile(path)
                columns = [c for c in file.schema_arrow.names if c in IMAGE_COLUMNS + LABEL_COLUMNS]
                content = read_columns(file, columns, os.path.getsize(path))
            except (pa.ArrowException, OSError, ValueError) as e:
                raise ValueError(f"{path} is not a readable Parquet file: {shortened(first_line(e))}") from e
            tables.setdefault(split, []).append(Table.of(content, file.schema_arrow, path))
    return raw_splits(tables, name, classes, channels, notes)


def raw_splits(
    tables: Mapping[str, Sequence[Table]], name: str, classes: Sequence[str] | None, channels: int, notes: list[str]
) -> RawSplits:
    """The tables of each split as one set. `classes`: what a named data set calls them, if the files do not."""
    whole_tables = [table for of_split in tables.values() for table in of_split]
    kinds = {table.multi_label for table in whole_tables}
    require(len(kinds) < 2, f"{name}: labels are lists in some files and not in others")
    encoder = _encoder(whole_tables, name, classes)
    sets = {}
    for split, of_split in tables.items():
        names = numbered(split, sum(len(table.labels) for table in of_split))
        parts, start = [], 0
        for table in of_split:
            stop = start + len(table.labels)
            numbers = [[encoder.encode(label, table.path) for label in own] for own in table.labels]
            targets = multi_hot(numbers, len(encoder.classes)) if table.multi_label else np.array(numbers).reshape(-1)
            images = ImageSet(encoder.classes, targets, names[start:stop], table.images, channels=channels)
            parts.append(images.labelled())
            start = stop
        whole = chain(parts)
        if len(whole) < start:
            notes.append(f"{split}: {count(start - len(whole), 'row')} without a label left out")
        if len(whole):
            sets[split] = whole
    if not sets:
        raise ValueError(f"{name}: no labelled images in it")
    return RawSplits(name, sets, notes)


def _encoder(tables: Sequence[Table], name: str, classes: Sequence[str] | None) -> LabelEncoder:
    used = used_labels(label for table in tables for own in table.labels for label in own)
    kinds = {type(label) for label in used}
    if len(kinds) > 1:
        raise ValueError(f"{name}: labels are text in some files and numbers in others")
    stated: dict[tuple[str, ...], str] = {table.classes: table.path for table in tables if table.classes}
    if len(stated) > 1:
        (a, at), (b, other) = list(stated.items())[:2]
        raise ValueError(
            f"{at} and {other} have different class names ({', '.join(a[:3])}... and {', '.join(b[:3])}...)"
        )
    names = next(iter(stated), None) or classes
    try:
        of_labels = names is None or (kinds == {str} and not set(used) <= set(names))
        encoder = LabelEncoder.of_labels(used) if of_labels else LabelEncoder.of_classes(names or ())
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e
    found = encoder.classes
    if classes is not None and len(found) != len(classes):
        raise ValueError(
            f"{name} has {len(classes)} classes, these files have {len(found)} ({', '.join(found[:3])}, ...): they "
            f"hold another data set"
        )
    return encoder

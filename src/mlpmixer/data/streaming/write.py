"""Writing shards that `open_streamed` reads."""

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import ImageError, Source, open_image
from mlpmixer.data.readers.parquet import import_pyarrow
from mlpmixer.data.streaming.shards import Kind
from mlpmixer.durable import replacing, write_json

Row = tuple[str, str, bytes, int]  # key, suffix, content, label


def write_shards(
    sets: dict[str, ImageSet], out: str | os.PathLike[str], *, kind: Kind = "tar", per_shard: int = 1000, seed: int = 0
) -> tuple[dict[str, list[int]], list[tuple[str, str]]]:
    """Write OUT/SPLIT-*.tar or .parquet and OUT/_info.json, each split in an order drawn from `seed`.

    The sets have the same classes. Files and bytes are copied as they are, arrays become PNG. Returns the samples of
    each shard by split, and (name, reason) of the images that cannot be opened and are left out. ValueError when `out`
    is not empty or `per_shard` is not positive.
    """
    if per_shard < 1:
        raise ValueError(f"a shard needs at least 1 image, got per_shard={per_shard}")
    if os.path.exists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise ValueError(f"{os.fspath(out)} exists and is not an empty folder; name a new one")
    os.makedirs(out, exist_ok=True)
    classes = next(iter(sets.values())).classes
    if any(images.multi_label for images in sets.values()):
        raise ValueError("a shard has one label per image, but these images have several or none: train from the files")
    info: dict[str, dict[str, list[int] | list[str] | int | str]] = {}
    counts: dict[str, list[int]] = {}
    bad: list[tuple[str, str]] = []
    for split, images in sets.items():
        order = np.random.default_rng(seed).permutation(len(images))
        total = -(-len(images) // per_shard)
        names = [f"{split}-{number:05d}-of-{total:05d}.{kind}" for number in range(total)]
        counts[split] = []
        for number, name in enumerate(names):
            rows: list[Row] = []
            for i in order[number * per_shard : (number + 1) * per_shard].tolist():
                try:
                    rows.append((f"{i:08d}", *_encoded(images.source(i)), int(images.labels[i])))
                except ImageError as e:
                    bad.append((images.names[i], e.reason))
            with replacing(Path(out, name)) as part:
                if kind == "tar":
                    _write_tar(str(part), rows)
                else:
                    _write_parquet(str(part), rows, classes)
            counts[split].append(len(rows))
        lengths = counts[split]
        info[split] = {"name": split, "num_samples": sum(lengths), "filenames": names, "shard_lengths": lengths}
    write_json(Path(out, "_info.json"), {"classes": classes, "labels": "numbers", "splits": info})
    return counts, bad


def _encoded(source: Source) -> tuple[str, bytes]:
    """(suffix, bytes) of an image as a file."""
    with open_image(source) as image:
        if isinstance(source, Image.Image):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            return "png", buffer.getvalue()
        suffix = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}.get(image.format or "", (image.format or "").lower())
    if isinstance(source, bytes):
        return suffix, source
    with open(source, "rb") as file:
        return suffix, file.read()


def _write_tar(path: str, rows: Sequence[Row]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, suffix, content, label in rows:
            for name, data in ((f"{key}.{suffix}", content), (f"{key}.cls", str(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _write_parquet(path: str, rows: Sequence[Row], classes: Sequence[str]) -> None:
    pa = import_pyarrow()
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    images = [{"bytes": content, "path": f"{key}.{suffix}"} for key, suffix, content, _ in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = pa.array([label for *_, label in rows], pa.int64())
    table = pa.table({"image": pa.array(images, kind), "label": labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pa.parquet.write_table(table, path, row_group_size=100, compression="none")

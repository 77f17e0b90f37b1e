"""Data sets of shards: train is streamed, val and test are read by index."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpmixer.config import checked, require
from mlpmixer.data.config import Data
from mlpmixer.data.image_set import ImageSet, RawSplits, chain, doubt_of, rename_val
from mlpmixer.data.labels import LabelEncoder, meaning_of, used_labels
from mlpmixer.data.paths import TEST, TRAIN, VAL, count
from mlpmixer.data.streaming.listing import INFO, Listing, find_shards, is_pattern, read_classes, shards_in
from mlpmixer.data.streaming.shards import Contents, Shard, ShardError, index_shard, inspect_shard
from mlpmixer.download import Retry, fetch, first_line
from mlpmixer.durable import read_json, write_text
from mlpmixer.hardware import cache_folder

INSPECT_THREADS = 16
CACHED = tuple[int, tuple[str, ...] | None, tuple[int | str, ...]]  # `Contents`, in JSON
CACHE_FORMAT = 2  # 1 took 007 for 7


@dataclass(frozen=True)
class StreamedSplits:
    """A data set of shards, opened: train is streamed, val and test are read by index."""

    name: str
    train: tuple[Shard, ...]
    labels: LabelEncoder
    val: ImageSet
    test: ImageSet | None
    notes: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels.classes

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the training shards."""
        return fingerprint(self.train)

    @property
    def doubt(self) -> str:
        """Why the accuracy on val says little, in a sentence; empty when it does not."""
        return doubt_of(self.val)


def fingerprint(shards: Sequence[Shard]) -> str:
    """A hash of the names and sizes of shards: as long as it is the same, so is the order of their samples."""
    return hashlib.sha256("\n".join(f"{s.name} {s.samples}" for s in shards).encode()).hexdigest()[:16]


def is_streamed(data: Data) -> bool:
    """Asked for by data.stream, or of a kind that is always streamed: tar shards, addresses, patterns."""
    name = data.name.strip()
    if data.stream or re.match(r"https?://", name) or is_pattern(name):
        return True
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return os.path.isfile(os.path.join(path, INFO)) or any(p.lower().endswith(".tar") for p in shards_in(path))
    return os.path.isfile(path) and path.lower().endswith(".tar")


def open_streamed(
    data: Data, *, cache_dir: str | os.PathLike[str] | None = None, retry: Retry | None = None
) -> StreamedSplits:
    """Find the shards of `data` and count their samples.

    The names of files or folders say the splits. A missing val or test is cut off from train by whole shards, drawn by
    data.split_seed: the share data.val_fraction or data.test_fraction of them, at least one. Counts are kept in
    `cache_dir` (~/.cache/mlpmixer), as are validation and test shards from a server.

    Raises ValueError when there are no shards, too few to cut any off, no class names, or labels of no class;
    ShardError when a shard cannot be read.
    """
    if data.train_fraction < 1:
        raise ValueError(
            f"data.train_fraction={data.train_fraction} selects images by number, and those of shards have none: leave "
            f"it at 1"
        )
    require(data.multi_label != "yes", f"shards have one label per image, not several (data.multi_label): {data.name}")
    require(not data.labels, f"data.labels={data.labels} is for images in files, not for the shards of {data.name}")
    retry = retry or Retry()
    cache = Path(cache_dir) if cache_dir is not None else cache_folder()
    listing, left_out = _listed(data, retry)
    shards, name = listing.shards, listing.name
    notes = [listing.note, *left_out]
    if "all" in shards:
        shards[TRAIN] = shards.pop("all")
    if TRAIN not in shards:
        overrule = "; if that name means something else: --data.layout classes" if data.layout == "auto" else ""
        raise ValueError(f"{name} has only {' and '.join(shards)} shards, and none to train on{overrule}")
    if data.val_is_test:
        notes.append(rename_val(shards, name))
    for split, fraction in ((TEST, data.test_fraction), (VAL, data.val_fraction)):
        if split not in shards:
            notes.append(_cut_off(shards, split, fraction, data.split_seed, name))
    classes = read_classes(data.classes) if data.classes else listing.classes
    contents = _contents(shards[TRAIN], classes is not None, cache, notes, retry)
    labels = _label_encoder(contents, classes, listing, notes)
    train = tuple(Shard(s.address, c.samples) for s, c in zip(shards[TRAIN], contents, strict=True) if c.samples)
    if not train:
        raise ValueError(f"{name}: the training shards hold no samples")
    val, test = (_image_set(split, shards.get(split, []), labels, cache, notes) for split in (VAL, TEST))
    if val is None:
        raise ValueError(f"{name}: the validation shards hold no labelled images")
    if doubt := doubt_of(val):
        notes.append(doubt)
    total = sum(s.samples for s in train)
    notes.append(f"streamed: {len(train)} training shards with {total:,} images of {len(labels.classes)} classes")
    if not any(s.remote for s in train):
        buffered = min(data.buffer, total)
        mib = buffered / total * sum(os.path.getsize(s.address) for s in train) / 2**20
        notes.append(f"data.buffer: {buffered:,} images in memory take up to about {mib:,.0f} MiB")
    return StreamedSplits(name, train, labels, val, test, tuple(notes))


def open_shards(data: Data) -> RawSplits:
    """The images of shards by index, as `open_raw` has those of other data. Of shards on a server that name splits,
    only validation and test are fetched.

    The notes are of what was left out. Raises ValueError and ShardError as `open_streamed` does.
    """
    retry, cache = Retry(), cache_folder()
    listing, notes = _listed(data, retry)
    shards = listing.shards
    if len(shards) > 1 and any(shard.remote for of_split in shards.values() for shard in of_split):
        shards = {split: of_split for split, of_split in shards.items() if split in (VAL, TEST)} or shards
    classes = read_classes(data.classes) if data.classes else listing.classes
    contents = _contents(
        [s for of_split in shards.values() for s in of_split], classes is not None, cache, notes, retry
    )
    labels = _label_encoder(contents, classes, listing, notes)
    sets = {split: _image_set(split, of_split, labels, cache, notes) for split, of_split in shards.items()}
    found = {split: images for split, images in sets.items() if images is not None}
    if not found:
        raise ValueError(f"{listing.name}: the shards hold no labelled images")
    return RawSplits(listing.name, found, notes)


def _listed(data: Data, retry: Retry) -> tuple[Listing, list[str]]:
    """The shards of `data` by split, or all alike; and a note about those that are left out, if any are."""
    listing = find_shards(data.name.strip(), data.data_dir, retry.timeout_s, data.layout)
    if "all" not in listing.shards:
        return listing, []
    if len(listing.shards) > 1:
        names = _names(listing.shards.pop("all"))
        return listing, [f"not used, as the name says no split: {names} (--data.layout classes uses all shards alike)"]
    require(data.layout != "splits", f"{listing.name}: no name says train, val or test (data.layout=splits)")
    return listing, []


def _cut_off(shards: dict[str, list[Shard]], split: str, fraction: float, seed: int, name: str) -> str:
    """Move some training shards to `split`; the note about it. Test stays empty when there are too few."""
    train = shards[TRAIN]
    needed = 1 if split == VAL or VAL in shards else 2  # that stay: one to train on, one for val
    if len(train) <= needed:
        if split == TEST:
            return "test: none, too few shards to cut some off"
        raise ValueError(
            f"{name} has {len(train)} training shard and no validation shards; streaming takes at least two "
            f"(--data.stream)"
        )
    count = min(max(round(len(train) * fraction), 1), len(train) - needed)
    chosen = set(np.random.default_rng([seed % 2**32, split == VAL]).choice(len(train), count, replace=False).tolist())
    shards[split] = [s for i, s in enumerate(train) if i in chosen]
    shards[TRAIN] = [s for i, s in enumerate(train) if i not in chosen]
    share = f"fraction {fraction}, split_seed {seed}"
    return f"{split}: {count} of {len(train)} training shards ({share}): {_names(shards[split])}"


def _names(shards: Sequence[Shard]) -> str:
    return ", ".join(s.name for s in shards[:5]) + (", ..." if len(shards) > 5 else "")


def _contents(
    shards: Sequence[Shard], classes_known: bool, cache: Path, notes: list[str], retry: Retry
) -> list[Contents]:
    """Contents of each shard: from the listing or the cache where that is enough, else inspected now and cached."""
    file = cache / "shards" / f"{CACHE_FORMAT}-{hashlib.sha256(shards[0].address.encode()).hexdigest()[:16]}.json"
    try:
        cached = read_json(file)
    except (OSError, ValueError):
        cached = {}
    known: dict[Shard, Contents] = {}
    for shard in shards:
        if shard.samples and classes_known:
            known[shard] = Contents(shard.samples)
        elif (entry := cached.get(_identity(shard))) is not None:
            with suppress(ValueError):  # a damaged one is made again
                known[shard] = Contents(*checked(CACHED, entry, "a cached count"))
    unknown = [s for s in shards if s not in known]
    with ThreadPoolExecutor(INSPECT_THREADS, thread_name_prefix="inspect") as pool:
        inspected = dict(zip(unknown, pool.map(lambda s: inspect_shard(s, retry), unknown), strict=True))
    if inspected:
        cached |= {_identity(s): c for s, c in inspected.items()}
        try:
            write_text(file, json.dumps(cached))
        except OSError as e:
            notes.append(
                f"the counts of {count(len(inspected), 'shard')} could not be kept, and will be made again: {e}"
            )
    return [(known | inspected)[s] for s in shards]


def _identity(shard: Shard) -> str:
    """The address; of a local file also size and time, so that a changed one is another."""
    if shard.remote:
        return shard.address
    try:
        info = os.stat(shard.address)
    except OSError as e:
        raise ShardError(f"{shard.address} cannot be read: {e.strerror}") from e
    return f"{os.path.abspath(shard.address)} {info.st_size} {info.st_mtime_ns}"


def _label_encoder(
    contents: Sequence[Contents], classes: tuple[str, ...] | None, listing: Listing, notes: list[str]
) -> LabelEncoder:
    stated = {c.classes for c in contents if c.classes}
    used = used_labels(v for c in contents for v in c.labels)
    if classes is None and len(stated) > 1:
        raise ValueError(f"{listing.name}: the shards name different classes; give the names with --data.classes FILE")
    if classes is None and not stated:
        encoder = LabelEncoder.of_labels(used)
        if len(encoder.classes) < 2:
            count = len(encoder.classes)
            raise ValueError(f"{listing.name} has {count} class with images; a classifier needs at least two")
        return encoder
    classes = classes or stated.pop()
    if listing.kind == "parquet":  # there, numbers and text are different things
        return LabelEncoder.of_classes(classes)
    meaning, doubtful = meaning_of(used or range(len(classes)), classes)
    if doubtful and not listing.meaning and not used:
        raise ValueError(
            f'{listing.name}: labels such as 0 could be the names or the numbers of its classes: add "labels": '
            f'"numbers" or "labels": "names" to {INFO} ("numbers" is what `mlpmixer data shards` writes)'
        )
    if doubtful and not listing.meaning:
        notes.append("labels such as 0 are the names of classes, not their numbers, which they could be as well")
    encoder = LabelEncoder.of_classes(classes, listing.meaning or meaning)
    for label in used:
        encoder.encode(label, listing.name)
    return encoder


def _image_set(
    split: str, shards: Sequence[Shard], labels: LabelEncoder, cache: Path, notes: list[str]
) -> ImageSet | None:
    """The labelled images of some shards, by index; None when there are none."""
    sets = []
    for shard in shards:
        names, found, sources = index_shard(Shard(_local_file(shard, cache)))
        indices = np.array([labels.encode(v, n) for n, v in zip(names, found, strict=True)], dtype=np.int64)
        images = ImageSet(labels.classes, indices, names, sources)
        sets.append(images.labelled())
        if len(sets[-1]) < len(images):
            notes.append(
                f"{split}: {count(len(images) - len(sets[-1]), 'sample')} of {shard.name} without a label left out"
            )
    return chain(sets) if any(map(len, sets)) else None


def _local_file(shard: Shard, cache: Path) -> str:
    """The path of a shard, downloaded if necessary."""
    if not shard.remote:
        return shard.address
    if not shard.address.startswith("hf://"):
        return str(fetch(shard.address, cache_dir=cache))
    import huggingface_hub as hub

    owner_name, _, rest = shard.address.removeprefix("hf://datasets/").partition("@")
    revision, _, file = rest.partition("/")
    try:
        return str(hub.hf_hub_download(owner_name, file, repo_type="dataset", revision=revision))
    except Exception as e:  # no network, refused, broken off: the Hub has many ways to say so
        raise ShardError(f"{shard.address} could not be fetched: {first_line(e)}") from e

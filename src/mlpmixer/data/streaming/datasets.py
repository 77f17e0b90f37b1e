"""Data that is streamed: which shards there are, what they hold, and how they are split. The images of val and test are
read by index.

DATA is a folder of shards (in it, or in train/, val/, test/), one shard, a pattern like
https://host/train-{000..146}.tar, the address of a folder with an _info.json, or hf:OWNER/NAME[/FOLDER] with
data.stream.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np

from mlpmixer.data.config import Data
from mlpmixer.data.image_set import ImageSet, chain
from mlpmixer.data.labels import LabelEncoder
from mlpmixer.data.paths import (
    SPLIT_WORDS,
    TEST,
    TRAIN,
    VAL,
    printable,
    require_all_shards,
    similar_paths,
    split_from_path,
)
from mlpmixer.data.streaming.shards import SUFFIXES, Contents, Shard, ShardError, index_shard, inspect_shard
from mlpmixer.download import CHUNK_BYTES, Connection, NetworkError, Retry, fetch, first_line
from mlpmixer.hardware import cache_folder

INFO = "_info.json"  # as timm writes it beside its WebDataset shards
AT_ONCE = 16  # shards that are counted at the same time


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


@dataclass(frozen=True)
class _Listing:
    """Shards by split ("all" when nothing says which), their class names where they are stated, and whether every count
    is known."""

    name: str
    shards: dict[str, list[Shard]]
    classes: tuple[str, ...] | None
    note: str


def is_streamed(data: Data) -> bool:
    """Asked for, or of a kind that is always streamed: tar shards, addresses, patterns."""
    name = data.name.strip()
    if data.stream or re.match(r"https?://", name) or _is_pattern(name):
        return True
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return os.path.isfile(os.path.join(path, INFO)) or any(p.lower().endswith(".tar") for p in _shards_in(path))
    return os.path.isfile(path) and path.lower().endswith(".tar")


def open_streamed(
    data: Data, *, cache_dir: str | os.PathLike[str] | None = None, retry: Retry | None = None
) -> StreamedSplits:
    """Find the shards of `data` and count their samples; counts are kept in `cache_dir` (~/.cache/mlpmixer), and so are
    validation and test shards that lie on a server: only train is streamed.

    Splits are those that the names of files or folders say. What is lacking of val and test is cut from train by whole
    shards, drawn by data.split_seed: the share data.val_fraction of them, at least one.

    Raises ValueError when there are no shards, too few to cut from, no class names to be found, or labels of no class;
    ShardError when a shard cannot be read.
    """
    if data.train_fraction < 1:
        raise ValueError(
            f"data.train_fraction={data.train_fraction} picks images by number, and those of shards have none: leave "
            f"it at 1"
        )
    retry = retry or Retry()
    cache = Path(cache_dir) if cache_dir is not None else cache_folder()
    listing = _find(data, retry)
    shards = listing.shards
    notes = [listing.note]
    if "all" in shards and len(shards) > 1:
        notes.append(f"not used, as the name says no split: {_some([s.name for s in shards.pop('all')])}")
    if "all" in shards:
        shards[TRAIN] = shards.pop("all")
    if TRAIN not in shards:
        raise ValueError(f"{listing.name} has only {' and '.join(shards)} shards, and none to train on")
    for split, fraction in ((TEST, data.test_fraction), (VAL, data.val_fraction)):
        if split not in shards:
            notes.append(_cut(shards, split, fraction, data.split_seed, listing.name))
    classes = _class_list(data.classes) if data.classes else listing.classes
    found, more = _contents(shards[TRAIN], classes is not None, cache, listing.name, retry)
    notes += more
    labels = _labels_of(found, classes, listing.name)
    train = tuple(Shard(s.address, c.samples) for s, c in zip(shards[TRAIN], found, strict=True) if c.samples)
    if not train:
        raise ValueError(f"{listing.name}: the training shards hold no samples")
    by_index = {
        split: _image_set(split, shards[split], labels, cache, notes) for split in (VAL, TEST) if split in shards
    }
    if not len(by_index[VAL]):
        raise ValueError(f"{listing.name}: the validation shards hold no labelled images")
    if TEST in by_index and not len(by_index[TEST]):
        del by_index[TEST]
    total = sum(s.samples for s in train)
    notes.append(f"streamed: {len(train)} training shards with {total:,} images of {len(labels.classes)} classes")
    if not any(s.remote for s in train):
        held = min(data.buffer, total) / total * sum(os.path.getsize(s.address) for s in train)
        notes.append(
            f"data.buffer: {min(data.buffer, total):,} images in memory take up to about {held / 2**20:,.0f} MiB"
        )
    return StreamedSplits(listing.name, train, labels, by_index[VAL], by_index.get(TEST), tuple(n for n in notes if n))


def _cut(shards: dict[str, list[Shard]], split: str, fraction: float, seed: int, name: str) -> str:
    """Move some training shards to `split`; the note about it. Test goes without when there are too few."""
    train = shards[TRAIN]
    wanted = 1 if split == VAL or VAL in shards else 2  # of others, beside one to cut: one to train on, one for val
    if len(train) <= wanted:
        if split == TEST:
            return "test: none, too few shards to cut some off"
        raise ValueError(
            f"{name} has {len(train)} training shard and no validation shards; streaming takes at least two "
            f"(--data.stream)"
        )
    count = min(max(round(len(train) * fraction), 1), len(train) - wanted)
    chosen = set(np.random.default_rng([seed % 2**32, split == VAL]).choice(len(train), count, replace=False).tolist())
    shards[split] = [s for i, s in enumerate(train) if i in chosen]
    shards[TRAIN] = [s for i, s in enumerate(train) if i not in chosen]
    share = f"fraction {fraction}, split_seed {seed}"
    return f"{split}: {count} of {len(train)} training shards ({share}): {_some([s.name for s in shards[split]])}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


# ---- finding


def _find(data: Data, retry: Retry) -> _Listing:
    name = data.name.strip()
    if name.startswith("hf:"):
        return _on_the_hub(name[3:])
    remote = bool(re.match(r"https?://", name))
    if _is_pattern(name) or name.lower().endswith(SUFFIXES):
        addresses = _expanded(name if remote else os.path.expanduser(name))
        short = re.split(r"[\d.]", Shard(addresses[0]).name)[0].rstrip("-_") or "shards"
        return _listing(short, addresses, None, f"from {len(addresses)} shards, {printable(name)}")
    if remote:
        address = name if name.endswith(".json") else f"{name.rstrip('/')}/{INFO}"
        return _from_info(_read_info(address, retry), address, address.rpartition("/")[0])
    places = (os.path.expanduser(name), os.path.join(os.path.expanduser(data.data_dir or "."), name))
    path = next((p for p in places if os.path.isdir(p)), None)
    if path is None:
        near = similar_paths(name)
        raise ValueError(
            f"no folder of shards {printable(name)!r} (data.stream)"
            + (f"; did you mean {', '.join(near)}? Expected" if near else ": expected")
            + " a folder with .tar or .parquet files, a pattern such as DIR/train-{000..146}.tar, "
            "https://..., or hf:OWNER/NAME"
        )
    if os.path.isfile(info := os.path.join(path, INFO)):
        with open(info, encoding="utf-8") as file:
            return _from_info(_parsed(file.read(), info), info, path)
    files = _shards_in(path)
    if not files:
        raise ValueError(
            f"{printable(name)} holds no shards (data.stream): expected .tar or .parquet files in it, or in train/ and "
            f"val/"
        )
    require_all_shards(files)
    names = os.path.join(path, "classes.txt")
    classes = _class_list(names) if os.path.isfile(names) else None
    return _listing(
        printable(os.path.basename(os.path.abspath(path))),
        files,
        classes,
        f"from {len(files)} shards in {printable(path)}",
    )


def _is_pattern(name: str) -> bool:
    return re.search(r"\{\d+\.\.\d+\}", name) is not None


def _expanded(pattern: str) -> list[str]:
    """a-{08..10}.tar -> a-08.tar, a-09.tar, a-10.tar"""
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    choices = [
        [f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)]
        for low, high in zip(parts[1::3], parts[2::3], strict=True)
    ]
    if not all(choices):
        raise ValueError(
            f"{pattern} names no shards: a range goes from the lower to the higher number, such as {{000..146}}"
        )
    return [
        "".join(itertools.chain(*itertools.zip_longest(parts[::3], chosen, fillvalue="")))
        for chosen in itertools.product(*choices)
    ]


def _shards_in(folder: str) -> list[str]:
    """Of a folder, else of its subfolders that bear the name of a split."""
    entries = [os.path.join(folder, e) for e in sorted(os.listdir(folder)) if not e.startswith(".")]
    if files := [e for e in entries if e.lower().endswith(SUFFIXES) and os.path.isfile(e)]:
        return files
    splits = [e for e in entries if os.path.basename(e).lower() in SPLIT_WORDS and os.path.isdir(e)]
    inside = [os.path.join(s, e) for s in splits for e in sorted(os.listdir(s)) if not e.startswith(".")]
    return [e for e in inside if e.lower().endswith(SUFFIXES) and os.path.isfile(e)]


def _listing(name: str, addresses: Sequence[str], classes: tuple[str, ...] | None, note: str) -> _Listing:
    if len({os.path.splitext(a)[1].lower() for a in addresses}) > 1:
        raise ValueError(f"{name} holds .tar and .parquet files; pass a folder or pattern with those of one kind")
    shards: dict[str, list[Shard]] = {}
    for address in addresses:
        shards.setdefault(split_from_path(address) or "all", []).append(Shard(address))
    return _Listing(name, shards, classes, note)


def _read_info(address: str, retry: Retry) -> dict[str, Any]:
    try:
        with closing(Connection(address, retry.timeout_s)) as connection:
            content = b"".join(iter(lambda: connection.read(CHUNK_BYTES), b""))
        return _parsed(content.decode("utf-8"), address)
    except (NetworkError, UnicodeDecodeError) as e:
        raise ValueError(
            f"{address} could not be read ({e}). A server's folder cannot be listed: expected an "
            f"{INFO} in it that "
            "names the shards, or a pattern such as https://HOST/train-{000..146}.tar"
        ) from e


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        info: dict[str, Any] = json.loads(text)
        for split in info["splits"].values():
            if len(split["filenames"]) != len(split["shard_lengths"]) or not all(
                isinstance(n, int) for n in split["shard_lengths"]
            ):
                raise ValueError("a number in shard_lengths for each of filenames")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(
            f"{where}: expected {{'splits': {{NAME: {{'filenames': [...], 'shard_lengths': [...]}}}}}}, got {e}"
        ) from e
    return info


def _from_info(info: dict[str, Any], where: str, base: str) -> _Listing:
    shards: dict[str, list[Shard]] = {}
    for name, split in info["splits"].items():
        words = re.split(r"[^a-z]+", name.lower())
        of_split = shards.setdefault(next((SPLIT_WORDS[w] for w in words if w in SPLIT_WORDS), "all"), [])
        for file, samples in zip(split["filenames"], split["shard_lengths"], strict=True):
            address = urljoin(base + "/", file) if "://" in base else os.path.join(base, file)
            if "://" not in base and not os.path.isfile(address):
                raise ShardError(f"{address} is missing; {where} lists it")
            of_split.append(Shard(address, samples))
    classes = tuple(map(str, info["classes"])) if info.get("classes") else None
    return _Listing(printable(base.rpartition("/")[2]) or "shards", shards, classes, f"from {where}")


def _on_the_hub(repo: str) -> _Listing:
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)", repo)
    if not match or {".", ".."} & set(repo.split("/")):
        raise ValueError(f"expected hf:owner/name or hf:owner/name/folder, got 'hf:{repo}'")
    owner_name, folder = match[1], match[2].removeprefix("/")
    try:
        import huggingface_hub as hub
    except ImportError as e:
        raise ValueError(f'hf:{repo} needs huggingface-hub: pip install "mlpmixer[hf]"') from e
    try:
        info = hub.HfApi().dataset_info(owner_name)
    except Exception as e:  # no network, no such data set, switched off: the hub has many ways to say so
        raise ValueError(f"hf:{repo} could not be found ({first_line(e)})") from e
    files = [s.rfilename for s in info.siblings or [] if s.rfilename.lower().endswith(SUFFIXES)]
    files = sorted(f for f in files if f.startswith(f"{folder}/" if folder else ""))
    folders = sorted({os.path.dirname(f) for f in files if not split_from_path(f"{os.path.dirname(f)}/x")})
    if not files:
        raise ValueError(
            f"hf:{repo} has no .parquet or .tar files to stream; without --data.stream it is loaded as a whole"
        )
    if len(folders) > 1:
        raise ValueError(
            f"hf:{repo} holds several data sets; pass one of {_some([f'hf:{owner_name}/{f}' for f in folders if f])}"
        )
    require_all_shards(files)
    root = f"hf://datasets/{owner_name}@{info.sha}"
    return _listing(
        owner_name.rpartition("/")[2],
        [f"{root}/{f}" for f in files],
        _named_in_card(info.card_data),
        f"from hf.co/datasets/{owner_name}, revision {info.sha}",
    )


def _named_in_card(card: Any) -> tuple[str, ...] | None:
    """The class names of the label in a data set's card (dataset_info), where there is exactly one list of them."""
    infos = (card.to_dict() if card is not None else {}).get("dataset_info") or []
    found = set()
    for info in infos if isinstance(infos, list) else [infos]:
        for feature in info.get("features") or []:
            kind = feature.get("dtype")
            if (
                feature.get("name") in ("label", "labels", "fine_label")
                and isinstance(kind, dict)
                and "class_label" in kind
            ):
                names = kind["class_label"].get("names") or {}
                found.add(tuple(names[k] for k in sorted(names, key=int)) if isinstance(names, dict) else tuple(names))
    return found.pop() if len(found) == 1 else None


# ---- what they hold


def _contents(
    shards: Sequence[Shard], classes_known: bool, cache: Path, name: str, retry: Retry
) -> tuple[list[Contents], list[str]]:
    """Of each shard, from its listing or the cache where that is enough, else counted now and kept; and notes."""
    file = cache / "shards" / f"{hashlib.sha256(shards[0].address.encode()).hexdigest()[:16]}.json"
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    known: list[Contents | None] = []
    for shard in shards:
        entry = kept.get(_identity(shard))
        if shard.samples and classes_known:
            known.append(Contents(shard.samples))
        elif isinstance(entry, list):
            known.append(Contents(entry[0], tuple(entry[1]) if entry[1] else None, tuple(entry[2])))
        else:
            known.append(None)
    missing = [s for s, c in zip(shards, known, strict=True) if c is None]
    notes: list[str] = []
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="count") as pool:
        counted = dict(zip(missing, pool.map(lambda s: inspect_shard(s, retry), missing), strict=True))
    if counted:
        kept |= {_identity(s): [c.samples, c.classes, c.labels] for s, c in counted.items()}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(kept), encoding="utf-8")
            os.replace(part, file)
        except OSError as e:
            notes.append(f"{name}: the counts of {len(counted)} shards could not be kept, and will be made again: {e}")
    return [c or counted[s] for s, c in zip(shards, known, strict=True)], notes


def _identity(shard: Shard) -> str:
    """The same for the same file; a local one that has changed is another."""
    if shard.remote:
        return shard.address
    try:
        info = os.stat(shard.address)
    except OSError as e:
        raise ShardError(f"{shard.address} cannot be read: {e.strerror}") from e
    return f"{os.path.abspath(shard.address)} {info.st_size} {info.st_mtime_ns}"


def _class_list(given: str) -> tuple[str, ...]:
    """data.classes: a number of classes, or a file with a name a line."""
    if given.isdigit() and int(given) > 1:
        return tuple(map(str, range(int(given))))
    try:
        names = Path(given).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(
            f"data.classes {given!r} is neither a number of classes nor a file with the name of a class a line: {e}"
        ) from e
    names = [n.strip() for n in names if n.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"{given} holds {len(names)} names, {len(set(names))} of them different; expected two classes or more, "
            f"each once"
        )
    return tuple(names)


def _labels_of(found: Sequence[Contents], classes: tuple[str, ...] | None, name: str) -> LabelEncoder:
    stated = {c.classes for c in found if c.classes}
    if classes is None and len(stated) > 1:
        raise ValueError(f"{name}: the shards name different classes; give their names with --data.classes FILE")
    classes = classes or (stated.pop() if stated else None)
    if classes is not None:
        return LabelEncoder.of_classes(classes)
    encoder = LabelEncoder.of_labels(v for c in found for v in c.labels)
    if len(encoder.classes) < 2:
        raise ValueError(f"{name} has {len(encoder.classes)} class with images; a classifier needs at least two")
    return encoder


def _image_set(split: str, shards: Sequence[Shard], labels: LabelEncoder, cache: Path, notes: list[str]) -> ImageSet:
    parts = []
    for shard in shards:
        names, found, sources = index_shard(Shard(_local(shard, cache)))
        indices = np.array([labels.encode(v, n) for n, v in zip(names, found, strict=True)], dtype=np.int64)
        images = ImageSet(labels.classes, indices, names, sources)
        parts.append(images.labelled())
        if len(parts[-1]) < len(images):
            notes.append(f"{split}: {len(images) - len(parts[-1])} samples of {shard.name} without a label left out")
    return chain(parts)


def _local(shard: Shard, cache: Path) -> str:
    """A file to read by index."""
    if not shard.remote:
        return shard.address
    if shard.address.startswith("hf://"):
        import huggingface_hub as hub

        owner_name, _, rest = shard.address.removeprefix("hf://datasets/").partition("@")
        revision, _, file = rest.partition("/")
        try:
            return str(hub.hf_hub_download(owner_name, file, repo_type="dataset", revision=revision))
        except Exception as e:  # as above
            raise ShardError(f"{shard.address} could not be fetched: {first_line(e)}") from e
    return str(fetch(shard.address, cache_dir=cache))

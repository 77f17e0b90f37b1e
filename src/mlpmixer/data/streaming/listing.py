"""Finding shards: a folder (in it, or in train/, val/, test/), one shard, a pattern such as
https://host/train-{000..146}.tar, the address of a folder with an _info.json, or hf:OWNER/NAME[/FOLDER]."""

import itertools
import math
import os
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote, urljoin

from mlpmixer.config import parse_json
from mlpmixer.data.bounded import file_below
from mlpmixer.data.labels import LabelEncoder, Meaning, class_name, read_label
from mlpmixer.data.paths import (
    SPLIT_WORDS,
    Layout,
    find_files,
    printable,
    require_all_shards,
    similar_paths,
    split_from_path,
    split_of,
)
from mlpmixer.data.readers.parquet import LABEL_COLUMNS
from mlpmixer.data.streaming.shards import SUFFIXES, Kind, Shard, ShardError
from mlpmixer.download import CHUNK_BYTES, Connection, NetworkError, first_line, import_hub
from mlpmixer.models.configs import MAX_CLASSES
from mlpmixer.registry import shortened, shown

INFO = "_info.json"  # as timm writes it beside its WebDataset shards
MAX_INFO_BYTES = 1 << 26
MAX_SHARDS = 1_000_000
MAX_SAMPLES = 1 << 40  # of a shard


@dataclass(frozen=True)
class Listing:
    """Shards by split, "all" when nothing says which, and the names of the classes if they are stated."""

    name: str
    shards: dict[str, list[Shard]]
    classes: tuple[str, ...] | None
    note: str
    meaning: Meaning | None = None
    """Meaning of whole numbers as labels, where it is stated."""

    @property
    def kind(self) -> Kind:
        return next(iter(self.shards.values()))[0].kind

    @classmethod
    def of(
        cls, name: str, addresses: Sequence[str], classes: tuple[str, ...] | None, note: str, layout: Layout
    ) -> "Listing":
        """Shards of one kind, whose addresses say the split."""
        if len({os.path.splitext(a)[1].lower() for a in addresses}) > 1:
            raise ValueError(f"{name} holds .tar and .parquet files; pass a folder or pattern with those of one kind")
        shards: dict[str, list[Shard]] = {}
        for address in addresses:
            shards.setdefault(split_of(address, layout), []).append(Shard(address))
        return cls(name, shards, classes, note)


def find_shards(name: str, folder: str | None, timeout_s: float, layout: Layout = "auto") -> Listing:
    """The shards that `name` means; a path may also be relative to `folder`. ValueError says what was expected."""
    if name.startswith("hf:"):
        return _on_the_hub(name[3:], layout)
    remote = bool(re.match(r"https?://", name))
    if is_pattern(name) or name.lower().endswith(SUFFIXES):
        addresses = _expand(name if remote else os.path.expanduser(name))
        short = re.split(r"[\d.]", Shard(addresses[0]).name)[0].rstrip("-_") or "shards"
        return Listing.of(short, addresses, None, f"from {len(addresses)} shards, {printable(name)}", layout)
    if remote:
        address = name if name.endswith(".json") else f"{name.rstrip('/')}/{INFO}"
        return _from_info(_download(address, timeout_s), address, address.rpartition("/")[0])
    candidates = (os.path.expanduser(name), os.path.join(os.path.expanduser(folder or "."), name))
    path = next((p for p in candidates if os.path.isdir(p)), None)
    if path is None:
        near = similar_paths(name)
        raise ValueError(
            f"no folder of shards {printable(name)!r} (data.stream)"
            + (f"; did you mean {', '.join(near)}? Expected" if near else ": expected")
            + " a folder with .tar or .parquet files, a pattern such as DIR/train-{000..146}.tar, https://..., or "
            "hf:OWNER/NAME"
        )
    if os.path.isfile(info := os.path.join(path, INFO)):
        return _from_info(Path(info).read_bytes(), info, path)
    files = shards_in(path)
    if not files:
        raise ValueError(
            f"{printable(name)} holds no shards (data.stream): expected .tar or .parquet files in it, or in train/ and "
            f"val/"
        )
    require_all_shards(files)
    names = os.path.join(path, "classes.txt")
    classes = read_classes(names) if os.path.isfile(names) else None
    short = printable(os.path.basename(os.path.abspath(path)))
    return Listing.of(short, files, classes, f"from {len(files)} shards in {printable(path)}", layout)


def is_pattern(name: str) -> bool:
    return re.search(r"\{\d+\.\.\d+\}", name) is not None


def _expand(pattern: str) -> list[str]:
    """a-{08..10}.tar -> a-08.tar, a-09.tar, a-10.tar"""
    texts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    bounds = list(zip(texts[1::3], texts[2::3], strict=True))
    count = math.prod(max(int(high) - int(low) + 1, 0) for low, high in bounds)
    if not 0 < count <= MAX_SHARDS:
        raise ValueError(
            f"{pattern} names {count or 'no'} shards: a range goes from the lower to the higher number, such as "
            f"{{000..146}}"
        )
    ranges = [[f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)] for low, high in bounds]
    return [
        "".join(itertools.chain(*itertools.zip_longest(texts[::3], numbers, fillvalue="")))
        for numbers in itertools.product(*ranges)
    ]


def shards_in(folder: str) -> list[str]:
    """The shards in a folder, else in its subfolders that are named after a split."""
    return find_files(folder, SUFFIXES, depth=1, into=SPLIT_WORDS)


def read_classes(given: str) -> tuple[str, ...]:
    """data.classes: a number of classes, or a file with one name per line."""
    if isinstance(number := read_label(given.encode()), int) and 1 < number <= MAX_CLASSES:
        return tuple(map(str, range(number)))
    try:
        with open(Path(given).expanduser(), encoding="utf-8-sig") as file:
            lines = file.read(MAX_INFO_BYTES).split("\n", MAX_CLASSES)
        if len(lines) > MAX_CLASSES:
            raise ValueError(f"more than {MAX_CLASSES:,} lines")
        names = [class_name(line) for line in lines if line.strip()]
    except (OSError, ValueError) as e:
        raise ValueError(
            f"data.classes {given!r} is neither a number of classes nor a file with one class name per line: {e}"
        ) from e
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"{given} has {len(names)} names, {len(set(names))} of them different; expected at least two, each once"
        )
    return tuple(names)


# ---- _info.json


def _download(address: str, timeout_s: float) -> bytes:
    content = b""
    try:
        with closing(Connection(address, timeout_s)) as connection:
            while piece := connection.read(CHUNK_BYTES):
                content += piece
                if len(content) > MAX_INFO_BYTES:
                    raise NetworkError(f"more than {MAX_INFO_BYTES:,} bytes")
    except NetworkError as e:
        raise ValueError(
            f"{address} could not be read ({e}). A server's folder cannot be listed: expected an {INFO} in it that "
            "names the shards, or a pattern such as https://HOST/train-{000..146}.tar"
        ) from e
    return content


def _from_info(content: bytes, where: str, base: str) -> Listing:
    shards: dict[str, list[Shard]] = {}
    try:
        info: dict[str, Any] = parse_json(content)
        for name, split in info["splits"].items():
            of_split = shards.setdefault(split_from_path(name) or "all", [])
            for file, samples in zip(split["filenames"], split["shard_lengths"], strict=True):
                if type(samples) is not int or not 0 <= samples <= MAX_SAMPLES:
                    raise ValueError(f"a shard of {shown(samples)} samples")
                of_split.append(Shard(_below(base, file, where), samples))
        if not isinstance(classes := info.get("classes") or [], list):
            raise ValueError(f"classes {shown(classes)}")
        names = LabelEncoder.of_classes(list(map(str, classes))).classes
    except ShardError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(
            f"{where}: expected {{'splits': {{NAME: {{'filenames': [...], 'shard_lengths': [...]}}}}}}, got "
            f"{shortened(e)}"
        ) from e
    meaning = info.get("labels")
    if meaning not in (None, *get_args(Meaning)):
        expected = " or ".join(get_args(Meaning))
        raise ValueError(f'{where}: expected "labels" to be {expected}, got {shown(meaning)}')
    return Listing(printable(base.rpartition("/")[2]) or "shards", shards, names or None, f"from {where}", meaning)


def _below(base: str, file: str, where: str) -> str:
    """The address of a file that the listing `where` names: in its own folder or below it, on its own server."""
    if "://" not in base:
        if path := file_below(base, file):
            return path
        if not os.path.exists(path := os.path.join(base, file)):
            raise ShardError(f"{shortened(printable(path))} is missing; {where} lists it")
        raise ShardError(f"{where} lists {shown(file)}; expected only files in its folder or below it")
    root = urljoin(f"{base}/", ".")
    address = urljoin(root, file)
    if address.startswith(root) and ".." not in unquote(address).replace("\\", "/").split("/"):
        return address
    raise ShardError(f"{where} lists {shown(file)}; expected only files below {root}")


# ---- the Hugging Face Hub


def _on_the_hub(repo: str, layout: Layout) -> Listing:
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)", repo)
    if not match or {".", ".."} & set(repo.split("/")):
        raise ValueError(f"expected hf:owner/name or hf:owner/name/folder, got 'hf:{repo}'")
    owner_name, folder = match[1], match[2].removeprefix("/")
    hub = import_hub(f"hf:{repo}")
    try:
        info = hub.HfApi().dataset_info(owner_name)
    except Exception as e:  # no network, no such data set, switched off: the Hub has many ways to say so
        raise ValueError(f"hf:{repo} could not be found ({first_line(e)})") from e
    files = sorted(s.rfilename for s in info.siblings or [] if s.rfilename.lower().endswith(SUFFIXES))
    files = [f for f in files if f.startswith(f"{folder}/" if folder else "")]
    if not files:
        raise ValueError(
            f"hf:{repo} has no .parquet or .tar files to stream; without --data.stream it is loaded as a whole"
        )
    folders = sorted({os.path.dirname(f) for f in files if not split_from_path(f"{os.path.dirname(f)}/x")})
    if len(folders) > 1:
        some = ", ".join([f"hf:{owner_name}/{f}" for f in folders if f][:5])
        raise ValueError(f"hf:{repo} holds several data sets; pass one of {some}")
    require_all_shards(files)
    addresses = [f"hf://datasets/{owner_name}@{info.sha}/{f}" for f in files]
    note = f"from hf.co/datasets/{owner_name}, revision {info.sha}"
    try:
        classes = _classes_in_card(info.card_data)
    except (AttributeError, TypeError, ValueError) as e:
        raise ValueError(f"the card of hf:{repo} has a dataset_info that cannot be read: {shortened(e)}") from e
    return Listing.of(owner_name.rpartition("/")[2], addresses, classes, note, layout)


def _classes_in_card(card: Any) -> tuple[str, ...] | None:
    """The names of the classes in a data set's card (dataset_info), if there is exactly one list of them."""
    infos = (card.to_dict() if card is not None else {}).get("dataset_info") or []
    found = set()
    for info in infos if isinstance(infos, list) else [infos]:
        for feature in info.get("features") or []:
            kind = feature.get("dtype")
            if feature.get("name") in LABEL_COLUMNS and isinstance(kind, dict) and "class_label" in kind:
                names = kind["class_label"].get("names") or {}
                listed = [names[k] for k in sorted(names, key=int)] if isinstance(names, dict) else names
                found.add(LabelEncoder.of_classes(list(map(str, listed))).classes)
    return found.pop() if len(found) == 1 else None

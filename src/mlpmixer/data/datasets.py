"""Data by name or by path -> train, val and test of the same classes. Missing splits are cut, stratified, by seed.

open_data(Data(name="digits"))                                1,797 grey images of 8x8, comes with scikit-learn
open_data(Data(name="cifar10", data_dir="downloads"))         files in downloads/ or downloads/cifar10/
open_data(Data(name="photos"))                                photos/[train|val|test/]CLASS/*.jpg, or Parquet files
open_data(Data(name="hf:owner/name"))                         the Hugging Face Hub, through `datasets`
"""

import difflib
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mlpmixer.data.config import Data
from mlpmixer.data.image_set import (
    TEST,
    TRAIN,
    VAL,
    ArrayImages,
    ImageSet,
    Numbered,
    RawSplits,
    Splits,
    chain,
    split_of,
)
from mlpmixer.data.readers.cifar import CIFAR_FILES, read_cifar
from mlpmixer.data.readers.files import Files, files_in, files_in_tar
from mlpmixer.data.readers.folder import neighbours, read_folder, readable
from mlpmixer.data.readers.idx import read_idx
from mlpmixer.data.readers.parquet import parquet_files, read_parquet, tables_to_parts
from mlpmixer.data.streaming.datasets import is_streamed, open_streamed
from mlpmixer.registry import Registry, suggest

SplitName = Literal["train", "val", "test", "all"]


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """A data set known by name."""

    title: str
    """What it is, in a line."""
    classes: tuple[str, ...]
    """Names used when the files carry none."""
    channels: int
    """1 grey, 3 RGB."""
    image_size: tuple[int, int]
    """(height, width) of its images, pixels."""
    files: str = ""
    """Which files to fetch when there is no network."""
    repo: str = ""
    """Its home on the Hugging Face Hub."""
    folders: tuple[str, ...] = ()
    """Further names of the folder it is usually kept in."""
    read: Callable[[Files, str, Sequence[str]], RawSplits | None] | None = None
    """The reader of its original files."""


_IDX = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte (plain, .gz or .xz)"
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar
cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster
house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose
sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television
tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_CIFAR100 = tuple(_CIFAR100_NAMES.split())

DATASETS: Registry[DatasetInfo] = Registry("data set")
DATASETS["digits"] = DatasetInfo(
    title="1,797 handwritten digits of scikit-learn, works offline",
    classes=tuple("0123456789"),
    channels=1,
    image_size=(8, 8),
)
DATASETS["mnist"] = DatasetInfo(
    title="60,000 + 10,000 handwritten digits",
    classes=tuple("0123456789"),
    channels=1,
    image_size=(28, 28),
    files=_IDX,
    repo="ylecun/mnist",
    folders=("raw",),
    read=read_idx,
)
DATASETS["fashion-mnist"] = DatasetInfo(
    title="60,000 + 10,000 pieces of clothing",
    classes=_FASHION,
    channels=1,
    image_size=(28, 28),
    files=_IDX,
    repo="zalando-datasets/fashion_mnist",
    folders=("fashion_mnist", "fashionmnist", "fashion", "raw"),
    read=read_idx,
)
DATASETS["cifar10"] = DatasetInfo(
    title="50,000 + 10,000 photos of 10 kinds of things",
    classes=_CIFAR10,
    channels=3,
    image_size=(32, 32),
    files="cifar-10-binary.tar.gz or cifar-10-python.tar.gz",
    repo="uoft-cs/cifar10",
    folders=("cifar-10", "cifar_10", "cifar-10-batches-bin", "cifar-10-batches-py"),
    read=read_cifar,
)
DATASETS["cifar100"] = DatasetInfo(
    title="50,000 + 10,000 photos of 100 kinds of things",
    classes=_CIFAR100,
    channels=3,
    image_size=(32, 32),
    files="cifar-100-binary.tar.gz or cifar-100-python.tar.gz",
    repo="uoft-cs/cifar100",
    folders=("cifar-100", "cifar_100", "cifar-100-binary", "cifar-100-python"),
    read=read_cifar,
)


def open_data(data: Data) -> Splits:
    """Train, val and test of `data.name`, cutting those that it does not have from train, stratified by class.

    ValueError when there is no such name or path (with the nearest ones), when files are missing or damaged, when a
    class of val or test is not in train, and when there are fewer than two classes.
    """
    parts = open_parts(data)
    sets = dict(parts.sets)
    notes = list(parts.notes)
    if "all" in sets:
        sets[TRAIN] = sets.pop("all")
    if TRAIN not in sets:
        raise ValueError(f"{parts.name} has only {' and '.join(sets)} images, and none to train on")
    classes = _used_classes(sets, notes, parts.name)
    if len(classes) < 2:
        raise ValueError(
            f"{parts.name} has only one class with images, {classes[0]!r}; a classifier needs at least two"
        )
    sets = {split: _relabelled(images, classes) for split, images in sets.items()}
    notes.append(
        f"found: {', '.join(f'{s} {len(sets[s])}' for s in (TRAIN, VAL, TEST) if s in sets)} images of {len(classes)} "
        f"classes"
    )
    for split, fraction in ((TEST, data.test_fraction), (VAL, data.val_fraction)):
        if split in sets:
            continue
        whole = sets[TRAIN]
        keep, cut = stratified_cut(whole.labels, fraction, data.split_seed)
        if len(cut):
            sets[TRAIN], sets[split] = whole.subset(keep), whole.subset(cut)
            small = int((sets[split].counts() == 0).sum())
            notes.append(
                f"{split}: {len(cut)} images cut from the {len(whole)} of train, stratified "
                f"(fraction {fraction}, split_seed {data.split_seed})"
                + (f"; {small} classes are too small to have one in it" if small else "")
            )
        elif split == VAL:
            sets[VAL] = whole
            notes.append("val: no class has two images, so train itself is used")
        else:
            notes.append("test: none, as no class has two images")
    if data.train_fraction < 1:
        whole = sets[TRAIN]
        sets[TRAIN] = whole.subset(stratified_share(whole.labels, data.train_fraction, data.split_seed))
        notes.append(
            f"train: {len(sets[TRAIN])} of its {len(whole)} images, stratified "
            f"(fraction {data.train_fraction}, split_seed {data.split_seed})"
        )
    return Splits(parts.name, sets[TRAIN], sets[VAL], sets.get(TEST), tuple(classes), tuple(notes))


def open_images(data: Data, split: SplitName | str) -> ImageSet:
    """One split of open_data(data), or "all": every image there is, in the order train, val, test.

    Unlike open_data it also opens data that has no train images: a lone test split.
    """
    if split not in (TRAIN, VAL, TEST, "all"):
        raise ValueError(f"no split {split!r}; expected train, val, test or all")
    if is_streamed(data) and split in (VAL, TEST):
        streamed = open_streamed(data)
        by_index = streamed.val if split == VAL else streamed.test
        if by_index is None:
            raise ValueError(f"{streamed.name} has no test shards and too few to cut some off")
        return by_index
    parts = open_parts(data)
    if split == "all" or not {TRAIN, "all"} & set(parts.sets):
        wanted = list(parts.sets) if split == "all" else [split]
        if split not in ("all", *parts.sets):
            raise ValueError(f"{parts.name} has no {split} images, only {' and '.join(parts.sets)}")
        sets = {s: parts.sets[s] for s in wanted}
        names = next(iter(sets.values())).classes
        classes = [c for c, n in zip(names, np.sum([s.counts() for s in sets.values()], axis=0), strict=True) if n]
        return _relabelled(chain(list(sets.values())), classes)
    splits = open_data(data)
    images: ImageSet | None = getattr(splits, split)
    if images is None:
        raise ValueError(f"{parts.name} has no test images and is too small to cut some off")
    return images


def _used_classes(sets: dict[str, ImageSet], notes: list[str], name: str) -> list[str]:
    names = sets[TRAIN].classes
    in_train = sets[TRAIN].counts() > 0
    for split in (VAL, TEST):
        if split in sets and (
            missing := [c for c, n, t in zip(names, sets[split].counts(), in_train, strict=True) if n and not t]
        ):
            known = [c for c, t in zip(names, in_train, strict=True) if t]
            near = (
                suggest(missing[0], known)
                if len(known) <= 20 or difflib.get_close_matches(missing[0], known, 1)
                else ""
            )
            raise ValueError(
                f"{name}: class {', '.join(map(repr, missing[:10]))} is in {split} but has no image in train; {near}".rstrip(
                    "; "
                )
            )
    if empty := [c for c, t in zip(names, in_train, strict=True) if not t]:
        notes.append(
            f"{len(empty)} empty classes left out: {', '.join(empty[:10])}{', ...' if len(empty) > 10 else ''}"
        )
    return [c for c, t in zip(names, in_train, strict=True) if t]


def _relabelled(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    if tuple(classes) == images.classes:
        return images
    position = {c: i for i, c in enumerate(classes)}
    number = np.array([position.get(c, -1) for c in images.classes])
    return ImageSet(classes, number[images.labels], images.names, images.sources, channels=images.channels)


def stratified_cut(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(keep, cut): indices, sorted. Cut holds `fraction` of every class within one image; keep at least one of each.

    It is scikit-learn's train_test_split(test_size=fraction, stratify=labels, random_state=seed) wherever that is
    possible. Where it is not (a class of one image, more classes than images to cut) each class is cut by itself,
    and small ones give nothing; when all are that small, the largest gives one image.
    """
    from sklearn.model_selection import train_test_split

    n = len(labels)
    indices = np.arange(n)
    sizes = np.bincount(labels)
    n_cut, n_classes = int(np.ceil(n * fraction)), int((sizes > 0).sum())
    if sizes[sizes > 0].min() >= 2 and n_classes <= n_cut <= n - n_classes:
        keep, cut = train_test_split(indices, test_size=n_cut, stratify=labels, random_state=seed)
        taken = np.bincount(labels[cut], minlength=len(sizes))
        if (np.abs(taken - sizes * fraction) <= 1).all() and (taken < np.maximum(sizes, 1)).all():
            return np.sort(keep), np.sort(cut)
    share = np.minimum((sizes * fraction + 0.5).astype(np.int64), np.maximum(sizes - 1, 0))
    if not share.any() and sizes.max() >= 2:
        share[sizes.argmax()] = 1
    picked = [
        np.random.default_rng([seed % 2**32, k]).choice(np.flatnonzero(labels == k), size=int(m), replace=False)
        for k, m in enumerate(share)
        if m
    ]
    cut = np.sort(np.concatenate(picked)) if picked else np.zeros(0, np.int64)
    return np.setdiff1d(indices, cut), cut


def stratified_share(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Indices, sorted, of `fraction` of every class, rounded up. Those of a smaller fraction are among those of a
    larger one."""
    orders = [
        np.random.default_rng([seed % 2**32, k, 1]).permutation(np.flatnonzero(labels == k)) for k in np.unique(labels)
    ]
    return np.sort(np.concatenate([order[: math.ceil(fraction * len(order))] for order in orders]))


# ---- finding the files


def open_parts(data: Data) -> RawSplits:
    """What the files hold, nothing cut and nothing checked across splits."""
    name = data.name.strip()
    if not name:
        raise ValueError(f"no data given: a path, hf:owner/name or one of {', '.join(DATASETS)}")
    if is_streamed(data):
        raise ValueError(
            f"{name} is streamed: it can be trained on, and its val and test evaluated; give the images themselves for "
            f"all else"
        )
    if name.startswith("hf:"):
        return _from_datasets(name[3:])
    key = name.casefold().replace("_", "-")
    if key in DATASETS:
        return _named(key, data.data_dir)
    for path in (os.path.expanduser(name), os.path.join(os.path.expanduser(data.data_dir or "."), name)):
        if os.path.exists(path):
            return _from_path(path)
    raise ValueError(
        f"no data set and no file or folder named {readable(name)!r}; {suggest(name, [*DATASETS, *neighbours(name)])}"
    )


def _from_path(path: str) -> RawSplits:
    name = readable(os.path.basename(os.path.abspath(path)))
    if os.path.isfile(path):
        if not path.lower().endswith(".parquet"):
            raise ValueError(
                f"{readable(path)} is a file, but not .parquet; expected a folder with one subfolder of images per "
                f"class, or Parquet"
            )
        return read_parquet([path], name, None)
    if files := parquet_files(path, depth=0):
        return read_parquet(files, name, None)
    try:
        return read_folder(path, name)
    except ValueError:
        files = parquet_files(path)
        if not files:
            raise
    folders = sorted({os.path.dirname(f) for f in files})
    if len(folders) > 1 and not all(split_of(os.path.join(f, "x")) for f in folders):
        raise ValueError(
            f"{readable(path)} holds several data sets; pass one of {', '.join(map(readable, folders[:10]))}"
        )
    return read_parquet(files, name, None)


def _named(name: str, data_dir: str | None) -> RawSplits:
    if name == "digits":
        return _digits()
    known = DATASETS[name]
    if data_dir is None:
        return _from_hub(name, known)
    root = os.path.expanduser(data_dir)
    if not os.path.isdir(root):
        near = neighbours(data_dir)
        raise ValueError(
            f"no folder {readable(data_dir)!r} (--data-dir)" + (f"; did you mean {', '.join(near)}?" if near else "")
        )
    for folder in _places(root, name, known):
        parts = _in_folder(folder, name, known)
        if parts is not None:
            if missing := {TRAIN, TEST} - set(parts.sets):
                parts.notes.append(f"no {' and no '.join(sorted(missing))} files in {readable(folder)}")
            parts.notes.insert(0, f"{name} from {readable(folder)}")
            return parts
    raise ValueError(
        f"no files of {name} in {readable(root)} or {readable(os.path.join(root, name))}; {_what_to_put(name, known)}"
    )


def _what_to_put(name: str, known: DatasetInfo) -> str:
    return (
        f"expected the Parquet files of hf.co/datasets/{known.repo} (train-*.parquet, test-*.parquet) or "
        f"{known.files}. "
        f"Put them into a folder and pass --data-dir FOLDER"
    )


def _places(root: str, name: str, known: DatasetInfo) -> Iterable[str]:
    """Folders to look in: those below that bear the data set's name first, then the folder itself."""
    names = {name, *known.folders}

    def below(folder: str, allowed: set[str], depth: int) -> Iterable[str]:
        for entry in sorted(os.listdir(folder)):
            path = os.path.join(folder, entry)
            if entry.casefold() in allowed and os.path.isdir(path):
                if depth:
                    yield from below(path, names | {"raw", "data", "plain_text", "default"}, depth - 1)
                yield path

    yield from below(root, names - {"raw"}, 2)
    yield from below(root, names | {"raw", "data", "plain_text"}, 1)
    yield root


def _in_folder(folder: str, name: str, known: DatasetInfo) -> RawSplits | None:
    if files := parquet_files(folder, depth=0):
        return read_parquet(files, name, known.classes, known.channels)
    assert known.read is not None
    if parts := known.read(files_in(folder), name, known.classes):
        return parts
    if known.read is read_cifar:
        stem = name.replace("cifar", "cifar-")
        for entry in sorted(os.listdir(folder)):
            if re.fullmatch(rf"{stem}-(python|binary)\.tar(\.gz)?", entry.lower()):
                return read_cifar(files_in_tar(os.path.join(folder, entry), CIFAR_FILES), name, known.classes)
    return None


def _digits() -> RawSplits:
    """scikit-learn's digits; v in 0..16 becomes v * 255 / 16 rounded half up, so 0 -> 0, 8 -> 128, 16 -> 255."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = ((raw.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)
    labels = raw.target.astype(np.int64)
    images = ImageSet(tuple("0123456789"), labels, Numbered("digits", len(labels)), ArrayImages(pixels), channels=1)
    return RawSplits(
        "digits", {"all": images}, ["digits: scikit-learn's load_digits, 8x8, values 0..16 scaled to 0..255"]
    )


# ---- the Hugging Face Hub


def _from_hub(name: str, known: DatasetInfo) -> RawSplits:
    """Download (or take from its cache) the Parquet files of a named data set, verified by size and sha256."""
    try:
        import huggingface_hub as hub
    except ImportError as e:
        raise ValueError(
            f'downloading {name} needs huggingface-hub: pip install "mlpmixer[hf]". Or without network: {_what_to_put(name, known)}'
        ) from e
    try:
        info = hub.HfApi().dataset_info(known.repo, files_metadata=True)
        wanted = [s for s in info.siblings or [] if s.rfilename.endswith(".parquet")]
        files = []
        for sibling in wanted:
            path = hub.hf_hub_download(known.repo, sibling.rfilename, repo_type="dataset", revision=info.sha)
            _verify(path, sibling.size, sibling.lfs.sha256 if sibling.lfs else None)
            files.append(path)
        origin = f"{name} from hf.co/datasets/{known.repo}, revision {info.sha}, sizes and sha256 verified"
    except _Damaged:
        raise
    except Exception as e:  # no network, no such host, refused, switched off: the hub has many ways to say so
        files = _cached(hub, known.repo)
        if not files:
            reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise ValueError(
                f"{name} could not be downloaded ({reason}). Without network: {_what_to_put(name, known)}"
            ) from e
        origin = f"{name} from the cache of hf.co/datasets/{known.repo} (no network), sha256 verified"
    parts = read_parquet(files, name, known.classes, known.channels)
    parts.notes.insert(0, origin)
    return parts


class _Damaged(ValueError):
    """A downloaded file that is not what the hub says it is."""


def _verify(path: str, size: int | None, sha256: str | None) -> None:
    actual = os.path.getsize(path)
    if size is not None and actual != size:
        raise _Damaged(f"{path} has {actual} bytes, the hub says {size}: delete it and try again")
    if sha256:
        with open(path, "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        if digest != sha256:
            raise _Damaged(f"{path} has sha256 {digest}, the hub says {sha256}: delete it and try again")


def _cached(hub: Any, repo: str) -> list[str]:
    """Parquet files downloaded before; their names in the hub's cache are their sha256."""
    try:
        folder = hub.snapshot_download(repo, repo_type="dataset", allow_patterns="*.parquet", local_files_only=True)
        files = parquet_files(folder)
    except Exception:  # nothing there
        return []
    for path in files:
        blob = os.path.basename(os.path.realpath(path))
        _verify(path, None, blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None)
    return files


def _from_datasets(repo: str) -> RawSplits:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        raise ValueError(f"expected hf:owner/name, got 'hf:{repo}'")
    try:
        import datasets
        import huggingface_hub as hub
    except ImportError as e:
        raise ValueError(f'hf:{repo} needs the datasets package: pip install "mlpmixer[hf]"') from e
    try:
        if not os.path.isdir(os.path.join(datasets.config.HF_DATASETS_CACHE, repo.replace("/", "___"))):
            hub.HfApi().dataset_info(
                repo, timeout=20
            )  # fails at once without network; load_dataset tries for half a minute
        loaded = datasets.load_dataset(repo)
    except Exception as e:  # as above
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ValueError(
            f"hf:{repo} could not be loaded ({reason}). Without network: fetch its Parquet files elsewhere and pass "
            f"their folder"
        ) from e
    tables: dict[str, list[tuple[Any, Any, str]]] = {}
    for split, part in loaded.items():
        for column, feature in part.features.items():
            if isinstance(feature, datasets.Image):
                part = part.cast_column(column, datasets.Image(decode=False))
        table = part.with_format("arrow")[:]
        schema = table.schema.with_metadata(part.features.arrow_schema.metadata)
        tables.setdefault(split_of(split) or "all", []).append((table, schema, f"hf:{repo}/{split}"))
    if "all" in tables and len(tables) > 1:
        del tables["all"]
    return tables_to_parts(tables, repo.split("/")[-1], None, 3, [f"from hf.co/datasets/{repo}"])

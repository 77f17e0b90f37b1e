"""Data by name or by path -> train, val and test of the same classes. Missing splits are cut off, stratified, by seed.

open_data(Data(name="digits"))                                1,797 grey images of 8x8, which come with scikit-learn
open_data(Data(name="cifar10", data_dir="downloads"))         files in downloads/ or downloads/cifar10/
open_data(Data(name="photos"))                                photos/[train|val|test/]CLASS/*.jpg, or Parquet files
open_data(Data(name="hf:owner/name"))                         the Hugging Face Hub, through `datasets`
"""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from mlpmixer.config import require
from mlpmixer.data.catalog import DATASETS, DatasetInfo
from mlpmixer.data.config import Data
from mlpmixer.data.folds import fold_of_each
from mlpmixer.data.image_set import ImageSet, RawSplits, Splits, chain, doubt_of, rename_val
from mlpmixer.data.paths import TEST, TRAIN, VAL, count, find_files, printable, similar_paths, split_from_path
from mlpmixer.data.readers.folder import TABLES, read_folder
from mlpmixer.data.readers.hub import download_parquet, read_hub
from mlpmixer.data.readers.parquet import read_parquet
from mlpmixer.data.readers.table import read_table
from mlpmixer.data.streaming.datasets import StreamedSplits, is_streamed, open_streamed
from mlpmixer.registry import suggest

SplitName = Literal["train", "val", "test", "all"]


def open_data(data: Data) -> Splits:
    """Open train, val and test of `data.name`. A missing val or test is cut off from train, stratified by class.

    Errors: ValueError when there is no such name or path (with the nearest ones), when files are missing or damaged,
    when a class of val or test is not in train, and when there are fewer than two classes.
    """
    if data.folds and is_streamed(data):
        raise ValueError("data.folds is for images in files, not for streamed shards")
    return cut_splits(open_raw(data), data)


def cut_splits(raw: RawSplits, data: Data) -> Splits:
    """`open_data` of files that have been opened."""
    sets, notes = dict(raw.sets), list(raw.notes)
    if "all" in sets:
        sets[TRAIN] = sets.pop("all")
    if TRAIN not in sets:
        overrule = "; if its name means something else: --data.layout classes" if data.layout == "auto" else ""
        raise ValueError(f"{raw.name} has only {' and '.join(sets)} images, and none to train on{overrule}")
    if data.val_is_test:
        notes.append(rename_val(sets, raw.name))
    classes = _used_classes(sets, notes, raw.name)
    sets = {split: relabelled(images, classes) for split, images in sets.items()}
    sizes = ", ".join(f"{split} {len(sets[split])}" for split in (TRAIN, VAL, TEST) if split in sets)
    as_found = [f"data.{split}_fraction" for split in (VAL, TEST) if split in sets]
    without = f"; {' and '.join(as_found)} cut nothing" if as_found else ""
    notes.append(f"found: {sizes} images of {len(classes)} classes{without}")
    unused = _leave_out_fold(sets, data, notes) if data.folds else None
    if sets[TRAIN].multi_label:
        of_each = np.concatenate([images.labels.sum(axis=1) for images in sets.values()])
        notes.append(
            f"several labels per image: {of_each.mean():.3g} of {len(classes)} classes on average, {of_each.max()} at "
            f"most, {count(int((of_each == 0).sum()), 'image')} with none"
        )
    for split, fraction in ((TEST, data.test_fraction), (VAL, data.val_fraction)):
        if split not in sets:
            with_val = split == TEST and VAL in sets
            notes.append(_cut_off(sets, split, fraction, data) + "; data.val_is_test takes val instead" * with_val)
    if data.train_fraction < 1:
        whole = sets[TRAIN]
        share = random_share if whole.multi_label else stratified_share
        used = share(whole.labels, data.train_fraction, data.split_seed)
        sets[TRAIN], left = whole.subset(used), whole.subset(np.setdiff1d(np.arange(len(whole)), used))
        unused = chain([unused, left]) if unused else left
        notes.append(
            f"train: {len(sets[TRAIN])} of its {len(whole)} images, {'random' if whole.multi_label else 'stratified'} "
            f"(fraction {data.train_fraction}, split_seed {data.split_seed})"
        )
    if sets[VAL] is not sets[TRAIN] and (doubt := doubt_of(sets[VAL])):
        notes.append(doubt)
    return Splits(raw.name, sets[TRAIN], sets[VAL], sets.get(TEST), tuple(classes), tuple(notes), unused)


def _leave_out_fold(sets: dict[str, ImageSet], data: Data, notes: list[str]) -> ImageSet | None:
    """Make one fold of train the test images; return the test images that were found, which are left alone."""
    if not data.fold:
        raise ValueError(
            f"data.folds={data.folds} also needs data.fold, the number of the part that is test (train --folds and "
            "cross_validate take all, one after the other)"
        )
    whole, found = sets[TRAIN], sets.get(TEST)
    if whole.multi_label:
        raise ValueError(f"data.folds={data.folds} needs one class for each image, but these have several or none")
    fold = fold_of_each(whole, data.folds, data.split_seed, data.workers)
    sets[TRAIN] = whole.subset(np.flatnonzero(fold != data.fold))
    sets[TEST] = whole.subset(np.flatnonzero(fold == data.fold))
    notes.append(
        f"test: fold {data.fold} of {data.folds}, {len(sets[TEST])} of the {len(whole)} images of train, stratified "
        f"(split_seed {data.split_seed})"
        + (f"; the {len(found)} test images that were found are left alone" if found else "")
    )
    return found


def open_images(data: Data, split: SplitName | str) -> ImageSet:
    """Open one split of open_data(data), or "all": every image, in the order train, val, test.

    Unlike open_data, it also opens data without train images, such as a lone test split.

    Errors: ValueError as open_data, and for a split that the data does not have.
    """
    if split not in (TRAIN, VAL, TEST, "all"):
        raise ValueError(f"no split {split!r}; expected train, val, test or all")
    if is_streamed(data) and split in (VAL, TEST):
        splits: Splits | StreamedSplits = open_streamed(data)
    else:
        raw = open_raw(data)
        if data.val_is_test and split != "all":
            rename_val(raw.sets, raw.name)
        if split == "all" or not {TRAIN, "all"} & set(raw.sets):
            if split not in ("all", *raw.sets):
                raise ValueError(f"{raw.name} has no {split} images, only {' and '.join(raw.sets)}")
            images = chain(list(raw.sets.values())) if split == "all" else raw.sets[split]
            return relabelled(images, images.used_classes())
        splits = open_data(data)
    chosen: ImageSet | None = getattr(splits, split)
    if chosen is None:
        raise ValueError(f"{splits.name} has no test images and is too small to cut some off")
    return chosen


def _used_classes(sets: dict[str, ImageSet], notes: list[str], name: str) -> list[str]:
    """The classes with images in train. ValueError when val or test has another one, or when there is only one."""
    known = sets[TRAIN].used_classes()
    for split, images in sets.items():
        if missing := sorted(set(images.used_classes()) - set(known)):
            near = len(known) <= 20 or difflib.get_close_matches(missing[0], known, 1)
            raise ValueError(
                f"{name}: class {', '.join(map(repr, missing[:10]))} is in {split} but has no image in train"
                + (f"; {suggest(missing[0], known)}" if near else "")
            )
    if len(known) < 2:
        table = "".join(f"; {note}" for note in notes if "--data.labels" in note)
        raise ValueError(f"{name} has only one class with images, {known[0]!r}; a classifier needs at least two{table}")
    if empty := sorted(set(sets[TRAIN].classes) - set(known)):
        more = ", ..." if len(empty) > 10 else ""
        notes.append(f"{count(len(empty), 'empty class', 'es')} left out: {', '.join(empty[:10])}{more}")
    return known


def relabelled(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    """The same images with labels into `classes`; -1, or none, for a class that is not in it."""
    if tuple(classes) == images.classes:
        return images
    position = {c: i for i, c in enumerate(classes)}
    number = np.array([position.get(c, -1) for c in images.classes])
    if images.multi_label:
        targets = np.zeros((len(images), len(classes)), dtype=bool)
        targets[:, number[number >= 0]] = images.labels[:, number >= 0]
        return ImageSet(classes, targets, images.names, images.sources, channels=images.channels)
    return ImageSet(classes, number[images.labels], images.names, images.sources, channels=images.channels)


def _cut_off(sets: dict[str, ImageSet], split: str, fraction: float, data: Data) -> str:
    """Move a share of train to `split`; the note about it."""
    whole = sets[TRAIN]
    cut_labels = iterative_cut if whole.multi_label else stratified_cut
    keep, cut = cut_labels(whole.labels, fraction, data.split_seed, data.min_per_class)
    if len(cut):
        sets[TRAIN], sets[split] = whole.subset(keep), whole.subset(cut)
        more = len(cut) > fraction * len(whole) + 1 and data.min_per_class
        small = int((sets[split].counts() == 0).sum())
        return (
            f"{split}: {count(len(cut), 'image')} cut from the {len(whole)} of train, "
            f"stratified{' by each of the labels' if whole.multi_label else ''} (fraction {fraction}, "
            f"split_seed {data.split_seed}{f', but {data.min_per_class} of each class at least' if more else ''})"
            + (f"; too few images to have one in it: {count(small, 'class', 'es')}" if small else "")
        )
    if split == TEST:
        return "test: none, as no class has two images"
    sets[VAL] = whole
    return "val: no class has two images, so train itself is used"


def stratified_cut(labels: np.ndarray, fraction: float, seed: int, at_least: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(keep, cut): indices, sorted. Cut holds `fraction` of every class within one image, `at_least` of each that has
    more; keep at least one of each.

    It begins with scikit-learn's train_test_split(test_size=fraction, stratify=labels, random_state=seed) wherever
    that is possible. Where it is not (a class of one image, more classes than images to cut) each class is cut by
    itself. If that cuts nothing, the largest class gives one image.
    """
    cut = _share_of_each(labels, fraction, seed)
    sizes, taken = np.bincount(labels), np.bincount(labels[cut], minlength=labels.max() + 1)
    missing = np.minimum(at_least, sizes - 1) - taken
    left = np.setdiff1d(np.arange(len(labels)), cut)
    more = [
        np.random.default_rng([seed % 2**32, int(k)]).choice(left[labels[left] == k], size=missing[k], replace=False)
        for k in np.flatnonzero(missing > 0)
    ]
    cut = np.sort(np.concatenate([cut, *more]))
    return np.setdiff1d(np.arange(len(labels)), cut), cut


def _share_of_each(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    from sklearn.model_selection import train_test_split

    n = len(labels)
    indices = np.arange(n)
    sizes = np.bincount(labels)
    n_cut, n_classes = int(np.ceil(n * fraction)), int((sizes > 0).sum())
    if sizes[sizes > 0].min() >= 2 and n_classes <= n_cut <= n - n_classes:
        _, cut = train_test_split(indices, test_size=n_cut, stratify=labels, random_state=seed)
        taken = np.bincount(labels[cut], minlength=len(sizes))
        if (np.abs(taken - sizes * fraction) <= 1).all() and (taken < np.maximum(sizes, 1)).all():
            return np.sort(cut)
    share = np.minimum((sizes * fraction + 0.5).astype(np.int64), np.maximum(sizes - 1, 0))
    if not share.any() and sizes.max() >= 2:
        share[sizes.argmax()] = 1
    picked = [
        np.random.default_rng([seed % 2**32, k]).choice(np.flatnonzero(labels == k), size=int(m), replace=False)
        for k, m in enumerate(share)
        if m
    ]
    return np.sort(np.concatenate(picked)) if picked else np.zeros(0, np.int64)


def iterative_cut(targets: np.ndarray, fraction: float, seed: int, at_least: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices (keep, cut), sorted, by targets (N,K) of images with several classes or none, as `stratified_cut`.

    Iterative stratification (Sechidis et al. 2011, algorithm 1) into two parts: the rarest class first, each of its
    images goes to the part that lacks the most of that class. Cut holds `fraction` of every class about, `at_least` of
    each that has more; keep at least one of each.
    """
    rng, n = np.random.default_rng(seed), len(targets)
    size = targets.sum(axis=0)
    wanted = np.minimum(np.maximum(size * fraction, at_least), np.maximum(size - 1, 0))
    lacking = np.stack([size - wanted, wanted])  # (2, K) of keep and cut
    room = np.array([n * (1 - fraction), n * fraction])
    part = np.full(n, -1)
    for k in [*np.argsort(size, kind="stable"), None]:  # last the images without any class
        of_class = part < 0 if k is None else (part < 0) & targets[:, k]
        for i in rng.permutation(np.flatnonzero(of_class)):
            best = np.argmax(room) if k is None else np.lexsort((room, lacking[:, k]))[-1]
            part[i] = best
            room[best] -= 1
            lacking[best] -= targets[i]
    for k in np.flatnonzero((size > 0) & ~targets[part == 0].any(axis=0)):
        part[np.flatnonzero(targets[:, k])[0]] = 0
    return np.flatnonzero(part == 0), np.flatnonzero(part == 1)


def random_share(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Indices, sorted, of a random `fraction` of the images, rounded up: for images with several classes or none."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(order[: math.ceil(fraction * len(labels))])


def stratified_share(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Indices, sorted, of `fraction` of every class, rounded up. Those of a smaller fraction are among those of a
    larger one."""
    orders = [
        np.random.default_rng([seed % 2**32, k, 1]).permutation(np.flatnonzero(labels == k)) for k in np.unique(labels)
    ]
    return np.sort(np.concatenate([order[: math.ceil(fraction * len(order))] for order in orders]))


# ---- finding the files


def open_raw(data: Data) -> RawSplits:
    """Open the files as they are: nothing is cut, and classes are not compared between splits."""
    raw = _open_raw(data)
    multi_label = data.multi_label == "yes" or any(images.multi_label for images in raw.sets.values())
    sets = {split: images.as_multi_label() for split, images in raw.sets.items()} if multi_label else raw.sets
    return dataclasses.replace(raw, sets=sets)


def _open_raw(data: Data) -> RawSplits:
    name = data.name
    if not name:
        raise ValueError(f"no data given: a path, hf:owner/name or one of {', '.join(DATASETS)}")
    if is_streamed(data):
        raise ValueError(
            f"{name} is streamed: it supports training, and evaluation of val and test; for anything else, give the "
            f"images themselves"
        )
    key = name.casefold().replace("_", "-")
    if name.startswith("hf:") or key in DATASETS:
        require(data.layout == "auto", f"data.layout={data.layout} is for folders and files, not for {name}")
        require(not data.labels, f"data.labels={data.labels} is for folders of images, not for {name}")
    if name.startswith("hf:"):
        return read_hub(name[3:])
    if key in DATASETS:
        raw = _open_named(key, DATASETS[key], data.data_dir)
        if data.data_dir is None and os.path.isdir(name):
            hint = f"{name} is the data set of that name; for the folder here: {os.path.join(os.curdir, name)}"
            raw = dataclasses.replace(raw, notes=[hint, *raw.notes])
        return raw
    for path in (os.path.expanduser(name), os.path.join(os.path.expanduser(data.data_dir or "."), name)):
        if os.path.exists(path):
            return _open_table(path, data) if data.labels else _open_path(path, data)
    known, where = [*DATASETS, *similar_paths(name)], ""
    if data.data_dir is not None:
        where = f" here or in {printable(data.data_dir)} (--data-dir)"
        known += map(os.path.basename, similar_paths(os.path.join(os.path.expanduser(data.data_dir), name)))
    raise ValueError(f"no data set, file or folder named {printable(name)!r}{where}; {suggest(name, known)}")


def _open_table(folder: str, data: Data) -> RawSplits:
    require(os.path.isdir(folder), f"data.labels={data.labels} is for a folder of images, which {data.name} is not")
    require(
        data.layout == "auto", "data.layout is about the names of folders, data.labels takes the classes from a table"
    )
    tables = [os.path.expanduser(data.labels), os.path.join(folder, data.labels)]
    if (table := next(filter(os.path.isfile, tables), None)) is None:
        near = similar_paths(data.labels) or similar_paths(tables[1])
        some = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"no file {printable(data.labels)!r} here or in {printable(folder)} (data.labels){some}")
    return read_table(table, folder, printable(os.path.basename(os.path.abspath(folder))), data.multi_label)


def _open_path(path: str, data: Data) -> RawSplits:
    layout = data.layout
    name = printable(os.path.basename(os.path.abspath(path)))
    if os.path.isfile(path):
        if path.lower().endswith(TABLES):
            return read_table(
                path, os.path.dirname(path) or ".", printable(os.path.splitext(name)[0]), data.multi_label
            )
        if not path.lower().endswith(".parquet"):
            raise ValueError(
                f"{printable(path)} is a file, but not .parquet, .csv or .tsv; expected a folder with one subfolder of "
                f"images per class, Parquet, or a table of files and classes"
            )
        return read_parquet([path], name, None, layout=layout)
    if files := find_files(path, ".parquet", depth=0):
        return read_parquet(files, name, None, layout=layout)
    try:
        return read_folder(path, name, layout)
    except ValueError as e:
        files = find_files(path, ".parquet", depth=2)
        if not files:
            if named := [n for n, info in DATASETS.items() if info.files and info.files.find(path)]:
                name = " or ".join(named)
                raise ValueError(f"{e}. These look like original files: use {name} with --data-dir") from e
            raise
    folders = sorted({os.path.dirname(f) for f in files})
    if len(folders) > 1 and not all(split_from_path(os.path.join(f, "x")) for f in folders):
        some = ", ".join(map(printable, folders[:10]))
        raise ValueError(f"{printable(path)} holds several data sets; pass one of {some}")
    return read_parquet(files, name, None, layout=layout)


def _open_named(name: str, info: DatasetInfo, data_dir: str | None) -> RawSplits:
    if info.load:
        return info.load()
    otherwise = f"put {info.expected} into a folder and pass --data-dir FOLDER"
    if data_dir is None:
        return download_parquet(info.repo, name, info.classes, info.channels, otherwise)
    root = os.path.expanduser(data_dir)
    if not os.path.isdir(root):
        near = similar_paths(data_dir)
        raise ValueError(
            f"no folder {printable(data_dir)!r} (--data-dir)" + (f"; did you mean {', '.join(near)}?" if near else "")
        )
    for folder in _folders_of(name, info, root):
        raw = _read_named(folder, name, info)
        if raw is not None:
            if missing := {TRAIN, TEST} - set(raw.sets):
                raw.notes.append(f"no {' and no '.join(sorted(missing))} files in {printable(folder)}")
            raw.notes.insert(0, f"{name} from {printable(folder)}")
            return raw
    raise ValueError(f"no files of {name} in {printable(root)} or {printable(os.path.join(root, name))}: {otherwise}")


def _read_named(folder: str, name: str, info: DatasetInfo) -> RawSplits | None:
    if files := find_files(folder, ".parquet", depth=0):
        return read_parquet(files, name, info.classes, info.channels)
    if info.files and (original := info.files.find(folder)):
        try:
            return RawSplits(name, info.files.read(original, info.classes))
        except ValueError as e:
            raise ValueError(f"{name} in {printable(folder)}: {e}") from e
    return None


def _folders_of(name: str, info: DatasetInfo, root: str) -> Iterator[str]:
    """Folders to look in: those below `root` that are named after the data set, then other usual ones, then `root`."""

    def plain(folder: str) -> str:
        return re.sub("[-_]", "", folder.casefold())

    def below(folder: str, names: set[str], depth: int) -> Iterator[str]:
        for entry in sorted(os.listdir(folder)):
            path = os.path.join(folder, entry)
            if plain(entry) in names and os.path.isdir(path):
                if depth:
                    yield from below(path, usual, depth - 1)
                yield path

    own = {plain(n) for n in (name, *info.folders)}
    usual = own | {"raw", "data", "plaintext", "default"}
    yield from below(root, own, 2)
    yield from below(root, usual, 1)
    yield root

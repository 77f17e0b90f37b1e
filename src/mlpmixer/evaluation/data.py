"""The images that a model is measured on: those that its run kept for it, or others."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data, open_raw, relabelled
from mlpmixer.data.image_set import ImageSet, Splits, chain, rename_val
from mlpmixer.data.paths import TEST, TRAIN, VAL, count
from mlpmixer.data.split_record import PARTS, Hashes, SplitRecord, listed
from mlpmixer.data.store import content_hashes
from mlpmixer.data.streaming.datasets import StreamedSplits, is_streamed, open_shards, open_streamed
from mlpmixer.evaluation.metrics import Scored
from mlpmixer.evaluation.trained_on import OWN_SHARE, is_by_shards, own_data, place_of, record_of, seen, unseen, without
from mlpmixer.inference.classifier import Classifier

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Images to measure a model on, `trained` (N,) those it was trained on; None where the model does not say."""

    images: ImageSet
    trained: NDArray[np.bool_] | None
    scored: Scored

    def unseen(self) -> "Chosen":
        """Without the images that the model was trained on. ValueError when none is left."""
        if self.trained is None or not self.trained.any():
            return self
        images, total = without(self.images, self.trained, self.scored.data), len(self.images)
        note = f"{total - len(images):,} of {total:,} images are left out, as they were trained on"
        scored = replace(self.scored, n=len(images), notes=(*self.scored.notes, note))
        return replace(self, images=images, trained=np.zeros(len(images), dtype=bool), scored=scored)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Data as a model sees it: its images by split, and how these splits came about. Made by `open_for`."""

    classifier: Classifier
    data: Data
    name: str
    sets: Mapping[str, ImageSet]
    """The images by split; "all" is every image, where they can be had."""
    how: str
    """Where the splits are from, such as "as the data is split"."""
    own: bool = False
    """Whether this is the data of the model's run."""
    notes: tuple[str, ...] = ()
    """Changes since training, and images that are left out."""
    refusal: str = ""
    """Why no split can be taken, only all."""
    streamed: StreamedSplits | None = None
    hashes: Mapping[str, Hashes] = field(default_factory=dict)
    """Content hashes by split, as far as they are known already."""

    def choose(self, split: str | None = None) -> Chosen:
        """The images of a split. None: test, and the whole of other data that has no splits.

        ValueError when there is no such split.
        """
        if split not in (None, TRAIN, VAL, TEST, ALL):
            raise ValueError(f"no split {split!r}; expected train, val, test or all")
        named = [name for name in (TRAIN, VAL, TEST) if name in self.sets]
        taken = split or (TEST if self.own or self.refusal or named else ALL)
        if self.refusal and taken != ALL:
            raise ValueError(self.refusal)
        if taken not in self.sets:
            instead = f", only {' and '.join(named)}: choose with --split" if named else " and no other splits"
            whole = "" if named else ": leave --split out, and all of them are scored"
            raise ValueError(f"{self.name} has no {taken} images{instead}{whole}")
        images = relabelled(self.sets[taken], self.sets[taken].used_classes())
        scored = Scored(
            data=self.name,
            split=taken,
            n=len(images),
            of=len(self.sets[ALL]) if ALL in self.sets else None,
            how="every image" if taken == ALL else f"{taken}, {self.how}",
            notes=self.notes,
        )
        trained = seen(self.classifier, self.data, images, self.hashes.get(taken))
        return Chosen(images=images, trained=trained, scored=scored)

    def held_out(self) -> ImageSet:
        """Images that the model was not trained on: of test, cut off if there is only train, or of the whole.

        ValueError when there are none.
        """
        if self.own or self.refusal or TEST in self.sets or TRAIN not in self.sets:
            return self.choose().unseen().images
        if (test := self.splits().test) is None:
            raise ValueError(f"{self.name} has no test images and is too small to cut some off")
        return unseen(self.classifier, self.data, test)

    @property
    def test_how(self) -> str:
        """Where the test images of `splits` are from."""
        return f"{TEST}, {self.how if self.own or TEST in self.sets else 'cut off from the rest now'}"

    def splits(self) -> Splits | StreamedSplits:
        """Train, val and test, for what learns from the data: what is missing is cut off, unless this is the run's.

        ValueError when there is no train or val.
        """
        if self.refusal:
            raise ValueError(self.refusal)
        if self.streamed is not None:
            return self.streamed
        if not self.own:
            return open_streamed(self.data) if is_streamed(self.data) else open_data(self.data)
        for split in (TRAIN, VAL):
            if split not in self.sets:
                raise ValueError(f"{self.name} holds no {split} images of the model's run")
        classes = tuple(self.sets[TRAIN].used_classes())
        sets = {split: relabelled(images, classes).labelled() for split, images in self.sets.items()}
        return Splits(self.name, sets[TRAIN], sets[VAL], sets.get(TEST), classes, self.notes)


def open_for(classifier: Classifier, data: Data | str | None, data_dir: str = "", *, as_model: bool = True) -> Opened:
    """The data that is asked for, cut as the model's run cut it if it is the run's data.

    data: a Data, the name or path of a data set, or None for what the run was trained on. data_dir: where the files of
        a named data set are, when they are elsewhere now. as_model: read a table as the model answers: for one that may
        give several classes, an image without a class has none of them, even where no image has several.

    The run's data is known by the content of its images, whatever its path and form: it holds at least half of the
    run's validation and test images, and does not itself call mostly other images so. Its splits are the recorded ones,
    and images that have changed or come since are in none. Older models have no record: for the path that they were
    trained on, the cut is computed again.

    ValueError when None is asked for and the file does not say, and as `open_raw` does.
    """
    asked, record = resolve_data(classifier, data, data_dir), record_of(classifier)
    own = own_data(classifier)
    is_same = own is not None and place_of(own) == place_of(asked)
    if own is not None:
        settings = replace(own, name=asked.name, data_dir=asked.data_dir)
        asked = settings if is_same else asked
        may_be_shards = (is_same or is_by_shards(classifier)) and is_streamed(settings)
        if may_be_shards and (shards := _streamed(classifier, settings, is_same)):
            return shards
        if record and settings.layout != asked.layout:  # the run's rule for folders named train, if it is its data
            with suppress(ValueError):
                if (found := open_for(classifier, settings)).own:
                    return found
    if as_model and classifier.multi_label and asked.multi_label == "auto" and not is_streamed(asked):
        asked = replace(asked, multi_label="yes")
    try:
        raw = open_shards(asked) if is_streamed(asked) else open_raw(asked)
    except ValueError as e:
        if data is not None:
            raise
        raise ValueError(f"{e} (this is the data of the model's run: name where it is now)") from e
    how = "as the data is split"
    if asked.val_is_test and not (is_same and (TEST in raw.sets or VAL not in raw.sets)):  # the run's may have changed
        rename_val(raw.sets, raw.name)
        how += ", whose val is test (data.val_is_test)"
    whole = chain(list(raw.sets.values()))
    opened = Opened(
        classifier=classifier,
        data=asked,
        name=raw.name,
        sets={**raw.sets, ALL: whole},
        how=how,
        notes=tuple(raw.notes) if is_streamed(asked) else (),
    )
    if record is None and is_same:
        cut = open_data(asked)
        sets = {TRAIN: cut.train, VAL: cut.val, TEST: cut.test, ALL: whole}
        how = "cut again as the model's run was set, which kept no record of its images"
        return replace(opened, sets={split: images for split, images in sets.items() if images}, how=how, own=True)
    return opened if record is None else _by_record(opened, record, is_same)


def _by_record(opened: Opened, record: SplitRecord, is_same: bool) -> Opened:
    """The splits as recorded, if this is the data of the record. is_same: whether it was there."""
    whole, number = opened.sets[ALL], {split: i for i, split in enumerate(PARTS)}
    hashes = content_hashes(whole, opened.data.workers)
    places = record.assign(whole.names, hashes)
    parts = np.where(places >= 0, record.all_parts[places], -1) if sum(record.counts) else places
    stated = [split for split in (TRAIN, VAL, TEST) if split in opened.sets]  # one after the other in `whole`
    named = np.repeat([number[split] for split in stated], [len(opened.sets[split]) for split in stated])
    held = parts[np.isin(named, (number[VAL], number[TEST]))] if stated else parts[:0]
    found, total = (int(np.isin(which, (number[VAL], number[TEST])).sum()) for which in (parts, record.all_parts))
    if found < OWN_SHARE * total or not total or (held < 0).sum() > OWN_SHARE * len(held):
        other = f"it holds {found:,} of the {total:,} validation and test images of the run"
        changed = is_same and not set(stated) & {VAL, TEST}
        return replace(
            opened,
            hashes={split: hashes[named == number[split]] for split in stated} | {ALL: hashes},
            refusal=f"{opened.name} is no longer what the run was trained on: {other}; --split all scores everything"
            if changed
            else "",
            notes=(f"{opened.name} is no longer what the run was trained on: {other}",) if is_same else (),
        )
    notes = _changes(record, whole.names, places)
    tested = parts[named == number[VAL]] == number[TEST]
    if TEST not in stated and 2 * tested.sum() > len(tested):  # data.val_is_test, of which an export says nothing
        stated, named = [TEST], np.where(named == number[VAL], number[TEST], named)
    differ = [((parts == number[split]) != (named == number[split])) for split in stated if split != TRAIN]
    if differ and not opened.data.folds and (np.any(differ, axis=0) & (parts >= 0)).any():
        notes = ("the folders or files of the data split it otherwise than the run did, whose splits are taken", *notes)
    at = {split: np.flatnonzero(parts == number[split]) for split in (TRAIN, VAL, TEST)}
    return replace(
        opened,
        sets={split: whole.subset(indices) for split, indices in at.items() if len(indices)} | {ALL: whole},
        how="as split when the model was trained",
        own=True,
        notes=notes,
        hashes={split: hashes[indices] for split, indices in at.items()} | {ALL: hashes},
    )


def _changes(record: SplitRecord, names: Sequence[str], places: NDArray[np.int64]) -> tuple[str, ...]:
    """Changes since training, in sentences."""
    recorded = set(record.all_names)
    unknown = [str(names[i]) for i in np.flatnonzero(places < 0).tolist()] if not record.shards else []
    changed = [name for name in unknown if name in recorded]
    gone = np.setdiff1d(np.arange(sum(record.counts)), places)
    missing = [record.all_names[i] for i in gone] if recorded else [""] * len(gone)
    lists = {
        "changed since the training, and in no split": changed,
        "came after the training, and in no split": [name for name in unknown if name not in recorded],
        "of the run missing": [name for name in missing if name not in set(changed)],
    }
    return tuple(
        f"{len(which):,} {'image' if len(which) == 1 else 'images'} {what}" + (f": {listed(which)}" if which[0] else "")
        for what, which in lists.items()
        if which
    )


def _streamed(classifier: Classifier, data: Data, is_same: bool) -> Opened | None:
    """The shards that a run streamed, with its validation and test images; None for other data."""
    record = record_of(classifier)
    try:
        splits = open_streamed(data)
    except ValueError:
        if is_same:
            raise
        return None  # not even shards
    if record and splits.fingerprint != record.shards:
        return None
    sets = {split: images for split, images in ((VAL, splits.val), (TEST, splits.test)) if images}
    notes: tuple[str, ...] = ()
    for split, images in sets.items() if record else ():
        assert record
        places = record.assign(images.names, content_hashes(images, data.workers))
        known = (places >= 0) & (record.all_parts[places] == PARTS.index(split))
        sets[split] = images.subset(np.flatnonzero(known))
        if not known.all():
            others = [str(images.names[i]) for i in np.flatnonzero(~known).tolist()]
            notes += (f"{count(len(others), f'{split} image')} changed or came since the training: {listed(others)}",)
    return Opened(
        classifier=classifier,
        data=data,
        name=splits.name,
        sets=sets,
        how="as split when the model was trained",
        own=True,
        notes=notes,
        streamed=replace(splits, val=sets[VAL], test=sets.get(TEST)),
    )


def resolve_data(classifier: Classifier, data: Data | str | None, data_dir: str = "") -> Data:
    """The Data that is asked for: by itself, by its name or path, or as None, the data that the run was trained on.

    ValueError when None is asked for and the file does not say.
    """
    own = own_data(classifier)
    if isinstance(data, Data):
        asked = data
    elif data is None:
        if own is None:
            raise ValueError(
                "which images? This model file does not say what data it was trained on: name a data set or a folder, "
                "as DATA after the model or, with export and convert, as --data DATA"
            )
        asked = own
    else:
        asked = Data(name=data)
    return replace(asked, data_dir=data_dir) if data_dir else asked

"""The data that a model was trained on, and which images of it. No torch."""

import os
from contextlib import suppress
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mlpmixer.config import from_json
from mlpmixer.data.catalog import DATASETS
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data, open_raw
from mlpmixer.data.image_set import ImageSet, chain
from mlpmixer.data.split_record import Hashes, SplitRecord
from mlpmixer.data.store import content_hashes
from mlpmixer.data.streaming.datasets import is_streamed
from mlpmixer.inference.classifier import Classifier
from mlpmixer.weights.model_file import ModelMeta
from mlpmixer.weights.run_folder import read_recipe_json

OWN_SHARE = 0.5  # data that holds as many of a run's validation and test images is the run's own
SAMPLE = 32  # images that are looked at to know a run's data again before a training


def record_of(classifier: Classifier) -> SplitRecord | None:
    return classifier.meta.splits if classifier.meta is not None else None


def is_by_shards(classifier: Classifier) -> bool:
    """Whether the training images were streamed, and so are not recorded one by one."""
    record = record_of(classifier)
    return bool(record and record.shards)


def seen(
    classifier: Classifier, data: Data | None, images: ImageSet, hashes: Hashes | None = None
) -> NDArray[np.bool_] | None:
    """Whether a model was trained on each of these images (N,) of `data`; None where it does not say, such as one that
    has streamed them.

    By content; for older models by name, if it is the data of their run.
    """
    if is_by_shards(classifier):
        return None
    if record := record_of(classifier):
        if hashes is None:
            hashes = content_hashes(images)
        known: NDArray[np.bool_] = np.isin(hashes, record.trained) & (hashes != 0)
        return known
    own = own_data(classifier)
    if own is None or data is None or place_of(own) != place_of(data) or is_streamed(own):
        return None
    names = set(map(str, open_data(replace(own, name=data.name, data_dir=data.data_dir)).train.names))
    return np.array([str(name) in names for name in images.names], dtype=bool)


def unseen(classifier: Classifier, data: Data, images: ImageSet) -> ImageSet:
    """The images of `data` that the model was not trained on. ValueError when there are none."""
    trained = seen(classifier, data, images)
    return images if trained is None else without(images, trained, data.name)


def without(images: ImageSet, trained: NDArray[np.bool_], name: str) -> ImageSet:
    """The images of the data `name` that are not marked in `trained` (N,). ValueError when all are."""
    if trained.all():
        raise ValueError(f"the model was trained on all {len(images):,} of these images of {name}: none can judge it")
    return images.subset(np.flatnonzero(~trained))


def own_data(classifier: Classifier) -> Data | None:
    """The data that a model was trained on; None where neither its file nor the recipe beside it says so."""
    if classifier.meta is not None and classifier.meta.data is not None:
        return classifier.meta.data
    recipe = classifier.path and classifier.path.with_name("recipe.json")
    if recipe is None or not recipe.is_file():
        return None
    return from_json(Data, read_recipe_json(recipe.parent).get("data"), "data")


def was_trained_on(meta: ModelMeta, data: Data) -> bool | None:
    """Whether a model was trained on the data of this name or path: it is at the same place, or has the same name and
    the images that the model knows. None where there is only the name to tell."""
    own, place = meta.data, place_of(data)
    if own and place_of(own) == place:
        return True
    if os.path.basename(place) != meta.provenance.get("data"):
        return False
    if place in DATASETS:
        return own is None
    if meta.splits and not meta.splits.shards and os.path.exists(place):
        asked = replace(own, name=data.name, data_dir=data.data_dir) if own else data
        with suppress(ValueError, OSError):  # such as a table that is not there, or shards
            images = chain(list(open_raw(asked).sets.values())).spread(SAMPLE)
            return bool(np.isin(content_hashes(images), meta.splits.all_hashes).mean() >= OWN_SHARE)
    there = place_of(own) if own else ""
    return False if there in DATASETS or there.startswith("hf:") or os.path.exists(there) else None


def place_of(data: Data) -> str:
    """Where data is, the same for every spelling of its path."""
    if (key := data.name.casefold().replace("_", "-")) in DATASETS:
        return key
    paths = [os.path.expanduser(data.name), os.path.join(os.path.expanduser(data.data_dir or "."), data.name)]
    return next((os.path.realpath(path) for path in paths if os.path.exists(path)), data.name)

"""The parts of cross-validation: stratified by class, with images of the same content in the same part."""

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.store import content_hashes


def fold_of_each(images: ImageSet, folds: int, seed: int, workers: int = 0) -> NDArray[np.int64]:
    """The fold 1..folds of each image (N,): its class is spread evenly, and files of the same bytes are in the same.

    ValueError when a class has fewer different images than there are folds.
    """
    hashes = content_hashes(images, workers)
    unread = np.flatnonzero(hashes == 0)
    hashes[unread] = np.arange(1, len(unread) + 1)  # files that cannot be read are not each other's duplicates
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    group, labels = group.reshape(-1), images.labels
    different = np.bincount(labels[first], minlength=len(images.classes))
    for name, have in zip(images.classes, different.tolist(), strict=True):
        if have < folds:
            can = f"use at most {have}, or give it more images" if have > 1 else "give it more images"
            raise ValueError(
                f"data.folds={folds} needs {folds} different images of each class, and {name!r} has {have}: {can}"
            )
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(group))[:-1])
    counts = np.zeros((folds, len(images.classes)), np.int64)
    fold = np.zeros(len(images), np.int64)
    drawn = np.random.default_rng([seed % 2**32, folds]).permutation(len(members))
    sizes = np.array([len(places) for places in members])
    for g in drawn[np.lexsort((np.arange(len(drawn)), -sizes[drawn], labels[first[drawn]]))]:
        places = members[g]
        of_class = counts[:, labels[places[0]]]
        chosen = int(np.lexsort((counts.sum(1), of_class))[0])  # the emptiest of this class, then of all
        fold[places] = chosen + 1
        np.add.at(counts[chosen], labels[places], 1)
    return fold

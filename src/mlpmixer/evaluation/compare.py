"""Two models on the same images: which is better, and whether chance could have done it. Imports no torch.

A pair of answers says something only where one model is right and the other wrong; `significance` says how much.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_images
from mlpmixer.data.image_set import ImageSet
from mlpmixer.evaluation.data import own_data, resolve_data
from mlpmixer.evaluation.evaluate import match_classes
from mlpmixer.evaluation.significance import Interval, holm, mcnemar, paired_difference, wilson
from mlpmixer.inference.classifier import Classifier, load
from mlpmixer.inference.files import map_images
from mlpmixer.weights.run_folder import read_recipe_json

LEVEL = 0.05  # below this p a difference counts as real


@dataclass(frozen=True, kw_only=True)
class ClassDifference:
    """How often each model is right on the images of one class."""

    name: str
    n: int
    recall_a: float
    recall_b: float
    only_a: int
    only_b: int
    p: float
    """Exact McNemar on this class's images, enlarged by Holm's rule for the number of classes looked at."""

    @property
    def difference(self) -> float:
        return self.recall_a - self.recall_b


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models A and B on the same `n` readable images. Shares are fractions; an interval is of 95 %, over images, not
    over seeds."""

    a: str
    b: str
    n: int
    top1_a: float
    top1_a_interval: Interval
    top1_b: float
    top1_b_interval: Interval
    both_right: int
    only_a: int
    """Images that A has right and B wrong."""
    only_b: int
    both_wrong: int
    difference: float
    """top1_a - top1_b."""
    difference_interval: Interval
    """Bonett and Price, see `significance.paired_difference`."""
    p: float
    """Exact McNemar test, two-sided, see `significance.mcnemar`."""
    mid_p: float
    per_class: tuple[ClassDifference, ...]
    """In the order of the data's classes; those without images are left out."""
    seeds_apart: bool
    """Whether both are runs of one recipe that differ in nothing but the seed."""
    bad: tuple[tuple[str, str], ...] = ()
    """Unreadable images, (name, reason): not counted in anything above."""

    @property
    def better(self) -> str | None:
        """The better model's name; None for a draw."""
        return None if self.p >= LEVEL else self.a if self.only_a > self.only_b else self.b

    @property
    def verdict(self) -> str:
        """A plain sentence."""
        low, high = self.difference_interval
        numbers = f"{100 * self.difference:+.2f} points for A, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}, p = {self.p:.2g}"
        if not self.only_a + self.only_b:
            return f"a draw: both have the same {self.both_right:,} of {self.n:,} images right"
        if self.better is None:
            return f"a draw: the difference may be chance ({numbers})"
        winner, loser = ("A", "B") if self.only_a > self.only_b else ("B", "A")
        return f"{winner} is better than {loser} ({numbers})"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the verdict among them."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        intervals = {name: list(value) for name, value in plain.items() if name.endswith("_interval")}
        rows = [dataclasses.asdict(row) | {"difference": row.difference} for row in self.per_class]
        return (
            plain
            | intervals
            | {"per_class": rows, "bad": [list(b) for b in self.bad], "better": self.better, "verdict": self.verdict}
        )


def compare(
    model_a: Classifier | str | os.PathLike[str],
    model_b: Classifier | str | os.PathLike[str],
    data: ImageSet | Data | str | None = None,
    *,
    split: str = "test",
    batch_size: int = 256,
) -> Comparison:
    """Both models on every image of `data`, once each; images that either cannot read are named in `Comparison.bad`.

    Models and data: as in `evaluate`; None is the data that run A was trained on. The classes of data and models must
    be the same, in any order. The test is over images: it asks whether these two networks would differ on other images
    of the same kind. Whether another seed of the same recipe would do the same it cannot know.

    Raises ValueError as `evaluate` does, and when the runs cut the same data differently, so that one may have learned
    the other's images.
    """
    pair = [model if isinstance(model, Classifier) else load(model) for model in (model_a, model_b)]
    images = data if isinstance(data, ImageSet) else _images_of_both(pair, resolve_data(pair[0], data), split)
    matches = [
        _match(name, images, classifier) for name, classifier in zip("AB", pair, strict=True)
    ]  # both before either is run
    right, seen, bad = np.zeros((2, len(images)), dtype=bool), np.zeros((2, len(images)), dtype=bool), dict[str, str]()
    for i, classifier in enumerate(pair):
        kept, probabilities, unreadable = map_images(classifier, images, classifier.probabilities, batch_size)
        seen[i, kept] = True
        right[i, kept] = probabilities.argmax(axis=1) == matches[i][images.labels[kept]]
        bad |= dict(unreadable)
    both = seen.all(axis=0)
    if not both.any():
        raise ValueError(f"none of the {len(images)} images could be read by both models")
    comparison = compare_answers(right[0, both], right[1, both], images.labels[both], images.classes)
    a, b = (
        str(model.path or "in memory") if isinstance(model, Classifier) else os.fspath(model)
        for model in (model_a, model_b)
    )
    return dataclasses.replace(comparison, a=a, b=b, seeds_apart=_seeds_apart(pair), bad=tuple(bad.items()))


def compare_answers(
    right_a: NDArray[np.bool_], right_b: NDArray[np.bool_], labels: NDArray[np.integer[Any]], classes: Sequence[str]
) -> Comparison:
    """The comparison of two models, called A and B, that have these of the same N images right; labels (N,) into
    `classes`."""

    def counts(mask: NDArray[np.bool_]) -> list[int]:
        return [int(v) for v in np.bincount(labels[mask], minlength=len(classes))]

    columns = (np.ones_like(right_a), right_a, right_b, right_a & ~right_b, right_b & ~right_a)
    rows = [row for row in zip(classes, *map(counts, columns), strict=True) if row[1]]
    n, in_a, in_b, only_a, only_b = (int(column.sum()) for column in columns)
    p, mid_p = mcnemar(only_a, only_b)
    return Comparison(
        a="A",
        b="B",
        n=n,
        top1_a=in_a / n,
        top1_a_interval=wilson(in_a, n),
        top1_b=in_b / n,
        top1_b_interval=wilson(in_b, n),
        both_right=in_a - only_a,
        only_a=only_a,
        only_b=only_b,
        both_wrong=n - in_a - only_b,
        difference=(only_a - only_b) / n,
        difference_interval=paired_difference(only_a, only_b, n),
        p=p,
        mid_p=mid_p,
        per_class=tuple(
            ClassDifference(name=name, n=m, recall_a=x / m, recall_b=y / m, only_a=just_a, only_b=just_b, p=p_class)
            for (name, m, x, y, just_a, just_b), p_class in zip(
                rows, holm([mcnemar(*row[4:])[0] for row in rows]), strict=True
            )
        ),
        seeds_apart=False,
    )


def _match(name: str, images: ImageSet, classifier: Classifier) -> NDArray[np.int64]:
    try:
        return match_classes(images.classes, classifier.classes)
    except ValueError as e:
        raise ValueError(f"model {name}: {e}") from e


def _images_of_both(pair: Sequence[Classifier], data: Data, split: str) -> ImageSet:
    """One split of the data. A run that was trained on it must have cut it in the same way, so as not to have learned
    the images."""
    images = open_images(data, split)
    names = {str(name) for name in images.names}
    for classifier in pair if split != "all" else ():
        own = own_data(classifier)
        if own is None or own.name != data.name or (own := dataclasses.replace(own, data_dir=data.data_dir)) == data:
            continue
        foreign = len(names - {str(name) for name in open_images(own, split).names})
        if foreign:
            raise ValueError(
                f"{foreign:,} of these {len(names):,} images of {data.name} are no {split} images of "
                f"{classifier.path}, which cut it in "
                "another way (split_seed, fractions) and may have learned them: compare on data that neither was "
                "trained on"
            )
    return images


def _seeds_apart(pair: Sequence[Classifier]) -> bool:
    files = [classifier.path for classifier in pair]
    if not all(file and file.with_name("recipe.json").is_file() for file in files):
        return False
    a, b = (read_recipe_json(file.parent) for file in files if file)
    seeds = [recipe["run"].pop("seed") for recipe in (a, b)]
    for recipe in (a, b):
        del recipe["data"]["data_dir"]
    return seeds[0] != seeds[1] and a == b

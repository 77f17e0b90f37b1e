"""Comparison of two models on the same images: which is better, and whether that may be chance. Imports no torch.

Only images that one model has right and the other wrong tell them apart; `significance` says how much they tell.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.config import Data
from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.paths import TRAIN
from mlpmixer.evaluation.data import ALL, open_for
from mlpmixer.evaluation.evaluate import match_classes, require_one_class
from mlpmixer.evaluation.metrics import Scored, as_json
from mlpmixer.evaluation.significance import Interval, holm, mcnemar, paired_difference, wilson
from mlpmixer.evaluation.trained_on import own_data, place_of, seen
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.files import map_images
from mlpmixer.inference.load import load
from mlpmixer.weights.run_folder import differences, is_run, measured_fields, read_recipe_json

WHERE_IT_RAN = {"data.data_dir", "data.workers", "data.cache_mib", "run.device", "run.threads", "run.save_every_s"}
LEVEL = 0.05  # a difference with a smaller p is significant


@dataclass(frozen=True, kw_only=True)
class ClassDifference:
    """The recall of each model on the images of one class."""

    name: str
    n: int
    recall_a: float
    recall_b: float
    only_a: int
    only_b: int
    p: float
    """Exact McNemar test on this class's images, adjusted for the number of classes (Holm)."""

    @property
    def difference(self) -> float:
        return self.recall_a - self.recall_b


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models A and B on the same `n` readable images. Intervals are 95 %, over images, not over seeds."""

    a: str
    """Path or name of A."""
    b: str
    """Path or name of B."""
    n: int
    """Number of images that both read."""
    top1_a: float
    """Accuracy of A, a fraction."""
    top1_a_interval: Interval
    """(low, high), Wilson."""
    top1_b: float
    """Accuracy of B."""
    top1_b_interval: Interval
    """(low, high), Wilson."""
    both_right: int
    """Images that both have right."""
    only_a: int
    """Images that A has right and B wrong."""
    only_b: int
    """Images that B has right and A wrong."""
    both_wrong: int
    """Images that neither has right."""
    difference: float
    """top1_a - top1_b."""
    difference_interval: Interval
    """See `significance.paired_difference`."""
    p: float
    """Two-sided exact McNemar test, see `significance.mcnemar`."""
    mid_p: float
    """The less cautious mid-p form of `p`."""
    per_class: tuple[ClassDifference, ...]
    """In the order of the data's classes, without those that have no images."""
    seeds_apart: bool
    """Whether both are runs of one recipe that differ only in the seed, where they ran, and what was measured when they
    started."""
    bad: tuple[tuple[str, str], ...] = ()
    """Unreadable images, (name, reason), which are excluded from the numbers above."""
    scored: Scored | None = None
    """Which images of which data; None where images themselves were given."""
    trained_on_a: int | None = None
    """How many of the images scored A was trained on; None where it does not say."""
    trained_on_b: int | None = None
    """The same of B."""

    @property
    def better(self) -> str | None:
        """The name of the better model; None for a draw."""
        return None if self.p >= LEVEL else self.a if self.only_a > self.only_b else self.b

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        difference, low, high = (f"{100 * share:+.2f}" for share in (self.difference, *self.difference_interval))
        numbers = f"{difference} points for A, 95 % interval {low} to {high}, p = {self.p:.2g}"
        if not self.only_a + self.only_b:
            return f"a draw: both have the same {self.both_right:,} of {self.n:,} images right"
        if self.better is None:
            return f"a draw: the difference may be chance ({numbers})"
        winner, loser = ("A", "B") if self.only_a > self.only_b else ("B", "A")
        return f"{winner} is better than {loser} ({numbers})"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, including the verdict."""
        plain: dict[str, Any] = as_json(self)
        for row, difference in zip(plain["per_class"], self.per_class, strict=True):
            row["difference"] = difference.difference
        return plain | {"better": self.better, "verdict": self.verdict}


def compare(
    model_a: Classifier | str | os.PathLike[str],
    model_b: Classifier | str | os.PathLike[str],
    data: ImageSet | Data | str | None = None,
    *,
    split: str | None = None,
    batch_size: int = 256,
) -> Comparison:
    """Compare two models on every image of `data`; images that either cannot read are named in `Comparison.bad`.

    Models and data: as in `evaluate`; None is the data that run A was trained on, with A's splits. Images that either
    was trained on are left out, except with split="train" or "all" and from an ImageSet. The test is over images: it
    asks whether these two networks would differ on other images of the same kind. It cannot tell whether another seed
    of the same recipe would give the same result.

    Errors: ValueError as `evaluate`, and when no image is left that neither was trained on.
    """
    pair = [model if isinstance(model, Classifier) else load(model) for model in (model_a, model_b)]
    images, scored, trained = _shared_images(pair, data, split)
    for name, model in zip("AB", pair, strict=True):
        if model.multi_label:
            raise ValueError(f"{name} may give an image several classes: compare counts right answers; use evaluate")
    require_one_class(images)
    to_model = [_match(name, images, classifier) for name, classifier in zip("AB", pair, strict=True)]
    right, seen, bad = np.zeros((2, len(images)), dtype=bool), np.zeros((2, len(images)), dtype=bool), dict[str, str]()
    for i, classifier in enumerate(pair):
        kept, probabilities, unreadable = map_images(classifier, images, classifier.probabilities, batch_size)
        seen[i, kept] = True
        right[i, kept] = probabilities.argmax(axis=1) == to_model[i][images.labels[kept]]
        bad |= dict(unreadable)
    both = seen.all(axis=0)
    if not both.any():
        raise ValueError(f"none of the {len(images)} images could be read by both models")
    comparison = compare_answers(right[0, both], right[1, both], images.labels[both], images.classes)
    a, b = (
        str(model.path or "in memory") if isinstance(model, Classifier) else os.fspath(model)
        for model in (model_a, model_b)
    )
    known = [None if of_one is None else int(of_one[both].sum()) for of_one in trained]
    return dataclasses.replace(
        comparison,
        a=a,
        b=b,
        seeds_apart=_differ_only_in_seed(pair),
        bad=tuple(bad.items()),
        scored=scored,
        trained_on_a=known[0],
        trained_on_b=known[1],
    )


def compare_answers(
    right_a: NDArray[np.bool_], right_b: NDArray[np.bool_], labels: NDArray[np.integer[Any]], classes: Sequence[str]
) -> Comparison:
    """Compare two models, called A and B, by which of the same N images each has right; labels (N,) into `classes`."""

    def counts(mask: NDArray[np.bool_]) -> list[int]:
        return [int(v) for v in np.bincount(labels[mask], minlength=len(classes))]

    columns = (np.ones_like(right_a), right_a, right_b, right_a & ~right_b, right_b & ~right_a)
    n, in_a, in_b, only_a, only_b = (int(column.sum()) for column in columns)
    p, mid_p = mcnemar(only_a, only_b)
    rows = [row for row in zip(classes, *map(counts, columns), strict=True) if row[1]]
    p_per_class = holm([mcnemar(*row[4:])[0] for row in rows])
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
            ClassDifference(name=name, n=m, recall_a=x / m, recall_b=y / m, only_a=just_a, only_b=just_b, p=q)
            for (name, m, x, y, just_a, just_b), q in zip(rows, p_per_class, strict=True)
        ),
        seeds_apart=False,
    )


def _match(name: str, images: ImageSet, classifier: Classifier) -> NDArray[np.int64]:
    try:
        return match_classes(images.classes, classifier.classes)
    except ValueError as e:
        raise ValueError(f"model {name}: {e}") from e


Trained = NDArray[np.bool_] | None


def _shared_images(
    pair: Sequence[Classifier], data: ImageSet | Data | str | None, split: str | None
) -> tuple[ImageSet, Scored | None, list[Trained]]:
    """The images to compare on, and for each model which of them it was trained on."""
    a, b = pair
    if isinstance(data, ImageSet):
        return data, None, [seen(classifier, None, data) for classifier in pair]
    opened = open_for(a, data)
    chosen = opened.choose(split)
    trained: list[Trained] = [chosen.trained, seen(b, opened.data, chosen.images)]
    either = np.zeros(len(chosen.images), dtype=bool)
    for of_one in trained:
        either |= False if of_one is None else of_one
    if (chosen.scored.split in (TRAIN, ALL) and split) or not either.any():
        return chosen.images, chosen.scored, trained
    left = dataclasses.replace(chosen, trained=either).unseen()
    return left.images, left.scored, [of_one if of_one is None else of_one[~either] for of_one in trained]


def _differ_only_in_seed(pair: Sequence[Classifier]) -> bool:
    runs = [classifier.path.parent for classifier in pair if classifier.path]
    if len(runs) < 2 or not all(map(is_run, runs)):
        return False
    a, b = map(read_recipe_json, runs)
    found = differences(a, b)
    if "run.seed" not in found:
        return False
    free = {"run.seed"} | WHERE_IT_RAN | set(measured_fields(runs[0])).intersection(measured_fields(runs[1]))
    if a["run"].get("time"):
        free.add("run.steps")
    if len({place_of(data) for data in map(own_data, pair) if data}) == 1:
        free.add("data.name")
    return found.keys() <= free

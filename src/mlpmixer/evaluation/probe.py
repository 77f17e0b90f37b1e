"""Quality of frozen features: few-shot ridge regression, k-nearest neighbours, a linear probe. Imports no torch.

N images, D features (pre_logits, the input of the head), K classes. Shares are fractions between 0 and 1.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlpmixer.data.config import Data
from mlpmixer.data.image_set import ImageSet, Splits
from mlpmixer.evaluation.data import ALL, open_for
from mlpmixer.evaluation.evaluate import require_one_class
from mlpmixer.evaluation.features import Features, extract_features
from mlpmixer.evaluation.few_shot import L2, SEEDS, SHOTS, FewShot, few_shot, require_shots
from mlpmixer.evaluation.linear import LinearProbe, linear_probe
from mlpmixer.evaluation.metrics import Scored, as_json
from mlpmixer.evaluation.neighbours import Neighbours, knn, require_neighbours
from mlpmixer.evaluation.trained_on import seen
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.load import load


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The quality of frozen features on some data; counts are of readable images."""

    n_train: int
    """Training images."""
    n_test: int
    """Test images."""
    num_features: int
    """D, the length of a feature vector."""
    classes: tuple[str, ...]
    """Names of the data's classes."""
    seeds: tuple[int, ...]
    """One for each draw of the few-shot images."""
    few_shot: tuple[FewShot, ...]
    """For each number of `shots`: top-1 of every draw, a fraction."""
    neighbours: Neighbours | None = None
    """Top-1 of the nearest neighbours, if asked for."""
    linear: LinearProbe | None = None
    """Top-1 of the logistic regression, if asked for."""
    bad: tuple[tuple[str, str], ...] = ()
    """Unreadable images, (name, reason), which are excluded from the numbers above."""
    scored: Scored | None = None
    """Which test images of which data; None where the splits themselves were given."""
    trained_on: int | None = None
    """How many of the test images the model was trained on; None where it does not say."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the top-1 of few shots is {"mean", "range", "n"}, beside the value of each seed."""
        rows = [
            {
                "shots": row.shots,
                "top1": {"mean": row.mean, "range": list(row.range), "n": len(row.top1)},
                "top1_by_seed": list(row.top1),
            }
            for row in self.few_shot
        ]
        plain: dict[str, Any] = as_json(self)
        return plain | {"few_shot": rows}


def probe(
    model: Classifier | str | os.PathLike[str],
    data: Splits | Data | str | None = None,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    l2: float = L2,
    neighbours: int | None = None,
    linear: bool = False,
    batch_size: int = 256,
    cache: str | os.PathLike[str] | None = None,
) -> ProbeResult:
    """Measure few-shot accuracy on a model's features and, on request, nearest neighbours and a linear probe.

    Each classifier is fitted on train and measured on test; the L2 penalty of the linear probe is chosen on val.

    model: a Classifier, or what `load` takes; its classes need not be those of the data.
    data: opened Splits, a Data, the name or path of a data set, or None for the data that the run was trained on.
    neighbours: k, for nearest neighbours as well. linear: whether to fit a logistic regression as well.
    cache: a folder in which features are kept, see `extract_features`.

    Errors: ValueError when a class has fewer training images than the largest number of shots, when there are fewer
    training images than neighbours, when the data has no test images, or when no image of a split is readable.
    """
    classifier = model if isinstance(model, Classifier) else load(model)
    if isinstance(data, Splits):
        opened, splits = None, data
    else:
        opened = open_for(classifier, data, as_model=False)
        of_data = opened.splits()
        if not isinstance(of_data, Splits):
            raise ValueError(f"{opened.name} is streamed; a probe needs the images themselves")
        splits = of_data
    if splits.test is None:
        raise ValueError(f"{splits.name} has no test images and is too small to split some off")
    require_one_class(splits.train, "a probe needs images of one class each")
    require_shots(splits.train.labels, shots, splits.classes)  # before the network runs; again without unreadable ones
    if neighbours is not None:
        require_neighbours(neighbours, len(splits.train))

    def features(images: ImageSet, split: str) -> Features:
        name = f"{splits.name}-{split}"
        return extract_features(classifier, images, batch_size=batch_size, cache=cache, name=name)

    train, test = features(splits.train, "train"), features(splits.test, "test")
    val = features(splits.val, "val") if linear else None
    trained = seen(classifier, opened.data if opened else None, splits.test)
    scored = None
    if opened:
        n, of = len(splits.test), len(opened.sets[ALL])
        scored = Scored(data=opened.name, split="test", n=n, of=of, how=opened.test_how, notes=opened.notes)
    require_shots(train.labels, shots, splits.classes)
    pairs = (train.values, train.labels, test.values, test.labels)
    return ProbeResult(
        n_train=len(train.labels),
        n_test=len(test.labels),
        num_features=train.values.shape[1],
        classes=splits.classes,
        seeds=tuple(seeds),
        few_shot=few_shot(*pairs, shots=shots, seeds=seeds, l2=l2),
        neighbours=knn(*pairs, k=neighbours) if neighbours is not None else None,
        linear=linear_probe(*pairs[:2], val.values, val.labels, *pairs[2:]) if val else None,
        bad=(*train.bad, *test.bad, *(val.bad if val else ())),
        scored=scored,
        trained_on=None if trained is None else int(trained.sum()),
    )

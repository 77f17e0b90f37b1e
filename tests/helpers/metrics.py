"""Metrics of random probabilities."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlpmixer.evaluation.metrics import Metrics, metrics_from_probabilities


def random_metrics(classes: Sequence[str], n: int = 60, seed: int = 0, **kwargs: Any) -> Metrics:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes), n)
    names = [f"{classes[c]}/{i}.png" for i, c in enumerate(labels)]
    return metrics_from_probabilities(rng.dirichlet(np.ones(len(classes)), n), labels, classes, names, **kwargs)

"""Quality of frozen features: few-shot ridge regression, k-nearest neighbours, a linear probe. Imports no torch.

N images, D features (pre_logits, the input of the head), K classes. Shares are fractions between 0 and 1.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.config import Data
from mlpmixer.data.image_set import ImageSet, Splits
from mlpmixer.evaluation.data import ALL, open_for, seen
from mlpmixer.evaluation.evaluate import require_one_class
from mlpmixer.evaluation.features import Features, extract_features
from mlpmixer.evaluation.metrics import Scored, as_json
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.load import load

Matrix = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

# big_vision: evaluators/fewshot_lsr.py, configs/common_fewshot.py
SHOTS = (1, 5, 10, 25)
SEEDS = (0, 1, 2)
L2 = 2.0**10
BIAS_FEATURE = 100.0  # so large that l2 hardly shrinks its weight
STD_FLOOR = 1e-5

TEMPERATURE = 0.07  # Wu et al. 2018, section 3.4
LINEAR_L2S = (1e4, 1e3, 1e2, 1e1, 1e0, 1e-1, 1e-2)  # strongest first; our choice: wide enough that its ends rarely win
LINEAR_MAX_STEPS = 1000
CHUNK = 1024  # test images that are compared with all training images at once; bounds memory, changes no result


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Top-1 on all test images after training on `shots` images of each class, one value per seed."""

    shots: int
    top1: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.top1))

    @property
    def range(self) -> tuple[float, float]:
        """(lowest, highest) over the seeds."""
        return min(self.top1), max(self.top1)


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Top-1 on all test images by a vote of the `k` nearest training images."""

    k: int
    top1: float


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Top-1 on all test images of a logistic regression whose `l2` was the best on the validation images."""

    l2: float
    """Strength in sum of losses + l2 / 2 * |weights|^2, in nats: scikit-learn's 1 / C."""
    val_top1: float
    top1: float
    converged: bool
    """Whether the fit converged within 1000 L-BFGS steps."""


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """A logistic regression on features, whose `l2` was the best on the validation images."""

    weights: NDArray[np.float64]
    """(D,K)."""
    bias: NDArray[np.float64]
    """(K,), -inf for a class without training images."""
    l2: float
    val_top1: float
    converged: bool

    def logits(self, features: Matrix) -> NDArray[np.float64]:
        """Features (N,D) -> logits (N,K)."""
        logits: NDArray[np.float64] = np.asarray(features, np.float64) @ self.weights + self.bias
        return logits


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
    """Few-shot accuracy of a model's features on `data`; with `neighbours=k` and `linear=True` also those two.

    Training is on train, measuring on test; the strength of the linear probe is chosen on val.

    model: a Classifier, or what `load` takes; its classes need not be those of the data.
    data: opened Splits, a Data, the name or path of a data set, or None for the data that the run was trained on.
    cache: a folder in which features are kept, see `extract_features`.

    Raises ValueError when a class has fewer training images than the largest number of shots, when there are fewer
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
    _require_shots(splits.train.labels, shots, splits.classes)  # before the network runs; again without unreadable ones
    if neighbours is not None:
        _require_neighbours(neighbours, len(splits.train))

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
    _require_shots(train.labels, shots, splits.classes)
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


# --- few shots ----------------------------------------------------------------------------------------------------


def few_shot(
    features_train: Matrix,
    labels_train: Labels,
    features_test: Matrix,
    labels_test: Labels,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    l2: float = L2,
) -> tuple[FewShot, ...]:
    """The official few-shot evaluation: a ridge regression for every number of shots and every seed, in float64.

    features (N,D), labels (N,) in 0..K-1. Source: big_vision, evaluators/fewshot_lsr.py. Unlike there, a class with
    fewer images than shots is a ValueError, so that "25 shots" means 25 images of every class.
    """
    _require_pairs(train=(features_train, labels_train), test=(features_test, labels_test))
    if not l2 > 0:
        raise ValueError(f"l2 must be positive, got {l2}")
    if not seeds:
        raise ValueError("at least one seed is needed, such as seeds=(0, 1, 2)")
    num_classes = int(max(labels_train.max(), labels_test.max())) + 1
    _require_shots(labels_train, shots, range(num_classes))
    rows = []
    for k in shots:
        top1 = []
        for seed in seeds:
            drawn = draw_shots(labels_train, k, seed)
            mean, std = _mean_std(features_train[drawn])
            x, y = _with_constant(features_train[drawn], mean, std), _targets(labels_train[drawn], num_classes)
            fit = ridge_primal if x.shape[0] >= x.shape[1] else ridge_dual
            scores = _with_constant(features_test, mean, std) @ fit(x, y, l2)
            top1.append(float((scores.argmax(axis=1) == labels_test).mean()))
        rows.append(FewShot(shots=k, top1=tuple(top1)))
    return tuple(rows)


def draw_shots(labels: Labels, shots: int, seed: int) -> NDArray[np.int64]:
    """Indices (K * shots,) of `shots` random images of every class, class by class, drawn as in big_vision.

    One numpy default_rng(seed) permutes the images of each class in turn; the first `shots` are taken, so fewer shots
    are a subset of more. ValueError when a class of 0..max(labels) has fewer.
    """
    num_classes = int(labels.max()) + 1
    _require_shots(labels, (shots,), range(num_classes))
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:shots] for c in range(num_classes)])


def ridge_primal(x: Matrix, y: Matrix, l2: float) -> NDArray[np.float64]:
    """The weights (D,K) = (X'X + l2 I)^-1 X'Y of x (N,D) and y (N,K), by the eigenvectors of X'X (D,D)."""
    values, vectors = np.linalg.eigh(x.T @ x)
    weights: NDArray[np.float64] = vectors @ (vectors.T @ (x.T @ y) / (values + l2)[:, None])
    return weights


def ridge_dual(x: Matrix, y: Matrix, l2: float) -> NDArray[np.float64]:
    """The same weights (D,K) = X' (XX' + l2 I)^-1 Y, by the eigenvectors of XX' (N,N): cheaper when D > N."""
    values, vectors = np.linalg.eigh(x @ x.T)
    weights: NDArray[np.float64] = x.T @ (vectors @ (vectors.T @ y / (values + l2)[:, None]))
    return weights


def _mean_std(features: Matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x = np.asarray(features, np.float64)
    return x.mean(axis=0), x.std(axis=0) + STD_FLOOR


def _with_constant(features: Matrix, mean: Matrix, std: Matrix) -> NDArray[np.float64]:
    """Standardised features and the constant, (N,D+1)."""
    x = (np.asarray(features, np.float64) - mean) / std
    return np.concatenate([x, np.full((len(x), 1), BIAS_FEATURE)], axis=1)


def _targets(labels: Labels, num_classes: int) -> NDArray[np.float64]:
    """1 for the class, -1 for the others, (N,K)."""
    return 2.0 * np.eye(num_classes)[labels] - 1.0


# --- nearest neighbours, linear probe -----------------------------------------------------------------------------


def knn(
    features_train: Matrix,
    labels_train: Labels,
    features_test: Matrix,
    labels_test: Labels,
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
) -> Neighbours:
    """Classification of test images by a weighted vote of the `k` most similar training images.

    Similarity is the cosine s of the features; a vote weighs exp(s / temperature). Source: Wu et al. 2018,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4; k = 20 as in Caron et al.
    2021 (DINO). Ties go to the class with the lower index. ValueError when k is not in 1..N.
    """
    _require_pairs(train=(features_train, labels_train), test=(features_test, labels_test))
    _require_neighbours(k, len(features_train))
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    train, test = _unit_length(features_train), _unit_length(features_test)
    num_classes, right = int(labels_train.max()) + 1, 0
    for start in range(0, len(test), CHUNK):
        similarity = test[start : start + CHUNK] @ train.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.exp((np.take_along_axis(similarity, nearest, axis=1) - 1) / temperature)  # -1: no vote can overflow
        votes = np.zeros((len(similarity), num_classes))
        np.add.at(votes, (np.arange(len(similarity))[:, None], labels_train[nearest]), weight)
        right += int((votes.argmax(axis=1) == labels_test[start : start + CHUNK]).sum())
    return Neighbours(k=k, top1=right / len(test))


def _unit_length(features: Matrix) -> NDArray[np.float32]:
    x = np.asarray(features, np.float32)
    unit: NDArray[np.float32] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return unit


def linear_probe(
    features_train: Matrix,
    labels_train: Labels,
    features_val: Matrix,
    labels_val: Labels,
    features_test: Matrix,
    labels_test: Labels,
    *,
    l2s: Sequence[float] = LINEAR_L2S,
) -> LinearProbe:
    """`fit_linear` on train and val, measured on test."""
    _require_pairs(train=(features_train, labels_train), test=(features_test, labels_test))
    head = fit_linear(features_train, labels_train, features_val, labels_val, l2s=l2s)
    top1 = float((head.logits(features_test).argmax(axis=1) == labels_test).mean())
    return LinearProbe(l2=head.l2, val_top1=head.val_top1, top1=top1, converged=head.converged)


def fit_linear(
    features_train: Matrix,
    labels_train: Labels,
    features_val: Matrix,
    labels_val: Labels,
    *,
    l2s: Sequence[float] = LINEAR_L2S,
) -> LinearHead:
    """Multinomial logistic regression on train (scikit-learn, L-BFGS), with the l2 best on val.

    Features are standardised by the mean and standard deviation of train. Strengths are tried in descending order, each
    starting from the previous solution; of equally good ones the largest is taken.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    _require_pairs(train=(features_train, labels_train), val=(features_val, labels_val))
    if not l2s or min(l2s) <= 0:
        raise ValueError(f"l2s must be positive strengths, got {tuple(l2s)}")
    mean, std = _mean_std(features_train)
    train, val = ((np.asarray(x, np.float64) - mean) / std for x in (features_train, features_val))
    fit = LogisticRegression(max_iter=LINEAR_MAX_STEPS, warm_start=True)
    best: LinearHead | None = None
    for l2 in sorted(l2s, reverse=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` says so
            fit.set_params(C=1 / l2).fit(train, labels_train)
        val_top1 = float((fit.predict(val) == labels_val).mean())
        if best is None or val_top1 > best.val_top1:
            coefficients, constants = fit.coef_ / std, fit.intercept_ - fit.coef_ @ (mean / std)
            if len(fit.classes_) == 2:  # scikit-learn has the difference of the two
                coefficients = np.concatenate([-coefficients, coefficients]) / 2
                constants = np.concatenate([-constants, constants]) / 2
            num_classes = int(fit.classes_.max()) + 1
            weights, bias = np.zeros((train.shape[1], num_classes)), np.full(num_classes, -np.inf)
            weights[:, fit.classes_], bias[fit.classes_] = coefficients.T, constants
            converged = bool(fit.n_iter_.max() < LINEAR_MAX_STEPS)
            best = LinearHead(weights=weights, bias=bias, l2=l2, val_top1=val_top1, converged=converged)
    assert best is not None
    return best


# --- checks -------------------------------------------------------------------------------------------------------


def _require_shots(labels: Labels, shots: Sequence[int], classes: Sequence[object]) -> None:
    if not shots or min(shots) < 1:
        raise ValueError(
            f"shots must be positive numbers of images, such as 1,5,10,25; got {','.join(map(str, shots)) or 'none'}"
        )
    counts = np.bincount(labels, minlength=len(classes))
    smallest, most = int(counts.argmin()), max(shots)
    count = int(counts[smallest])
    if count < most:
        possible = sorted({k for k in shots if k <= count} or {count} - {0})
        raise ValueError(
            f"{most} shots need {most} training images of every class, and class {classes[smallest]!r} has {count}"
            + (f"; possible here: --shots {','.join(map(str, possible))}" if possible else "")
        )


def _require_neighbours(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"the number of neighbours must be in 1..{n}, the number of training images; got {k}")


def _require_pairs(**parts: tuple[Matrix, Labels]) -> None:
    """ValueError unless all features (N,D) are finite and of one D, with labels (N,) from 0 on."""
    widths = set()
    for part, (features, labels) in parts.items():
        if features.ndim != 2 or not len(features) or labels.shape != (len(features),):
            raise ValueError(
                f"{part}: expected features (N,D) and labels (N,) with N >= 1, got {features.shape} and {labels.shape}"
            )
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise ValueError(f"{part}: labels must be integers from 0 on, got {labels.dtype} from {labels.min()} on")
        if not np.isfinite(features).all():
            raise ValueError(
                f"{part}: the features contain NaN or infinity: the model is broken, as after a diverged training"
            )
        widths.add(features.shape[1])
    if len(widths) > 1:
        raise ValueError(f"all parts must have the same number of features, got {', '.join(map(str, sorted(widths)))}")

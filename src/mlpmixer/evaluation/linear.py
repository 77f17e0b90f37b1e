"""Logistic regression on frozen features: a linear probe, or a head. Imports no torch."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlpmixer.evaluation.features import Labels, Matrix, mean_std, require_pairs

LINEAR_L2S = (1e4, 1e3, 1e2, 1e1, 1e0, 1e-1, 1e-2)  # strongest first; our choice: wide enough that its ends rarely win
LINEAR_MAX_STEPS = 1000


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
    require_pairs(train=(features_train, labels_train), test=(features_test, labels_test))
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

    require_pairs(train=(features_train, labels_train), val=(features_val, labels_val))
    if not l2s or min(l2s) <= 0:
        raise ValueError(f"l2s must be positive strengths, got {tuple(l2s)}")
    if (present := np.unique(labels_train)).size < 2:
        raise ValueError(
            f"a linear classifier needs training images of at least two classes, got only class {present[0]}"
        )
    mean, std = mean_std(features_train)
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

"""The losses equal their definitions."""

import pytest
import torch
import torch.nn.functional as F

from mlpmixer.loss import cross_entropy, smooth, soft_targets

LOGITS, LABELS = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 4, 0, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_equals_torch(smoothing: float) -> None:
    ours = cross_entropy(LOGITS, smooth(soft_targets(LABELS, 5), smoothing), "softmax")
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, LABELS, label_smoothing=smoothing, reduction="none"))


def test_softmax_weighs_classes_like_torch() -> None:
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    ours = cross_entropy(LOGITS, soft_targets(LABELS, 5), "softmax", weights)
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, LABELS, weight=weights, reduction="none"))


def test_sigmoid_is_the_sum_over_classes() -> None:
    targets = smooth(soft_targets(LABELS, 5), 0.1)
    wanted = F.binary_cross_entropy_with_logits(LOGITS, targets, reduction="none").sum(1)
    torch.testing.assert_close(cross_entropy(LOGITS, targets, "sigmoid"), wanted)
    torch.testing.assert_close(cross_entropy(LOGITS, targets, "sigmoid", torch.full((5,), 2.0)), 2 * wanted)

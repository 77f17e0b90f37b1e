"""Losses on logits (B, K) and soft targets (B, K)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mlpmixer.training.recipe import Distill, Optim


def soft_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Labels (B,) int64 -> one-hot targets (B, K) float32."""
    return F.one_hot(labels, num_classes).float()


def smooth(targets: Tensor, label_smoothing: float) -> Tensor:
    """Spread a share of each target evenly over the K classes (Szegedy et al. 2016, section 7)."""
    return targets if label_smoothing == 0 else targets * (1 - label_smoothing) + label_smoothing / targets.shape[1]


def cross_entropy(logits: Tensor, targets: Tensor, kind: str, class_weights: Tensor | None = None) -> Tensor:
    """Loss of each sample, (B,): softmax cross-entropy, or the sum over classes of sigmoid cross-entropies
    (big_vision's sigmoid_xent).

    `class_weights` (K,) multiplies each class's share of the targets.
    """
    logits = logits.float()
    if class_weights is not None:
        targets = targets * class_weights
    if kind == "softmax":
        return -(targets * F.log_softmax(logits, dim=1)).sum(dim=1)
    positive, negative = F.logsigmoid(logits), F.logsigmoid(-logits)
    rest = (1 - targets) if class_weights is None else (class_weights - targets)
    return -(targets * positive + rest * negative).sum(dim=1)


def loss_of(optim: Optim, distill: Distill, class_weights: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of each sample, (B,), as a function of logits (B, K) and targets: (B, K), or with a teacher (B, 2K), its
    own behind.

    (1 - alpha) * cross-entropy with the smoothed labels + alpha * temperature^2 * cross-entropy with the teacher, both
    logits divided by the temperature (Hinton et al. 2015, section 2).
    """

    def of_labels(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, smooth(targets, optim.label_smoothing), optim.loss, class_weights)

    def of_both(logits: Tensor, targets: Tensor) -> Tensor:
        labels, teacher = targets.chunk(2, dim=1)
        soft = cross_entropy(logits.float() / distill.temperature, teacher, optim.loss, class_weights)
        return (1 - distill.alpha) * of_labels(logits, labels) + distill.alpha * distill.temperature**2 * soft

    return of_both if distill.teacher else of_labels

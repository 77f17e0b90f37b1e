"""Losses on logits (B, K) and soft targets (B, K)."""

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
    """Loss of each sample, (B,): softmax cross-entropy, or the sum over classes of sigmoid cross-entropies.

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


def training_loss(
    logits: Tensor, targets: Tensor, optim: Optim, distill: Distill, class_weights: Tensor | None = None
) -> Tensor:
    """Loss of each sample, (B,), from logits (B, K) and targets (B, K), or (B, 2K) with a teacher's behind the labels'.

    With a teacher (1 - alpha) * cross-entropy with the smoothed labels + alpha * temperature^2 * cross-entropy with the
    teacher, both logits divided by the temperature (Hinton et al. 2015, section 2).
    """
    labels = targets[:, : logits.shape[1]]
    loss = cross_entropy(logits, smooth(labels, optim.label_smoothing), optim.loss, class_weights)
    if not distill.teacher:
        return loss
    teacher = targets[:, logits.shape[1] :]
    soft = cross_entropy(logits.float() / distill.temperature, teacher, optim.loss, class_weights)
    return (1 - distill.alpha) * loss + distill.alpha * distill.temperature**2 * soft

"""Losses on logits (B, K) and soft targets (B, K)."""

import torch.nn.functional as F
from torch import Tensor

from mlpmixer.training.recipe import Distill, Optim


def soft_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Labels (B,) int64 -> one-hot targets (B, K) float32; (B, K) bool -> the same as float32."""
    return labels.float() if labels.ndim == 2 else F.one_hot(labels, num_classes).float()


def smooth(targets: Tensor, label_smoothing: float) -> Tensor:
    """Spread a share of each target evenly over the K classes (Szegedy et al. 2016, section 7)."""
    return targets if label_smoothing == 0 else targets * (1 - label_smoothing) + label_smoothing / targets.shape[1]


def cross_entropy(logits: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Loss of each sample, (B,): softmax cross-entropy, or the sum over classes of sigmoid cross-entropies."""
    logits = logits.float()
    if kind == "sigmoid":
        return -(targets * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits)).sum(dim=1)
    return -(targets * F.log_softmax(logits, dim=1)).sum(dim=1)


def training_loss(
    logits: Tensor, targets: Tensor, optim: Optim, distill: Distill, class_weights: Tensor | None = None
) -> Tensor:
    """Loss of each sample, (B,), from logits (B, K) and targets (B, K), or (B, 2K) with a teacher's behind the labels'.

    With a teacher (1 - alpha) * cross-entropy with the smoothed labels + alpha * temperature^2 * cross-entropy with the
    teacher, both logits divided by the temperature (Hinton et al. 2015, section 2).

    `class_weights` (K,) weigh whole samples, a mixed one by its shares of the classes before smoothing. So they never
    move the optimum of a sample from its target: multiplied into smoothed, mixed or taught targets, as torch's
    cross_entropy does, the weight of a rare class makes it the answer to the samples of a frequent one.
    """
    labels = targets[:, : logits.shape[1]]
    loss = cross_entropy(logits, smooth(labels, optim.label_smoothing), optim.loss)
    if distill.teacher:
        teacher = targets[:, logits.shape[1] :]
        soft = cross_entropy(logits.float() / distill.temperature, teacher, optim.loss)
        loss = (1 - distill.alpha) * loss + distill.alpha * distill.temperature**2 * soft
    return loss if class_weights is None else loss * (labels @ class_weights)

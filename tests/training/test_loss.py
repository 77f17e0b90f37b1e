"""The losses equal their definitions."""

import pytest
import torch
import torch.nn.functional as F

from mlpmixer.training.loss import cross_entropy, smooth, soft_targets, training_loss
from mlpmixer.training.recipe import Distill, Optim

LOGITS, LABELS = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 4, 0, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_equals_torch(smoothing: float) -> None:
    ours = cross_entropy(LOGITS, smooth(soft_targets(LABELS, 5), smoothing), "softmax")
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, LABELS, label_smoothing=smoothing, reduction="none"))


def test_class_weights_equal_torch() -> None:
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    ours = cross_entropy(LOGITS, soft_targets(LABELS, 5), "softmax", weights)
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, LABELS, weight=weights, reduction="none"))


def test_sigmoid_sums_over_classes() -> None:
    targets = smooth(soft_targets(LABELS, 5), 0.1)
    wanted = F.binary_cross_entropy_with_logits(LOGITS, targets, reduction="none").sum(1)
    torch.testing.assert_close(cross_entropy(LOGITS, targets, "sigmoid"), wanted)
    torch.testing.assert_close(cross_entropy(LOGITS, targets, "sigmoid", torch.full((5,), 2.0)), 2 * wanted)


def test_teachers_share_is_hintons() -> None:
    labels, teacher = soft_targets(LABELS, 5), torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    student = LOGITS.clone().requires_grad_()
    cfg = Distill(teacher="t", alpha=0.3, temperature=4.0)
    targets = torch.cat([labels, (teacher / 4).softmax(1)], 1)
    ours = training_loss(student, targets, Optim(label_smoothing=0.1), cfg).sum()
    divergence = F.kl_div((student / 4).log_softmax(1), (teacher / 4).log_softmax(1), log_target=True, reduction="sum")
    wanted = 0.7 * F.cross_entropy(student, LABELS, label_smoothing=0.1, reduction="sum") + 0.3 * 16 * divergence
    torch.testing.assert_close(
        torch.autograd.grad(ours, student), torch.autograd.grad(wanted, student)
    )  # they differ by the teacher's entropy


def test_hard_distillation_is_cross_entropy() -> None:
    theirs = LABELS.flip(0)
    targets = torch.cat([soft_targets(y, 5) for y in (LABELS, theirs)], 1)
    ours = training_loss(LOGITS, targets, Optim(), Distill(teacher="t", alpha=0.5, hard=True))
    torch.testing.assert_close(
        ours,
        (F.cross_entropy(LOGITS, LABELS, reduction="none") + F.cross_entropy(LOGITS, theirs, reduction="none")) / 2,
    )


def test_loss_without_teacher_is_of_the_labels() -> None:
    ours = training_loss(LOGITS, soft_targets(LABELS, 5), Optim(label_smoothing=0.1), Distill())
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1, reduction="none"))

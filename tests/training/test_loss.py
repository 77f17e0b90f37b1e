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


def test_class_weights_of_plain_labels_equal_torch() -> None:
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    ours = training_loss(LOGITS, soft_targets(LABELS, 5), Optim(), Distill(), weights)
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, LABELS, weight=weights, reduction="none"))


def test_sigmoid_sums_over_classes() -> None:
    targets = smooth(soft_targets(LABELS, 5), 0.1)
    wanted = F.binary_cross_entropy_with_logits(LOGITS, targets, reduction="none").sum(1)
    torch.testing.assert_close(cross_entropy(LOGITS, targets, "sigmoid"), wanted)


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


# --- class weights leave the optimum where the targets are ----------------------------------------------------------
# Samples that look alike have one optimum: it must be their own class, however rare another is. (With two classes from
# 19:1 on, that of torch's cross_entropy(weight=..., label_smoothing=0.1) is the rare class.)

RARE = [(2, 20), (2, 35), (2, 1000), (10, 120), (10, 1000), (100, 35), (100, 1000)]  # (classes, ratio)


def balanced(num_classes: int, ratio: float) -> torch.Tensor:
    """Weights (K,) of the classes when the last one has one sample for `ratio` of each other."""
    counts = torch.full((num_classes,), ratio)
    counts[-1] = 1
    return counts.sum() / (num_classes * counts)


def optimum(targets: torch.Tensor, weights: torch.Tensor, optim: Optim, distill: Distill | None = None) -> torch.Tensor:
    """The logits (K,) with the least summed loss of samples (n,K) that a network cannot tell apart."""
    logits = torch.zeros(weights.shape, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=15, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        each = training_loss(logits.expand(len(targets), -1), targets, optim, distill or Distill(), weights)
        each.mean().backward()
        return each.mean()

    optimizer.step(loss)
    return logits.detach()


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(("num_classes", "ratio"), RARE)
def test_weighted_smoothed_optimum_is_the_label(num_classes: int, ratio: float, smoothing: float, loss: str) -> None:
    optim, weights = Optim(loss=loss, label_smoothing=smoothing), balanced(num_classes, ratio)
    for label in (0, num_classes - 1):
        best = optimum(soft_targets(torch.tensor([label]), num_classes), weights, optim)
        assert int(best.argmax()) == label


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("num_classes", "ratio"), RARE)
def test_weighted_mixed_optimum_is_the_larger_share(num_classes: int, ratio: float, loss: str) -> None:
    mixed = torch.zeros(1, num_classes)
    mixed[0, 0], mixed[0, -1] = 0.9, 0.1
    optim, weights = Optim(loss=loss, label_smoothing=0.1), balanced(num_classes, ratio)
    assert int(optimum(mixed, weights, optim).argmax()) == 0
    assert int(optimum(mixed.flip(1), weights, optim).argmax()) == num_classes - 1


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("num_classes", "ratio"), RARE)
def test_weighted_taught_optimum_is_the_teachers(num_classes: int, ratio: float, temperature: float, loss: str) -> None:
    """Label and a teacher that leaves a tenth to the rare class agree, so the optimum agrees with both."""
    label = soft_targets(torch.tensor([0]), num_classes)
    teacher = torch.zeros(1, num_classes)
    teacher[0, 0], teacher[0, -1] = 0.9, 0.1
    optim, weights = Optim(loss=loss, label_smoothing=0.1), balanced(num_classes, ratio)
    distill = Distill(teacher="t", alpha=0.9, temperature=temperature)
    assert int(optimum(torch.cat([label, teacher], 1), weights, optim, distill).argmax()) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_balance_what_looks_the_same(smoothing: float) -> None:
    """Where 35 samples of a class and one of a rare one cannot be told apart, weights make both equally likely."""
    targets = soft_targets(torch.tensor([0] * 35 + [1]), 2)
    best = optimum(targets, balanced(2, 35), Optim(label_smoothing=smoothing))
    torch.testing.assert_close(best[0], best[1], atol=1e-4, rtol=0)

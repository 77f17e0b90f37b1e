"""Advice on how to train better, read from the log of a finished run. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlpmixer.evaluation.significance import wilson

LARGE_GAP = 0.1  # between training and validation accuracy: as much is left to gain
LEARNT = 0.9  # accuracy on training images from which more steps have little left to teach
RISING = 0.02  # of the accuracy on training batches, from the second third of the run to the last


def advice(lines: Sequence[Mapping[str, Any]], train_images: int, val_images: int, kept: str) -> list[str]:
    """Sentences about a run whose metrics.jsonl has these lines; none when there is nothing to say.

    train_images, val_images: how many of each an evaluation scored; 0 where they are too few to judge by.
    kept: what `model.safetensors` is, "last" or "best".
    """
    evaluations = [line for line in lines if line["kind"] == "eval"]
    batches = [line["top1"] for line in lines if line["kind"] == "step" and "top1" in line]
    if not evaluations or not batches:
        return []
    last, best = evaluations[-1], max(evaluations, key=lambda line: line["top1"])  # the first of equal ones
    val, found = wilson(round(last["top1"] * val_images), val_images), []
    was_better = best["top1"] > val[1]
    if was_better:
        weights = "are best.safetensors, beside the model" if kept == "last" else "are the model"
        found.append(
            f"validation was clearly better before: {_percent(best['top1'])} at step {best['step']:,}, "
            f"{_percent(last['top1'])} ({100 * val[0]:.1f} to {_percent(val[1])}) at the end. The weights of that step "
            f"{weights}; a lower --lr, fewer --epochs or milder augmentation usually help"
        )
    if "train_top1" not in last:  # a run from before they were scored
        return found
    third, sixth = len(batches) // 3, max(len(batches) // 6, 1)
    augmented, seen = _mean(batches[-sixth:]), last["train_top1"]
    train = wilson(round(seen * train_images), train_images)
    rises = third > 0 and _mean(batches[-third:]) - _mean(batches[-2 * third : -third]) > RISING
    if wilson(round(augmented * train_images), train_images)[0] > train[1]:
        found.append(
            f"the augmentation does not fit the data: {_percent(augmented)} of the augmented training images are right "
            f"and {_percent(seen)} as evaluation sees them. Milder crops, colour changes or mixing usually help "
            "(--augment.inception-crop 0); mlpmixer data preview shows both"
        )
    elif rises and seen < LEARNT and not was_better:
        found.append(
            f"the run was too short: {_percent(seen)} of training images and {_percent(last['top1'])} of validation "
            "images are right, and it was still learning. More --epochs, or a longer --time, usually help"
        )
    elif train[0] > val[1] and seen - last["top1"] > LARGE_GAP:
        found.append(
            f"the network overfits: {_percent(seen)} of training images and {_percent(last['top1'])} of validation "
            "images are right. More images, stronger augmentation, --init from trained weights or a smaller network "
            "usually help"
        )
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

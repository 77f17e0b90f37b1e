"""What is said about a finished run."""

import pytest

from mlpmixer.training.advice import advice


def log(batches: list[float], val: list[float], train: list[float]) -> list[dict[str, object]]:
    """The lines of a run: accuracy on training batches, then of the evaluations on validation and training images."""
    lines: list[dict[str, object]] = [{"kind": "step", "step": i, "top1": top1} for i, top1 in enumerate(batches, 1)]
    both = zip(val, train, strict=True)
    lines += [{"kind": "eval", "step": i, "top1": v, "train_top1": t} for i, (v, t) in enumerate(both, 1)]
    return lines


STEADY, RISING = [0.6] * 30, [0.02 * i for i in range(30)]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (log(STEADY, [0.5, 0.60], [0.5, 0.99]), ["overfits: 99.0 % of training images and 60.0 % of validation"]),
        (log(STEADY, [0.4, 0.42], [0.4, 0.44]), ["augmentation does not fit the data: 60.0 % of the augmented"]),
        (log(RISING, [0.4, 0.55], [0.4, 0.57]), ["too short: 57.0 % of training images and 55.0 % of validation"]),
        (log(RISING, [0.5, 0.55], [0.6, 0.97]), ["overfits"]),  # and more steps would not help
        (log(STEADY, [0.5, 0.88], [0.5, 0.93]), []),
        (
            log(STEADY, [0.7, 0.60], [0.5, 0.62]),
            ["better before: 70.0 % at step 1, 60.0 % (53.1 to 66.5 %) at the end"],
        ),
        (log(STEADY, [0.66, 0.60], [0.5, 0.62]), []),  # within the interval
        (log(RISING, [0.69, 0.38], [0.6, 0.40]), ["better before: 69.0 %", "augmentation does not fit the data"]),
        (log(RISING, [], []), []),
        (log([], [0.5], [0.5]), []),
    ],
)
def test_advice_tells_the_cases_apart(lines: list[dict[str, object]], said: list[str]) -> None:
    found = advice(lines, 500, 200, "last")
    assert len(found) == len(said)
    for sentence, text in zip(found, said, strict=True):
        assert text in sentence and len(sentence) < 400


def test_a_single_batch_says_nothing_of_the_augmentation() -> None:
    assert advice(log([0.438], [0.3], [0.333]), 114, 30, "last") == []


def test_better_model_is_named() -> None:
    lines = log(STEADY, [0.7, 0.6], [0.6, 0.6])
    assert "are best.safetensors, beside the model" in advice(lines, 500, 200, "last")[0]
    assert "are the model" in advice(lines, 500, 200, "best")[0]


def test_few_validation_images_say_nothing() -> None:
    assert advice(log(STEADY, [1.0, 0.1], [0.9, 0.99]), 500, 0, "last") == []


def test_log_of_before_says_what_it_can() -> None:
    lines = log(STEADY, [0.7, 0.6], [0.6, 0.6])
    for line in lines:
        line.pop("train_top1", None)
    assert len(advice(lines, 500, 200, "last")) == 1

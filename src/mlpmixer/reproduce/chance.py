"""How far accuracies differ, and whether by more than chance: intervals, ties, and the words for them."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from mlpmixer.evaluation.significance import wilson
from mlpmixer.reproduce.page import percent


def is_tie(a: float, b: float, n: int) -> bool:
    """Whether two accuracies on `n` images each differ by no more than chance: 0 is in Newcombe's 95 % interval."""
    (low_a, high_a), (low_b, high_b) = wilson(round(a * n), n), wilson(round(b * n), n)
    return a - b - math.hypot(a - low_a, high_b - b) <= 0 <= a - b + math.hypot(high_a - a, b - low_b)


def describe_difference(first: str, a: float, second: str, b: float, n: int) -> str:
    """The result of a comparison in words: "A above B (70.0 % against 50.0 %, on 1,000 images)"."""
    words = "level with" if is_tie(a, b, n) else "above" if a > b else "below"
    return f"{first} {words} {second} ({percent(a)} against {percent(b)}, on {n:,} images)"


def mean_and_range(values: Sequence[float]) -> str:
    """Accuracies of several seeds, in percent."""
    mean = percent(fmean(values), 2)
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.2f}-{100 * max(values):.2f})"


def interval(share: float, n: int) -> str:
    """Wilson's 95 % interval of an accuracy on `n` images, in percent."""
    return "-".join(f"{100 * end:.1f}" for end in wilson(round(share * n), n))


def error_bars(shares: Sequence[float], n: int) -> tuple[list[float], list[float]]:
    """How far Wilson's 95 % intervals of accuracies on `n` images reach below and above them, for a plot."""
    ends = [wilson(round(share * n), n) for share in shares]
    below = [share - low for share, (low, _) in zip(shares, ends, strict=True)]
    return below, [high - share for share, (_, high) in zip(shares, ends, strict=True)]


def verdict(scores: Mapping[str, float], n: int, spread: float) -> str:
    """Which network wins, or that none does, in words.

    A lead must exceed what two seeds differ by (`spread`) and what chance in `n` test images allows.
    """
    first, *others = sorted(scores, key=lambda name: scores[name], reverse=True)

    def with_score(name: str) -> str:
        return f"{name} ({percent(scores[name])})"

    near = [o for o in others if scores[first] - scores[o] <= spread or is_tie(scores[first], scores[o], n)]
    if near:
        rest = [name for name in others if name not in near]
        behind = f"; behind them {', '.join(map(with_score, rest))}" if rest else ""
        names = " and ".join([", ".join(map(with_score, [first, *near][:-1])), with_score(near[-1])])
        return f"no network wins: {names} are within the noise of seeds or test images{behind}"
    lead = scores[first] - scores[others[0]]
    return (
        f"{with_score(first)} wins, {points(lead)} above {with_score(others[0])}: more than two seeds differ "
        f"({points(spread)}) and more than chance in {n:,} test images"
    )


def points(share: float) -> str:
    """A difference of accuracies: 0.02 is "2.0 points"."""
    return f"{100 * share:.1f} points"

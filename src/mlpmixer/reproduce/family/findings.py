"""Findings of the comparison of the family, one sentence each."""

from collections.abc import Mapping

from mlpmixer.reproduce.chance import describe_difference, points, verdict
from mlpmixer.reproduce.comparison import is_end
from mlpmixer.reproduce.family.measured import Measured
from mlpmixer.reproduce.family.recipes import BESIDE, RELATIVES


def findings(found: Measured) -> list[str]:
    seen = found.images_in_time
    least, *_, most = sorted(seen, key=lambda name: seen[name])
    fastest = "; ".join(f"{form} {_three_fastest(found.forward_of(form))}" for form in ("float32", "int8"))
    refused = [name for name, export in found.exported.items() if export["int8"]]
    ends = [name for name, tried in found.tried.items() if is_end(found.rates[name], tried)]
    return [
        f"After equally many images {_verdict(found, found.top1)}.",
        f"After equal time {_verdict(found, found.top1_in_time)}. In {found.budget_s / 60:.0f} minutes "
        f"{least} sees {seen[least]:,} images, {most} {seen[most]:,}.",
        f"The yardstick: two seeds of one network differ by up to {points(found.seeds_differ)} "
        f"({', '.join(found.pairs)}; n = 2 each). All other figures are of one seed.",
        f"Beside the best of the family at equal images: {_beside(found, found.top1)}.",
        f"Beside the best of the family at equal time: {_beside(found, found.top1_in_time)}.",
        f"Fastest forward, images/s: {fastest}." + (f" No int8: {', '.join(refused)}." if refused else ""),
        f"The best rate is an end of what was tried for {', '.join(ends)}, which might do better beyond it."
        if ends
        else "No best rate is an end of what was tried.",
    ]


def _verdict(found: Measured, scores: Mapping[str, float]) -> str:
    return verdict({name: scores[name] for name in RELATIVES}, found.num_test, found.seeds_differ)


def _beside(found: Measured, scores: Mapping[str, float]) -> str:
    best = max(RELATIVES, key=lambda name: scores[name])
    n = found.num_test
    return "; ".join(describe_difference(name, scores[name], best, scores[best], n) for name in BESIDE)


def _three_fastest(speeds: Mapping[str, float]) -> str:
    order = sorted(speeds, key=lambda name: speeds[name], reverse=True)
    return ", ".join(f"{name} {speeds[name]:,.0f}" for name in order[:3])

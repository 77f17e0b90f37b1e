"""The rows of the tables of what was measured of the family."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from mlpmixer.reproduce.chance import interval, mean_and_range
from mlpmixer.reproduce.family.measured import Measured, deployed_size, means, tops
from mlpmixer.reproduce.family.recipes import uses_muon
from mlpmixer.reproduce.page import percent


def equal_rows(found: Measured, names: Sequence[str], minutes: Mapping[str, float]) -> list[dict[str, object]]:
    rows = []
    for name in sorted(names, key=means(found.equal).__getitem__, reverse=True):
        runs, size = found.equal[name], deployed_size(name)
        rows.append(
            {
                "network": name,
                "test top-1": mean_and_range(tops(runs)),
                "95 %": interval(fmean(tops(runs)), found.num_test),
                "n": len(runs),
                "validation": mean_and_range(tops(runs, "val_top1")),
                "parameters": f"{size['params']:,}",
                "MFLOPs": f"{size['flops'] / 1e6:.0f}",
                "training images/s": f"{found.speeds[name]['torch']:,.0f}",
                "training, min": f"{minutes[name]:.1f}",
            }
        )
    return rows


def timed_rows(found: Measured, names: Sequence[str], seen: Mapping[str, int]) -> list[dict[str, object]]:
    return [
        {
            "network": name,
            "test top-1": percent(found.timed[name]["top1"], 2),
            "95 %": interval(found.timed[name]["top1"], found.num_test),
            "validation": percent(found.timed[name]["val_top1"], 2),
            "images seen": f"{seen[name]:,}",
            "training images/s as shipped": f"{found.speeds[name]['shipped']:,.0f}",
        }
        for name in sorted(names, key=lambda name: float(found.timed[name]["top1"]), reverse=True)
    ]


def rate_rows(found: Measured) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, tried in found.tried.items():
        best = found.rates[name]
        end = "" if min(tried) < best < max(tried) else " (an end of what was tried)"
        rows.append(
            {
                "network": name,
                "optimizer": "Muon" if uses_muon(name) else "AdamW",
                "tried": ", ".join(f"{rate:g}: {percent(top1)}" for rate, top1 in tried.items()),
                "taken": f"{best:g}{end}",
            }
        )
    return rows


def forward_rows(found: Measured) -> list[dict[str, object]]:
    rows = []
    for name, of in found.exported.items():
        speeds = found.forward[name]
        row: dict[str, object] = {"network": name}
        row |= {form: f"{speeds[form]:,.0f}" if form in speeds else "refused" for form in ("float32", "int8")}
        if of["int8"] or of["float32"]:
            row |= {"int8 / float32": "", "layers in int8": "", "validation, points": "", "same top-1 as torch": ""}
        else:
            lost = 100 * (of["right"] - of["right_float"]) / of["n"]
            row |= {
                "int8 / float32": f"{speeds['int8'] / speeds['float32']:.2f}",
                "layers in int8": f"{of['layers']} of {of['layers'] + len(of['float_layers'])}",
                "validation, points": f"{lost:+.1f}",
                "same top-1 as torch": f"{of['agreeing']:,} of {of['checked']:,}",
            }
        rows.append(row | {"refused": " ".join(filter(None, dict.fromkeys((of["float32"], of["int8"]))))})
    return rows

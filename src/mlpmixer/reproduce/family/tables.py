"""The rows of the tables of what was measured of the family."""

from collections.abc import Sequence

from mlpmixer.reproduce.chance import interval, mean_and_range
from mlpmixer.reproduce.comparison import rate_cells
from mlpmixer.reproduce.family.measured import Measured, deployed_size
from mlpmixer.reproduce.family.recipes import NETWORKS, uses_muon
from mlpmixer.reproduce.page import percent


def equal_rows(found: Measured, names: Sequence[str]) -> list[dict[str, object]]:
    rows, top1 = [], found.top1
    for name in sorted(names, key=lambda name: top1[name], reverse=True):
        size = deployed_size(NETWORKS[name])
        rows.append(
            {
                "network": name,
                "test top-1": mean_and_range(found.of_seeds(name, "top1")),
                "95 %": interval(top1[name], found.num_test),
                "n": len(found.equal[name]),
                "validation": mean_and_range(found.of_seeds(name, "val_top1")),
                "parameters": f"{size['params']:,}",
                "MFLOPs": f"{size['flops'] / 1e6:.0f}",
                "training images/s": f"{found.speeds[name]['torch']:,.0f}",
                "training, min": f"{found.minutes[name]:.1f}",
            }
        )
    return rows


def timed_rows(found: Measured, names: Sequence[str]) -> list[dict[str, object]]:
    return [
        {
            "network": name,
            "test top-1": percent(found.timed[name]["top1"], 2),
            "95 %": interval(found.timed[name]["top1"], found.num_test),
            "validation": percent(found.timed[name]["val_top1"], 2),
            "images seen": f"{found.images_in_time[name]:,}",
            "training images/s as shipped": f"{found.speeds[name]['shipped']:,.0f}",
        }
        for name in sorted(names, key=lambda name: float(found.timed[name]["top1"]), reverse=True)
    ]


def rate_rows(found: Measured) -> list[dict[str, object]]:
    return [
        {"network": name, "optimizer": "Muon" if uses_muon(name) else "AdamW", **rate_cells(tried)}
        for name, tried in found.tried.items()
    ]


def forward_rows(found: Measured) -> list[dict[str, object]]:
    rows = []
    for name, export in found.exported.items():
        speeds = found.forward[name]
        row: dict[str, object] = {"network": name}
        row |= {form: f"{speeds[form]:,.0f}" if form in speeds else "refused" for form in ("float32", "int8")}
        if export["int8"] or export["float32"]:
            row |= {"int8 / float32": "", "layers in int8": "", "validation, points": "", "same top-1 as torch": ""}
        else:
            lost = 100 * (export["right"] - export["right_float"]) / export["n"]
            row |= {
                "int8 / float32": f"{speeds['int8'] / speeds['float32']:.2f}",
                "layers in int8": f"{export['layers']} of {export['layers'] + len(export['float_layers'])}",
                "validation, points": f"{lost:+.1f}",
                "same top-1 as torch": f"{export['agreeing']:,} of {export['checked']:,}",
            }
        rows.append(row | {"refused": " ".join(filter(None, dict.fromkeys((export["float32"], export["int8"]))))})
    return rows

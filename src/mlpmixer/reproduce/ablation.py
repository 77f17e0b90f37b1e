"""Appendix A.1: other ways to mix tokens. Section 2: what sharing token-mixing weights over the channels saves."""

import dataclasses
from statistics import fmean
from typing import Any

import torch

from mlpmixer.data.datasets import open_data
from mlpmixer.models.architecture import Build, build, count_params
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.names import MIXERS
from mlpmixer.reproduce.chance import describe_difference, error_bars, interval, is_tie, mean_and_range
from mlpmixer.reproduce.comparison import COMPARISONS, RATES, Comparison, Trial, cifar10, validation_curve
from mlpmixer.reproduce.experiment import ExperimentContext, Scale
from mlpmixer.reproduce.page import Page, Panel, Plot, Series, make_table
from mlpmixer.reproduce.table1 import PAPER, without_head
from mlpmixer.reproduce.variants import Grouped, Pyramid, Views, untied

VARIANTS: dict[str, tuple[Build | None, str]] = {
    "tied": (None, "the plain Mixer: one token-mixing MLP for all channels"),
    "untied": (untied, "a token-mixing MLP for each channel"),
    "grouped-2": (Grouped(2), "2 neighbouring channels together: 2 S x C/2"),
    "grouped-4": (Grouped(4), "4 neighbouring channels together: 4 S x C/4"),
    "views-2": (Views(2), "2 learnt views C -> C/2 together: 2 S x C/2"),
    "views-4": (Views(4), "4 learnt views C -> C/4 together: 4 S x C/4"),
    "pyramid": (Pyramid(2), "S -> S/4 tokens in the middle"),
}


def compare(scale: Scale, *names: str, **training: Any) -> Comparison:
    """The comparison of a scale with variants in place of its networks."""
    base, names = COMPARISONS[scale], names or tuple(VARIANTS)
    return dataclasses.replace(
        base,
        networks=dict.fromkeys(names, base.networks["Mixer"]),
        builds={name: VARIANTS[name][0] for name in names},
        rates=dict.fromkeys(names, RATES["Mixer"]),
        **training,
    )


SCALES: dict[Scale, Comparison] = {  # small: of two ways to group channels, the one that changes more
    "small": compare("small", "tied", "untied", "grouped-4", "views-4", "pyramid", rate_steps=60, evaluations=10),
    "long": compare("long"),
    "full": compare("full"),
}


def saving(cfg: MixerConfig) -> dict[str, int]:
    """Parameters with tied and untied token mixing, of token mixing alone and of the network, counted as built."""
    counts = {"channels": cfg.hidden_dim}
    for name, make in (("tied", build), ("untied", untied)):
        with torch.device("meta"):
            model = make(cfg)
        counts[f"{name}_mixing"] = sum(p.numel() for key, p in model.named_parameters() if ".token_mixing." in key)
        counts[name] = count_params(model)
    return counts


def compare_variants(context: ExperimentContext) -> Page:
    comparison, data = SCALES[context.scale], cifar10(context)
    cfg: Any = comparison.networks["tied"]
    splits = open_data(data)
    assert splits.test is not None
    n = len(splits.test)
    # the same operations for all: compiled kernels compute the plain block only
    trials = {name: Trial(name, data, make, {"kernels": "torch"}) for name, make in comparison.builds.items()}
    results, rates, tried = comparison.train(context, trials)
    rows: dict[str, dict[str, Any]] = {}
    for name, runs in results.items():
        rows[name] = {**comparison.size_of(name), "lr": rates[name]}
        for what in ("top1", "train_s"):
            values = [run.summary[what] for run in runs]
            rows[name] |= {f"{what}_runs": values, what: fmean(values)}
        rows[name]["curve"] = validation_curve(runs[0])
    tied, others = rows["tied"], [name for name in rows if name != "tied"]
    for row in (rows[name] for name in others):
        apart = "above" if row["top1"] > tied["top1"] else "below"
        row["against_tied"] = "level" if is_tie(row["top1"], tied["top1"], n) else apart
    savings = {name: saving(without_head(MIXERS[name])) for name in PAPER}
    times = {name: s["untied"] / s["tied"] for name, s in savings.items()}
    mixing = [s["untied_mixing"] / s["tied_mixing"] for s in savings.values()]
    least, most = min(times, key=lambda name: times[name]), max(times, key=lambda name: times[name])

    def cost(name: str) -> str:
        params, flops, train_s = (rows[name][what] / tied[what] for what in ("params", "flops", "train_s"))
        return f"{name} {params:.2f} times the parameters, {flops:.2f} the FLOPs, {train_s:.2f} the training time"

    return Page(
        template="ablation.md",
        values={"cfg": cfg, "comparison": comparison, "train_images": len(splits.train), "n": n},
        findings=(
            *(f"{describe_difference(name, rows[name]['top1'], 'tied', tied['top1'], n)}." for name in others),
            f"Compared with tied: {'; '.join(cost(name) for name in ('untied', 'pyramid'))}.",
            "In the paper's seven sizes a token-mixing MLP for each channel multiplies the parameters of token mixing "
            f"by {min(mixing):,g} to {max(mixing):,g}, which is C, and those of the whole network by "
            f"{times[least]:.1f} ({least}) to {times[most]:.1f} ({most}); the FLOPs stay.",
        ),
        tables=(
            make_table(
                "CIFAR-10",
                [
                    {
                        "variant": name,
                        "token mixing": VARIANTS[name][1],
                        "parameters": f"{row['params']:,}",
                        "MFLOPs an image": f"{row['flops'] / 1e6:.1f}",
                        "training, s": f"{row['train_s']:.0f}",
                        "test top-1": mean_and_range(row["top1_runs"]),
                        "95 % interval": interval(row["top1"], n),
                        "against tied": row.get("against_tied", ""),
                    }
                    for name, row in rows.items()
                ],
            ),
            make_table(
                "What tying saves, without the classifier",
                [
                    {
                        "size": name,
                        "table 1": f"{PAPER[name].params_millions} M",
                        "parameters, tied": f"{s['tied']:,}",
                        "token mixing, tied": f"{s['tied_mixing']:,}",
                        "token mixing, untied": f"{s['untied_mixing']:,}",
                        "ratio": f"{s['untied_mixing'] / s['tied_mixing']:,g} (C = {s['channels']:,})",
                        "parameters, untied": f"{s['untied']:,}",
                        "ratio of parameters": f"{times[name]:.1f}",
                        "float32 weights, GiB": f"{4 * s['tied'] / 2**30:.2f} -> {4 * s['untied'] / 2**30:.1f}",
                    }
                    for name, s in savings.items()
                ],
            ),
            tried,
        ),
        plots=(_plot(rows, n),),
        figures={"variants": rows, "savings": savings, "rates": rates, "n": n},
    )


def _plot(rows: dict[str, dict[str, Any]], n: int) -> Plot:
    curves, points = [], []
    for i, (name, row) in enumerate(rows.items()):
        curves.append(Series(row["curve"], name, colour=f"C{i}"))
        points.append(Series([(row["train_s"], row["top1"])], name, "o", f"C{i}", error_bars([row["top1"]], n)))
    panels = Panel("step", "validation top-1", curves), Panel("training, s", "test top-1", points)
    caption = "Validation top-1, first seed; test top-1 with its 95 % interval over the training time"
    return Plot("variants", caption, panels, size=(10, 4))

"""Appendix A.1: a Mixer with other ways to mix tokens, and what tying the weights of token mixing over the channels
saves (section 2)."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

from mlpmixer.data.datasets import open_data
from mlpmixer.evaluation.significance import wilson
from mlpmixer.models.architecture import Build, count_params
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.models.names import MIXERS
from mlpmixer.reproduce.comparison import (
    CONTESTS,
    DRAW,
    RATES,
    Contest,
    against,
    best_rates,
    draw,
    interval,
    size_of,
    spread,
)
from mlpmixer.reproduce.experiment import Lab, Scale
from mlpmixer.reproduce.page import Cells, Page, Plot
from mlpmixer.reproduce.table1 import PAPER, without_head
from mlpmixer.reproduce.variants import Grouped, Pyramid, Views, untied
from mlpmixer.weights.run_folder import read_metrics

VARIANTS: dict[str, tuple[Build | None, str]] = {
    "tied": (None, "the plain Mixer: one token-mixing MLP for all channels"),
    "untied": (untied, "a token-mixing MLP for each channel"),
    "grouped-2": (Grouped(2), "2 neighbouring channels together: 2 S x C/2"),
    "grouped-4": (Grouped(4), "4 neighbouring channels together: 4 S x C/4"),
    "views-2": (Views(2), "2 learnt views C -> C/2 together: 2 S x C/2"),
    "views-4": (Views(4), "4 learnt views C -> C/4 together: 4 S x C/4"),
    "pyramid": (Pyramid(2), "S -> S/4 tokens in the middle"),
}


def _of(contest: Contest, names: Iterable[str] = VARIANTS, **training: Any) -> Contest:
    rates = dict.fromkeys(names, RATES["Mixer"])
    return dataclasses.replace(contest, variants={name: VARIANTS[name][0] for name in rates}, rates=rates, **training)


SCALES: dict[Scale, Contest] = {  # small: of two ways to group channels, the one that changes more
    "small": _of(
        CONTESTS["small"],
        ("tied", "untied", "grouped-4", "views-4", "pyramid"),
        steps=400,
        rate_steps=60,
        evaluations=10,
    ),
    "long": _of(CONTESTS["long"]),
    "full": _of(CONTESTS["full"]),
}


def saving(cfg: MixerConfig) -> dict[str, int]:
    """Parameters with token mixing tied and untied, of it alone and of the whole network, counted in the networks as
    they are built."""
    counts = {"channels": cfg.hidden_dim}
    for name, build in (("tied", Mixer), ("untied", untied)):
        with torch.device("meta"):
            model = build(cfg)
        counts[f"{name}_mixing"] = sum(p.numel() for key, p in model.named_parameters() if ".token_mixing." in key)
        counts[name] = count_params(model)
    return counts


def run(lab: Lab) -> Page:
    contest = SCALES[lab.scale]
    data, cfg, names = contest.data(lab), contest.mixer, tuple(contest.variants)
    train_images = len(open_data(data).train)
    lab.parts = sum(len(contest.rates[name]) for name in names) + len(names) * contest.seeds
    rates, tried = best_rates(lab, contest, names, data, train_images)

    rows: dict[str, dict[str, Any]] = {
        name: {**size_of(contest, name), "lr": rates[name], "top1_runs": [], "train_s_runs": [], "curve": []}
        for name in names
    }
    n = 0
    for seed in range(lab.seed, lab.seed + contest.seeds):
        for name, row in rows.items():
            recipe = contest.recipe(data, train_images, rates[name], seed)
            timed = dataclasses.replace(
                recipe.run, kernels="torch"
            )  # for all: compiled kernels compute the plain block only
            result = lab.train(f"{name}-{seed}", dataclasses.replace(recipe, run=timed), contest.network(name))
            n = result.summary["test"]["n"]
            row["top1_runs"].append(result.summary["top1"])
            row["train_s_runs"].append(result.summary["train_s"])
            lines = read_metrics(result.path / "metrics.jsonl")
            row["curve"] = row["curve"] or [(line["step"], line["top1"]) for line in lines if line["kind"] == "eval"]
    for row in rows.values():
        row |= {what: sum(row[f"{what}_runs"]) / contest.seeds for what in ("top1", "train_s")}
    tied, others = rows["tied"], [name for name in rows if name != "tied"]
    for name in others:
        one, other = rows[name]["top1"], tied["top1"]
        rows[name]["against_tied"] = "a draw" if draw(one, other, n) else "above" if one > other else "below"
    savings = {name: saving(without_head(MIXERS[name])) for name in PAPER}
    times = {name: s["untied"] / s["tied"] for name, s in savings.items()}
    mixing = [s["untied_mixing"] / s["tied_mixing"] for s in savings.values()]
    least, most = min(times, key=lambda name: times[name]), max(times, key=lambda name: times[name])

    def cost(name: str) -> str:
        parts = (("params", "parameters"), ("flops", "FLOPs"), ("train_s", "training time"))
        return f"{name} {', '.join(f'{rows[name][what] / tied[what]:.2f} times the {text}' for what, text in parts)}"

    return Page(
        claim=(
            "appendix A.1, JFT-300M: a token-mixing MLP for each channel has C times the parameters and brought "
            "nothing noticeable; G "
            "neighbouring channels together brought less than 1-2 % linear 5-shot ImageNet top-1; G learnt views "
            "together 3-4 % top-5 "
            "for S/32, and nothing for larger models; a pyramid trained much faster on JFT-300M at little loss, which "
            "did not carry over "
            "to ImageNet and ImageNet-21k. Section 2: tying saves much memory and costs no accuracy. The paper gives "
            "no other figures."
        ),
        findings=(
            *(f"{against(name, rows[name]['top1'], 'tied', tied['top1'], n)}." for name in others),
            f"Against tied: {'; '.join(cost(name) for name in ('untied', 'pyramid'))}.",
            "In the paper's seven sizes a token-mixing MLP for each channel multiplies the parameters of token mixing "
            "by "
            f"{min(mixing):,g} to {max(mixing):,g}, which is C, and those of the whole network by {times[least]:.1f} "
            f"({least}) to "
            f"{times[most]:.1f} ({most}); the FLOPs stay.",
        ),
        tables=(_ours(rows, n), _savings(savings), tried),
        plots=(
            Plot(
                name="variants",
                caption="Validation top-1, first seed; test top-1 with its 95 % interval over the training time",
                draw=lambda figure: _draw(figure, rows, n),
                size=(10, 4),
            ),
        ),
        notes=(
            f"CIFAR-10 from scratch at 32 px: {cfg.num_blocks} blocks of C {cfg.hidden_dim}, D_S {cfg.tokens_mlp_dim}, "
            f"S "
            f"{cfg.num_patches}; {contest.steps:,} steps of {contest.batch_size} images for every run, "
            f"{train_images:,} training images, "
            f"n = {contest.seeds}. Accuracy is on all {n:,} test images, not 5-shot.",
            "D_S is the same in all. So grouping keeps the FLOPs, and gives G channels together the hidden units that "
            "one had. The paper "
            "names neither G nor D_S.",
            "Views: one learnt linear map C -> C, with a bias, makes the G views; what comes out of token mixing is "
            "added to the channels "
            "in the order of their features. The paper names no map back.",
            f"Pyramid: in block {cfg.num_blocks // 2 + 1} W2 has S/4 rows. A skip connection joins tables of one size "
            f"only, so that around "
            "this MLP it is the mean over 2 x 2 neighbouring patches, without weights. The later blocks, and the mean "
            "before the "
            "classifier, have S/4 tokens. The paper does not say what its skip connection did.",
            "Each variant has the learning rate that was best for it on validation images.",
            "Training time is the run's, with its evaluations, one run after another, all on torch's own operations.",
            f"{DRAW} Of {len(others)} comparisons, each by itself, a true draw is called otherwise once in twenty.",
        ),
        figures={"variants": rows, "savings": savings, "rates": rates, "n": n},
    )


def _ours(rows: dict[str, dict[str, Any]], n: int) -> Cells:
    cells = (
        (
            name,
            VARIANTS[name][1],
            f"{row['params']:,}",
            f"{row['flops'] / 1e6:.1f}",
            f"{row['train_s']:.0f}",
            spread(row["top1_runs"]),
            interval(row["top1"], n),
            row.get("against_tied", ""),
        )
        for name, row in rows.items()
    )
    header = (
        "variant",
        "token mixing",
        "parameters",
        "MFLOPs an image",
        "training, s",
        "test top-1",
        "95 % interval",
        "against tied",
    )
    return Cells(title="CIFAR-10", header=header, rows=tuple(cells))


def _savings(savings: dict[str, dict[str, int]]) -> Cells:
    cells = (
        (
            name,
            f"{PAPER[name].params_millions} M",
            f"{s['tied']:,}",
            f"{s['tied_mixing']:,}",
            f"{s['untied_mixing']:,}",
            f"{s['untied_mixing'] / s['tied_mixing']:,g} (C = {s['channels']:,})",
            f"{s['untied']:,}",
            f"{s['untied'] / s['tied']:.1f}",
            f"{4 * s['tied'] / 2**30:.2f} -> {4 * s['untied'] / 2**30:.1f}",
        )
        for name, s in savings.items()
    )
    mixing = ("token mixing, tied", "untied", "times")
    header = ("size", "table 1", "parameters, tied", *mixing, "parameters, untied", "times", "float32 weights, GiB")
    return Cells(title="What tying saves, without the classifier", header=header, rows=tuple(cells))


def _draw(figure: Any, rows: dict[str, dict[str, Any]], n: int) -> None:
    curves = figure.add_subplot(1, 2, 1, xlabel="step", ylabel="validation top-1")
    points = figure.add_subplot(1, 2, 2, xlabel="training, s", ylabel="test top-1")
    for i, (name, row) in enumerate(rows.items()):
        curves.plot(*zip(*row["curve"], strict=True), color=f"C{i}", label=name)
        low, high = wilson(round(row["top1"] * n), n)
        points.errorbar(
            [row["train_s"]],
            [row["top1"]],
            [[row["top1"] - low], [high - row["top1"]]],
            fmt="o",
            color=f"C{i}",
            label=name,
        )
    curves.legend(fontsize="small")

"""Pre-train Mixers on many photos, and start others from them: the paper's figure 2 and table 2 at a small scale."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data, stratified_share
from mlpmixer.data.image_set import Splits
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.evaluation.probe import ProbeResult, probe
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.load import load
from mlpmixer.inference.torch_classifier import from_network
from mlpmixer.models.architecture import build
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.names import MIXERS
from mlpmixer.reproduce.chance import describe_difference, mean_and_range
from mlpmixer.reproduce.experiment import ExperimentContext
from mlpmixer.reproduce.page import Page, Panel, Plot, Series, Table, make_table, percent
from mlpmixer.training.recipe import Init, Recipe, variant
from mlpmixer.training.recipes import finetune, photos, pretrain_photos
from mlpmixer.weights import own
from mlpmixer.weights.model_file import ModelMeta
from mlpmixer.weights.own import OWN
from mlpmixer.weights.run_folder import MODEL_FILE

UPSTREAM_DATA = "tiny-imagenet"
DATA = ("flowers89", "trashnet")
FEW_SHOT_ONLY = "cifar10"
FEW_SHOT_SHARE = 0.01  # of the training images of FEW_SHOT_ONLY: 45 of each class to draw from, and quick to read
SHOTS = (1, 5, 10)
SEEDS = 3
SCRATCH = "fresh weights"
COLOURS = ("tab:gray", "tab:orange", "tab:blue", "tab:green")


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """A Mixer to be pre-trained."""

    network: str
    steps: int
    share: float = 1.0
    """The fraction of the training images that it sees."""

    def recipe(self, data_dir: str | None, seed: int) -> Recipe:
        return variant(
            pretrain_photos(),
            model=MIXERS[self.network],
            data={"name": UPSTREAM_DATA, "data_dir": data_dir, "train_fraction": self.share},
            run={"steps": self.steps, "seed": seed},
        )


UPSTREAMS = {
    "small-photos-tenth": Upstream(network="Nano/8", steps=31_250, share=0.1),
    "small-photos": Upstream(network="Nano/8", steps=31_250),
    "small-photos-4m": Upstream(network="Tiny/8", steps=15_625),
}
"""The networks to pre-train, by the name that `mlpmixer list weights` gives their weights."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Initial weights, and what it took to make them."""

    config: MixerConfig
    weights: str = ""
    """The file; "" for fresh weights."""
    images: int = 0
    """Training images."""
    top1: float = 0.0
    """On the upstream data's own validation images, of which there are `n`."""
    n: int = 0
    train_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Results of one start on one data set. Accuracies are fractions of the test images, times are in seconds."""

    few: Mapping[int, list[float]]
    """For each number of shots: top-1 of each draw."""
    few_s: float
    linear: float | None = None
    linear_s: float = 0.0
    trained: tuple[float, ...] = ()
    """Top-1 of each seed after training all weights."""
    trained_s: float = 0.0
    """The mean over seeds."""


def pretrain_and_transfer(context: ExperimentContext) -> Page:
    sets = {name: open_data(Data(name=name, data_dir=context.data_dir)) for name in (*DATA, FEW_SHOT_ONLY)}
    makes = context.scale == "long"
    starts_of_each, with_few_alone = len(UPSTREAMS) + 1, len(DATA) + 1
    trainings, measured = len(DATA) * SEEDS, with_few_alone + len(DATA)
    context.num_parts = starts_of_each * (trainings + measured) + (len(UPSTREAMS) if makes else 0)
    starts = {SCRATCH: Start(config=_network(photos().model))} | (_made(context) if makes else _stored(context))
    summaries = _train_downstream(context, starts)
    outcomes: dict[str, dict[str, Outcome]] = {}
    for name, splits in sets.items():
        outcomes[name] = {
            key: _outcome(context, name, splits, key, start, summaries.get((name, key), []))
            for key, start in starts.items()
        }
    tests = {name: len(splits.test) for name, splits in sets.items() if splits.test is not None}
    return Page(
        template="pretraining.md",
        values={
            "trained_images": {name: len(sets[name].train) for name in DATA},
            "classes": {name: len(splits.classes) for name, splits in sets.items()},
            "shots": SHOTS,
            "seeds": SEEDS,
            "makes": makes,
            "batch_size": pretrain_photos().run.batch_size,
            "epochs": {"scratch": photos().run.epochs, "started": finetune().run.epochs},
        },
        findings=_findings(outcomes, tests),
        tables=(_upstream_table(starts), *(_table(name, of, tests[name]) for name, of in outcomes.items())),
        plots=(_time_plot(outcomes), _scale_plot(outcomes, starts)),
        figures={
            "starts": {key: dataclasses.asdict(s) | {"weights": bool(s.weights)} for key, s in starts.items()},
            "outcomes": {
                name: {key: dataclasses.asdict(outcome) for key, outcome in of.items()} for name, of in outcomes.items()
            },
            "tests": tests,
        },
    )


def _network(config: Any) -> MixerConfig:
    assert isinstance(config, MixerConfig)
    return config


def _made(context: ExperimentContext) -> dict[str, Start]:
    """Pre-train all of them."""
    longest_first = reversed(UPSTREAMS)
    runs = context.train_all({name: UPSTREAMS[name].recipe(context.data_dir, context.seed) for name in longest_first})
    starts = {}
    for name in UPSTREAMS:
        result, summary = runs[name], runs[name].summary
        starts[name] = Start(
            config=_network(MIXERS[UPSTREAMS[name].network]),
            weights=str(result.path / MODEL_FILE),
            images=summary["train_images"],
            top1=summary["top1"],
            n=summary["test"]["n"],
            train_s=summary["train_s"],
        )
    return starts


def _stored(context: ExperimentContext) -> dict[str, Start]:
    """The weights that this project has stored. ValueError where they are not here."""
    if absent := [name for name in UPSTREAMS if name not in OWN]:
        raise ValueError(f"{', '.join(absent)} are not stored: --scale long trains them first")
    starts = {}
    for name, upstream in UPSTREAMS.items():
        folder = None if context.weights_dir is None else str(context.weights_dir)
        file, known = own.get(name, folder=folder, report=context.report), OWN[name]
        starts[name] = Start(
            config=_network(MIXERS[upstream.network]),
            weights=str(file),
            images=_number(known.data),
            top1=known.top1,
            n=_number(known.measured_on),
            train_s=known.train_s,
        )
    return starts


def _number(text: str) -> int:
    """The number that a description begins with: "44,100 photos" is 44100."""
    return int(text.split()[0].replace(",", ""))


def _train_downstream(context: ExperimentContext, starts: Mapping[str, Start]) -> dict[tuple[str, str], list[Any]]:
    """The summaries of all seeds for each data set and start."""
    runs = {
        (name, key, seed): f"{name}-{key.replace(' ', '-')}-{seed}"
        for name in DATA
        for key in starts
        for seed in context.seeds(SEEDS)
    }
    results = context.train_all(
        {run: _downstream(starts[key], name, context.data_dir, seed) for (name, key, seed), run in runs.items()}
    )
    summaries: dict[tuple[str, str], list[Any]] = {}
    for (name, key, _), run in runs.items():
        summaries.setdefault((name, key), []).append(results[run].summary)
    return summaries


def _outcome(
    context: ExperimentContext, name: str, splits: Splits, key: str, start: Start, summaries: list[Any]
) -> Outcome:
    """Measure the frozen features, and add the results of training."""
    key = key.replace(" ", "-")
    if name == FEW_SHOT_ONLY:
        share = stratified_share(splits.train.labels, FEW_SHOT_SHARE, context.seed)
        splits = dataclasses.replace(splits, train=splits.train.subset(share))

    def timed(linear: bool) -> dict[str, Any]:
        began = time.monotonic()
        result = _probed(start, splits, context, SHOTS[:1] if linear else SHOTS, linear)
        few = {row.shots: list(row.top1) for row in result.few_shot}
        return {"few": few, "linear": result.linear and result.linear.top1, "s": time.monotonic() - began}

    few = context.measure(f"{name}-few-shot-{key}", partial(timed, linear=False))
    outcome = Outcome(few={int(shots): values for shots, values in few["few"].items()}, few_s=few["s"])
    if name == FEW_SHOT_ONLY:
        return outcome
    linear = context.measure(f"{name}-linear-{key}", partial(timed, linear=True))
    return dataclasses.replace(
        outcome,
        linear=linear["linear"],
        linear_s=linear["s"],
        trained=tuple(summary["top1"] for summary in summaries),
        trained_s=fmean(summary["train_s"] for summary in summaries),
    )


def _probed(
    start: Start, splits: Splits, context: ExperimentContext, shots: tuple[int, ...], linear: bool
) -> ProbeResult:
    classifier = load(start.weights, device=context.device) if start.weights else _untrained(start, context)
    return probe(classifier, splits, shots=shots, linear=linear)


def _untrained(start: Start, context: ExperimentContext) -> Classifier:
    """Fresh weights, for features that nothing has been learned for."""
    cfg = start.config
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        network = build(cfg)
    classes = tuple(map(str, range(cfg.num_classes)))
    preprocess = Preprocess(image_size=(cfg.image_size, cfg.image_size), in_channels=cfg.in_channels)  # type: ignore[arg-type]
    return from_network(network, ModelMeta(config=cfg, classes=classes, preprocess=preprocess), device=context.device)


def _downstream(start: Start, name: str, data_dir: str | None, seed: int) -> Recipe:
    """The recipe that `mlpmixer train DATA` takes by default, with and without --init."""
    recipe = finetune() if start.weights else photos()
    if start.weights:
        recipe = variant(recipe, model=start.config, init=Init(weights=start.weights))
    return variant(recipe, data={"name": name, "data_dir": data_dir}, run={"seed": seed})


# --- page ---------------------------------------------------------------------------------------------------------


def _findings(outcomes: Mapping[str, Mapping[str, Outcome]], tests: Mapping[str, int]) -> list[str]:
    def compared(what: str, first: str, second: str) -> str:
        sentences = [
            f"{name}: {describe_difference(first, fmean(of[first].trained), second, fmean(of[second].trained), n)}"
            for name, of, n in ((name, outcomes[name], tests[name]) for name in DATA)
        ]
        return f"{what}: {'; '.join(sentences)}."

    def gains(of: Mapping[str, Outcome]) -> str:
        scratch = fmean(of[SCRATCH].trained)
        return ", ".join(f"{100 * (fmean(of[key].trained) - scratch):+.1f} {key}" for key in UPSTREAMS)

    tenth, small, large = UPSTREAMS
    started = "; ".join(f"{name} {gains(outcomes[name])}" for name in DATA)
    return [
        f"Points that a start from weights brings, all weights trained: {started}.",
        *(compared("All weights trained", key, SCRATCH) for key in UPSTREAMS),
        compared("Ten times the upstream images", small, tenth),
        compared("Four times the parameters, for half as many upstream images seen", large, small),
    ]


def _upstream_table(starts: Mapping[str, Start]) -> Table:
    rows = []
    for key, upstream in UPSTREAMS.items():
        start = starts[key]
        seen = upstream.steps * pretrain_photos().run.images_per_step
        rows.append(
            {
                "weights": key,
                "network": upstream.network,
                "parameters": f"{OWN[key].num_params if key in OWN else start.config.num_params:,}",
                "training images": f"{start.images:,}",
                "images seen": f"{seen:,}",
                f"top-1 on {start.n:,} images": percent(start.top1, 2),
                "minutes": f"{start.train_s / 60:.0f}",
            }
        )
    return make_table("Upstream", rows)


def _table(name: str, of: Mapping[str, Outcome], n: int) -> Table:
    rows: list[dict[str, str]] = []
    for key, outcome in of.items():
        row = {"start": key} | {f"{shots}-shot": mean_and_range(values) for shots, values in outcome.few.items()}
        if outcome.linear is not None:
            row |= {
                "linear probe": percent(outcome.linear, 2),
                "all weights": mean_and_range(outcome.trained),
                "shots, s": f"{outcome.few_s:.0f}",
                "probe, s": f"{outcome.linear_s:.0f}",
                "training, s": f"{outcome.trained_s:.0f}",
            }
        rows.append(row)
    return make_table(f"{name}: top-1 on {n:,} test images", rows)


def _time_plot(outcomes: Mapping[str, Mapping[str, Outcome]]) -> Plot:
    panels = []
    for name in DATA:
        series = []
        for (key, o), colour in zip(outcomes[name].items(), COLOURS, strict=True):
            assert o.linear is not None
            points = [(o.few_s, fmean(o.few[SHOTS[-1]])), (o.linear_s, o.linear), (o.trained_s, fmean(o.trained))]
            names = (f"{SHOTS[-1]}-shot", "linear probe", "all weights") if key == SCRATCH else ()
            series.append(Series([(s, 100 * top1) for s, top1 in points], key, "-o", colour, names=names))
        panels.append(Panel("time spent on this data, s", "test top-1, %", series, title=name, log="x"))
    return Plot("time", "Accuracy and the time it takes on the new data", panels, size=(11, 4.5))


def _scale_plot(outcomes: Mapping[str, Mapping[str, Outcome]], starts: Mapping[str, Start]) -> Plot:
    panels = []
    for name in DATA:
        of, series = outcomes[name], []
        by_network: dict[str, list[str]] = {}
        for key, upstream in UPSTREAMS.items():
            by_network.setdefault(upstream.network, []).append(key)
        for (network, keys), colour in zip(by_network.items(), COLOURS[2:], strict=True):
            few = [(float(starts[key].images), 100 * fmean(of[key].few[SHOTS[1]])) for key in keys]
            trained = [(float(starts[key].images), 100 * fmean(of[key].trained)) for key in keys]
            series.append(Series(trained, f"{network}, all weights", "-o", colour))
            series.append(Series(few, f"{network}, {SHOTS[1]}-shot", "--s", colour))
        scratch, images = 100 * fmean(of[SCRATCH].trained), [starts[key].images for key in UPSTREAMS]
        line = [(float(x), scratch) for x in (min(images), max(images))]
        series.append(Series(line, "Nano/8, fresh weights", ":", COLOURS[0]))
        panels.append(Panel("upstream training images", "test top-1, %", series, title=name, log="x"))
    return Plot("scale", "Accuracy over the number of upstream images", panels, size=(11, 4.5))

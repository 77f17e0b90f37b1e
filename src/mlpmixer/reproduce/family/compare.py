"""The comparison of the Mixer and its relatives: all runs and measurements, in order."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mlpmixer.reproduce.experiment import ExperimentContext
from mlpmixer.reproduce.family.measured import BATCH, Measured, best_rates
from mlpmixer.reproduce.family.page import make_page
from mlpmixer.reproduce.family.recipes import (
    LENGTHS,
    NETWORKS,
    Length,
    num_steps,
    rate_recipe,
    rates_of,
    recipe,
    run_name,
)
from mlpmixer.reproduce.family.speeds import export_both, forward_speeds, training_speeds
from mlpmixer.reproduce.page import Page

if TYPE_CHECKING:
    from mlpmixer.training.run import RunResult

SCORES = ("top1", "val_top1", "steps", "seed", "train_images", "train_s", "images_per_s", "precision", "device")


def _figures(run: "RunResult") -> dict[str, Any]:
    """The figures of a run's summary that the page shows."""
    numbers = {part: {"n": run.summary[part]["n"], "nll": run.summary[part]["nll"]} for part in ("test", "val")}
    return {name: run.summary[name] for name in SCORES} | numbers


def try_rates(context: ExperimentContext, length: Length) -> dict[str, dict[float, float]]:
    """Validation top-1 of each rate of each network."""
    tried = {(name, rate): f"rates/{name}-{rate:g}" for name in NETWORKS for rate in rates_of(name)}
    results = context.train_all({run: rate_recipe(key[0], context, key[1], length) for key, run in tried.items()})
    found: dict[str, dict[float, float]] = {}
    for (name, rate), run in tried.items():
        found.setdefault(name, {})[rate] = results[run].summary["val_top1"]
    return found


def compare_relatives(context: ExperimentContext) -> Page:
    """Choose rates; train for equally many images, the best networks twice; then for equal time; export and time."""
    length = LENGTHS[context.scale]
    num_rates = sum(len(rates_of(name)) for name in NETWORKS)
    context.num_parts = num_rates + 3 * len(NETWORKS) + length.second_seeds + 2
    tried = try_rates(context, length)
    rates, steps = best_rates(tried), num_steps(length)

    def equal(names: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
        runs = {run_name("images", name, seed): recipe(name, context, rates[name], steps, seed=seed) for name in names}
        return {name: _figures(found) for name, found in zip(names, context.train_all(runs).values(), strict=True)}

    firsts = equal(tuple(NETWORKS), context.seed)
    best = sorted(NETWORKS, key=lambda name: firsts[name]["val_top1"], reverse=True)[: length.second_seeds]
    seconds = equal(best, context.seed + 1)
    speeds = context.measure("training-speed", lambda: training_speeds(context, rates, length.turns))
    budget_s = steps * BATCH / speeds["Mixer"]["shipped"]
    timed = {}
    for name in NETWORKS:
        affordable = max(round(budget_s * speeds[name]["shipped"] / BATCH), 1)
        shipped = recipe(name, context, rates[name], affordable, seed=context.seed, shipped=True)
        timed[run_name("time", name)] = shipped
    in_time = context.train_all(timed)
    exported = {
        name: context.measure(f"export-{name.replace(' ', '-')}", partial(export_both, context, name, length))
        for name in NETWORKS
    }
    measured = Measured(
        tried=tried,
        equal={name: [runs[name] for runs in (firsts, seconds) if name in runs] for name in NETWORKS},
        speeds=speeds,
        timed={name: _figures(in_time[run_name("time", name)]) for name in NETWORKS},
        exported=exported,
        forward=context.measure("forward-speed", lambda: forward_speeds(context, exported)),
    )
    return make_page(length, measured, result=context.scale != "small")

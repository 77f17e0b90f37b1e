"""The batch size of a run that leaves it to be measured (`run.batch_size=auto`): what fits in memory, and is worth it.

Real steps of growing sizes are run on a throw-away copy. The recipe's own batch, for which its learning rate was
chosen, is left only where it does not fit, or where a larger one is clearly faster.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mlpmixer.download import Report
from mlpmixer.hardware import free_bytes, is_out_of_memory, peak_mib, reset_peak
from mlpmixer.training.batches import Batch
from mlpmixer.training.distributed import ProcessGroup
from mlpmixer.training.inputs import batches
from mlpmixer.training.recipe import Recipe, Run, variant
from mlpmixer.training.recipes import RECIPES
from mlpmixer.training.start import Start
from mlpmixer.training.step import TrainingStep

MARGIN = 0.8  # share of the free memory that a step may take
GAIN = 1.05  # times as many images per second make a larger batch worth it
LEAST_STEPS = 8  # of an epoch; a batch is not raised beyond that
SPEND_S = 0.5  # on the speed of one size, and three steps at least
SLOW_S = 2.0  # a first step that takes longer is not repeated


@dataclass(frozen=True)
class Trial:
    """Steps of one size. `taken_bytes` is their peak memory beyond what was held before; the speed of sizes below the
    recipe's own is not measured."""

    batch_size: int
    images_per_s: float
    taken_bytes: float


def usual_batch_size(recipe: Recipe) -> int:
    """The batch that the recipe of this name has, for which its learning rate was chosen."""
    return (RECIPES[recipe.name]().run if recipe.name in RECIPES else Run()).images_per_step


def smallest_batch_size(run: Run, processes: int) -> int:
    """The least that parts, repeats and processes can share; the sizes to try double from here."""
    return math.lcm(run.accumulate, run.repeats) * processes


def sizes_to_try(smallest: int, usual: int, num_images: int) -> list[int]:
    """The smallest size and its doubles, up to the usual one, and beyond it while an epoch has LEAST_STEPS steps."""
    most = min(max(usual, num_images // LEAST_STEPS), num_images)
    return [smallest << k for k in range(max(most // smallest, 1).bit_length())]


def choose(
    sizes: Sequence[int], usual: int, room_bytes: float, measure: Callable[[int], Trial | None]
) -> tuple[Trial, str]:
    """The smallest of `sizes` within 5 % of the fastest, from `usual` on, that fits into the room; and why no other.

    measure: runs steps of a size; None where the memory does not suffice. A size is not tried when what the last one
    took says that it will not fit: on a CPU the system would end the process. MemoryError when no size fits.
    """
    trials: list[Trial] = []
    limit = f"an epoch of larger ones would have fewer than {LEAST_STEPS} steps"
    for size in sizes:
        needs = trials[-1].taken_bytes * size / trials[-1].batch_size if trials else 0.0
        found = measure(size) if needs <= MARGIN * room_bytes else None
        if found is None or found.taken_bytes > MARGIN * room_bytes:
            limit = f"{size:,} would take more than {MARGIN:.0%} of the {room_bytes / 2**30:,.1f} GiB that are free"
            break
        trials.append(found)
        speeds = [trial.images_per_s for trial in trials if trial.batch_size >= usual]
        if len(speeds) > 2 and max(speeds[-2:]) < GAIN * max(speeds[:-2]):  # one alone may be a slow moment
            break
    if not trials:
        raise MemoryError
    worth = [trial for trial in trials if trial.batch_size >= usual] or trials[-1:]
    best = max(trial.images_per_s for trial in worth)
    chosen = next(trial for trial in worth if GAIN * trial.images_per_s >= best)
    if chosen != trials[-1]:
        limit = f"none up to {trials[-1].batch_size:,} is {GAIN - 1:.0%} faster"
    return chosen, limit


def fix_batch_size(training_step: TrainingStep, start: Start | None, report: Report) -> None:
    """Give `training_step` the batch size that is measured for it, and report which and why. Errors: as
    `measured_batch_size`."""
    report({"kind": "doing", "what": "measuring which batch size is fast and fits in memory"})
    batch_size, why = measured_batch_size(training_step, start)
    training_step.set_batch_size(batch_size)
    reset_peak(training_step.device)
    report({"kind": "doing", "what": why})


def measured_batch_size(training_step: TrainingStep, start: Start | None) -> tuple[int, str]:
    """The batch size for the run of `training_step`, the same on all processes, and a sentence about it.

    ValueError where the system does not say how much memory is free, MemoryError where the smallest does not fit.
    """
    recipe, stores, device = training_step.recipe, training_step.stores, training_step.device
    group = training_step.group  # gradients are not exchanged here: a process without memory must not hold up others
    whole = variant(recipe, optim={"head_steps": 0}, run={"batch_size": recipe.run.images_per_step // group.size})
    room = free_bytes(device)
    if any(group.any(room is None)):
        raise ValueError("run.batch_size=auto needs the size of the free memory, which this system does not report")
    rooms = group.gather(float(room or 0))
    trial = TrainingStep(
        whole, stores, device, training_step.dtype, start, training_step.teacher, ProcessGroup(), start is None
    )
    trial.resize(recipe.model.image_size)
    usual = usual_batch_size(recipe)

    def measure(size: int) -> Trial | None:
        trial.set_batch_size(size // group.size)
        reset_peak(device)
        held, seconds = peak_mib(device) or 0.0, math.nan
        try:
            given = batches(trial.images, trial.recipe.run, 1, 1000, trial.rows)
            seconds = seconds_per_step(trial, given, SPEND_S if size >= usual else 0.0)
        except (MemoryError, RuntimeError) as e:
            if not is_out_of_memory(e):
                raise
        if any(group.any(math.isnan(seconds))):
            return None
        taken = max((peak_mib(device) or 0.0) - held, 0.0) * 2**20
        return Trial(size, size / max(group.gather(seconds)), max(group.gather(taken)))

    sizes = sizes_to_try(recipe.run.images_per_step, usual, len(stores.train))
    chosen, why = choose(sizes, usual, min(rooms), measure)
    others = "" if chosen.batch_size == usual else f", which was chosen for batches of {usual:,}"
    return chosen.batch_size, (
        f"batch size {chosen.batch_size:,}, by measuring: {chosen.images_per_s:,.0f} images/s, "
        f"{chosen.taken_bytes / 2**20:,.0f} MiB; {why}. The learning rate stays {recipe.optim.lr:g}{others}"
    )


def seconds_per_step(
    step: TrainingStep, given: Iterable[Batch], spend_s: float, between: Callable[[], None] = lambda: None
) -> float:
    """Seconds of a step at rate 0 with the next of `given`. The first one, which also prepares, is left out, unless it
    is slow or nothing is to be spent: then it is the only one. `between` is called after each."""
    start, times = time.monotonic(), [0.0]
    for batch in given:
        step(batch, 0.0)[0].item()
        between()
        times.append(time.monotonic() - start)
        if not spend_s or times[1] > SLOW_S or (times[-1] > spend_s and len(times) > 3):
            break
    return (times[-1] - times[1]) / (len(times) - 2) if len(times) > 2 else times[1]

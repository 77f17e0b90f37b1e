"""train(): opens or resumes a run (`resume`), trains it (`loop`), and leaves model, summary and report (`finish`).

Pre-training, training from scratch and fine-tuning are recipes.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlpmixer.clock import parse_duration
from mlpmixer.config import to_json
from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import ImageError
from mlpmixer.data.paths import count
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.split_record import SplitRecord
from mlpmixer.download import Report
from mlpmixer.durable import write_json
from mlpmixer.hardware import choose_precision, device_name
from mlpmixer.models.architecture import Build
from mlpmixer.training.batch_size import fix_batch_size, smallest_batch_size
from mlpmixer.training.batches import rows_per_batch, steps_per_epoch
from mlpmixer.training.distillation import (
    TeacherFunction,
    TeacherSource,
    make_teacher,
    store_teacher,
    stored_teacher,
    with_teacher,
)
from mlpmixer.training.distributed import ProcessGroup
from mlpmixer.training.finish import final_params, finish, notes
from mlpmixer.training.inputs import ImageCache, batches
from mlpmixer.training.loop import State, Trainer, validate
from mlpmixer.training.recipe import MOST, Recipe, variant
from mlpmixer.training.resume import has_best, open_run, recorded, restore
from mlpmixer.training.start import Start, load_networks, offer, origins_of, stored_preprocess, with_network
from mlpmixer.training.step import TrainingStep
from mlpmixer.training.threads import Waiting, chosen_threads, crowded, on_threads
from mlpmixer.weights import run_folder
from mlpmixer.weights.run_folder import MetricsFile


@dataclass(frozen=True)
class RunResult:
    """The run directory and what is in its summary.json."""

    path: Path
    summary: dict[str, Any]


def train(
    recipe: Recipe,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    report: Report | None = None,
    teacher: TeacherFunction | None = None,
    network: Build | None = None,
    group: ProcessGroup = ProcessGroup(),  # noqa: B008 (a value)
    stop_after_s: float | None = None,
    image_cache: ImageCache | None = None,
) -> RunResult:
    """Train a network by `recipe`; write model, metrics, report and checkpoints to the run directory `out`.

    out: default runs/<recipe name>, or the first free number after it.
    resume: continue from the last checkpoint in `out` (bit-identical to an undisturbed run on the same machine), or
        start if there is none. A resumed run needs its directory and the data, not the weights that it started from.
    report: receives {"kind": "start" | "step" | "eval" | "save" | "end", ...} as they happen, before them {"kind":
        "fetch", ...} while the weights to start from are downloaded (`download.fetch`), and {"kind": "note", "note"}
        for what a resumed run found damaged or missing, and what was done about it.
    teacher: a classifier to learn from as `recipe.distill` says: a function of augmented images, float32 (B,C,H,W) in
        0..255 on the device of the run, to logits (B,K) in the order of the data's classes. It is not stored with the
        run: give it again to resume.
    network: builds a network of your own: a function (or a dataclass that can be called) of `recipe.model`, whose sizes
        of input and output it takes, to a module of images (B,C,H,W) -> logits (B,K). Give it again to resume, and to
        `load`. It starts from fresh weights; options that need more of a network (Muon, rates by layer, ...) are
        refused unless the module has the methods of `architecture.CAPABILITIES`.
    group: this process among several that train the run together, each of which calls this within
        `distributed.connected`. The batches are the same for any number of them, and a run may be resumed with another
        number. All of them must see `out`; rank 0 writes and reports. The others return without a summary, before the
        final evaluation.
    stop_after_s: stop after this time as on Ctrl-C; what follows the last step (scoring val and test) is not cut short.
    image_cache: an `inputs.ImageCache` shared by successive runs on the same data, so that images are decoded once.

    Errors: ValueError for data, recipe or directory that do not fit; Diverged when the loss is not finite; Interrupted
    on Ctrl-C, SIGTERM or when the time is over, after saving; OSError when nothing can be written (the last checkpoint
    survives); distributed.PeerFailedError when another process has one of these.
    """
    started = time.monotonic()
    report = report if report and group.is_main else lambda event: None
    images = image_cache or ImageCache()

    def note(text: str) -> None:
        report({"kind": "note", "note": text})

    with ExitStack() as stack:
        folder, recipe, summary, saved = group.on_main(
            lambda: open_run(with_network(with_teacher(recipe, teacher), network), out, resume, note, stack)
        )
        if summary is not None:
            report({"kind": "end", "summary": summary, "out": str(folder)})
            return RunResult(folder, summary)
        is_open = sorted(run_folder.left_open(to_json(recipe))) if saved is None else []
        measured = run_folder.measured_fields(folder) or [field for field in is_open if field.startswith("run.")]

        def prepare() -> tuple[TrainingStep, Start | None, TeacherSource]:
            pretrained, source = load_networks(recipe, report, teacher, folder, saved)
            start = network or pretrained
            step = make_training_step(recipe, start, source, group, images, saved)
            _require_a_class("val", step.stores.splits.val)
            if recipe.run.test and step.stores.splits.test is not None:
                _require_a_class("test", step.stores.splits.test)
                _require_a_readable_image(step.stores.splits.test, step.stores.preprocess)
            return step, start, source

        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(on_threads(recipe.run.threads))
        step, start, source = group.on_all(prepare)
        if recipe.run.batch_size == "auto":
            fix_batch_size(step, start, report)
        if saved is None and not recipe.run.threads:  # an old state without a number is of torch's own
            threads = chosen_threads(step, start, report)
            stack.enter_context(on_threads(threads))
            step.recipe = variant(step.recipe, run={"threads": threads})
        elif step.device.type == "cpu" and (problem := crowded(recipe.run.threads, saved is not None)):
            note(problem)
        stop = stack.enter_context(_stop_signal(None if stop_after_s is None else started + stop_after_s))
        if recipe.run.time and not recipe.run.steps:
            budget = recipe.run.time + (" for each fold" if recipe.data.folds else "")
            report({"kind": "doing", "what": f"measuring how many steps fit into {budget}"})
            step.recipe = fix_steps(step, start, time.monotonic() - started)
        total_steps = num_steps(step.recipe, len(step.stores.train))
        record = group.on_main(lambda: recorded(folder, saved, step.stores, (start, source)))
        state = restore(saved, step, total_steps) if saved is not None else State()
        if 0 < state.best_step < total_steps and not group.on_main(lambda: has_best(folder, state, note)):
            state.forget_best()
        precision = str(step.dtype).removeprefix("torch.")
        origins = origins_of((start, source)) if saved is None else run_folder.learned_from(folder)
        began = None if saved is None else run_folder.read_environment(folder)
        environment = run_folder.environment(
            device_name(step.device), precision, step.kernels, group.size, measured, origins, began
        )
        metrics = None
        if group.is_main:
            _write_start(folder, step.recipe, environment, source, record)
            metrics = stack.enter_context(closing(MetricsFile(folder / "metrics.jsonl", state.step)))
            if metrics.num_lost:
                note(f"left out: {count(metrics.num_lost, 'damaged line')} of {folder / 'metrics.jsonl'}")
        trainer = Trainer(folder, step, total_steps, state, environment, report, metrics, record)
        report(start_event(trainer))
        trainer.train(stop, stack.enter_context(closing(Waiting())).look)
        step.stores.share_bad(group)
        if not group.is_main:
            return RunResult(folder, {})
        summary = finish(trainer, network)
        report({"kind": "end", "summary": summary, "out": str(folder)})
        return RunResult(folder, summary)


def make_training_step(
    recipe: Recipe,
    start: Start | None,
    source: TeacherSource,
    group: ProcessGroup = ProcessGroup(),  # noqa: B008 (a value)
    images: ImageCache | None = None,
    saved: Path | None = None,
) -> TrainingStep:
    """The training step of a recipe before the first batch: data opened, network built, number of classes filled in.

    saved: the state that `restore` will load. What it holds is not computed: neither weights nor image statistics.
    """
    device = group.device(recipe.run.device)
    dtype = choose_precision(recipe.run.precision, device)
    known = start[1].preprocess if isinstance(start, tuple) else stored_preprocess(saved)
    stores = (images or ImageCache()).load(recipe.data, recipe.model, known)
    classes = stores.splits.classes
    recipe = variant(recipe, model={"num_classes": len(classes)}, optim={"loss": loss_for(recipe, stores.multi_label)})
    if recipe.run.batch_size == "auto":
        recipe = variant(recipe, run={"batch_size": smallest_batch_size(recipe.run, group.size)})
    rows = rows_per_batch(len(stores.train), recipe.run)
    if rows < group.size:
        raise ValueError(
            f"{group.size} processes cannot share a batch of {rows}; use at most {rows}, or a larger --batch-size"
        )
    teacher = make_teacher(source, recipe.distill, stores.train, classes, device, dtype)
    return TrainingStep(recipe, stores, device, dtype, start, teacher, group, resumed=saved is not None)


def loss_for(recipe: Recipe, multi_label: bool) -> str:
    """The loss of a recipe, with `auto` decided. ValueError for what images of several classes or none rule out."""
    if multi_label and recipe.optim.loss == "softmax":
        raise ValueError(
            "optim.loss=softmax makes the classes exclude each other, but these images have several or none: leave it "
            "out, or give each image one class (--data.multi-label no takes a cell of the table for one)"
        )
    if multi_label and recipe.distill.teacher:
        raise ValueError(
            "distill.teacher is for images of one class each, but these have several or none: leave it out"
        )
    if recipe.optim.loss != "auto":
        return recipe.optim.loss
    return "sigmoid" if multi_label else "softmax"


def _require_a_class(split: str, images: ImageSet) -> None:
    """ValueError when images may have several classes or none, and all of a split have none: nothing can be ranked."""
    if images.multi_label and not images.labels.any():
        raise ValueError(
            f"none of the {len(images):,} images of the {split} split has a class, but mean average precision needs "
            f"some: give it images that have{', or train with --no-test' if split == 'test' else ''}"
        )


def _require_a_readable_image(test: ImageSet, preprocess: Preprocess) -> None:
    """ValueError when the test split cannot be scored: the user should learn that before the training, not after it."""
    reasons = []
    for i in range(len(test)):
        try:
            preprocess.array(test.source(i))
            return
        except ImageError as e:
            reasons.append(f"{test.names[i]}: {e.reason}")
    raise ValueError(
        f"no image of the test split can be read ({'; '.join(reasons[:3]) or 'it is empty'}); fix it, or train with "
        f"--no-test"
    )


def num_steps(recipe: Recipe, train_images: int) -> int:
    """The steps of a run: `run.steps`, or `run.epochs` in steps."""
    per_epoch = steps_per_epoch(train_images, recipe.run.images_per_step)
    steps = recipe.run.steps or max(round(recipe.run.epochs * per_epoch), 1)
    if steps > MOST["steps"]:
        raise ValueError(
            f"run.epochs={recipe.run.epochs:g} are {steps:,} steps; a run may have at most {MOST['steps']:,}"
        )
    return steps


def fix_steps(training_step: TrainingStep, start: Start | None, spent_s: float) -> Recipe:
    """The recipe with its time budget turned into a number of steps, by timing a few of each stage on a copy."""
    began, recipe, group = time.monotonic(), training_step.recipe, training_step.group
    budget = parse_duration(recipe.run.time)
    whole = variant(recipe, optim={"head_steps": 0})  # steps that train the head alone are cheaper
    stores, teacher = training_step.stores, training_step.teacher
    trial = TrainingStep(whole, stores, training_step.device, training_step.dtype, start, teacher, group)
    seconds, before = 0.0, 0.0
    for size, end in recipe.stages:
        trial.resize(size)
        seconds += (end - before) * _seconds_per_step(trial, min(5.0, budget / 20))
        before = end
    sample = stores.train_sample  # decoded before the time is taken
    validation_start = time.monotonic()
    validate(trial, stores.val)
    validate(trial, sample)
    steps_between = recipe.run.eval_every * steps_per_epoch(len(stores.train), recipe.run.images_per_step)
    validation = (time.monotonic() - validation_start) / steps_between
    left = budget - spent_s - (time.monotonic() - began)
    steps = group.broadcast(max(int(left / (seconds + validation)), 1))
    return variant(recipe, run={"steps": steps})


def _seconds_per_step(step: TrainingStep, spend_s: float) -> float:
    """Seconds of a step, measured for `spend_s`: at least five steps, of which the first two are not counted."""
    start, times = time.monotonic(), [0.0]
    for batch in batches(step.images, step.recipe.run, 1, 1000, step.rows):
        step(batch, 0.0)[0].item()
        times.append(time.monotonic() - start)
        if batch.step >= 5 and any(step.group.any(times[-1] > spend_s)):
            break
    return (times[-1] - times[2]) / (len(times) - 3)


def _write_start(
    folder: Path, recipe: Recipe, environment: dict[str, Any], source: TeacherSource, record: SplitRecord
) -> None:
    """The files that a run begins with, in the order in which a kill between them does no harm."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (run_folder.is_run(folder) and stored_teacher(folder)):
        store_teacher(folder, source)
    write_json(folder / run_folder.SPLITS_FILE, to_json(record))
    run_folder.write_recipe(folder, recipe)
    write_json(folder / run_folder.ENV_FILE, environment)


def start_event(trainer: Trainer) -> dict[str, Any]:
    """The event reported before the first step."""
    step, stores, environment = trainer.training_step, trainer.stores, trainer.environment
    begins = trainer.state.step == 0
    offered = offer(step.recipe, len(stores.train), stores.multi_label) if begins else []
    return {
        "kind": "start",
        "out": str(trainer.folder),
        "device": environment["device"],
        "precision": environment["precision"],
        "processes": trainer.group.size,
        "kernels": environment["kernels"],
        "params": final_params(step),
        "train_images": len(stores.train),
        "val_images": len(stores.val),
        "classes": len(stores.splits.classes),
        "steps": trainer.total_steps,
        "step": trainer.state.step,
        "notes": notes(trainer) + offered,
        "bad_images": [list(b) for b in stores.bad],
    }


@contextmanager
def _stop_signal(deadline: float | None) -> Iterator[threading.Event]:
    """An event set by Ctrl-C, SIGTERM, or the time.monotonic() of `deadline`, so that a run stops between two steps.

    A second Ctrl-C stops at once. A second SIGTERM does not: whoever stops a job may signal every process of it, and
    torchrun passes on to its own what it gets.
    """
    stop = threading.Event()

    def handle(signum: int, frame: object) -> None:
        if stop.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    in_main_thread = threading.current_thread() is threading.main_thread()  # others cannot handle signals
    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)} if in_main_thread else {}
    timer = threading.Timer(max(deadline - time.monotonic(), 0.0), stop.set) if deadline is not None else None
    try:
        if timer is not None:
            timer.daemon = True
            timer.start()
        yield stop
    finally:
        if timer is not None:
            timer.cancel()
        for s, old in before.items():
            signal.signal(s, old)

"""train(): opens or resumes a run, trains it, and leaves a model with its summary and report.

Pre-training, training from scratch and fine-tuning are recipes.
"""

import dataclasses
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlpmixer.clock import parse_duration
from mlpmixer.config import to_json
from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import ImageError
from mlpmixer.data.labels import nfc
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.split_record import SplitRecord
from mlpmixer.durable import replacing, write_json
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.evaluation.report import thumbnails_of
from mlpmixer.hardware import choose_precision, device_name, peak_mib
from mlpmixer.inference.classifier import load
from mlpmixer.models.architecture import Build, build, count_params
from mlpmixer.training import progressive
from mlpmixer.training.advice import advice
from mlpmixer.training.batches import rows_per_batch, steps_per_epoch
from mlpmixer.training.distillation import (
    TeacherFunction,
    TeacherSource,
    drop_teacher,
    make_teacher,
    store_teacher,
    stored_teacher,
    with_teacher,
)
from mlpmixer.training.distributed import ProcessGroup
from mlpmixer.training.inputs import ImageCache, Stores, batches
from mlpmixer.training.loop import State, Trainer, validate
from mlpmixer.training.recipe import MOST, Recipe, read_recipe, variant
from mlpmixer.training.run_report import write_report
from mlpmixer.training.start import Start, load_networks, stored_preprocess, with_network
from mlpmixer.training.step import TrainingStep
from mlpmixer.weights import model_file, run_folder
from mlpmixer.weights.load import Report
from mlpmixer.weights.run_folder import MetricsFile

RUNS = Path("runs")  # where runs are that nobody has given a place


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
    report: receives {"kind": "start" | "step" | "eval" | "save" | "end", ...} as they happen, and before them {"kind":
        "fetch", ...} while the weights to start from are downloaded (`download.fetch`), and {"kind": "note", "note"}
        for what a resumed run found damaged or missing, and what was done about it.
    teacher: a classifier to learn from as `recipe.distill` says: a function of augmented images, float32 (B,C,H,W) in
        0..255 on the device of the run, to logits (B,K) in the order of the data's classes. It is not stored with the
        run: give it again to resume.
    network: another network than a Mixer: a function (or a dataclass that can be called) of the MixerConfig, whose
        sizes of input and output it takes, to a module of images (B,C,H,W) -> logits (B,K). Give it again to resume,
        and to `load`. What only a Mixer has (kernels, Muon, locality, sizes that grow, trained weights, rates by layer)
        is refused.
    group: this process among several that train the run together, each of which calls this within
        `distributed.connected`. The batches are the same for any number of them, and a run may be resumed with another
        number. All of them must see `out`; rank 0 writes and reports. The others return without a summary, before the
        final evaluation.
    stop_after_s: stop then as on Ctrl-C; what comes after the last step (scoring val and test) is not cut short.
    image_cache: an `inputs.ImageCache` for several runs on the same data one after the other: images are decoded once.

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
            lambda: _open_run(with_network(with_teacher(recipe, teacher), network), out, resume, note, stack)
        )
        if summary is not None:
            report({"kind": "end", "summary": summary, "out": str(folder)})
            return RunResult(folder, summary)

        def prepare() -> tuple[TrainingStep, Start | None, TeacherSource]:
            pretrained, source = load_networks(recipe, report, teacher, folder, saved)
            start = network or pretrained
            step = make_training_step(recipe, start, source, group, images, saved)
            if recipe.run.test and step.stores.splits.test is not None:
                _require_a_readable_image(step.stores.splits.test, step.stores.preprocess)
            return step, start, source

        stack.enter_context(torch.random.fork_rng())
        step, start, source = group.on_all(prepare)
        stop = stack.enter_context(_stop_signal(None if stop_after_s is None else started + stop_after_s))
        if recipe.run.time and not recipe.run.steps:
            report({"kind": "doing", "what": f"measuring how many steps fit into {recipe.run.time}"})
            step.recipe = fix_steps(step, start, time.monotonic() - started)
        total_steps = num_steps(step.recipe, len(step.stores.train))
        record = group.on_main(lambda: _recorded(folder, saved, step.stores, (start, source)))
        state = restore(saved, step, total_steps) if saved is not None else State()
        if 0 < state.best_step < total_steps and not group.on_main(lambda: _has_best(folder, state, note)):
            state.forget_best()
        precision = str(step.dtype).removeprefix("torch.")
        environment = run_folder.environment(device_name(step.device), precision, step.kernels, group.size)
        metrics = None
        if group.is_main:
            _write_start(folder, step.recipe, environment, source, record)
            metrics = stack.enter_context(closing(MetricsFile(folder / "metrics.jsonl", state.step)))
            if metrics.num_lost:
                note(f"{metrics.num_lost} lines of {folder / 'metrics.jsonl'} were damaged, and are left out")
        trainer = Trainer(folder, step, total_steps, state, environment, report, metrics, record)
        report(start_event(trainer))
        trainer.train(stop)
        step.stores.share_bad(group)
        if not group.is_main:
            return RunResult(folder, {})
        summary = finish(trainer, network)
        report({"kind": "end", "summary": summary, "out": str(folder)})
        return RunResult(folder, summary)


def _open_run(
    recipe: Recipe, out: str | os.PathLike[str] | None, resume: bool, note: Callable[[str], None], stack: ExitStack
) -> tuple[Path, Recipe, dict[str, Any] | None, Path | None]:
    """The folder of a run, locked until `stack` is closed, its recipe, its summary if it is finished, and its last
    state if there is one."""
    if out is None and not RUNS.exists():
        stack.callback(run_folder.remove_if_empty, RUNS)
    folder = Path(out) if out is not None else run_folder.new_directory(RUNS / recipe.name)
    if problem := stack.enter_context(run_folder.locked(folder)):
        note(f"{folder} could not be locked ({problem}): make sure that nothing else trains in it")
    run_folder.drop_parts(folder)
    if not run_folder.is_run(folder):
        return folder, recipe, None, None
    if not resume:
        raise ValueError(f"{folder} already holds a run: name another (--out), or go on with it (--resume {folder})")
    recipe = _same_recipe(recipe, read_recipe(folder))
    try:
        summary = run_folder.read_summary(folder)
    except ValueError as e:
        summary = None
        note(str(e))
    try:
        model_file.read_tensors(folder / run_folder.MODEL_FILE)
        has_model = True
    except (model_file.CheckpointError, FileNotFoundError) as e:
        has_model = False
        if isinstance(e, model_file.CheckpointError):
            note(str(e))
    if summary is not None and has_model:
        if not (page := folder / run_folder.REPORT_FILE).exists():
            write_report(folder)
            note(f"{page} is made again, without pictures of the mistakes")
        drop_teacher(folder)
        return folder, recipe, summary, None
    saved, found = model_file.last_state(folder, note), model_file.states(folder)
    if summary is not None or has_model:
        missing = run_folder.SUMMARY_FILE if has_model else run_folder.MODEL_FILE
        if saved is None:
            raise ValueError(
                f"{folder} has ended, but its {missing} is missing or damaged, and there is no sound training state to "
                "make it from; choose another out to train anew"
            )
        note(f"{folder / missing} is made again from {saved.name}")
    if found and saved != found[0]:
        model_file.set_aside(folder, saved)
        goes_on = f"goes on from {saved.name}" if saved else "starts from the beginning"
        note(f"{folder} {goes_on}; what is damaged is kept as {folder / 'checkpoints' / '*.damaged'}")
    elif saved is None:
        note(f"{folder} starts from the beginning: no state was saved yet")
    model_file.drop_old_states(folder)  # a killed process may have left three
    return folder, recipe, None, saved


def _same_recipe(asked: Recipe, stored: Recipe) -> Recipe:
    """The stored recipe, if the given one differs in nothing but what training itself fills in."""
    steps = asked.run.steps or (stored.run.steps if asked.run.time else 0)
    if variant(asked, model={"num_classes": stored.model.num_classes}, run={"steps": steps}) != stored:
        raise ValueError(
            "the run to resume was started with another recipe; resume it with its own "
            "(mlpmixer.training.recipe.read_recipe), or choose another out"
        )
    return stored


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
    recipe = variant(recipe, model={"num_classes": len(classes)})
    rows = rows_per_batch(len(stores.train), recipe.run)
    if rows < group.size:
        raise ValueError(
            f"{group.size} processes cannot share a batch of {rows}; use at most {rows}, or a larger --batch-size"
        )
    teacher = make_teacher(source, recipe.distill, stores.train, classes, device, dtype)
    return TrainingStep(recipe, stores, device, dtype, start, teacher, group, resumed=saved is not None)


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
    per_epoch = steps_per_epoch(train_images, recipe.run.batch_size)
    steps = recipe.run.steps or max(round(recipe.run.epochs * per_epoch), 1)
    if steps > MOST["steps"]:
        raise ValueError(
            f"run.epochs={recipe.run.epochs:g} are {steps:,} steps, and a run has at most {MOST['steps']:,}"
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
    for size, end in progressive.stages(recipe):
        trial.resize(size)
        seconds += (end - before) * _seconds_per_step(trial, min(5.0, budget / 20))
        before = end
    sample = stores.train_sample  # decoded before the time is taken
    validation_start = time.monotonic()
    validate(trial, stores.val)
    validate(trial, sample)
    steps_between = recipe.run.eval_every * steps_per_epoch(len(stores.train), recipe.run.batch_size)
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


def restore(path: Path, training_step: TrainingStep, total_steps: int) -> State:
    """Load the training state at `path` into `training_step`. ValueError when the data has changed since."""
    tensors, meta = model_file.read_tensors(path)
    stores = training_step.stores
    if problem := _data_has_changed(meta, stores.identity):
        raise ValueError(f"{path} was trained {problem}; it cannot be resumed exactly")
    stores.train.note_bad([(name, why) for name, why in meta.get("bad", []) if (name, why) not in stores.val.bad])
    state = State.from_json(meta["state"])
    training_step.resize(progressive.image_size(state.step, total_steps, training_step.recipe))
    training_step.load_tensors(tensors)
    return state


def _has_best(folder: Path, state: State, note: Callable[[str], None]) -> bool:
    """Whether the best model that a state speaks of is there and sound. Early stopping once had a single file for it,
    and other runs none."""
    best = model_file.best_model(folder, state.best_step)
    if (before := folder / run_folder.BEST_FILE).exists() and not best.exists():
        os.replace(before, best)
    try:
        model_file.read_tensors(best)
    except (FileNotFoundError, model_file.CheckpointError) as e:
        reason = "was not kept" if isinstance(e, FileNotFoundError) else f"is damaged ({e})"
        note(f"the best model so far, of step {state.best_step:,}, {reason}; the best of the steps from here on counts")
        return False
    return True


def _data_has_changed(meta: dict[str, Any], now: dict[str, Any]) -> str:
    """How the data of a state differs from `Stores.identity`; empty when it does not."""
    if meta["train_images"] != now["train_images"]:
        return f"on {meta['train_images']} images, but the data now gives {now['train_images']}"
    if meta.get("shards", "") != now["shards"]:
        return "on shards of other names or sizes than the data now has"
    same_classes = list(map(nfc, meta.get("classes", now["classes"]))) == now["classes"]
    return "" if same_classes else "on other classes than the data now has"


def _recorded(
    folder: Path, saved: Path | None, stores: Stores, networks: tuple[Start | None, TeacherSource]
) -> SplitRecord:
    """The record of the images of a run that begins with these networks.

    ValueError when they are not the images that the state `saved` was trained on.
    """
    stored = run_folder.read_splits(folder) if saved is not None else None
    if stored is None:
        return stores.record.after([net[1].splits for net in networks if isinstance(net, tuple) and net[1].splits])
    if difference := stored.difference(stores.record):
        raise ValueError(
            f"{folder} cannot be resumed exactly, as its data has changed since it was started: {difference}. Put the "
            "images back, or start a new run"
        )
    return stored


def _write_start(
    folder: Path, recipe: Recipe, environment: dict[str, Any], source: TeacherSource, record: SplitRecord
) -> None:
    """The files that a run begins with, in the order in which a kill between them does no harm."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (run_folder.is_run(folder) and stored_teacher(folder)):
        store_teacher(folder, source)
    write_json(folder / run_folder.SPLITS_FILE, to_json(record))
    run_folder.write_recipe(folder, recipe)
    write_json(folder / "env.json", environment)


def start_event(trainer: Trainer) -> dict[str, Any]:
    """What is reported before the first step."""
    step, stores, environment = trainer.training_step, trainer.stores, trainer.environment
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
        "notes": notes(trainer),
        "bad_images": [list(b) for b in stores.bad],
    }


def notes(trainer: Trainer) -> list[str]:
    """What was assumed about the data, the batches and the teacher, and which images are less unseen than they should
    be."""
    step = trainer.training_step
    found, asked = step.rows.batch_size, trainer.recipe.run.batch_size
    own = [f"batches of {found:,} images: there are no more for run.batch_size={asked}"] if found < asked else []
    if trainer.recipe.run.keep == "best" and not trainer.keeps_best:
        own.append("run.keep=best: validation is too small to choose a model, so the last one is kept")
    teacher = step.teacher.notes if step.teacher else ()
    return [*trainer.stores.splits.notes, *own, *teacher, *trainer.record.leaks()]


def final_params(step: TrainingStep) -> int:
    """Parameters of the model that a run leaves; with small images or locality it has others while it trains."""
    if step.recipe.network:
        return count_params(step.model)
    with torch.device("meta"):
        return count_params(build(step.recipe.model))


def finish(trainer: Trainer, network: Build | None = None) -> dict[str, Any]:
    """Save the model, evaluate it on val and test as a user would load it, write report.html and summary.json."""
    run, recipe, state, step, stores = (
        trainer.folder,
        trainer.recipe,
        trainer.state,
        trainer.training_step,
        trainer.stores,
    )
    train_s, images_per_s = trainer.clock.elapsed(), trainer.clock.overall_images_per_s()
    lines = run_folder.read_metrics(run / "metrics.jsonl")
    if not images_per_s:  # resumed after the last step
        images_per_s = next((line["images_per_s"] for line in reversed(lines) if line["kind"] == "step"), 0.0)
    model, kept = run / run_folder.MODEL_FILE, "best" if trainer.keeps_best and state.best_step else "last"
    if not 0 < state.best_step < state.step:  # there is none, or it is the last
        last, needed_from = model, state.step + 1
    else:
        last, best = (run / run_folder.LAST_FILE, model) if kept == "best" else (model, run / run_folder.BEST_FILE)
        with replacing(best) as part:
            shutil.copyfile(model_file.best_model(run, state.best_step), part)
        needed_from = state.best_step
    model_file.save_model(last, step.plain_model(), trainer.model_meta())
    classifier = load(model, device=str(step.device), network=network)
    test_images = stores.splits.test if recipe.run.test else None
    val = evaluate(classifier, stores.splits.val)
    test = evaluate(classifier, test_images) if test_images is not None else None
    summary = {
        "recipe": recipe.name,
        "data": stores.splits.name,
        "seed": recipe.run.seed,
        "top1": test.top1 if test else None,
        "val_top1": val.top1,
        "val": val.to_json(),
        "test": test.to_json() if test else None,
        "params": count_params(step.plain_model()),
        "train_images": len(stores.train),
        "steps": state.step,
        "kept": kept,
        "best_step": state.best_step if kept == "best" else state.step,
        "advice": advice(lines, len(stores.train_sample), 0 if stores.splits.doubt else len(stores.val), kept),
        "train_s": round(train_s, 3),
        "images_per_s": round(images_per_s, 1),
        "peak_mib": peak_mib(step.device),
        "device": trainer.environment["device"],
        "precision": trainer.environment["precision"],
        "bad_images": [list(b) for b in (*stores.bad, *(test.bad if test else ()))],
        "notes": notes(trainer),
    }
    final = {k: summary[k] for k in ("top1", "val_top1")}
    model_file.rewrite_meta(
        model, lambda meta: dataclasses.replace(meta, provenance={**meta.provenance, "metrics": final})
    )
    metrics, images = (test, test_images) if test and test_images else (val, stores.splits.val)
    write_report(run, metrics, thumbnails_of(images, [wrong.index for wrong in metrics.most_wrong]), summary)
    model_file.drop_best_models(run, before=needed_from)
    write_json(run / run_folder.SUMMARY_FILE, summary)  # the last one: with it the run is finished
    drop_teacher(run)
    return summary


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

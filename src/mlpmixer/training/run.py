"""train(): the one loop. Pre-training, training from scratch and fine-tuning are recipes, not loops."""

import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpmixer.clock import Clock, parse_duration
from mlpmixer.config import from_json, to_json
from mlpmixer.data.image_set import ImageSet
from mlpmixer.data.images import ImageError, Pixels
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.store import Store
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.evaluation.metrics import score
from mlpmixer.evaluation.report import thumbnails_of
from mlpmixer.hardware import choose_precision, device_name, peak_mib
from mlpmixer.inference.classifier import load
from mlpmixer.inference.files import map_batches
from mlpmixer.models.architecture import Build, count_params, create_model
from mlpmixer.models.mixer import Mixer
from mlpmixer.training import optimizers, progressive
from mlpmixer.training.augment import normalise, prepare_eval, resize
from mlpmixer.training.batches import batches, steps_per_epoch
from mlpmixer.training.distillation import (
    Answer,
    Source,
    drop_teacher,
    make_teacher,
    open_teacher,
    store_teacher,
    stored_teacher,
    with_teacher,
)
from mlpmixer.training.distributed import Ranks
from mlpmixer.training.networks import with_network
from mlpmixer.training.recipe import Recipe, read_recipe
from mlpmixer.training.run_report import write_report
from mlpmixer.training.step import Kept, Start, Step, Stores, load_images
from mlpmixer.weights import model_file, run_folder
from mlpmixer.weights.adapt import adapt_trained
from mlpmixer.weights.load import load_weights

Report = Callable[[dict[str, Any]], None]
EVAL_BATCH = 250


class Interrupted(Exception):
    """Stopped by Ctrl-C or SIGTERM after saving at `step`; train(resume=True) goes on from there."""

    def __init__(self, step: int, path: Path) -> None:
        super().__init__(f"stopped after step {step}; everything is saved in {path}")
        self.step, self.path = step, path


class Diverged(ValueError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class RunResult:
    """The run directory and what is in its summary.json."""

    path: Path
    summary: dict[str, Any]


@dataclass
class State:
    """What changes from step to step, besides the tensors."""

    step: int = 0
    train_s: float = 0.0
    best_top1: float = -1.0
    best_step: int = 0
    waited: int = 0


def train(
    recipe: Recipe,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    report: Report | None = None,
    teacher: Answer | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 (a value)
    stop_after_s: float | None = None,
    network: Build | None = None,
    kept: Kept | None = None,
) -> RunResult:
    """Train a Mixer as `recipe` says; write model, metrics, report and checkpoints to the run directory `out`.

    out: default runs/<recipe name>, or the first free number after it.
    resume: go on from the last checkpoint in `out` (bit-identical to an undisturbed run on the same machine), or start
        if there is none. Going on takes the run directory and the data, and not the weights that the run started from.
    report: receives {"kind": "start" | "step" | "eval" | "save" | "end", ...} as they happen, before them {"kind":
        "fetch", ...} while the weights to start from are downloaded (`fetch.fetch`).
    teacher: learn from this classifier too, as `recipe.distill` says: augmented images, float32 (B,C,H,W) in 0..255 on
        the device of the run, to logits (B,K) in the order of the data's classes. It is no part of the run's files:
        give it again to resume.
    ranks: which of several processes this is, each of which calls this within `distributed.joined`. They compute the
        run together: the batches are the same for any number of them, and a run may go on with another number. All of
        them must see `out`; rank 0 writes and reports. The result of the others has no summary: they leave before the
        final evaluation.
    stop_after_s: stop then as on Ctrl-C; what comes after the last step (scoring val and test) is not cut short.
    network: train what this builds instead of a Mixer: a function (or a dataclass that can be called) of the
        MixerConfig, whose sizes of input and output it takes, to a module of images (B,C,H,W) -> logits (B,K). Give it
        again to resume, and to `load`. What only a Mixer has (kernels, Muon, locality, sizes that grow, trained
        weights, rates by layer) is refused.
    kept: one `step.Kept()` for runs of the same data one after the other: the images are decoded once.

    Errors: ValueError for data, recipe or directory that do not fit; Diverged when the loss is not finite; Interrupted
    on Ctrl-C, SIGTERM or when the time is over, after saving; OSError when nothing can be written (the last checkpoint
    survives); distributed.FailedElsewhere when another rank has one of these.
    """
    tell: Report = report if report and ranks.leads else lambda line: None
    run, recipe, summary = ranks.lead(
        lambda: _open_run(with_network(with_teacher(recipe, teacher), network), out, resume)
    )
    if summary is not None:
        tell({"kind": "end", "summary": summary, "out": str(run)})
        return RunResult(run, summary)
    saved = ranks.lead(lambda: model_file.last_state(run))
    # before Ctrl-C waits for the end of a step: a download may be long
    start, source = ranks.together(lambda: trained_parts(recipe, tell, teacher, run, saved))
    with torch.random.fork_rng(), _stop_signal() as stop, _alarm(stop, stop_after_s):
        return _train(recipe, network or start, source, run, saved, tell, stop, ranks, kept)


def _open_run(
    recipe: Recipe, out: str | os.PathLike[str] | None, resume: bool
) -> tuple[Path, Recipe, dict[str, Any] | None]:
    """The directory of a run, its recipe, and its summary if it is finished."""
    run = Path(out) if out is not None else run_folder.free_directory(Path("runs") / recipe.name)
    if not run_folder.is_run(run):
        return run, recipe, None
    if not resume:
        raise ValueError(f"{run} already holds a run; give another out, or resume it")
    done = run / "summary.json"
    summary = json.loads(done.read_text(encoding="utf-8")) if done.exists() else None
    return run, _same_recipe(recipe, read_recipe(run)), summary


def trained_parts(
    recipe: Recipe,
    report: Report,
    teacher: Answer | None = None,
    run: Path | None = None,
    saved: Path | None = None,
) -> tuple[tuple[Mixer, model_file.ModelMeta] | None, Source]:
    """The trained networks that a run needs, to start from and to learn from; fetched where they are not here yet.

    A run that goes on from the state `saved` starts from nothing else, and its teacher's copy in the directory `run` is
    read.
    """
    start: tuple[Mixer, model_file.ModelMeta] | None = None
    if recipe.init.weights and stored_preprocess(saved) is None:
        start = adapt_trained(*load_weights(recipe.init.weights, report=report), in_channels=recipe.model.in_channels)
    if teacher is not None:
        return start, teacher
    copy = stored_teacher(run) if run is not None and run_folder.is_run(run) else None
    return start, open_teacher(recipe.distill.teacher, report, copy)


def stored_preprocess(saved: Path | None) -> Preprocess | None:
    """How the images of a run are prepared, of its state `saved`; None without one, and for one of before this was
    stored."""
    stored = model_file.read_header(saved).get("preprocess") if saved is not None else None
    return from_json(Preprocess, stored) if stored is not None else None


def first_step(
    recipe: Recipe,
    start: Start | None,
    source: Source,
    ranks: Ranks = Ranks(),  # noqa: B008 (a value)
    kept: Kept | None = None,
    saved: Path | None = None,
) -> Step:
    """The data opened and the network built, before the first batch. The recipe of the Step has the number of classes
    of the data.

    saved: the state that `restore` is to load. What it holds is not computed: neither weights nor the statistics of the
    images.
    """
    device = ranks.device(recipe.run.device)
    dtype = choose_precision(recipe.run.precision, device)
    known = start[1].preprocess if isinstance(start, tuple) else stored_preprocess(saved)
    stores = (kept or load_images)(recipe.data, recipe.model, known)
    recipe = dataclasses.replace(
        recipe, model=dataclasses.replace(recipe.model, num_classes=len(stores.splits.classes))
    )
    batch = min(recipe.run.batch_size, len(stores.train))
    if batch < ranks.size:
        raise ValueError(
            f"{ranks.size} processes cannot share a batch of {batch}; use at most {batch}, or a larger --run.batch-size"
        )
    teacher = make_teacher(source, recipe.distill, stores.train, stores.splits.classes, device, dtype)
    return Step(recipe, stores, device, dtype, start, teacher, ranks, resumed=saved is not None)


def _train(
    recipe: Recipe,
    start: Start | None,
    source: Source,
    run: Path,
    saved: Path | None,
    tell: Report,
    stop: threading.Event,
    ranks: Ranks,
    kept: Kept | None,
) -> RunResult:
    started = time.monotonic()
    step_of = ranks.together(lambda: first_step(recipe, start, source, ranks, kept, saved))
    recipe, stores, device, dtype = step_of.recipe, step_of.stores, step_of.device, step_of.dtype
    if not recipe.run.test:
        stores = dataclasses.replace(stores, splits=dataclasses.replace(stores.splits, test=None))
    elif stores.splits.test is not None:
        ranks.together(partial(_require_a_readable_image, stores.splits.test, stores.preprocess))
    if recipe.run.time and not recipe.run.steps:
        recipe = _fix_steps(recipe, step_of, stores, start, time.monotonic() - started)
    per_epoch = steps_per_epoch(len(stores.train), recipe.run.batch_size)
    total = recipe.run.steps or max(round(recipe.run.epochs * per_epoch), 1)
    eval_every = max(round(recipe.run.eval_every * per_epoch), 1)

    env = run_folder.environment(device_name(device), str(dtype).removeprefix("torch."), step_of.kernels, ranks.size)
    state = restore(saved, step_of, total) if saved is not None else State()
    log: run_folder.MetricsFile | run_folder.Unwritten = run_folder.Unwritten()
    if ranks.leads:
        run.mkdir(parents=True, exist_ok=True)
        if not (run_folder.is_run(run) and stored_teacher(run)):
            store_teacher(run, source)
        run_folder.write_recipe(run, recipe)
        run_folder.write_json(run / "env.json", env)
        log = run_folder.MetricsFile(run / "metrics.jsonl", state.step)
    tell(
        {
            "kind": "start",
            "out": str(run),
            "device": env["device"],
            "precision": env["precision"],
            "processes": ranks.size,
            "kernels": env["kernels"],
            "params": final_params(recipe)
            if start is None or isinstance(start, tuple)
            else count_params(step_of.model),
            "train_images": len(stores.train),
            "val_images": len(stores.val),
            "classes": len(stores.splits.classes),
            "steps": total,
            "step": state.step,
            "notes": [*stores.splits.notes, *step_of.teacher.notes],
            "bad_images": [list(b) for b in stores.bad],
        }
    )
    clock = Clock(state.train_s)
    losses: list[Tensor] = []
    corrects: list[Tensor] = []

    def save() -> None:
        if not all(p.isfinite().all() for p in step_of.model.parameters()):
            raise _diverged(f"some weights are not finite after step {state.step}", run)
        state.train_s = clock.elapsed()
        stores.share_bad(ranks)
        if ranks.leads:
            meta = {
                "state": dataclasses.asdict(state),
                **stores.identity,
                "bad": stores.bad,
                "preprocess": to_json(stores.preprocess),
            }
            model_file.save_state(run, state.step, step_of.tensors(), meta)
        tell({"kind": "save", "step": state.step})

    def flush() -> dict[str, Any]:
        """The log line of the steps since the last one; Diverged when one of them has no finite loss."""
        sums = ranks.sum(torch.stack([*losses, *corrects]).tolist())  # the host waits for the device here, ...
        images_per_s = clock.images_per_s()  # ... and so the rate is that of the device
        values, shares = sums[: len(losses)], sums[len(losses) :]
        for step, value in enumerate(values, state.step - len(values) + 1):
            if not math.isfinite(value):
                raise _diverged(f"the loss is {value} at step {step}", run)
        line = {
            "kind": "step",
            "step": state.step,
            "epoch": state.step / per_epoch,
            "loss": sum(values) / len(values),
            "top1": sum(shares) / len(shares),
            "lr": recipe.optim.lr * optimizers.lr_factor(state.step, total, recipe.optim),
            "images_per_s": images_per_s,
            "peak_mib": peak_mib(step_of.device),
            "eta_s": (total - state.step) * recipe.run.batch_size / max(images_per_s, 1e-9),
        }
        losses.clear()
        corrects.clear()
        return line

    try:
        if state.step < total:
            for step, indices, images in batches(step_of.images, recipe.run, state.step + 1, total, step_of.rows):
                step_of.resize(progressive.image_size(step, total, recipe))
                factor = optimizers.lr_factor(step, total, recipe.optim)
                loss, correct = step_of(step, factor, indices, images)
                step_of.average_in(optimizers.average_weight(step, total, recipe.optim))
                state.step = step
                losses.append(loss)
                corrects.append(correct)
                clock.count(len(indices))

                logged = step == total or step % recipe.run.log_every == 0 or step % eval_every == 0
                if logged:
                    line = flush()
                    log.write(line)
                    tell(line)
                if step % eval_every == 0 or step == total:
                    with clock.paused():
                        line = {
                            "kind": "eval",
                            "step": step,
                            "epoch": step / per_epoch,
                            "split": "val",
                            **validate(step_of, stores.val),
                        }
                    log.write(line)
                    tell(line)
                    if improved(state, line["top1"]) and recipe.run.patience and ranks.leads:
                        model_file.save_model(
                            run / "best.safetensors", step_of.plain(), model_meta(recipe, stores, env, {})
                        )
                stopping, saving = ranks.agree(
                    logged, stop.is_set(), step == total or clock.since_save() > recipe.run.save_every_s
                )
                if stopping or saving:
                    if losses:
                        line = flush()
                        log.write(line)
                        tell(line)
                    save()
                    clock.saved()
                if stopping and step < total:
                    raise Interrupted(step, run)
                if recipe.run.patience and state.waited >= recipe.run.patience:
                    break
    finally:
        log.close()
    stores.share_bad(ranks)
    if not ranks.leads:
        return RunResult(run, {})
    state.train_s = clock.elapsed()
    summary = finish(run, recipe, stores, step_of, state, clock, env, None if isinstance(start, tuple) else start)
    tell({"kind": "end", "summary": summary, "out": str(run)})
    return RunResult(run, summary)


def _diverged(what: str, run: Path) -> Diverged:
    return Diverged(
        f"{what}; last good checkpoint: {model_file.last_state(run) or 'none'}. Try a lower --optim.lr, a longer "
        f"--optim.warmup-steps, "
        f"--optim.clip-norm 1, or --precision float32"
    )


def _require_a_readable_image(test: ImageSet, preprocess: Preprocess) -> None:
    """ValueError when the test split cannot be scored: better said before the training than after it."""
    reasons = []
    for i in range(len(test)):
        try:
            preprocess.array(test.source(i))
            return
        except ImageError as e:
            reasons.append(f"{test.names[i]}: {e}")
    raise ValueError(
        f"no image of the test split can be read ({'; '.join(reasons[:3]) or 'it is empty'}); mend it, or train with "
        f"--no-test"
    )


@torch.no_grad()
def validate(step_of: Step, store: Store) -> dict[str, float]:
    """top1 and nll of the averaged model on every image of a split, in the precision of the run. Each process takes its
    share of them."""
    model = step_of.average.eval()

    def probabilities(pixels: Pixels) -> np.ndarray:
        images = resize(prepare_eval(torch.from_numpy(pixels).to(step_of.device)), step_of.image_size)
        images = normalise(images, step_of.stores.preprocess)
        with torch.autocast(step_of.device.type, step_of.dtype, enabled=step_of.dtype != torch.float32):
            logits: Tensor = model(images)
        return logits.float().softmax(1).cpu().numpy()

    own = step_of.ranks.rows(len(store)).numbers
    parts = (own[start : start + EVAL_BATCH] for start in range(0, len(own), EVAL_BATCH))
    numbers, predicted = map_batches(((part, store.array(part)) for part in parts), probabilities)
    correct, losses = score(predicted, store.labels[numbers])
    right, nll = step_of.ranks.sum([float(correct.sum()), float(losses.sum())])
    return {"top1": right / len(store), "nll": nll / len(store)}


def improved(state: State, top1: float) -> bool:
    """Note an evaluation for early stopping; True when it is the best so far."""
    if top1 > state.best_top1:
        state.best_top1, state.best_step, state.waited = top1, state.step, 0
        return True
    state.waited += 1
    return False


def model_meta(recipe: Recipe, stores: Stores, env: dict[str, Any], metrics: dict[str, Any]) -> model_file.ModelMeta:
    """What the saved model says about itself."""
    return model_file.ModelMeta(
        config=recipe.model,
        classes=stores.splits.classes,
        preprocess=stores.preprocess,
        network=recipe.network,
        data=recipe.data,
        provenance={
            "recipe": recipe.name,
            "data": stores.splits.name,
            "loss": recipe.optim.loss,
            "version": env["packages"]["mlpmixer"],
            "commit": env["commit"],
            "date": datetime.now(UTC).date().isoformat(),
            "metrics": metrics,
        },
    )


def finish(
    run: Path,
    recipe: Recipe,
    stores: Stores,
    step_of: Step,
    state: State,
    clock: Clock,
    env: dict[str, Any],
    network: Build | None = None,
) -> dict[str, Any]:
    """Save the model, evaluate it on val and test (float32, as a user would load it), write summary.json and
    report.html."""
    model = run / run_folder.MODEL_FILE
    if recipe.run.patience and (run / "best.safetensors").exists():
        os.replace(run / "best.safetensors", model)
    elif not (recipe.run.patience and model.exists()):
        model_file.save_model(model, step_of.plain(), model_meta(recipe, stores, env, {}))
    classifier = load(model, device=str(step_of.device), network=network)
    bad = stores.bad
    val = evaluate(classifier, stores.splits.val)
    test = evaluate(classifier, stores.splits.test) if stores.splits.test is not None else None
    if test is not None:
        bad += [(name, reason) for name, reason in test.bad]
    summary = {
        "recipe": recipe.name,
        "data": stores.splits.name,
        "seed": recipe.run.seed,
        "top1": test.top1 if test else None,
        "val_top1": val.top1,
        "val": val.to_json(),
        "test": test.to_json() if test else None,
        "params": count_params(step_of.plain()),
        "train_images": len(stores.train),
        "steps": state.step,
        "best_step": state.best_step if recipe.run.patience else state.step,
        "train_s": round(state.train_s, 3),
        "images_per_s": round(clock.overall_images_per_s(), 1),
        "peak_mib": peak_mib(step_of.device),
        "device": env["device"],
        "precision": env["precision"],
        "bad_images": [list(b) for b in bad],
        "notes": [*stores.splits.notes, *step_of.teacher.notes],
    }
    metrics, images = (test, stores.splits.test) if test and stores.splits.test else (val, stores.splits.val)
    final = {k: summary[k] for k in ("top1", "val_top1")}
    model_file.rewrite_meta(
        model, lambda meta: dataclasses.replace(meta, provenance={**meta.provenance, "metrics": final})
    )
    run_folder.write_json(run / "summary.json", summary)
    write_report(run, metrics, thumbnails_of(images, [wrong.index for wrong in metrics.most_wrong]))
    drop_teacher(run)
    return summary


def final_params(recipe: Recipe) -> int:
    """Parameters of the model that a run leaves; while its images are small, it has fewer."""
    with torch.device("meta"):
        return count_params(create_model(recipe.model))


def restore(path: Path, step_of: Step, total: int) -> State:
    """Load the training state at `path`, of a run of `total` steps, into `step_of`. ValueError when the data is no
    longer what it was."""
    tensors, meta = model_file.read_tensors(path)
    stores = step_of.stores
    if meta["train_images"] != len(stores.train):
        raise ValueError(
            f"{path} was trained on {meta['train_images']} images, but the data now gives {len(stores.train)}; it "
            f"cannot be resumed exactly"
        )
    if meta.get("shards", "") != stores.identity["shards"]:
        raise ValueError(
            f"{path} was trained on shards of other names or sizes than the data now has; it cannot be resumed exactly"
        )
    if meta.get("classes", stores.identity["classes"]) != stores.identity["classes"]:
        raise ValueError(f"{path} was trained on other classes than the data now has; it cannot be resumed exactly")
    stores.train.note_bad([(name, why) for name, why in meta.get("bad", []) if (name, why) not in stores.val.bad])
    state = State(**meta["state"])
    step_of.resize(progressive.image_size(state.step, total, step_of.recipe))
    step_of.load_tensors(tensors)
    return state


def _same_recipe(asked: Recipe, stored: Recipe) -> Recipe:
    """The stored recipe, when the asked one differs in nothing but what training itself fills in."""
    filled = dataclasses.replace(
        asked,
        model=dataclasses.replace(asked.model, num_classes=stored.model.num_classes),
        run=dataclasses.replace(asked.run, steps=asked.run.steps or (stored.run.steps if asked.run.time else 0)),
    )
    if filled != stored:
        raise ValueError(
            "the run to resume was started with another recipe; resume it with its own (mlpmixer.training.recipe.read_recipe), or use "
            "another out"
        )
    return stored


def _fix_steps(recipe: Recipe, step_of: Step, stores: Stores, start_from: Start | None, spent_s: float) -> Recipe:
    """Turn the time budget into a number of steps by timing a few of each stage on a throw-away copy."""
    began, budget = time.monotonic(), parse_duration(recipe.run.time)
    whole = dataclasses.replace(
        recipe, optim=dataclasses.replace(recipe.optim, head_steps=0)
    )  # steps of the head alone are cheaper
    ranks = step_of.ranks
    trial = Step(whole, stores, step_of.device, step_of.dtype, start_from, step_of.teacher, ranks)
    seconds, before = 0.0, 0.0
    for size, end in progressive.stages(recipe):
        trial.resize(size)
        seconds += (end - before) * _seconds_of_a_step(trial, min(5.0, budget / 20))
        before = end
    start = time.monotonic()
    validate(trial, stores.val)
    validation = (time.monotonic() - start) / (
        recipe.run.eval_every * steps_per_epoch(len(stores.train), recipe.run.batch_size)
    )
    left = budget - spent_s - (time.monotonic() - began)
    steps = ranks.same(max(int(left / (seconds + validation)), 1))
    return dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, steps=steps))


def _seconds_of_a_step(step_of: Step, spend_s: float) -> float:
    """After two steps, which warm up; at least five are taken."""
    start, times = time.monotonic(), [0.0]
    for step, indices, images in batches(step_of.images, step_of.recipe.run, 1, 1000, step_of.rows):
        step_of(step, 0.0, indices, images)[0].item()
        times.append(time.monotonic() - start)
        if step >= 5 and any(step_of.ranks.agree(True, times[-1] > spend_s)):
            break
    return (times[-1] - times[2]) / (len(times) - 3)


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a run stops between two steps; a second Ctrl-C stops at once.

    A second SIGTERM does not: who stops a job may signal every process of it, and torchrun passes on to its own what it
    gets.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(signum: int, frame: object) -> None:
        if stop.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for s, old in before.items():
            signal.signal(s, old)


@contextmanager
def _alarm(stop: threading.Event, after_s: float | None) -> Iterator[None]:
    """Set `stop` after so many seconds; None: never."""
    timer = threading.Timer(threading.TIMEOUT_MAX if after_s is None else after_s, stop.set)
    timer.daemon = True
    if after_s is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()

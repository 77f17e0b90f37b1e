"""The end of a run: the model, its scores as a user would get them, summary.json and report.html."""

import dataclasses
import shutil
from typing import Any

import torch

from mlpmixer.data.split_record import leaks
from mlpmixer.durable import replacing, write_json
from mlpmixer.evaluation.evaluate import choose_threshold, evaluate
from mlpmixer.evaluation.report import pictured, thumbnails_of
from mlpmixer.hardware import peak_mib
from mlpmixer.inference.load import load
from mlpmixer.models.architecture import Build, build, count_params
from mlpmixer.training.advice import advice
from mlpmixer.training.distillation import drop_teacher
from mlpmixer.training.loop import Trainer
from mlpmixer.training.run_report import write_report
from mlpmixer.training.step import TrainingStep
from mlpmixer.weights import model_file, run_folder


def final_params(step: TrainingStep) -> int:
    """Parameters of the model that a run leaves; while it trains, small images or structure that folds away give it
    others."""
    if step.recipe.network:
        return count_params(step.model)
    with torch.device("meta"):
        return count_params(build(step.recipe.model.deployed()))


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
    if classifier.multi_label and not stores.splits.doubt:
        classifier.threshold = choose_threshold(classifier, stores.splits.val)
    test_images = stores.splits.test if recipe.run.test else None
    val = evaluate(classifier, stores.splits.val)
    test = evaluate(classifier, test_images) if test_images is not None else None
    scores = val.to_json()
    metric = run_folder.metric_of(scores)
    final = {metric: test.to_json()[metric] if test else None, f"val_{metric}": scores[metric]}
    summary = {
        "recipe": recipe.name,
        "data": stores.splits.name,
        "seed": recipe.run.seed,
        **final,
        "val": scores,
        "test": test.to_json() if test else None,
        "params": count_params(step.plain_model()),
        "train_images": len(stores.train),
        "steps": state.step,
        "kept": kept,
        "best_step": state.best_step if kept == "best" else state.step,
        "advice": [
            *leaks(trainer.record),
            *advice(lines, len(stores.train_sample), 0 if stores.splits.doubt else len(stores.val), kept),
        ],
        "train_s": round(train_s, 3),
        "images_per_s": round(images_per_s, 1),
        "peak_mib": peak_mib(step.device),
        "device": trainer.environment["device"],
        "precision": trainer.environment["precision"],
        "bad_images": [list(b) for b in (*stores.bad, *(test.bad if test else ()))],
        "notes": notes(trainer),
    }
    model_file.rewrite_meta(
        model,
        lambda meta: dataclasses.replace(
            meta, threshold=classifier.threshold, provenance={**meta.provenance, "metrics": final}
        ),
    )
    metrics, images = (test, test_images) if test and test_images else (val, stores.splits.val)
    write_report(run, metrics, thumbnails_of(images, pictured(metrics)), summary)
    model_file.drop_best_models(run, before=needed_from)
    write_json(run / run_folder.SUMMARY_FILE, summary)  # the last one: with it the run is finished
    drop_teacher(run)
    return summary


def notes(trainer: Trainer) -> list[str]:
    """Notes on what was assumed about the data, the batches and the teacher, and on images that were not as unseen as
    they should be."""
    step = trainer.training_step
    found, asked = step.rows.batch_size, trainer.recipe.run.images_per_step
    own = [f"batches of {found:,} images: there are no more for run.batch_size={asked}"] if found < asked else []
    if trainer.stores.multi_label:
        own.append(
            "sigmoid loss, as an image may have several classes; mean average precision (mAP) judges the network"
        )
    if trainer.recipe.run.keep == "best" and not trainer.keeps_best:
        own.append("run.keep=best: validation is too small to choose a model, so the last one is kept")
    teacher = step.teacher.notes if step.teacher else ()
    return [*trainer.stores.splits.notes, *own, *teacher, *leaks(trainer.record)]

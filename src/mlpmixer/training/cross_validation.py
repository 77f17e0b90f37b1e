"""Cross-validation: a run for each fold, and what they say together about the recipe and about the labels."""

import csv
import dataclasses
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer.config import to_json
from mlpmixer.data.datasets import open_data, relabelled
from mlpmixer.data.image_set import ImageSet, chain
from mlpmixer.data.paths import printable
from mlpmixer.data.split_record import leaks
from mlpmixer.download import Report
from mlpmixer.durable import replacing, write_json, write_text
from mlpmixer.evaluation.data import open_for
from mlpmixer.evaluation.metrics import metrics_from_probabilities
from mlpmixer.evaluation.report import thumbnails_of
from mlpmixer.hardware import choose_device
from mlpmixer.inference.files import map_images
from mlpmixer.inference.load import load
from mlpmixer.training.cross_validation_report import folds_html
from mlpmixer.training.loop import Interrupted
from mlpmixer.training.recipe import Recipe, read_recipe, variant
from mlpmixer.training.resume import RUNS, same_recipe
from mlpmixer.training.run import RunResult, train
from mlpmixer.weights import run_folder

BATCH = 256
SUSPICIOUS = 40  # labels on the page and in folds.json; the CSV has all


@dataclasses.dataclass(frozen=True)
class OutOfFold:
    """Every readable image, predicted by the network of the fold that left it out: N images, K classes."""

    images: ImageSet
    probabilities: NDArray[np.float32]
    """(N,K)"""
    fold: NDArray[np.int64]
    """The number of the fold that each image is in, (N,), from 1."""
    bad: list[tuple[str, str]]

    @cached_property
    def names(self) -> list[str]:
        return [printable(str(name)) for name in self.images.names]

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The number of the likeliest class of each image, (N,)."""
        found: NDArray[np.int64] = self.probabilities.argmax(1)
        return found

    @cached_property
    def most_suspicious_first(self) -> list[int]:
        """The images, by the probability of the label that is given: the lower, the more likely it is wrong
        (self-confidence in Northcutt et al. 2021, arXiv:1911.00068)."""
        of_label = self.probabilities[np.arange(len(self.images)), self.images.labels]
        found: list[int] = np.argsort(of_label, kind="stable").tolist()
        return found

    @cached_property
    def suspicious(self) -> list[int]:
        """The images whose prediction is not their label, most suspicious first."""
        return [i for i in self.most_suspicious_first if self.predicted[i] != self.images.labels[i]]

    def row(self, i: int) -> dict[str, Any]:
        """The row of an image in the tables, as plain values."""
        p, label, predicted = self.probabilities[i], self.images.labels[i], self.predicted[i]
        return {
            "name": self.names[i],
            "label": self.images.classes[label],
            "label_probability": round(float(p[label]), 6),
            "prediction": self.images.classes[predicted],
            "probability": round(float(p[predicted]), 6),
            "fold": int(self.fold[i]),
        }


def cross_validate(
    recipe: Recipe,
    *,
    folds: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    report: Report | None = None,
) -> RunResult:
    """Train a network for each of `folds` parts of the training images, on all the others, and score it on that part.

    The parts are stratified by class, and files with the same content are in the same part. Each fold is a run of its
    own, `out`/fold-1 and so on, whose test images are the part. A step is chosen (`run.patience`) on other images: the
    data's own validation split, or what `data.val_fraction` cuts off the rest. The data's own test images are not used.

    folds: default: `recipe.data.folds`. out, report: as in `train`.
    resume: continue the cross-validation in `out` exactly; finished folds are kept.

    Returns the folder, and what is in its folds.json under "summary": mean, deviation (n - 1) and range of top-1 over
    the folds, the metrics of all out-of-fold predictions together, and the most suspicious labels. The folder also has
    out_of_fold.csv, every image with its probabilities, the most suspicious label first, and report.html.

    Errors: as `train`; ValueError where a class has fewer different images than there are folds, and for streamed data.
    """
    recipe = variant(recipe, data={"folds": folds or recipe.data.folds, "fold": 0})
    if not recipe.data.folds:
        raise ValueError("cross-validation needs data.folds, the number of parts, such as 5")
    if not recipe.run.test:
        raise ValueError("cross-validation scores each fold as its test images: leave --no-test out")
    open_data(variant(recipe, data={"fold": 1}).data)  # refuses what no fold can be made of, before anything is written
    report = report or (lambda event: None)
    with ExitStack() as stack:
        folder = Path(out) if out is not None else run_folder.new_directory(RUNS / recipe.name)
        stack.enter_context(run_folder.locked(folder))
        run_folder.drop_parts(folder)
        started = run_folder.is_cross_validation(folder)
        if run_folder.is_run(folder) or (started and not resume):
            advice = f", or go on with it (--resume {folder})" if started else ""
            raise ValueError(f"{folder} already holds a run: name another (--out){advice}")
        if started:
            recipe = same_recipe(recipe, read_recipe(folder))
            if summary := run_folder.read_cross_validation(folder).get("summary"):
                report({"kind": "end", "summary": summary, "out": str(folder)})
                return RunResult(folder, summary)
        _write(folder, recipe)
        results = []
        for number in range(1, recipe.data.folds + 1):
            report({"kind": "doing", "what": f"fold {number} of {recipe.data.folds}"})
            one = variant(recipe, data={"fold": number})
            try:
                results.append(train(one, out=folder / fold_name(number), resume=True, report=report))
            except Interrupted as e:
                raise Interrupted(e.step, folder) from None
            except (ValueError, OSError):
                if not started and not (folder / fold_name(1)).exists():  # nothing has begun
                    (folder / run_folder.FOLDS_FILE).unlink()
                raise
            if number == 1:  # what was measured for it holds for all: the batch size, the steps of a time budget
                recipe = dataclasses.replace(recipe, run=read_recipe(results[0].path).run)
                _write(folder, recipe)
        report({"kind": "doing", "what": "predicting each image by the network of the fold that leaves it out"})
        found = _out_of_fold(recipe, [result.path for result in results], report)
        summary = _summary(recipe, results, found)
        _write_csv(folder / run_folder.OUT_OF_FOLD_FILE, found)
        pictures = thumbnails_of(found.images, found.suspicious[:SUSPICIOUS])
        write_text(folder / run_folder.REPORT_FILE, folds_html(folder, summary, to_json(recipe), pictures))
        _write(folder, recipe, summary)
        report({"kind": "end", "summary": summary, "out": str(folder)})
        return RunResult(folder, summary)


def fold_name(number: int) -> str:
    """The folder of a fold's run."""
    return f"fold-{number}"


def _write(folder: Path, recipe: Recipe, summary: dict[str, Any] | None = None) -> None:
    write_json(folder / run_folder.FOLDS_FILE, {"recipe": to_json(recipe)} | ({"summary": summary} if summary else {}))


def _out_of_fold(recipe: Recipe, runs: Sequence[Path], report: Report) -> OutOfFold:
    """Each image, predicted by the one of these runs that did not train on it. ValueError when the data has changed."""
    device = str(choose_device(recipe.run.device))
    classes: tuple[str, ...] = ()
    images: list[ImageSet] = []
    rows: list[NDArray[np.float32]] = []
    bad: list[tuple[str, str]] = []
    for run in runs:
        classifier = load(run, device=device)
        classes = classes or classifier.classes
        chosen = open_for(classifier, None).choose("test")
        if chosen.scored.notes or classifier.classes != classes:
            what = "; ".join(chosen.scored.notes) or "its classes are others"
            raise ValueError(f"the data has changed since {run} was trained: {what}. Put it back, or start again")
        kept, probabilities, unread = map_images(
            classifier, chosen.images, classifier.probabilities, BATCH, report=report
        )
        images.append(relabelled(chosen.images.subset(kept), classes))
        rows.append(probabilities)
        bad += unread
    fold = np.repeat(np.arange(1, len(runs) + 1), [len(part) for part in images])
    return OutOfFold(chain(images), np.concatenate(rows), fold, bad)


def _summary(recipe: Recipe, results: Sequence[RunResult], found: OutOfFold) -> dict[str, Any]:
    images, tests = found.images, [result.summary["test"] for result in results]
    metrics = metrics_from_probabilities(found.probabilities, images.labels, images.classes, found.names, bad=found.bad)
    scores = [test["top1"] for test in tests]
    records = [run_folder.read_splits(result.path) for result in results]
    return {
        "recipe": recipe.name,
        "data": results[0].summary["data"],
        "folds": len(results),
        "top1": float(np.mean(scores)),
        "deviation": float(np.std(scores, ddof=1)),
        "lowest": min(scores),
        "highest": max(scores),
        "advice": leaks(*(record for record in records if record)),
        "metrics": metrics.to_json(),
        "per_fold": [
            {key: test[key] for key in ("top1", "top1_interval", "n")}
            | {key: result.summary[key] for key in ("val_top1", "train_images", "steps", "best_step", "train_s")}
            for test, result in zip(tests, results, strict=True)
        ],
        "train_s": sum(result.summary["train_s"] for result in results),
        "images_per_s": round(float(np.mean([result.summary["images_per_s"] for result in results])), 1),
        "num_wrong": len(found.suspicious),
        "suspicious": [found.row(i) for i in found.suspicious[:SUSPICIOUS]],
    }


def _write_csv(path: Path, found: OutOfFold) -> None:
    """Every image: `OutOfFold.row`, and the probability of each class."""
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([*found.row(0), *(f"p_{name}" for name in found.images.classes)])
        for i in found.most_suspicious_first:
            rows.writerow([*found.row(i).values(), *(f"{p:.6f}" for p in found.probabilities[i].tolist())])

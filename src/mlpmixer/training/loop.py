"""The training loop: one update after the other, and every so often a log line, an evaluation, a saved state."""

import dataclasses
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpmixer.clock import Clock
from mlpmixer.config import to_json
from mlpmixer.data.images import Pixels
from mlpmixer.data.split_record import SplitRecord
from mlpmixer.data.store import Store
from mlpmixer.download import Report
from mlpmixer.evaluation.metrics import score
from mlpmixer.evaluation.multi_label import THRESHOLD, binary_cross_entropies, mean_average_precision
from mlpmixer.hardware import peak_mib
from mlpmixer.inference.files import map_batches
from mlpmixer.training.augment import normalise, prepare_eval, resize
from mlpmixer.training.averaging import average_weight
from mlpmixer.training.batches import steps_per_epoch
from mlpmixer.training.inputs import batches
from mlpmixer.training.progressive import image_size
from mlpmixer.training.schedule import lr_factor
from mlpmixer.training.step import TrainingStep
from mlpmixer.training.stream import Sampled
from mlpmixer.weights import model_file
from mlpmixer.weights.run_folder import MetricsFile, is_run, metric_of

EVAL_BATCH = 250


class Interrupted(Exception):
    """Stopped by Ctrl-C or SIGTERM after saving at `step`; train(resume=True) continues from there."""

    def __init__(self, step: int, path: Path) -> None:
        super().__init__(f"stopped after step {step}; everything is saved in {path}")
        self.step, self.path = step, path


class Diverged(ValueError):
    """The loss or a weight is no longer a finite number."""


@dataclass
class State:
    """Progress of a run, apart from its tensors."""

    step: int = 0
    train_s: float = 0.0
    best_score: float = -1.0
    best_step: int = 0
    evals_without_improvement: int = 0

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return values | {"waited": values.pop("evals_without_improvement"), "best_top1": values.pop("best_score")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "State":
        names = {"waited": "evals_without_improvement", "best_top1": "best_score"}
        return cls(**{names.get(k, k): v for k, v in values.items()})

    def improves(self, score: float) -> bool:
        """Record an evaluation, by its metric; True when it is the best so far."""
        if score > self.best_score:
            self.best_score, self.best_step, self.evals_without_improvement = score, self.step, 0
            return True
        self.evals_without_improvement += 1
        return False

    def forget_best(self) -> None:
        """Look for the best model from here on, as the earlier one was not kept."""
        self.best_score, self.best_step = -1.0, 0


class Trainer:
    """A run in progress: its folder, its training step, and how far it has come.

    `metrics` is the open metrics.jsonl on the process that writes it, None on the others. `record` says which images
    are trained on.
    """

    def __init__(
        self,
        folder: Path,
        training_step: TrainingStep,
        total_steps: int,
        state: State,
        environment: dict[str, Any],
        report: Report,
        metrics: MetricsFile | None,
        record: SplitRecord,
    ) -> None:
        self.folder, self.training_step, self.total_steps, self.state = folder, training_step, total_steps, state
        self.environment, self.report, self.metrics = environment, report, metrics
        self.record = record
        self.recipe, self.stores, self.group = training_step.recipe, training_step.stores, training_step.group
        self.steps_per_epoch = steps_per_epoch(len(self.stores.train), self.recipe.run.images_per_step)
        self.clock = Clock(state.train_s)
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []
        self.best_step_saved = (
            0  # of the newest saved state; its model is needed as long as a run may resume from there
        )

    @property
    def keeps_best(self) -> bool:
        """Whether the model of the run is the best on validation, and not the last."""
        run = self.recipe.run
        return (run.keep == "best" or (run.keep == "auto" and run.patience > 0)) and not self.stores.splits.doubt

    @property
    def is_over(self) -> bool:
        """Whether no step is left: the last one is done, or validation has stopped improving (`run.patience`)."""
        patience = self.recipe.run.patience
        return self.state.step == self.total_steps or 0 < patience <= self.state.evals_without_improvement

    def train(self, stop: threading.Event, between: Callable[[], None] = lambda: None) -> None:
        """Train until `is_over`; a resumed run may be so already. `between` is called before each step.

        Errors: Interrupted, after saving, when `stop` is set; Diverged; OSError when nothing can be written.
        """
        step, state, clock, run, optim = self.training_step, self.state, self.clock, self.recipe.run, self.recipe.optim
        eval_every = max(round(run.eval_every * self.steps_per_epoch), 1)
        if self.is_over:
            return
        for batch in batches(step.images, run, state.step + 1, self.total_steps, step.rows):
            between()
            step.resize(image_size(batch.step, self.total_steps, self.recipe))
            loss, correct = step(batch, lr_factor(batch.step, self.total_steps, optim))
            step.average_in(average_weight(batch.step, self.total_steps, optim))
            state.step = batch.step
            self.losses.append(loss)
            self.correct.append(correct)
            clock.count(step.rows.batch_size)

            evaluating = state.step == self.total_steps or state.step % eval_every == 0
            logging = evaluating or state.step % run.log_every == 0
            if logging:
                self.log_steps()
            if evaluating:
                self.evaluate()
            stopping, saving = stop.is_set(), self.is_over or clock.since_save() > run.save_every_s
            if self.group.size > 1:  # the processes agree where they exchange their losses anyway
                stopping, saving = self.group.any(stopping, saving) if logging else (False, False)
            if stopping or saving:
                self.save()
            if self.is_over:
                return
            if stopping:
                raise Interrupted(state.step, self.folder)

    def log_steps(self) -> None:
        """Write the log line of the steps since the last one. Errors: Diverged when one of them has no finite loss."""
        sums = self.group.all_reduce(torch.stack([*self.losses, *self.correct]).tolist())  # waits for the device, ...
        images_per_s = self.clock.images_per_s()  # ... and so this is the device's rate
        losses, correct = sums[: len(self.losses)], sums[len(self.losses) :]
        step = self.state.step
        for number, loss in enumerate(losses, step - len(losses) + 1):
            if not math.isfinite(loss):
                raise self.diverged(f"the loss is {loss} at step {number}")
        self.losses.clear()
        self.correct.clear()
        images_left = (self.total_steps - step) * self.training_step.rows.batch_size
        self.write(
            {
                "kind": "step",
                "step": step,
                "epoch": step / self.steps_per_epoch,
                "loss": sum(losses) / len(losses),
                **({} if self.stores.multi_label else {"top1": sum(correct) / len(correct)}),
                "lr": self.recipe.optim.lr * lr_factor(step, self.total_steps, self.recipe.optim),
                "images_per_s": images_per_s,
                "peak_mib": peak_mib(self.training_step.device),
                "eta_s": images_left / max(images_per_s, 1e-9),
            }
        )

    def evaluate(self) -> None:
        """Score validation images and some training images as evaluation sees them; save the best model so far."""
        self.require_folder()
        training, step = self.training_step, self.state.step
        with self.clock.paused():
            scores = validate(training, self.stores.val)
            scores |= {f"train_{name}": value for name, value in validate(training, self.stores.train_sample).items()}
        self.write({"kind": "eval", "step": step, "epoch": step / self.steps_per_epoch, "split": "val", **scores})
        has_final_size = training.image_size == training.size
        if has_final_size and self.state.improves(scores[metric_of(scores)]) and self.group.is_main:
            model_file.save_model(model_file.best_model(self.folder, step), training.plain_model(), self.model_meta())

    def save(self) -> None:
        """Save the training state, after a log line of the last steps. Errors: Diverged when a weight is not finite."""
        self.require_folder()
        if self.losses:
            self.log_steps()
        if not all(p.isfinite().all() for p in self.training_step.model.parameters()):
            raise self.diverged(f"some weights are not finite after step {self.state.step}")
        self.state.train_s = self.clock.elapsed()
        self.stores.share_bad(self.group)
        if self.metrics is not None:
            self.metrics.sync()  # a state is never ahead of its log
            meta = {
                "state": self.state.to_json(),
                **self.stores.identity,
                "bad": self.stores.bad,
                "preprocess": to_json(self.stores.preprocess),
            }
            model_file.save_state(self.folder, self.state.step, self.training_step.tensors(), meta)
            model_file.drop_best_models(self.folder, before=self.best_step_saved)
            self.best_step_saved = self.state.best_step
        self.report({"kind": "save", "step": self.state.step})
        self.clock.saved()

    def require_folder(self) -> None:
        """FileNotFoundError when the run's folder was moved or removed, which writing would make anew, half."""
        if self.metrics is not None and not is_run(self.folder):
            raise FileNotFoundError(
                f"{self.folder} was moved or removed while the run trained in it; resume it from its last checkpoint "
                "where it is now: mlpmixer train --resume DIR"
            )

    def write(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl and report it."""
        if self.metrics is not None:
            self.metrics.write(line)
        self.report(line)

    def diverged(self, what: str) -> Diverged:
        return Diverged(
            f"{what}; last good checkpoint: {model_file.last_state(self.folder) or 'none'}. Try a lower --lr, a "
            "longer --optim.warmup-steps, --optim.clip-norm 1, or --precision float32"
        )

    def model_meta(self) -> model_file.ModelMeta:
        """The metadata of the saved model."""
        return model_file.ModelMeta(
            config=self.recipe.model.deployed(),
            classes=self.stores.splits.classes,
            preprocess=self.stores.preprocess,
            network=self.recipe.network,
            data=self.recipe.data,
            splits=self.record,
            threshold=THRESHOLD if self.stores.multi_label else None,
            provenance={
                "recipe": self.recipe.name,
                "data": self.stores.splits.name,
                "loss": self.recipe.optim.loss,
                "version": self.environment["packages"]["mlpmixer"],
                "commit": self.environment["commit"],
                "date": datetime.now(UTC).date().isoformat(),
                "metrics": {},
            }
            | ({"learned_from": origins} if (origins := self.environment["learned_from"]) else {}),
        )


@torch.no_grad()
def validate(training_step: TrainingStep, store: Store | Sampled) -> dict[str, float]:
    """top1 (map where images may have several classes) and nll of the averaged model on every image of a split, in the
    run's precision, shared by the processes."""
    model, device = training_step.average.eval(), training_step.device
    sigmoid = training_step.recipe.optim.loss == "sigmoid"

    def probabilities(pixels: Pixels) -> np.ndarray:
        images = resize(prepare_eval(torch.from_numpy(pixels).to(device)), training_step.image_size)
        images = normalise(images, training_step.stores.preprocess)
        with training_step.autocast():
            logits: Tensor = model(images).float()
        return (logits.sigmoid() if sigmoid else logits.softmax(1)).cpu().numpy()

    own = training_step.group.rows(len(store)).indices
    parts = (own[start : start + EVAL_BATCH] for start in range(0, len(own), EVAL_BATCH))
    numbers, predicted = map_batches(((part, store.array(part)) for part in parts), probabilities)
    if store.labels.ndim == 2:
        parts_of_all = training_step.group.gather((predicted, store.labels[numbers]))
        p, targets = (np.concatenate(arrays) for arrays in zip(*parts_of_all, strict=True))
        return {"map": mean_average_precision(p, targets), "nll": float(binary_cross_entropies(p, targets).mean())}
    correct, losses = score(predicted, store.labels[numbers])
    right, nll = training_step.group.all_reduce([float(correct.sum()), float(losses.sum())])
    return {"top1": right / len(store), "nll": nll / len(store)}

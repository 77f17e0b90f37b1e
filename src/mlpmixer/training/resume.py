"""Reading the folder of a run before training: another training, a sound state, the best model, the data's record."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from mlpmixer.config import to_json
from mlpmixer.data.labels import nfc
from mlpmixer.data.split_record import SplitRecord
from mlpmixer.registry import shortened
from mlpmixer.training import progressive
from mlpmixer.training.distillation import TeacherSource, drop_teacher, record_of
from mlpmixer.training.inputs import Stores
from mlpmixer.training.loop import State
from mlpmixer.training.recipe import Recipe, read_recipe
from mlpmixer.training.run_report import write_report
from mlpmixer.training.start import Start
from mlpmixer.training.step import TrainingStep
from mlpmixer.weights import model_file, run_folder

RUNS = Path("runs")  # where runs are that nobody has given a place


def open_run(
    recipe: Recipe, out: str | os.PathLike[str] | None, resume: bool, note: Callable[[str], None], stack: ExitStack
) -> tuple[Path, Recipe, dict[str, Any] | None, Path | None]:
    """The folder of a run, locked until `stack` is closed, its recipe, its summary if it is finished, and its last
    state if there is one."""
    if out is None and not RUNS.exists():
        stack.callback(run_folder.remove_if_empty, RUNS)
    folder = Path(out) if out is not None else run_folder.new_directory(RUNS / recipe.name)
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder for the run")
    if problem := stack.enter_context(run_folder.locked(folder)):
        note(f"{folder} could not be locked ({problem}): make sure that nothing else trains in it")
    run_folder.drop_parts(folder)
    if run_folder.is_cross_validation(folder):
        raise ValueError(f"{folder} already holds a cross-validation: name another folder (--out)")
    if not run_folder.is_run(folder):
        return folder, recipe, None, None
    if not resume:
        raise ValueError(f"{folder} already holds a run: name another (--out), or go on with it (--resume {folder})")
    recipe = same_recipe(recipe, read_recipe(folder))
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
    page = folder / run_folder.REPORT_FILE
    if summary is not None and has_model and not (page.exists() and page.stat().st_size):
        try:
            write_report(folder)
            note(f"{page} is made again, without pictures of the mistakes")
        except (ValueError, TypeError, LookupError, AttributeError, TemplateError) as e:
            summary = None
            note(f"{folder / run_folder.SUMMARY_FILE} is damaged: {shortened(e)}")
    if summary is not None and has_model:
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


def same_recipe(asked: Recipe, stored: Recipe) -> Recipe:
    """The stored recipe, if the given one differs in nothing but what training itself fills in."""
    plain = to_json(asked)
    found, is_open = run_folder.differences(to_json(stored), plain), run_folder.left_open(plain)
    if different := [name for name in found if name not in is_open]:
        there, here = found[different[0]]
        difference = shortened(f"{different[0]}={there!r}, not {here!r}")
        raise ValueError(
            f"the run to resume was started with another recipe ({difference}); resume it with its own "
            "(mlpmixer.training.recipe.read_recipe), or choose another out"
        )
    return stored


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


def has_best(folder: Path, state: State, note: Callable[[str], None]) -> bool:
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


def recorded(
    folder: Path, saved: Path | None, stores: Stores, networks: tuple[Start | None, TeacherSource]
) -> SplitRecord:
    """The record of the images of a run that begins with these networks.

    ValueError when they are not the images that the state `saved` was trained on.
    """
    stored = run_folder.read_splits(folder) if saved is not None else None
    if stored is None:
        return stores.record.after([record for record in map(record_of, networks) if record])
    if difference := stored.difference(stores.record):
        raise ValueError(
            f"{folder} cannot be resumed exactly, as its data has changed since it was started: {difference}. Put the "
            "images back, or start a new run"
        )
    return stored

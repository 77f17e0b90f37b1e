"""Runs: they learn, stop and resume bit for bit, and report what is wrong."""

import dataclasses
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.processes import Forks
from helpers.training import Stopped, assert_same_run, batch_of, stop_at, weights
from PIL import Image
from torch import Tensor, nn

from mlpmixer.config import to_json
from mlpmixer.data.config import Data
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.inference.load import load
from mlpmixer.inference.torch_classifier import from_network
from mlpmixer.models.architecture import count_params
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.names import MIXERS
from mlpmixer.training import resume
from mlpmixer.training.augment import normalise, prepare_eval
from mlpmixer.training.inputs import ImageCache, load_images
from mlpmixer.training.loop import Diverged, Interrupted, validate
from mlpmixer.training.recipe import Augment, Init, Optim, Recipe, Run, read_recipe, variant
from mlpmixer.training.resume import restore
from mlpmixer.training.run import train
from mlpmixer.training.run_report import write_report
from mlpmixer.training.step import TrainingStep
from mlpmixer.weights import model_file, run_folder

SMALL = dataclasses.replace(MIXERS["Pico/2"], num_blocks=2, hidden_dim=24, tokens_mlp_dim=16, channels_mlp_dim=48)
BASE = Recipe(
    name="test",
    model=dataclasses.replace(SMALL, dropout=0.1, drop_path=0.1),
    data=Data(name="digits"),
    init=Init(stem="whitened"),
    augment=Augment(pad_crop_px=1, rotate_deg=5, mixup=0.2, noise=0.02),
    optim=Optim(name="muon", warmup_steps=3, ema_decay=0.9, clip_norm=1.0, label_smoothing=0.1),
    run=Run(steps=24, batch_size=128, eval_every=1, save_every_s=0, log_every=3),
)


LOCAL = variant(BASE, optim={"locality": 3, "lr": 0.01, "muon_lr": 0.02})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(BASE, out=tmp_path_factory.mktemp("runs") / "whole").path


def test_image_cache_decodes_once(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Data] = []

    def counted(data: Data, *rest: Any) -> Any:
        decoded.append(data)
        return load_images(data, *rest)

    monkeypatch.setattr("mlpmixer.training.inputs.load_images", counted)
    images, short = ImageCache(), variant(BASE, run={"steps": 2})
    train(short, out=tmp_path / "first", image_cache=images)
    assert_same_run(train(BASE, out=tmp_path / "second", image_cache=images).path, undisturbed)
    assert decoded == [BASE.data]
    few = train(variant(short, data={"train_fraction": 0.5}), out=tmp_path / "few", image_cache=images)
    larger = variant(short, model={"image_size": 16})
    train(larger, out=tmp_path / "larger", image_cache=images)
    assert len(decoded) == 3 and few.summary["train_images"] < 700


def test_run_leaves_its_files(undisturbed: Path) -> None:
    names = {p.name for p in undisturbed.iterdir()}
    assert names == {
        "recipe.json",
        "splits.json",
        "env.json",
        "metrics.jsonl",
        "summary.json",
        "report.html",
        run_folder.MODEL_FILE,
        "checkpoints",
    }
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert (
        summary["steps"] == 24
        and 0 <= summary["top1"] <= 1
        and summary["test"]["n"] == 360
        and summary["train_images"] == 1293
    )
    meta = model_file.read_meta(undisturbed / run_folder.MODEL_FILE)
    assert meta.classes == tuple("0123456789") and meta.provenance["metrics"]["top1"] == summary["top1"]
    assert meta.splits == run_folder.read_splits(undisturbed) and meta.splits.counts == (1293, 144, 360, 0)
    assert read_recipe(undisturbed).model.num_classes == 10
    steps = [x["step"] for x in run_folder.read_metrics(undisturbed / "metrics.jsonl") if x["kind"] == "step"]
    assert steps == sorted(set(steps)) and steps[-1] == 24
    assert len(list((undisturbed / "checkpoints").iterdir())) == 2


def test_log_has_peak_memory(undisturbed: Path) -> None:
    peaks = [x["peak_mib"] for x in run_folder.read_metrics(undisturbed / "metrics.jsonl") if x["kind"] == "step"]
    assert len(peaks) > 2 and peaks == sorted(peaks)
    assert 50 < peaks[0] <= peaks[-1] <= json.loads((undisturbed / "summary.json").read_text())["peak_mib"] < 50_000


KILLED = """
    import json, os, signal, sys
    import mlpmixer.weights.model_file as checkpoint
    from mlpmixer.training.recipe import Recipe
    from mlpmixer.config import from_json
    from mlpmixer.training.run import train

    where, step, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    replace = os.replace

    def dies(source, target):
        if where == "write" and os.path.basename(target) == f"step-{step:09d}.safetensors":
            os.truncate(source, 5000)
            die()
        replace(source, target)

    unlink = os.unlink

    def dies_before_dropping(path):
        if where == "drop" and os.path.basename(path) == f"step-{step - 2:09d}.safetensors":
            die()
        unlink(path)

    os.replace, os.unlink = dies, dies_before_dropping
    report = lambda x: die() if x["kind"] == where and x["step"] == step else None
    train(from_json(Recipe, json.load(sys.stdin)), out=out, report=report)
"""


def kill(forked: Forks, recipe: Recipe, where: str, step: int, out: Path) -> None:
    """Train in another process and kill it there."""
    done = forked(KILLED, where, step, out, input=json.dumps(to_json(recipe)))
    assert done.returncode == -signal.SIGKILL and not (out / "summary.json").exists()


@pytest.mark.parametrize(("where", "step"), [("start", 0), ("step", 6), ("save", 13), ("write", 9), ("drop", 24)])
def test_killed_run_resumes_bit_for_bit(
    where: str, step: int, undisturbed: Path, tmp_path: Path, forked: Forks
) -> None:
    kill(forked, BASE, where, step, tmp_path / "killed")
    train(BASE, out=tmp_path / "killed", resume=True)
    assert_same_run(undisturbed, tmp_path / "killed")
    assert not list((tmp_path / "killed").rglob(".*"))  # neither a lock nor a part of a file
    assert len(model_file.states(tmp_path / "killed")) == model_file.STATES_KEPT


def test_failing_report_leaves_no_file_open(tmp_path: Path) -> None:
    def fail(event: dict[str, Any]) -> None:
        raise RuntimeError(event["kind"])

    with pytest.raises(RuntimeError, match="start") as error:  # which keeps the frames of train alive
        train(BASE, out=tmp_path / "run", report=fail)
    held = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert str(tmp_path / "run" / "metrics.jsonl") not in held, error


def test_ctrl_c_saves(undisturbed: Path, tmp_path: Path) -> None:
    def press(line: dict[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == 9:
            os.kill(os.getpid(), signal.SIGINT)

    recipe = variant(BASE, run={"save_every_s": 1e9})
    with pytest.raises(Interrupted) as stopped:
        train(recipe, out=tmp_path / "run", report=press)
    assert stopped.value.step == 9 and stopped.value.path == tmp_path / "run"
    train(recipe, out=tmp_path / "run", resume=True)
    assert_same_run(undisturbed, tmp_path / "run")


def test_end_of_time_saves(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as stopped:
        train(BASE, out=tmp_path / "run", stop_after_s=0.0)
    assert 1 <= stopped.value.step < 24 and not (tmp_path / "run" / "summary.json").exists()
    train(BASE, out=tmp_path / "run", resume=True, stop_after_s=1e6)
    assert_same_run(undisturbed, tmp_path / "run")


def test_repeated_sigterm_saves(undisturbed: Path, tmp_path: Path) -> None:
    def terminate(line: dict[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == 9:
            os.kill(os.getpid(), signal.SIGTERM)  # by a scheduler
            os.kill(os.getpid(), signal.SIGTERM)  # by torchrun, which has been told, too

    recipe = variant(BASE, run={"save_every_s": 1e9})
    with pytest.raises(Interrupted):
        train(recipe, out=tmp_path / "run", report=terminate)
    train(recipe, out=tmp_path / "run", resume=True)
    assert_same_run(undisturbed, tmp_path / "run")


def test_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def press(line: dict[str, Any]) -> None:
        if line["kind"] == "step":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(BASE, out=tmp_path / "run", report=press)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(LOCAL, out=tmp_path_factory.mktemp("runs") / "local").path


def test_killed_run_with_locality_resumes_bit_for_bit(local: Path, tmp_path: Path, forked: Forks) -> None:
    kill(forked, LOCAL, "save", 7, tmp_path / "killed")
    train(LOCAL, out=tmp_path / "killed", resume=True)
    assert_same_run(local, tmp_path / "killed")


def test_locality_is_saved_as_a_plain_mixer(local: Path) -> None:
    stores = load_images(LOCAL.data, LOCAL.model)
    step = TrainingStep(read_recipe(local), stores, torch.device("cpu"), torch.float32)
    saved = model_file.last_state(local)
    assert saved is not None and restore(saved, step, 24).step == 24
    trained = step.average.eval()
    kernels = {name: p for name, p in trained.named_parameters() if name.endswith(".kernel")}
    assert len(kernels) == 4 and all(kernel.abs().max() > 1e-3 for kernel in kernels.values())

    saved, meta = model_file.load_model(local / run_folder.MODEL_FILE)
    assert meta.config == dataclasses.replace(LOCAL.model, num_classes=10)
    assert (
        count_params(saved)
        == json.loads((local / "summary.json").read_text())["params"]
        == count_params(trained) - 4 * 9
    )
    images = normalise(prepare_eval(torch.from_numpy(stores.val.array(np.arange(len(stores.val))))), stores.preprocess)
    with torch.no_grad():
        before, after = trained(images), saved(images)
    torch.testing.assert_close(
        before, after, atol=1e-5, rtol=0
    )  # F.linear has another order for weights that ask for gradients
    assert torch.equal(before.argmax(1), after.argmax(1))
    right = (before.argmax(1).numpy() == stores.val.labels).mean()
    assert right == json.loads((local / "summary.json").read_text())["val_top1"] > 0.3


def test_locality_starts_as_the_trained_function(undisturbed: Path, tmp_path: Path) -> None:
    still = {"lr": 1e-12, "muon_lr": 1e-12, "weight_decay": 0.0}
    recipe = variant(
        LOCAL, init={"stem": "lecun", "weights": str(undisturbed)}, optim=still, run={"steps": 1, "test": False}
    )
    start, after = weights(undisturbed), weights(train(recipe, out=tmp_path / "run").path)
    assert start.keys() == after.keys()
    for name in start:
        torch.testing.assert_close(after[name], start[name])


@pytest.mark.parametrize("size", [8, 12])
def test_run_resumes_without_its_initial_weights(size: int, undisturbed: Path, tmp_path: Path) -> None:
    start = shutil.copy(undisturbed / run_folder.MODEL_FILE, tmp_path / "start.safetensors")
    recipe = variant(BASE, model={"image_size": size}, init={"stem": "lecun", "weights": str(start)}, run={"steps": 6})
    whole = train(recipe, out=tmp_path / "whole").path
    with pytest.raises(Stopped):
        train(recipe, out=tmp_path / "stopped", report=stop_at(3))
    start.unlink()
    train(recipe, out=tmp_path / "stopped", resume=True)
    assert_same_run(whole, tmp_path / "stopped")
    old, new = (model_file.read_meta(run / run_folder.MODEL_FILE) for run in (whole, tmp_path / "stopped"))
    assert (
        old.preprocess == new.preprocess
        and old.preprocess.mean == model_file.read_meta(undisturbed / run_folder.MODEL_FILE).preprocess.mean
    )


def test_resume_computes_no_statistics(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stopped):
        train(BASE, out=tmp_path / "run", report=stop_at(8))

    def sample_of(images: Any) -> Any:
        raise AssertionError("the mean, the deviation and the stem are stored")

    monkeypatch.setattr("mlpmixer.training.inputs.sample_of", sample_of)
    train(BASE, out=tmp_path / "run", resume=True)
    assert_same_run(undisturbed, tmp_path / "run")


def test_old_state_without_preprocessing_resumes(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(BASE, out=tmp_path / "run", report=stop_at(8))
    for state in model_file.states(tmp_path / "run"):
        tensors, meta = model_file.read_tensors(state)
        model_file.write_tensors(state, tensors, {key: meta[key] for key in ("state", "train_images", "shards", "bad")})
    train(BASE, out=tmp_path / "run", resume=True)
    assert_same_run(undisturbed, tmp_path / "run")


def test_resume_with_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(BASE, out=tmp_path / "run", report=stop_at(2))
    for state in model_file.states(tmp_path / "run"):
        tensors, meta = model_file.read_tensors(state)
        model_file.write_tensors(state, tensors, {**meta, "classes": ["zero", *meta["classes"][1:]]})
    with pytest.raises(ValueError, match="other classes than the data now has"):
        train(BASE, out=tmp_path / "run", resume=True)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped after two steps, in run/, and its images in shades/."""
    folder = tmp_path_factory.mktemp("begun")
    for name, first in (("dark", 0), ("bright", 130)):
        (folder / "shades" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (8, 8), first + i).save(folder / "shades" / name / f"{i}.png")
    with pytest.raises(Stopped):
        train(variant(BASE, data={"name": str(folder / "shades")}), out=folder / "run", report=stop_at(2))
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda shades: Image.new("L", (8, 8), 99).save(shades / "dark/3.png"), r"1 changed: dark/3\.png\. Put"),
        (lambda shades: Image.new("L", (8, 8), 99).save(shades / "dark/x.png"), r"1 new: dark/x\.png"),
        (lambda shades: (shades / "bright/9.png").unlink(), r"1 missing: bright/9\.png"),
        (
            lambda shades: (shades / "bright/9.png").rename(shades / "bright/a.png"),
            r"missing: .*9\.png; 1 new: .*a\.png",
        ),
    ],
)
def test_resume_with_other_images_is_refused(change: Any, says: str, begun: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(begun, tmp_path / "begun")
    recipe = variant(read_recipe(folder / "run"), data={"name": str(folder / "shades")})
    run_folder.write_recipe(folder / "run", recipe)
    change(folder / "shades")
    with pytest.raises(ValueError, match=says):
        train(recipe, out=folder / "run", resume=True)


def test_damaged_record_is_named(begun: Path, tmp_path: Path) -> None:
    run = shutil.copytree(begun / "run", tmp_path / "run")
    (run / run_folder.SPLITS_FILE).write_text('{"counts": [1')
    with pytest.raises(ValueError, match=r"splits\.json is damaged: .* Remove it to resume"):
        train(read_recipe(run), out=run, resume=True)


def test_run_goes_on_from_the_sound_state_before_a_damaged_one(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        train(BASE, out=run, report=stop_at(8))
    newest, older = model_file.states(run)
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    newest.write_bytes(content)
    events: list[dict[str, Any]] = []
    train(BASE, out=run, resume=True, report=events.append)
    notes = [event["note"] for event in events if event["kind"] == "note"]
    assert len(notes) == 2 and newest.name in notes[0] and f"goes on from {older.name}" in notes[1]
    assert_same_run(undisturbed, run)
    assert newest.with_suffix(".damaged").exists() and len(model_file.states(run)) == 2


def test_run_without_a_sound_state_starts_again_and_says_so(tmp_path: Path) -> None:
    recipe = variant(BASE, run={"steps": 3})
    with pytest.raises(Stopped):
        train(recipe, out=tmp_path / "damaged", report=stop_at(2))
    for state in model_file.states(tmp_path / "damaged"):
        state.write_bytes(b"")
    with pytest.raises(Stopped):
        train(recipe, out=tmp_path / "killed", report=stop_at(0, "start"))
    said = {"damaged": "starts from the beginning; what is damaged is kept as", "killed": "no state was saved yet"}
    for name, words in said.items():
        events: list[dict[str, Any]] = []
        train(recipe, out=tmp_path / name, resume=True, report=events.append)
        assert words in [event["note"] for event in events if event["kind"] == "note"][-1]
    assert_same_run(tmp_path / "damaged", tmp_path / "killed")


def test_second_training_in_the_folder_is_refused(tmp_path: Path) -> None:
    def second(event: dict[str, Any]) -> None:
        if event["kind"] == "start":
            for resume in (False, True):
                with pytest.raises(ValueError, match=f"run is in use: process {os.getpid()} on .* trains in it"):
                    train(BASE, out=tmp_path / "run", resume=resume)
            raise Stopped

    with pytest.raises(Stopped):
        train(BASE, out=tmp_path / "run", report=second)
    train(variant(BASE, run={"steps": 1}), out=tmp_path / "other")


def test_run_whose_folder_is_moved_ends_and_goes_on_there(undisturbed: Path, tmp_path: Path) -> None:
    def move(event: dict[str, Any]) -> None:
        if event["kind"] == "save" and not (tmp_path / "moved").exists():
            (tmp_path / "run").rename(tmp_path / "moved")

    with pytest.raises(FileNotFoundError, match="run was moved or removed while the run trained in it"):
        train(BASE, out=tmp_path / "run", report=move)
    assert not (tmp_path / "run").exists()
    train(BASE, out=tmp_path / "moved", resume=True)
    assert_same_run(undisturbed, tmp_path / "moved")


def resumed(run: Path, recipe: Recipe = BASE) -> list[str]:
    """What resuming a run notes."""
    events: list[dict[str, Any]] = []
    train(recipe, out=run, resume=True, report=events.append)
    return [event["note"] for event in events if event["kind"] == "note"]


def damaged(run: Path, name: str, content: bytes | None) -> Path:
    """The run with a file that is missing or has another content."""
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content)
    return run / name


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("report.html", None, ["report.html is made again, without pictures"]),
        ("report.html", b"", ["report.html is made again, without pictures"]),
        ("model.safetensors", None, ["model.safetensors is made again from step-000000024"]),
        ("model.safetensors", b"damaged", ["model.safetensors is not a safetensors file", "is made again"]),
        ("summary.json", None, ["summary.json is made again from"]),
        ("summary.json", b'{"half": ', ["summary.json is damaged", "is made again"]),
        ("summary.json", b"{}", ["summary.json is damaged: expected a number steps", "is made again"]),
        ("summary.json", b'{"steps": 3, "train_s": 1.0, "val": 3}', ["expected a number top1", "is made again"]),
    ],
)
def test_resuming_a_finished_run_makes_what_is_missing(
    name: str, content: bytes | None, says: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    damaged(run, name, content)
    notes = resumed(run)
    assert len(notes) == len(says) and all(re.search(*pair) for pair in zip(says, notes, strict=True)), notes
    assert {path.name for path in run.iterdir()} == {path.name for path in undisturbed.iterdir()}
    assert_same_run(undisturbed, run)
    old, new = (json.loads((folder / "summary.json").read_text()) for folder in (undisturbed, run))
    changing = ("train_s", "images_per_s", "peak_mib")
    assert old | dict.fromkeys(changing) == new | dict.fromkeys(changing) and new["images_per_s"] > 0
    assert resumed(run) == []


def test_summary_that_no_page_can_be_made_of_is_made_again(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    damaged(run, "report.html", None)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"val": {"top1": 0.5, "n": 2}, "test": None}))
    monkeypatch.setattr(resume, "write_report", write_report)  # the real one
    notes = resumed(run)
    assert re.search("summary.json is damaged", notes[0]) and re.search("is made again", notes[1]), notes
    assert json.loads((run / "summary.json").read_text())["val"] == summary["val"]


def test_class_names_for_data_that_has_its_own_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.classes names the classes of shards that do not"):
        load_images(Data(name="digits", classes="10"), SMALL)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("file", "link"):
        with pytest.raises(ValueError, match="is a file; expected a folder"):
            train(BASE, out=tmp_path / name)


def test_what_cannot_be_made_again_is_named(undisturbed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    for name in ("model.safetensors", "summary.json"):
        file = damaged(run, name, None)
        with pytest.raises(ValueError, match=f"has ended, but its {name} is missing or damaged"):
            train(BASE, out=run, resume=True)
        shutil.copy(undisturbed / name, file)
    for content in (b'{"half": ', b"12", b"[]", b"{}", b"\xff", b"[" * 100_000):
        damaged(run, "recipe.json", content)
        with pytest.raises(ValueError, match=r"recipe\.json is damaged: ") as error:
            read_recipe(run)
        assert len(str(error.value)) < 300


def test_damaged_lines_of_the_log_are_left_out(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(BASE, out=tmp_path / "run", report=stop_at(20))
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_bytes(b'\xff\n12\n{"kind": "eval", "step": 4}\n' + log.read_bytes() + b'{"kind": "st')
    assert re.search("left out: 3 damaged lines of .*metrics.jsonl", resumed(tmp_path / "run")[0])
    assert_same_run(undisturbed, tmp_path / "run")


def test_finished_run_is_not_trained_again(undisturbed: Path) -> None:
    before = (undisturbed / run_folder.MODEL_FILE).stat().st_mtime_ns
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert train(BASE, out=undisturbed, resume=True).summary == summary
    assert (undisturbed / run_folder.MODEL_FILE).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="already holds a run"):
        train(BASE, out=undisturbed)
    with pytest.raises(ValueError, match="another recipe"):
        train(variant(BASE, run={"seed": 1}), out=undisturbed, resume=True)


def test_one_batch_is_overfitted(tmp_path: Path) -> None:
    recipe = Recipe(
        name="overfit",
        model=SMALL,
        data=Data(name="digits", val_fraction=0.9),
        optim=Optim(name="muon", lr=0.01, muon_lr=0.01),
    )
    result = train(variant(recipe, run={"steps": 80, "batch_size": 143, "precision": "float32"}), out=tmp_path / "run")
    last = [x for x in run_folder.read_metrics(result.path / "metrics.jsonl") if x["kind"] == "step"][-1]
    assert last["top1"] == 1.0 and last["loss"] < 0.05


def test_accumulation_gives_the_same_step(tmp_path: Path) -> None:
    recipe = variant(
        dataclasses.replace(BASE, model=SMALL),
        run={"steps": 2, "precision": "float32"},
        optim={"name": "sgd", "ema_decay": 0.0},
    )
    a = train(recipe, out=tmp_path / "a")
    b = train(variant(recipe, run={"accumulate": 4}), out=tmp_path / "b")
    first, second = weights(a.path), weights(b.path)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=1e-5)


def training_step(recipe: Recipe) -> TrainingStep:
    """The training step of a recipe on digits, in float32, before the first batch."""
    stores = load_images(recipe.data, recipe.model)
    return TrainingStep(variant(recipe, model={"num_classes": 10}), stores, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("bias", "loss"), [(0.0, "softmax"), (1000.0, "softmax"), (0.0, "sigmoid")])
def test_validation_while_training_equals_evaluate(bias: float, loss: str, undisturbed: Path) -> None:
    step = training_step(variant(BASE, run={"precision": "float32"}, optim={"loss": loss}))
    step.average.load_state_dict(weights(undisturbed))
    with torch.no_grad():
        step.average.head.bias[3] += bias  # so sure of one class that the others have a probability of 0
    stores = step.stores
    meta = model_file.ModelMeta(
        config=step.recipe.model, classes=stores.splits.classes, preprocess=stores.preprocess, provenance={"loss": loss}
    )
    logged, wanted = validate(step, stores.val), evaluate(from_network(step.average, meta), stores.splits.val)
    assert logged["top1"] == wanted.top1 and logged["nll"] == pytest.approx(wanted.nll, rel=1e-5)
    assert (wanted.nll > 50) == bool(bias)


def test_sam_step_equals_the_paper() -> None:
    rule = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "label_smoothing": 0.0} | {
        "sam_rho": 0.2,
        "clip_norm": 0.5,
        "frozen_layers": 1,
    }
    recipe = variant(
        BASE, optim={**rule, "ema_decay": 0.0}, run={"batch_size": 32, "accumulate": 2}, init={"stem": "lecun"}
    )
    ours, reference = training_step(recipe), training_step(recipe)
    for step in (ours, reference):  # with a head of zeros nothing else would have a gradient
        torch.nn.init.normal_(step.model.head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    passes: list[int] = []
    ours.model.register_forward_hook(lambda *_: passes.append(1))
    batch = batch_of(ours.images, 1, np.arange(32))
    loss, _ = ours(batch, 1.0)
    assert len(passes) == 2 * 2

    images, targets = reference.prepare(batch)  # the plain rule in the paper's words, on the batch that the loop makes
    model, seed = reference.model.train(), reference.seed(1, 0)
    learning = [p for p in model.parameters() if p.requires_grad]

    def loss_and_gradient() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        torch.manual_seed(seed)
        logits = torch.cat([model(images[:16]), model(images[16:])])
        value = torch.nn.functional.cross_entropy(logits, targets)
        return value, torch.autograd.grad(value, learning)

    def norm(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return torch.cat([t.flatten() for t in tensors]).norm()

    first, slope = loss_and_gradient()
    start = [w.detach().clone() for w in learning]
    with torch.no_grad():
        for w, g in zip(learning, slope, strict=True):
            w += 0.2 * g / norm(slope)
    gradient = loss_and_gradient()[1]
    torch.testing.assert_close(loss, first)
    assert norm(gradient) > 0.5, "the clipping is to be seen"
    wanted = [w - 0.1 * g * 0.5 / norm(gradient) for w, g in zip(start, gradient, strict=True)]
    for got, want in zip((p for p in ours.model.parameters() if p.requires_grad), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    assert torch.equal(ours.model.stem.weight, model.stem.weight)


RULES: dict[str, dict[str, dict[str, Any]]] = {
    "sharpness-aware": {"optim": {"sam_rho": 0.1}},
    "distilled": {"distill": {"temperature": 2.0}},
    "repeated": {"run": {"repeats": 4}},
    "averaged": {"optim": {"ema_decay": 0.0, "average_last": 0.7}},
}


@pytest.mark.parametrize("rule", RULES)
def test_step_rules_resume_bit_for_bit(rule: str, undisturbed: Path, tmp_path: Path) -> None:
    recipe = variant(variant(BASE, **RULES[rule]), run={"steps": 7, "test": False})
    if rule == "distilled":
        recipe = variant(recipe, distill={"teacher": str(undisturbed)})
    whole = train(recipe, out=tmp_path / "whole").path
    with pytest.raises(Stopped):
        train(recipe, out=tmp_path / "stopped", report=stop_at(4))
    train(recipe, out=tmp_path / "stopped", resume=True)
    assert_same_run(whole, tmp_path / "stopped")
    plain = train(variant(BASE, run={"steps": 7, "test": False}), out=tmp_path / "plain").path
    assert any(not torch.equal(weights(plain)[k], v) for k, v in weights(whole).items())


def test_early_stopping_keeps_the_best_model(tmp_path: Path) -> None:
    still = {"lr": 1e-9, "muon_lr": 1e-9, "ema_decay": 0.0, "locality": 3}
    recipe = variant(BASE, run={"steps": 400, "patience": 2, "eval_every": 0.2}, optim=still)
    summary = train(recipe, out=tmp_path / "run").summary
    assert summary["steps"] < 40 and summary["best_step"] <= summary["steps"]
    assert summary["kept"] == "best" and not (tmp_path / "run" / "best.safetensors").exists()
    assert model_file.load_model(tmp_path / "run" / run_folder.MODEL_FILE)[1].config == dataclasses.replace(
        BASE.model, num_classes=10
    )


STILL = variant(  # the first evaluation is the best, as nothing is learnt
    BASE,
    optim={"lr": 1e-9, "muon_lr": 1e-9, "weight_decay": 0.0, "ema_decay": 0.0},
    run={"steps": 12, "eval_every": 0.4},
)
IMPATIENT = variant(STILL, run={"patience": 1, "test": False})  # ends at step 8


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(STILL, out=tmp_path_factory.mktemp("runs") / "still").path


def test_best_model_lies_beside_the_last(still: Path, tmp_path: Path) -> None:
    files = {path.stem for path in still.glob("**/*.safetensors")}
    assert files == {"model", "best", "best-000000004", "step-000000011", "step-000000012"}
    summary = json.loads((still / "summary.json").read_text())
    assert (summary["kept"], summary["best_step"]) == ("last", 12)
    best = train(variant(STILL, run={"keep": "best"}), out=tmp_path / "best")
    assert (best.summary["kept"], best.summary["best_step"]) == ("best", 4)
    for name, other in (("model", "best"), ("last", "model")):
        ours, theirs = best.path / f"{name}.safetensors", still / f"{other}.safetensors"
        first, second = (model_file.load_model(path)[0].state_dict() for path in (ours, theirs))
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("where", "step"), [("write", 4), ("save", 4), ("write", 12), ("save", 12)])
@pytest.mark.parametrize("keep", ["auto", "best"])
def test_killed_run_has_the_same_best_model(
    keep: str, where: str, step: int, still: Path, tmp_path: Path, forked: Forks
) -> None:
    """Between the file of the best model and the state that speaks of it, and after both."""
    recipe = variant(STILL, run={"keep": keep})
    whole = still if keep == "auto" else train(recipe, out=tmp_path / "whole").path
    kill(forked, recipe, where, step, tmp_path / "killed")
    train(recipe, out=tmp_path / "killed", resume=True)
    assert_same_run(whole, tmp_path / "killed")


def stopped(recipe: Recipe, step: int, out: Path) -> Path:
    with pytest.raises(Stopped):
        train(recipe, out=out, report=stop_at(step))
    return out


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(IMPATIENT, out=tmp_path_factory.mktemp("runs") / "impatient").path


def test_run_whose_patience_is_over_is_resumed_without_a_further_step(impatient: Path, tmp_path: Path) -> None:
    assert model_file.states(impatient)[0].stem == "step-000000008", "its end is saved"
    run = stopped(IMPATIENT, 8, tmp_path / "run")
    assert train(IMPATIENT, out=run, resume=True).summary["steps"] == 8
    assert_same_run(impatient, run)


def test_run_whose_patience_is_over_is_not_interrupted(impatient: Path, tmp_path: Path) -> None:
    def terminate(line: dict[str, Any]) -> None:
        if line["kind"] == "eval" and line["step"] == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    run = train(variant(IMPATIENT, run={"save_every_s": 1e9}), out=tmp_path / "run", report=terminate).path
    assert_same_run(impatient, run)


def test_lost_or_damaged_best_model_does_not_stop_a_run(still: Path, tmp_path: Path) -> None:
    for name, damage in (("lost", None), ("damaged", b"no model")):
        run = stopped(STILL, 6, tmp_path / name)
        best = run / "checkpoints" / "best-000000004.safetensors"
        best.unlink() if damage is None else best.write_bytes(damage)
        notes: list[str] = []
        train(STILL, out=run, resume=True, report=lambda event, notes=notes: notes.append(event.get("note", "")))
        assert any(note.startswith("the best model so far, of step 4, ") for note in notes)
        assert [p.stem for p in (run / "checkpoints").glob("best-*")] == ["best-000000008"]


def test_early_stopping_of_before_resumes_with_its_best_model(tmp_path: Path) -> None:
    recipe = variant(STILL, run={"patience": 9})
    run = stopped(recipe, 6, tmp_path / "run")
    os.replace(run / "checkpoints" / "best-000000004.safetensors", run / "best.safetensors")
    recipe_file = run / "recipe.json"
    recipe_file.write_text(recipe_file.read_text().replace('    "keep": "auto",\n', ""))
    summary = train(read_recipe(run), out=run, resume=True).summary
    assert (summary["kept"], summary["best_step"]) == ("best", 4)
    assert not (run / "best.safetensors").exists() and (run / "last.safetensors").exists()


@pytest.mark.parametrize("keep", ["auto", "best"])
def test_finished_run_makes_its_model_again(keep: str, tmp_path: Path) -> None:
    recipe = variant(STILL, run={"keep": keep})
    run = train(recipe, out=tmp_path / "run").path
    whole = shutil.copytree(run, tmp_path / "whole")
    (run / "model.safetensors").unlink()
    train(recipe, out=run, resume=True)
    assert_same_run(whole, run)


def test_few_validation_images_choose_nothing(tmp_path: Path) -> None:
    few = variant(STILL, data={"val_fraction": 0.01, "min_per_class": 0}, run={"keep": "best", "patience": 99})
    events: list[dict[str, Any]] = []
    summary = train(few, out=tmp_path / "run", report=events.append).summary
    start = next(event for event in events if event["kind"] == "start")
    assert any("too small to choose a model, so the last one is kept" in note for note in start["notes"])
    assert (summary["kept"], summary["best_step"], summary["val"]["n"] < 30) == ("last", 12, True)


def test_training_images_are_scored_as_evaluation_sees_them(still: Path) -> None:
    stores = load_images(variant(BASE, data={"train_scale": 1.5}).data, BASE.model)
    sample = stores.train_sample
    assert len(sample) == 500 and len(np.unique(sample.labels)) == 10
    place = int(np.linspace(0, len(stores.train) - 1, 500)[7])
    seen = stores.preprocess.array(stores.splits.train.source(place))
    np.testing.assert_array_equal(sample.array(np.array([7]))[0], seen)
    line = next(x for x in run_folder.read_metrics(still / "metrics.jsonl") if x["kind"] == "eval")
    assert 0 <= line["train_top1"] <= 1 and line["train_nll"] > 0


def test_time_budget_becomes_steps(tmp_path: Path) -> None:
    summary = train(variant(BASE, run={"steps": 0, "time": "1s", "save_every_s": 1e9}), out=tmp_path / "run").summary
    assert summary["steps"] == read_recipe(tmp_path / "run").run.steps >= 1
    assert read_recipe(tmp_path / "run").run.time == "1s"


def test_infinite_loss_stops_the_run(tmp_path: Path) -> None:
    recipe = variant(BASE, optim={"name": "sgd", "lr": 1e30, "warmup_steps": 0, "clip_norm": 0.0}, run={"log_every": 1})
    with pytest.raises(Diverged, match=r"the loss is nan at step \d"):
        train(variant(recipe, run={"save_every_s": 1e9}), out=tmp_path / "never-saved")
    # which is seen first is up to the processor's rounding
    first = r"(weights are not finite after|the loss is nan at) step 2"
    with pytest.raises(Diverged, match=first + "; last good checkpoint: .*step-000000001"):
        train(recipe, out=tmp_path / "run")


class Breaks(nn.Module):
    """At the second step a weight that its loss does not depend on is infinite."""

    def __init__(self, cfg: MixerConfig) -> None:
        super().__init__()
        self.head = nn.Linear(cfg.in_channels * 64, cfg.num_classes)
        self.idle = nn.Parameter(torch.zeros(3))
        self.steps = 0

    def pre_logits(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        self.steps += self.training
        if self.steps == 2:
            self.idle.data[1] = torch.inf
        logits: Tensor = self.head(self.pre_logits(images))
        return logits


def test_infinite_weights_are_never_saved(tmp_path: Path) -> None:
    recipe = variant(
        Recipe(name="test", model=SMALL, data=BASE.data),
        run={"steps": 4, "batch_size": 64, "save_every_s": 0, "log_every": 1},
    )
    with pytest.raises(
        Diverged, match=r"some weights are not finite after step 2; last good checkpoint: .*step-000000001"
    ):
        train(recipe, out=tmp_path / "run", network=Breaks)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000001.safetensors"]


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        if Path(target).name == "step-000000005.safetensors":
            raise OSError(28, "No space left on device")
        source.rename(target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        train(BASE, out=tmp_path / "run")
    left = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["step-000000003.safetensors", "step-000000004.safetensors"]
    model_file.read_tensors(tmp_path / "run" / "checkpoints" / left[-1])


def test_run_starts_from_a_whitened_stem(tmp_path: Path) -> None:
    def stem(start: str) -> torch.Tensor:
        recipe = variant(
            BASE,
            init={"stem": start},
            optim={"lr": 1e-12, "muon_lr": 1e-12, "ema_decay": 0.0},
            run={"steps": 1, "test": False},
        )
        return weights(train(recipe, out=tmp_path / start).path)["stem.weight"]

    whitened, lecun = stem("whitened"), stem("lecun")
    # the patches of digits have a few strong directions: whitening makes those small and the weak ones large
    assert torch.linalg.cond(whitened) > 2 * torch.linalg.cond(lecun)


@pytest.mark.parametrize("grey", [0, 37])
def test_constant_images_train_from_a_whitened_stem(grey: int, tmp_path: Path) -> None:
    for name in "abababab":
        folder = tmp_path / "flat" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), grey).save(folder / f"{len(list(folder.iterdir()))}.png")
    recipe = variant(BASE, data={"name": str(tmp_path / "flat")}, init={"stem": "whitened"}, run={"steps": 3})
    events: list[dict[str, Any]] = []
    assert train(recipe, out=tmp_path / "run", report=events.append).summary["steps"] == 3
    assert any("there are no more for run.batch_size" in note for note in events[0]["notes"])


def test_fine_tuning_resumes_bit_for_bit(tmp_path: Path) -> None:
    rule = {
        "name": "sgd",
        "lr": 0.1,
        "momentum_dtype": "bfloat16",
        "head_steps": 6,
        "layer_decay": 0.8,
        "frozen_layers": 1,
    }
    recipe = variant(BASE, optim=rule, run={"steps": 12})
    whole = train(recipe, out=tmp_path / "whole").path
    for step in (4, 8):  # while the head learns alone, and after
        out = tmp_path / f"stopped-{step}"
        with pytest.raises(Stopped):
            train(recipe, out=out, report=stop_at(step))
        train(recipe, out=out, resume=True)
        assert_same_run(whole, out)


def test_run_starts_from_the_head_bias(tmp_path: Path) -> None:
    recipe = variant(
        BASE, init={"head_bias": -2.5}, optim={"lr": 1e-12, "ema_decay": 0.0}, run={"steps": 1, "test": False}
    )
    torch.testing.assert_close(weights(train(recipe, out=tmp_path / "run").path)["head.bias"], torch.full((10,), -2.5))


@pytest.mark.parametrize(("size", "kept"), [(8, True), (12, False)])
def test_run_starts_from_trained_weights(size: int, kept: bool, undisturbed: Path, tmp_path: Path) -> None:
    start = weights(undisturbed)
    still = {"lr": 1e-12, "muon_lr": 1e-12, "weight_decay": 0.0, "ema_decay": 0.0}
    recipe = variant(BASE, init={"stem": "lecun", "weights": str(undisturbed)}, optim=still, run={"steps": 1})
    recipe = variant(recipe, model={"image_size": size}, data={"name": "digits"})
    result = train(recipe, out=tmp_path / "run")
    after = weights(result.path)
    torch.testing.assert_close(after["stem.weight"], start["stem.weight"])
    torch.testing.assert_close(after["head.weight"], start["head.weight"])  # the same classes: the head is kept
    assert (after["blocks.0.token_mixing.fc1.weight"].shape == start["blocks.0.token_mixing.fc1.weight"].shape) == kept
    old, new = (model_file.read_meta(run / run_folder.MODEL_FILE) for run in (undisturbed, result.path))
    assert (new.preprocess.mean, new.preprocess.std) == (old.preprocess.mean, old.preprocess.std)
    assert new.splits and not len(new.splits.earlier_hashes)  # the same images are train
    assert (
        result.summary["top1"]
        > (0.99 if kept else 0.3) * json.loads((undisturbed / "summary.json").read_text())["top1"]
    )


def test_head_bias_of_a_head_that_is_kept_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    recipe = variant(BASE, init={"stem": "lecun", "weights": str(undisturbed), "head_bias": -3.0})
    with pytest.raises(ValueError, match=r"init.head_bias=-3.0 is for a new head, but that of .* is kept"):
        train(recipe, out=tmp_path / "run")


def test_images_that_the_initial_weights_have_seen_are_told(undisturbed: Path, tmp_path: Path) -> None:
    other = variant(BASE, init={"stem": "lecun", "weights": str(undisturbed)}, data={"split_seed": 1}, run={"steps": 1})
    result = train(other, out=tmp_path / "run")
    seen = evaluate(str(result.path)).trained_on
    assert seen and seen > 200
    assert f"test: {seen} of its 360 images are among those that the initial weights" in str(result.summary["notes"])


def test_weights_of_other_sizes_are_refused(undisturbed: Path, tmp_path: Path) -> None:
    recipe = variant(BASE, init={"stem": "lecun", "weights": str(undisturbed)}, model={"hidden_dim": 32})
    with pytest.raises(ValueError, match="hidden_dim 24 instead of 32"):
        train(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_test_leaves_the_test_split_unseen(tmp_path: Path) -> None:
    summary = train(variant(BASE, run={"steps": 2, "test": False}), out=tmp_path / "run").summary
    assert summary["top1"] is None and summary["test"] is None and summary["val_top1"] is not None


def test_unreadable_test_split_is_an_error_at_the_start(tmp_path: Path) -> None:
    for split, content in (("train", None), ("test", b"no image")):
        for name in ("a", "b"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (20, 20), (60 * i, 0, 0)).save(folder / f"{i}.png")
                if content:
                    (folder / f"{i}.png").write_bytes(content)
    recipe = Recipe(
        name="folder",
        model=dataclasses.replace(SMALL, image_size=16, in_channels=3),
        data=Data(name=str(tmp_path / "photos")),
    )
    with pytest.raises(ValueError, match=r"no image of the test split can be read .*--no-test"):
        train(variant(recipe, run={"steps": 1, "batch_size": 4}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert (
        train(variant(recipe, run={"steps": 1, "batch_size": 4, "test": False}), out=tmp_path / "run").summary["top1"]
        is None
    )


def test_folder_with_a_broken_image_is_trained(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, n in (("train", 12), ("test", 4)):
        for name, grey in (("dark", 30), ("bright", 220)):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(np.clip(grey + rng.normal(0, 20, (20, 30, 3)), 0, 255).astype(np.uint8)).save(
                    folder / f"{i} é.PNG"
                )
    (tmp_path / "photos" / "train" / "dark" / "broken.jpg").write_bytes(b"no image")
    model = dataclasses.replace(SMALL, image_size=16, patch_size=4, in_channels=3, num_classes=0)
    recipe = Recipe(
        name="folder",
        model=model,
        data=Data(name=str(tmp_path / "photos"), class_weights="balanced"),
        optim=Optim(lr=3e-3),
    )
    summary = train(variant(recipe, run={"steps": 30, "batch_size": 16}), out=tmp_path / "run").summary
    assert summary["top1"] == 1.0
    assert [Path(name).name for name, _ in summary["bad_images"]] == ["broken.jpg"]


def test_run_uses_its_published_preprocessing(tmp_path: Path) -> None:
    plain = dataclasses.replace(BASE, augment=Augment(), optim=Optim(name="muon", muon_lr=0.02))
    run = train(
        variant(plain, model={"image_size": 12}, data={"fit": "vit_jax_eval"}, run={"save_every_s": 60}),
        out=tmp_path / "run",
    )
    model = load(run.path)
    assert model.preprocess.fit == "vit_jax_eval" and model.preprocess.dtype == np.float32
    assert evaluate(model).top1 == run.summary["top1"] > 0.3


def test_training_keeps_the_callers_random_state(tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train(variant(BASE, run={"steps": 1}), out=tmp_path / "run")
    assert torch.equal(torch.rand(3), wanted)

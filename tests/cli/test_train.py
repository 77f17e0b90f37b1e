"""mlpmixer train: what it prints, how it ends, and what --resume does."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.lines import RunLine
from helpers.processes import SOURCES
from PIL import Image

from mlpmixer import cli
from mlpmixer.cli import train
from mlpmixer.config import to_json
from mlpmixer.training import run as training
from mlpmixer.training.loop import Diverged, Interrupted
from mlpmixer.training.recipe import Recipe, read_recipe, variant
from mlpmixer.weights.run_folder import LOCK_FILE, read_metrics, read_summary


def test_prints_the_result_and_where_it_is(run: RunLine, quick: list[str], tmp_path: Path) -> None:
    code, out, err = run("train", "digits", "--out", str(tmp_path / "run"), *quick)
    assert (code, err) == (0, "")
    assert (tmp_path / "run" / "report.html").exists()
    result, weights, time, files, following = out.splitlines()[-5:]
    score = r"top-1 [\d.]+ % \([\d.]+-[\d.]+\) of"
    assert re.fullmatch(rf"result  test {score} 360 images, validation {score} 72 images", result)
    assert weights == "weights the last: step 2 of 2"
    assert re.fullmatch(r"time    \d+ s, [\d,]+ images/s, peak memory [\d,]+ MiB", time)
    assert files == f"files   {tmp_path / 'run' / 'model.safetensors'} {tmp_path / 'run' / 'report.html'}"
    assert following == f"next    mlpmixer predict {tmp_path / 'run'} IMAGE..."


def test_test_images_that_are_also_in_train_are_said_beside_the_result(
    run: RunLine, quick: list[str], tmp_path: Path
) -> None:
    for split in ("train", "test"):
        for i in range(12):
            image = tmp_path / "data" / split / "ab"[i % 2] / f"{i}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 20 * i).save(image)
    code, out, _ = run("train", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--quiet", *quick)
    assert code == 0 and re.search(r"note    test: \d+ of its 12 images (is|are) also in train", out)


def test_json_is_one_object_a_line(run: RunLine, quick: list[str], tmp_path: Path) -> None:
    _, out, _ = run("train", "digits", "--out", str(tmp_path / "run"), "--json", *quick)
    kinds = [json.loads(line)["kind"] for line in out.splitlines()]
    assert (kinds[0], kinds[-1]) == ("start", "end") and "eval" in kinds


def test_default_folder_is_free(
    run: RunLine, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", "digits", "--quiet", *quick)[0] == run("train", "digits", "--quiet", *quick)[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["digits", "digits-2"]


def test_fine_tuned_evaluated_at_another_size_and_converted(run: RunLine, digits_run: Path, tmp_path: Path) -> None:
    out, npz = str(tmp_path / "tuned"), str(tmp_path / "w.npz")
    line = ["train", "digits", "--init", str(digits_run), "--image-size", "12", "--steps", "2", "--out", out, "--quiet"]
    assert run(*line)[0] == 0
    code, printed, _ = run("evaluate", out, "--image-size", "16")
    assert code == 0 and "\n360 images" in printed
    code, printed, noted = run("convert", out, npz)
    assert code == 0 and printed.strip() == npz and "class names and preprocessing are not part of this form" in noted
    code, printed, _ = run("evaluate", npz, "digits")  # which knows neither its data nor its cut
    assert code == 0 and "\n1,797 images" in printed and "does not say which images it was trained on" in printed


def test_ctrl_c_tells_how_to_resume(monkeypatch: pytest.MonkeyPatch, run: RunLine, tmp_path: Path) -> None:
    def stopped(recipe: Recipe, **kwargs: Any) -> None:
        raise Interrupted(1234, kwargs["out"])

    monkeypatch.setattr(training, "train", stopped)
    code, _, err = run("train", "digits", "--out", str(tmp_path / "run"))
    assert code == 130
    assert f"mlpmixer train --resume {tmp_path / 'run'}" in err and "1,234" in err


def test_diverged_run_is_a_failure(monkeypatch: pytest.MonkeyPatch, run: RunLine, tmp_path: Path) -> None:
    def diverged(recipe: Recipe, **kwargs: Any) -> None:
        raise Diverged("the loss is nan at step 7")

    monkeypatch.setattr(training, "train", diverged)
    code, _, err = run("train", "digits", "--out", str(tmp_path / "run"))
    assert code == 1
    assert "the loss is nan at step 7" in err


def test_resume_needs_no_data(digits_run: Path, run: RunLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    for line in ("--resume RUN", "--out RUN --resume", "--resume=RUN --quiet", "--resume RUN digits"):
        command: Any = cli.parse(["train", *line.replace("RUN", str(digits_run)).split()]).make()
        assert (command.resume, command.data) == (str(digits_run), "digits")
        assert command.config == read_recipe(digits_run)
    assert run("train", "--resume", str(digits_run))[0] == 0


@pytest.mark.parametrize(
    "options", ["mnist", "--data.name mnist", "--optim.mirror", "--lr 0.5", "--recipe digits", "--out other"]
)
def test_resumed_run_stays_as_it_was_started(options: str, digits_run: Path, run: RunLine) -> None:
    code, _, err = run("train", "--resume", str(digits_run), *options.split())
    assert code == 2
    assert f"a run resumes as it was started; leave the other options out: mlpmixer train --resume {digits_run}" in err


def test_latest_unfinished_run(tmp_path: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no unfinished run under runs/; name the run"):
        cli.parse(["train", "--resume"]).make()
    for name, age in (("older", 100), ("latest", 50), ("done", 0)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        shutil.copy(digits_run / "recipe.json", folder)
        if name != "older":
            whole = json.dumps({"steps": 2, "train_s": 1.0})
            (folder / "summary.json").write_text(whole if name == "done" else "{")  # damaged: not finished
        stamp = digits_run.stat().st_mtime + 1000 - age
        os.utime(folder, (stamp, stamp))
    command: Any = cli.parse(["train", "--resume"]).make()
    assert command.resume == "runs/latest"


def test_folds_end_with_the_labels_to_look_at_and_resume_by_name(
    run: RunLine, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("train", "digits", "--folds", "2", "--data.train-fraction", "0.1", *quick)
    assert (code, err) == (0, "")
    table, labels, summary = out[out.index("fold  ") :].split("\n\n")
    assert len(table.splitlines()) == 3 and len(labels.splitlines()) == 2 + 10
    result, suspicious, time, files, following = summary.splitlines()
    folder = "runs/digits-2-folds"
    number = r"\d+\.\d+"
    assert re.match(rf"result  top-1 {number} % \+- {number} \({number}-{number}\) over 2 folds; {number} %", result)
    assert re.fullmatch(r"labels  [\d,]+ contradict the prediction; .*: out_of_fold.csv", suspicious)
    assert files == f"files   {folder}/out_of_fold.csv {folder}/report.html" and time.startswith("time    ")
    assert following.startswith("next    mlpmixer train digits ")
    assert run("train", "--resume", folder)[1].endswith(summary), "a finished one says the same again"
    assert "no unfinished run" in run("train", "--resume")[2]
    for line in (f"evaluate {folder}", f"predict {folder} x.png", f"compare {folder} {folder}/fold-1"):
        code, _, err = run(*line.split())
        assert code == 2 and f"{folder} is a cross-validation" in err and f"{folder}/fold-1, or train" in err
    assert "already holds a cross-validation" in run("train", "digits", "--out", folder, "--resume", *quick)[2]


def test_unfinished_folds_are_the_latest_run(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = variant(read_recipe(digits_run), data={"folds": 5})
    (tmp_path / "runs" / "folds").mkdir(parents=True)
    (tmp_path / "runs" / "folds" / "folds.json").write_text(json.dumps({"recipe": to_json(recipe)}))
    command: Any = cli.parse(["train", "--resume"]).make()
    assert (command.resume, command.config) == ("runs/folds", recipe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--folds 1", "--folds must be 2 to 1,000, or 0 for none, got 1"),
        ("--folds 200", "--folds=200 needs 200 different images of each class"),
        ("--folds 5 --no-test", "leave --no-test out"),
        ("--folds 5 --tensorboard", "--tensorboard is for a single run"),
        ("--data.fold 2", "and --folds is 0"),
        ("--data.folds 3 --data.fold 4", "--data.fold=4 is the number of one of the parts, and --data.folds is 3"),
    ],
)
def test_folds_that_make_no_sense(options: str, message: str, run: RunLine, tmp_path: Path) -> None:
    code, out, err = run("train", "digits", "--out", str(tmp_path / "run"), *options.split())
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--out", "run"], ["--out", "run", "--resume"], []], ids=" ".join)
def test_two_commands_of_the_same_instant_never_share_a_folder(
    options: list[str], quick: list[str], tmp_path: Path
) -> None:
    command, env = [sys.executable, "-m", "mlpmixer", "train", "digits", "--quiet", *quick, *options], dict(os.environ)
    env["PYTHONPATH"] = str(SOURCES)
    both = [subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    codes = sorted(process.returncode for process in both)
    if options:
        refused = max(both, key=lambda process: process.returncode)
        assert codes == [0, 2] or (codes == [0, 0] and "--resume" in options), (
            errors
        )  # the other one came when it had ended
        says = rf"run (is in use: process {(set(both) - {refused}).pop().pid} on|already holds a run)"
        assert codes == [0, 0] or re.search(says, errors[both.index(refused)])
        folders = [tmp_path / "run"]
    else:
        assert codes == [0, 0], errors
        folders = [tmp_path / "runs" / name for name in ("digits", "digits-2")]
    for folder in folders:
        steps = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "step"]
        assert read_summary(folder) and steps == sorted(set(steps)) and not (folder / LOCK_FILE).exists()


def test_resume_beside_out_starts_a_run(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    for args in (
        ["train", "digits", "--lr", "0.1", "--out", out, "--resume"],
        ["train", "digits", "--resume", "--out", out, "--lr", "0.1"],
        ["train", "digits", "--resume", "latest", "--out", out, "--lr", "0.1"],
    ):
        command: Any = cli.parse(args).make()
        assert (command.out, command.resume, command.config.optim.lr) == (out, out, 0.1)
    with pytest.raises(ValueError, match="which DATA"):
        cli.parse(["train", "--resume", "--out", out]).make()


def test_resume_beside_out_needs_no_init_file(digits_run: Path, run: RunLine, tmp_path: Path) -> None:
    weights, out = tmp_path / "weights.safetensors", str(tmp_path / "run")
    shutil.copy(digits_run / "model.safetensors", weights)
    line = ["train", "digits", "--init", str(weights), "--patch-size", "4", "--lr", "0.003", "--steps", "2"]
    line += ["--out", out, "--resume", "--quiet"]
    assert run(*line)[0] == 0
    weights.unlink()
    assert run(*line)[0] == 0
    code, _, err = run(*line, "--lr", "0.5")
    assert code == 2 and "started with another recipe" in err
    code, _, err = run("train", "digits", "--init", str(weights), "--out", str(tmp_path / "new"), "--resume")
    assert code == 2 and "weights.safetensors does not exist" in err


def test_a_command_that_torchrun_repeats_must_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(ValueError, match="give --out DIR --resume"):
        cli.parse(["train", "digits", "--out", "runs/x"]).make()


def test_one_of_several_processes_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert train.ranks_here() == {}
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    says = r"WORLD_SIZE=4, but LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set; .* torchrun"
    with pytest.raises(ValueError, match=says):
        train.ranks_here()
    for name, value in (("LOCAL_RANK", "1"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    assert train.ranks_here() == {"rank": 3, "size": 4, "local_rank": 1}


def test_the_first_ten_unreadable_images_are_named(run: RunLine, quick: list[str], tmp_path: Path) -> None:
    for k in range(40):
        folder = tmp_path / "data" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), k).save(folder / f"{k}.png")
    for k in range(20):
        (tmp_path / "data" / "a" / f"broken{k:02}.png").write_bytes(b"no image")
    line = ["train", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--no-test", "--data.max-bad-share", "1"]
    code, out, _ = run(*line, *quick)
    bad = json.loads((tmp_path / "run" / "summary.json").read_text())["bad_images"]
    assert code == 0 and 10 < len(bad) <= 20
    for start in ("cannot be read: a/broken", "left out  a/broken"):  # before and after
        assert out.count(start) == 10
    assert out.count(f"and {len(bad) - 10:,} more images") == 2

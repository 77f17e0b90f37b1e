"""The CIFAR-10 transfer table: what it says, what is checked before anything starts, and runs on weights of the true
shapes."""

import dataclasses
import json
import shlex
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.datasets import write_cifar10

from mlpmixer import cli
from mlpmixer.download import cache_path
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer_names import official_table
from mlpmixer.models.names import MIXERS, MODELS
from mlpmixer.registry import Registry
from mlpmixer.reproduce import ExperimentContext, OutOfTime, Overrides, cifar10_transfer, run
from mlpmixer.reproduce.cifar10_transfer import ROWS, Plan, make_plan, published_recipe, read_results
from mlpmixer.reproduce.published import AVG5, VTAB
from mlpmixer.training.loop import Interrupted
from mlpmixer.training.recipe import read_recipe
from mlpmixer.training.recipes import RECIPES
from mlpmixer.weights import run_folder
from mlpmixer.weights.formats import read_npz
from mlpmixer.weights.model_file import read_tensors
from mlpmixer.weights.published import WEIGHTS

SMALL = MixerConfig(image_size=32, num_blocks=2, hidden_dim=48, tokens_mlp_dim=24, channels_mlp_dim=96, patch_size=8)
NAMES = ("Small/8:imagenet1k", "Small/8:imagenet21k")


def write_as_published(path: Path, cfg: MixerConfig) -> Path:
    """An .npz of random weights with the names, the shapes and to the byte the size of Google's files of May 2021."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for row in sorted(official_table(cfg), key=lambda row: row.theirs.split("/")):
            array = rng.standard_normal(row.shape, dtype=np.float32)
            array *= 0.02
            with archive.open(f"{row.theirs}.npy", "w") as f:
                np.lib.format.write_array(f, array)
    return path


def published_size(cfg: MixerConfig) -> int:
    """What `write_as_published` writes: for each array a header of 128 bytes and two of the archive's with its name; at
    the end 22."""
    rows = official_table(cfg)
    return 22 + sum(4 * int(np.prod(r.shape)) + 128 + 30 + 46 + 2 * len(f"{r.theirs}.npy") for r in rows)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A table of two small rows in an empty working directory that has their weights/ and data/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    official = RECIPES["finetune-official"]()
    recipe = dataclasses.replace(
        official, name="small", run=dataclasses.replace(official.run, steps=4, batch_size=16, accumulate=2)
    )
    monkeypatch.setitem(MODELS, "Small/8", SMALL)
    monkeypatch.setitem(RECIPES, "small", lambda: recipe)
    for name in NAMES:
        like = WEIGHTS[name.replace("Small/8", "B/16")]
        url = f"https://storage.googleapis.com/mixer_models/{like.classes}/Mixer-Small_8.npz"
        size = published_size(dataclasses.replace(SMALL, num_classes=like.num_classes))
        monkeypatch.setitem(WEIGHTS, name, dataclasses.replace(like, model="Small/8", url=url, num_bytes=size))
        write_as_published(tmp_path / "weights" / like.classes / "Mixer-Small_8.npz", WEIGHTS[name].config)
    rows: Registry[float] = Registry("row")
    rows |= {NAMES[0]: 0.25, NAMES[1]: 0.5}
    for name, value in {"RECIPE": "small", "ROWS": rows, "TRAIN_IMAGES": 90, "TEST_IMAGES": 20}.items():
        monkeypatch.setattr(cifar10_transfer, name, value)
    write_cifar10(tmp_path / "data")
    yield tmp_path


HERE = ["--data-dir", "data", "--weights-dir", "weights", "--device", "cpu"]
FILES = {"data_dir": "data", "weights_dir": "weights", "device": "cpu"}
FULL, REDUCED = Path("results/cifar10-transfer/full"), Path("results/cifar10-transfer/full-reduced")


def reproduce(*words: str) -> int:
    return cli.main(["reproduce", "cifar10-transfer", *words])


def plan(*rows: str, **settings: Any) -> Plan:
    return make_plan(ExperimentContext(name="cifar10-transfer", **settings), rows)


# --- what the table says ------------------------------------------------------------------------------------------


def test_table_holds_the_published_figures_and_the_official_rule() -> None:
    assert ROWS == {
        "B/16:imagenet1k": 0.9672,
        "L/16:imagenet1k": 0.9659,
        "B/16:imagenet21k": 0.9682,
        "L/16:imagenet21k": 0.9834,
    }
    for row in ROWS:
        recipe = published_recipe(row)
        settings = (recipe.run.steps, recipe.run.batch_size, recipe.optim.lr, recipe.optim.warmup_steps)
        assert settings == (10_000, 512, 0.03, 500)
        assert (recipe.init.weights, recipe.model.image_size, recipe.data.name) == (row, 224, "cifar10")
        assert recipe.model == dataclasses.replace(MIXERS[row[:4]], num_classes=WEIGHTS[row].num_classes)


@pytest.mark.parametrize("row", ROWS)
def test_names_and_shapes_of_the_weights_add_up_to_the_published_size(row: str) -> None:
    assert published_size(WEIGHTS[row].config) == WEIGHTS[row].num_bytes


# --- before anything starts ---------------------------------------------------------------------------------------


def test_weights_that_cannot_be_fetched_are_one_message(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(url: str, **options: Any) -> Path:
        raise ValueError("long story") from ValueError("no network")

    monkeypatch.setattr(cifar10_transfer, "fetch", offline)
    assert reproduce("--data-dir", "data") == 2
    out, err = capsys.readouterr()
    assert out == "" and not (small / "results").exists()
    total = sum(WEIGHTS[name].num_bytes for name in NAMES)
    assert f"{total:,} bytes in all (no network)" in err
    for name in NAMES:
        assert f"{WEIGHTS[name].url} ({WEIGHTS[name].num_bytes:,} bytes)" in err
        assert str(cache_path(WEIGHTS[name].url)) in err
    assert "GiB of memory" in err


def test_absent_weights_are_fetched_when_all_else_is_there(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(url: str, *, num_bytes: int, report: object) -> Path:
        fetched.append(url)
        (path := cache_path(url)).parent.mkdir(parents=True)
        return (small / "weights" / path.parent.name / path.name).rename(path)

    monkeypatch.setattr(cifar10_transfer, "fetch", fetch)
    only = Overrides(rows=NAMES[:1])
    with pytest.raises(ValueError, match=r"no folder 'nowhere'"):
        run("cifar10-transfer", overrides=only, data_dir="nowhere", device="cpu")
    assert fetched == []
    page, _ = run("cifar10-transfer", overrides=only, data_dir="data", device="cpu")
    first, second = page.figures["rows"]
    assert fetched == [WEIGHTS[NAMES[0]].url] and first["top1"] is not None and second["top1"] is None
    assert read_recipe(Path(first["run"])).init.weights == NAMES[0]


def test_everything_missing_is_said_at_once(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = small / "weights" / "imagenet1k" / "Mixer-Small_8.npz"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-200] + bytes(200))
    (small / "weights" / "imagenet21k" / "Mixer-Small_8.npz").unlink()
    assert reproduce("--data-dir", "dato", "--weights-dir", "weights", "--device", "tpu") == 2
    err = capsys.readouterr().err
    assert "no folder 'dato'" in err and "did you mean" in err
    assert "no device named 'tpu'" in err
    file = Path("weights", "imagenet1k", "Mixer-Small_8.npz")
    assert f"{file} is not an .npz file, or it is cut off or damaged" in err
    assert f"at {Path('weights', 'imagenet21k', 'Mixer-Small_8.npz')}" in err
    assert not (small / "results").exists()
    damaged.write_bytes(content[:-1])
    found = plan(NAMES[0], data_dir="data", weights_dir="weights")
    assert f"has {len(content) - 1:,} bytes, but" in found.missing()


def test_weights_of_another_mixer_are_refused(small: Path) -> None:
    other = dataclasses.replace(SMALL, tokens_mlp_dim=96, channels_mlp_dim=24, num_classes=1000)
    file = write_as_published(small / "weights" / "imagenet1k" / "Mixer-Small_8.npz", other)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"x" * (WEIGHTS[NAMES[0]].num_bytes - file.stat().st_size)
    (problem,) = plan(**FILES).problems
    assert "are of another mixer: tokens_mlp_dim 96 instead of 24, channels_mlp_dim 24 instead of 96" in problem


def test_weight_files_side_by_side_are_told_apart_by_size(small: Path) -> None:
    (small / "flat").mkdir()
    (small / "weights" / "imagenet21k" / "Mixer-Small_8.npz").rename(small / "flat" / "Mixer-Small_8.npz")
    found = plan(data_dir="data", weights_dir="flat")
    assert [job.row for job in found.absent] == [NAMES[0]]
    assert found.jobs[1].file == Path("flat", "Mixer-Small_8.npz")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--row", "Small/8:imagenet"], "did you mean Small/8:imagenet"),
        (["--steps", "5"], "at most the published 4, got 5"),
        (["--batch-size", "-1"], "at least 1 and at most the published 16, got -1"),
        (["--accumulate", "3"], "must divide run.batch_size=16"),
    ],
)
def test_mistake_gets_a_suggestion(
    small: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce(*words, *HERE) == 2
    assert says in capsys.readouterr().err and not (small / "results").exists()


def test_check_says_what_it_takes_and_starts_nothing(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce("--check", *HERE) == 0
    assert NAMES[0] in (out := capsys.readouterr().out) and "PFLOPs" in out
    (small / "weights" / "imagenet1k" / "Mixer-Small_8.npz").unlink()
    assert reproduce("--check", "--json", *HERE) == 1
    told = json.loads(capsys.readouterr().out)
    assert [row["weights"] for row in told["rows"]] == ["absent", "there"] and "Mixer-Small_8.npz" in told["lacking"]
    assert not (small / "results").exists()


def test_cost_is_that_of_the_network() -> None:
    (job,) = plan("B/16:imagenet1k", data_dir="nowhere", weights_dir="nowhere").jobs
    assert job.flops == 3 * 10_000 * 512 * sum(layer.flops for layer in MIXERS["B/16"].layers())
    assert job.num_bytes == pytest.approx(8.4e9, rel=0.02)  # 64 images at a time


# --- runs ---------------------------------------------------------------------------------------------------------


def test_rows_are_run_and_written_once(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce("--quiet", *HERE) == 0
    assert "REDUCED" not in capsys.readouterr().out
    text, told = (FULL / "README.md").read_text(), json.loads((FULL / "table.json").read_text())
    assert "9,728 of the 10,000" in text and "crops are antialiased" in text
    for row, official in zip(told["figures"]["rows"], (0.25, 0.5), strict=True):
        summary = json.loads((Path(row["run"]) / "summary.json").read_text())
        assert (row["top1"], row["n"], row["steps"], row["reduced"]) == (summary["test"]["top1"], 20, 4, False)
        assert row["difference"] == pytest.approx(row["top1"] - official)
    before = {p: p.stat().st_mtime_ns for p in FULL.glob("runs/*/*")}
    assert before and reproduce("--json", *HERE) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["kind"], last["figures"]) == ("page", told["figures"])
    (small / "weights").rename(small / "elsewhere")
    command = told["command"].replace("--data-dir DIR --weights-dir DIR", "--data-dir data --weights-dir weights")
    assert f"    {told['command']}" in text and cli.main(shlex.split(command)[1:]) == 0  # finished rows need no weights
    assert {p: p.stat().st_mtime_ns for p in FULL.glob("runs/*/*")} == before


def test_reduced_rows_are_marked_and_kept_apart(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce("--row", NAMES[1], "--steps", "2", "--batch-size", "6", "--quiet", *HERE) == 0
    out, text = capsys.readouterr().out, (REDUCED / "README.md").read_text()
    differs = "run.steps 2 instead of 4; run.batch_size 6 instead of 16."
    sentence = f"REDUCED is not the published setting and reproduces nothing: {differs}"
    assert sentence in text and sentence in out and "not run" in out  # the other row
    first, second = read_results(REDUCED)
    assert first["top1"] is None and second["reduced"]
    options = f"--row {NAMES[1]} --steps 2 --batch-size 6 --data-dir DIR --weights-dir DIR --device cpu"
    assert f"    mlpmixer reproduce cifar10-transfer --scale full {options}\n" in text
    assert not FULL.exists()
    assert reproduce("--row", NAMES[1], "--steps", "3", *HERE) == 2
    assert "holds a run of other settings (run.steps 3 instead of 2" in capsys.readouterr().err


def test_other_images_than_the_published_are_marked(small: Path) -> None:
    write_cifar10(small / "data", per_class=3)
    page, _ = run("cifar10-transfer", overrides=Overrides(rows=NAMES[:1]), **FILES)
    differs = ["140 training images instead of 90", "30 test images instead of 20"]
    assert page.figures["rows"][0]["differs"] == differs


def test_interrupted_row_resumes_bit_for_bit(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import signal

    def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
        def report(event: dict[str, Any]) -> None:
            if event["kind"] in ("step", "eval") and event["step"] == step:
                signal.raise_signal(signal.SIGINT)

        return report

    recipe = RECIPES["small"]()
    often = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, log_every=1))
    monkeypatch.setitem(RECIPES, "small", lambda: often)
    with pytest.raises(Interrupted):
        run("cifar10-transfer", out="stopped", report=stop_at(2), **FILES)
    assert reproduce("--check", "--out", "stopped", *HERE) == 0
    assert "started" in capsys.readouterr().out
    rows: list[str] = []
    run(
        "cifar10-transfer",
        out="stopped",
        report=lambda e: rows.append(e["row"]) if e["kind"] == "row" else None,
        **FILES,
    )
    assert rows == [name.replace("/", "-").replace(":", "-") for name in NAMES]
    run("cifar10-transfer", out="whole", overrides=Overrides(rows=NAMES[:1]), **FILES)
    files = [small / out / "runs" / "Small-8-imagenet1k" / run_folder.MODEL_FILE for out in ("stopped", "whole")]
    stopped, whole = (read_tensors(file)[0] for file in files)
    assert all(torch.equal(stopped[name], whole[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", [row for row in ROWS if row.startswith("B/16")])
def test_row_runs_on_a_file_of_the_true_names_shapes_and_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, file = WEIGHTS[name].url.split("/")[-2:]
    path = write_as_published(tmp_path / "weights" / folder / file, WEIGHTS[name].config)
    assert path.stat().st_size == WEIGHTS[name].num_bytes
    assert len(read_npz(path)) == 150
    write_cifar10(tmp_path / "data", per_class=1)
    assert reproduce("--row", name, "--steps", "2", "--batch-size", "2", "--quiet", *HERE) == 0
    assert "REDUCED" in capsys.readouterr().out
    (result,) = (r for r in read_results(REDUCED) if r["top1"] is not None)
    assert (result["row"], result["n"], result["steps"]) == (name, 10, 2)
    assert {"run.steps 2 instead of 10,000", "10 test images instead of 10,000"} <= set(result["differs"])


# --- the experiment transfer --------------------------------------------------------------------------------------


def test_transfer_runs_the_rows_whose_weights_are_there(small: Path) -> None:
    page, path = run("transfer", **FILES)
    assert "0 of the 2 rows" in page.findings[0] and f"files are here: {', '.join(NAMES)}" in page.findings[0]
    counts = {key: len(page.figures[key]) for key in ("table2", "table3", "avg5", "vtab")}
    assert counts == {"table2": 10, "table3": 26, "avg5": 5, "vtab": 19}
    line = "ImageNet-21k | Mixer-L/16 | 448 |  | 84.15 % | 87.86 % | 93.91 % | 74.95 % | 105 | 410 | L/16:imagenet21k"
    assert f"| {line} |" in path.read_text()
    (small / "weights" / "imagenet1k" / "Mixer-Small_8.npz").unlink()
    with pytest.raises(OutOfTime, match="0 of 1 parts"):
        run("transfer", "full", max_minutes=1e-3, **FILES)
    page, path = run("transfer", "full", **FILES)
    assert "1 of the 2 rows" in page.findings[0]
    assert "Small/8:imagenet21k on CIFAR-10" in page.findings[1] and "50.00 %" in page.findings[1]
    assert page.figures["ours"][0]["top1"] is None and page.figures["ours"][1]["steps"] == 4


def test_vtabs_small_images_are_seen_at_224_px() -> None:
    small_ones = {task.name for task in VTAB if task.image_px == 224}
    assert small_ones == {"CIFAR-100", "SVHN", "EuroSAT", "dSprites, x position", "dSprites, orientation"}
    groups = {task.group: sum(t.group == task.group for t in VTAB) for task in VTAB}
    assert groups == {"natural": 7, "specialised": 4, "structured": 8}
    assert {task.steps for task in VTAB} == {500}
    assert [task.steps for task in AVG5] == [20_000, 10_000, 10_000, 500, 500]

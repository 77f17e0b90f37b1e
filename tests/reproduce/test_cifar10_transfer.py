"""Published tables: what they say, what is looked for before anything starts, and runs to the end on weights of the
true shapes."""

import dataclasses
import json
import shlex
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.datasets import write_cifar10

from mlpmixer import cli
from mlpmixer.data.catalog import DATASETS
from mlpmixer.download import cache_path
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer_names import official_table
from mlpmixer.models.names import MIXERS
from mlpmixer.reproduce import OutOfTime, cifar10_transfer, transfer
from mlpmixer.reproduce import run as run_experiment
from mlpmixer.reproduce.cifar10_transfer import TABLES, Row, Settings, Table, outcome_of, plan
from mlpmixer.reproduce.published import AVG5, VTAB
from mlpmixer.training.recipe import read_recipe
from mlpmixer.training.recipes import RECIPES
from mlpmixer.training.run import Interrupted
from mlpmixer.weights import run_folder
from mlpmixer.weights.formats import read_npz
from mlpmixer.weights.published import WEIGHTS, Weights

CIFAR = TABLES["cifar10-transfer"]
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
    """A table "small" of two rows, whose weights and data are under the folder that is given, as weights/ and data/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    official = RECIPES["finetune-official"]()
    recipe = dataclasses.replace(
        official, name="small", run=dataclasses.replace(official.run, steps=4, batch_size=16, accumulate=2)
    )
    monkeypatch.setitem(MIXERS, "Small/8", SMALL)
    monkeypatch.setitem(RECIPES, "small", lambda: recipe)
    for name in NAMES:
        like = WEIGHTS[name.replace("Small/8", "B/16")]
        url = f"https://storage.googleapis.com/mixer_models/{like.classes}/Mixer-Small_8.npz"
        size = published_size(dataclasses.replace(SMALL, num_classes=like.num_classes))
        monkeypatch.setitem(WEIGHTS, name, dataclasses.replace(like, model="Small/8", url=url, num_bytes=size))
        write_as_published(tmp_path / "weights" / like.classes / "Mixer-Small_8.npz", WEIGHTS[name].config)
    rows = (Row(weights=NAMES[0], top1=0.25), Row(weights=NAMES[1], top1=0.5))
    table = dataclasses.replace(CIFAR, recipe="small", rows=rows, train_images=99, test_images=20)
    monkeypatch.setitem(TABLES, "small", table)
    write_cifar10(tmp_path / "data")
    yield tmp_path


HERE = ["--data-dir", "data", "--weights-dir", "weights", "--device", "cpu"]


def run(*words: str) -> int:
    return cli.main(["reproduce", *words])


# --- what the table says ------------------------------------------------------------------------------------------


def test_the_table_holds_the_published_figures_and_the_official_rule() -> None:
    assert {row.weights: row.top1 for row in CIFAR.rows} == {
        "B/16:imagenet1k": 0.9672,
        "L/16:imagenet1k": 0.9659,
        "B/16:imagenet21k": 0.9682,
        "L/16:imagenet21k": 0.9834,
    }
    for row in CIFAR.rows:
        recipe = CIFAR.recipe_of(row)
        assert (recipe.run.steps, recipe.run.batch_size, recipe.optim.lr, recipe.optim.warmup_steps) == (
            10_000,
            512,
            0.03,
            500,
        )
        assert (recipe.init.weights, recipe.model.image_size, recipe.data.name) == (row.weights, 224, "cifar10")
        assert recipe.model == dataclasses.replace(
            MIXERS[row.weights[:4]], num_classes=WEIGHTS[row.weights].num_classes
        )


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_row_of_every_table_has_weights_and_a_recipe(name: str) -> None:
    for row in TABLES[name].rows:
        assert isinstance(WEIGHTS[row.weights], Weights) and 0 < row.top1 < 1
        assert TABLES[name].recipe_of(row).data.name in DATASETS


@pytest.mark.parametrize("row", CIFAR.rows, ids=lambda row: row.weights)
def test_the_names_and_shapes_of_its_weights_add_up_to_the_published_size(row: Row) -> None:
    assert published_size(WEIGHTS[row.weights].config) == WEIGHTS[row.weights].num_bytes


def test_tables_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "cifar10-transfer" in (out := capsys.readouterr().out) and "L/16:imagenet21k" in out
    assert run("--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["rows"] == [row.weights for row in CIFAR.rows]


# --- before anything starts ---------------------------------------------------------------------------------------


def test_weights_that_cannot_be_fetched_are_one_message_for_all_rows(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(url: str, **options: Any) -> Path:
        raise ValueError("long story") from ValueError("no network")

    monkeypatch.setattr(cifar10_transfer, "fetch", offline)
    assert run("small", "--data-dir", "data") == 2
    out, err = capsys.readouterr()
    assert out == "" and not (small / "runs").exists()
    total = sum(WEIGHTS[name].num_bytes for name in NAMES)
    assert f"{total:,} bytes in all (no network)" in err
    for name in NAMES:
        assert (
            f"{WEIGHTS[name].url} ({WEIGHTS[name].num_bytes:,} bytes)" in err
            and str(cache_path(WEIGHTS[name].url)) in err
        )
    assert "GiB of memory" in err


def test_absent_weights_are_fetched_when_everything_else_is_there(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(url: str, *, num_bytes: int, report: object) -> Path:
        fetched.append(url)
        (path := cache_path(url)).parent.mkdir(parents=True)
        return (small / "weights" / path.parent.name / path.name).rename(path)

    monkeypatch.setattr(cifar10_transfer, "fetch", fetch)
    with pytest.raises(ValueError, match=r"no folder 'nowhere'"):
        cifar10_transfer.reproduce("small", [NAMES[0]], Settings(data_dir="nowhere", device="cpu"))
    assert fetched == []
    done = cifar10_transfer.reproduce("small", [NAMES[0]], Settings(data_dir="data", device="cpu"))
    assert fetched == [WEIGHTS[NAMES[0]].url] and done.results[0] and done.results[1] is None
    assert read_recipe(Path(done.results[0].run)).init.weights == NAMES[0]
    assert "--weights-dir" not in done.results[0].command


def test_everything_that_is_lacking_is_said_at_once(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = small / "weights" / "imagenet1k" / "Mixer-Small_8.npz"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-200] + bytes(200))
    (small / "weights" / "imagenet21k" / "Mixer-Small_8.npz").unlink()
    assert run("small", "--data-dir", "dato", "--weights-dir", "weights", "--device", "tpu") == 2
    err = capsys.readouterr().err
    assert "no folder 'dato'" in err and "did you mean" in err
    assert "no device named 'tpu'" in err
    assert (
        f"{Path('weights', 'imagenet1k', 'Mixer-Small_8.npz')} is not an .npz file, or it is cut off or damaged" in err
    )
    assert f"at {Path('weights', 'imagenet21k', 'Mixer-Small_8.npz')}" in err
    assert not (small / "runs").exists()
    damaged.write_bytes(content[:-1])
    assert (
        f"has {len(content) - 1:,} bytes, but"
        in plan("small", [NAMES[0]], Settings(data_dir="data", weights_dir="weights")).lacking()
    )


def test_weights_of_another_mixer_are_refused(small: Path) -> None:
    other = dataclasses.replace(SMALL, tokens_mlp_dim=96, channels_mlp_dim=24, num_classes=1000)
    file = write_as_published(small / "weights" / "imagenet1k" / "Mixer-Small_8.npz", other)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"x" * (WEIGHTS[NAMES[0]].num_bytes - file.stat().st_size)
    found = plan("small", (), Settings(data_dir="data", weights_dir="weights", device="cpu"))
    assert len(found.problems) == 1
    assert (
        "are of another Mixer: tokens_mlp_dim 96 instead of 24, channels_mlp_dim 24 instead of 96" in found.problems[0]
    )


def test_weight_files_may_lie_side_by_side_and_are_told_apart_by_size(small: Path) -> None:
    (small / "flat").mkdir()
    (small / "weights" / "imagenet21k" / "Mixer-Small_8.npz").rename(small / "flat" / "Mixer-Small_8.npz")
    found = plan("small", (), Settings(data_dir="data", weights_dir="flat"))
    assert [job.row.weights for job in found.absent] == [NAMES[0]]
    assert found.jobs[1].file == Path("flat", "Mixer-Small_8.npz")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["smal"], "did you mean small"),
        (["small", "--row", "Small/8:imagenet"], "did you mean Small/8:imagenet"),
        (["small", "--steps", "5"], "at most the published 4, got 5"),
        (["small", "--batch-size", "-1"], "at least 1 and at most the published 16, got -1"),
        (["small", "--accumulate", "3"], "must divide run.batch_size=16"),
    ],
)
def test_a_mistake_is_answered_with_what_is_right(
    small: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words, *HERE) == 2
    assert says in capsys.readouterr().err and not (small / "runs").exists()


def test_check_says_what_it_takes_and_starts_nothing(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("small", "--check", *HERE) == 0
    assert NAMES[0] in (out := capsys.readouterr().out) and "PFLOPs" in out
    (small / "weights" / "imagenet1k" / "Mixer-Small_8.npz").unlink()
    assert run("small", "--check", "--json", *HERE) == 1
    told = json.loads(capsys.readouterr().out)
    assert [row["weights"] for row in told["rows"]] == ["absent", "there"] and "Mixer-Small_8.npz" in told["lacking"]
    assert not (small / "runs").exists()


def test_the_cost_is_that_of_the_network() -> None:
    job = plan("cifar10-transfer", ["B/16:imagenet1k"], Settings(data_dir="nowhere", weights_dir="nowhere")).jobs[0]
    assert job.flops == 3 * 10_000 * 512 * sum(layer.flops for layer in MIXERS["B/16"].layers())
    assert job.num_bytes == pytest.approx(8.4e9, rel=0.02)  # 64 images at a time


# --- runs ---------------------------------------------------------------------------------------------------------


def test_a_table_is_run_and_written_and_not_run_again(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("small", "--quiet", *HERE) == 0
    out = capsys.readouterr().out
    assert (
        "REDUCED" not in out
        and "9,728 of the 10,000" in out
        and "known deviations of ours: crops are antialiased" in out
    )
    told = json.loads((small / "runs" / "small" / "table.json").read_text())
    for row, official in zip(told["rows"], (0.25, 0.5), strict=True):
        summary = json.loads((Path(row["run"]) / "summary.json").read_text())
        assert (row["top1"], row["n"], row["steps"], row["reduced"]) == (summary["test"]["top1"], 20, 4, False)
        assert row["difference"] == pytest.approx(row["top1"] - official)
        assert f"`{row['command']}`" in (small / "runs" / "small" / "table.md").read_text()
    before = {p: p.stat().st_mtime_ns for p in small.glob("runs/*/*/*")}
    assert run("small", "--json", *HERE) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"kind": "table", **told}
    assert {p: p.stat().st_mtime_ns for p in small.glob("runs/*/*/*")} == before
    (small / "weights").rename(small / "elsewhere")
    assert cli.main(shlex.split(told["rows"][0]["command"])[1:]) == 0  # it is the command of a finished row
    assert {p: p.stat().st_mtime_ns for p in small.glob("runs/*/*/*")} == before


def test_what_is_not_as_published_is_marked_and_kept_apart(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("small", "--row", NAMES[1], "--steps", "2", "--batch-size", "6", "--quiet", *HERE) == 0
    out = capsys.readouterr().out
    assert (
        "REDUCED is not the published setting and reproduces nothing: run.steps 2 instead of 4; run.batch_size 6 "
        "instead of 16." in out
    )
    assert "not run" in out  # the other row
    first, second = outcome_of("small", "runs/small-reduced").results
    assert first is None and second and second.reduced
    options = "--data-dir data --out runs/small-reduced --weights-dir weights --steps 2 --batch-size 6 --device cpu"
    assert second.command == f"mlpmixer reproduce small --row {NAMES[1]} {options}"
    assert not (small / "runs" / "small").exists()
    assert run("small", "--row", NAMES[1], "--steps", "3", "--out", "runs/small-reduced", *HERE) == 2
    assert "holds a run of other settings (run.steps 3 instead of 2" in capsys.readouterr().err


def test_other_images_than_the_published_are_marked_too(small: Path) -> None:
    write_cifar10(small / "data", per_class=3)
    done = cifar10_transfer.reproduce(
        "small", [NAMES[0]], Settings(data_dir="data", weights_dir="weights", device="cpu")
    )
    assert done.results[0] and done.results[0].differs == (
        "149 training images instead of 99",
        "30 test images instead of 20",
    )


def test_an_interrupted_row_goes_on_exactly(
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
    settings = Settings(data_dir="data", weights_dir="weights", device="cpu")
    with pytest.raises(Interrupted):
        cifar10_transfer.reproduce("small", (), settings, "stopped", report=stop_at(2))
    assert run("small", "--check", "--out", "stopped", *HERE) == 0
    assert "started" in capsys.readouterr().out
    rows = []
    cifar10_transfer.reproduce(
        "small", (), settings, "stopped", report=lambda e: rows.append(e["row"]) if e["kind"] == "row" else None
    )
    assert rows == list(NAMES)
    cifar10_transfer.reproduce("small", [NAMES[0]], settings, "whole")
    stopped, whole = (read_model(small / out / "Small-8-imagenet1k") for out in ("stopped", "whole"))
    assert all(np.array_equal(stopped[name], whole[name]) for name in whole)


def read_model(run: Path) -> dict[str, np.ndarray]:
    from mlpmixer.weights.model_file import read_tensors

    return {name: tensor.numpy() for name, tensor in read_tensors(run / run_folder.MODEL_FILE)[0].items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [row.weights for row in CIFAR.rows if row.weights.startswith("B/16")])
def test_a_row_runs_to_its_end_on_a_file_of_the_true_names_shapes_and_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, file = WEIGHTS[name].url.split("/")[-2:]
    path = write_as_published(tmp_path / "weights" / folder / file, WEIGHTS[name].config)
    assert path.stat().st_size == WEIGHTS[name].num_bytes
    assert len(read_npz(path)) == 150
    write_cifar10(tmp_path / "data", per_class=1)
    assert run("cifar10-transfer", "--row", name, "--steps", "2", "--batch-size", "2", "--quiet", *HERE) == 0
    assert "REDUCED" in capsys.readouterr().out
    result = next(r for r in outcome_of("cifar10-transfer", "runs/cifar10-transfer-reduced").results if r)
    assert (result.row, result.n, result.steps) == (name, 10, 2)
    assert "run.steps 2 instead of 10,000" in result.differs and "10 test images instead of 10,000" in result.differs


def test_the_experiment_transfer_tells_all_and_runs_the_rows_whose_weights_are_there(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "RUNNABLE", "small")
    page, path = run_experiment("transfer", data_dir="data", weights_dir="weights", device="cpu")
    assert "0 of the 2 rows" in page.findings[0] and f"files are here: {', '.join(NAMES)}" in page.findings[0]
    assert {key: len(page.figures[key]) for key in ("table2", "table3", "avg5", "vtab")} == {
        "table2": 10,
        "table3": 26,
        "avg5": 5,
        "vtab": 19,
    }
    assert (
        "| ImageNet-21k | Mixer-L/16 | 448 |  | 84.15 % | 87.86 % | 93.91 % | 74.95 % | 105 | 410 | L/16:imagenet21k |"
        in path.read_text()
    )
    (small / "weights" / "imagenet1k" / "Mixer-Small_8.npz").unlink()
    with pytest.raises(OutOfTime, match="0 of 1 parts"):
        run_experiment("transfer", "full", data_dir="data", weights_dir="weights", device="cpu", max_minutes=1e-3)
    page, path = run_experiment("transfer", "full", data_dir="data", weights_dir="weights", device="cpu")
    assert (
        "1 of the 2 rows" in page.findings[0]
        and "Small/8:imagenet21k on CIFAR-10" in page.findings[1]
        and "50.00 %" in page.findings[1]
    )
    assert page.figures["ours"][0]["top1"] is None and page.figures["ours"][1]["steps"] == 4


def test_vtabs_small_images_are_seen_at_224_px() -> None:
    small_ones = {task.name for task in VTAB if task.image_px == 224}
    assert small_ones == {"CIFAR-100", "SVHN", "EuroSAT", "dSprites, x position", "dSprites, orientation"}
    assert {task.group: sum(t.group == task.group for t in VTAB) for task in VTAB} == {
        "natural": 7,
        "specialised": 4,
        "structured": 8,
    }
    assert {task.steps for task in VTAB} == {500} and [task.steps for task in AVG5] == [
        20_000,
        10_000,
        10_000,
        500,
        500,
    ]


def test_another_table_is_another_entry(small: Path) -> None:
    table = Table(
        title="an ablation",
        source="a paper",
        recipe="small",
        train_images=99,
        test_images=20,
        official_images="all",
        deviations="",
        rows=(Row(weights=NAMES[0], top1=0.1),),
    )
    TABLES["another"] = table
    try:
        done = cifar10_transfer.reproduce(
            "another", (), Settings(data_dir="data", weights_dir="weights", device="cpu", steps=1)
        )
        assert done.out == Path("runs/another-reduced") and done.to_markdown().startswith("# another: an ablation")
    finally:
        del TABLES["another"]

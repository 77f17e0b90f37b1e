"""The two small runs of the notes: what is read from a run, and each to its page in small."""

from pathlib import Path

import pytest
from helpers.datasets import write_cifar10, write_idx

from mlpmixer.reproduce import run
from mlpmixer.reproduce.seed import NOTES, RUNS, WIDTHS, plain
from mlpmixer.training.recipe import Augment, Init, read_recipe
from mlpmixer.training.recipes import RECIPES
from mlpmixer.weights.run_folder import read_metrics


def test_figures_of_the_notes() -> None:
    assert len(NOTES) == 10 and NOTES[0] == (0.4216, 1.6007) and NOTES[-1] == (0.5562, 1.2237)
    losses = [loss for _, loss in NOTES]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("name", sorted(RUNS.values()))
def test_plain_is_the_recipe_without_its_extras(name: str) -> None:
    made = RECIPES[name]()
    bare = plain(made)
    assert (bare.model, bare.data, bare.run) == (made.model, made.data, made.run) and (bare.init, bare.augment) == (
        Init(),
        Augment(),
    )
    assert (bare.optim.name, bare.optim.locality, bare.optim.mirror, bare.optim.ema_decay) == ("adamw", 0, False, 0.0)


def test_run_is_as_long_as_that_of_the_notes() -> None:
    ours = RECIPES[RUNS["seed-cifar10"]]().run
    assert (ours.epochs, ours.batch_size, ours.eval_every) == (len(NOTES), 64, 1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WIDTHS, "small", {"num_blocks": 1, "hidden_dim": 8, "tokens_mlp_dim": 4, "channels_mlp_dim": 8})


@pytest.mark.usefixtures("tiny")
def test_seed_cifar10_writes_its_page(tmp_path: Path) -> None:
    page, path = run(
        "seed-cifar10",
        out=tmp_path / "out",
        data_dir=str(write_cifar10(tmp_path / "data", per_class=5)),
        device="cpu",
        seed=5,
    )
    text, runs = path.read_text(), tmp_path / "out" / "runs"
    assert read_recipe(runs / "recipe").optim.mirror and read_recipe(runs / "plain").run.seed == 5
    evaluations = [line for line in read_metrics(runs / "plain" / "metrics.jsonl") if line["kind"] == "eval"]
    ours = page.figures["epochs"]["plain"]
    assert [epoch["val_top1"] for epoch in ours] == [line["top1"] for line in evaluations] and len(ours) == 10
    assert 2.2 < ours[0]["val_loss"] < 2.4  # ten classes of noise: about ln 10
    assert "The project's first notes: a PyTorch class" in text and "The paper:" not in text
    assert (
        f"| 1 | 42.16 % | {100 * ours[0]['val_top1']:.2f} % |" in text
        and f"| 1.6007 | {ours[0]['val_loss']:.4f} |" in text
    )
    assert "plain below the notes" in page.findings[1] and "in no epoch" in page.findings[3]
    assert (tmp_path / "out" / "epochs.png").stat().st_size > 5000
    assert not [file for file in ("README.md", "table.json") if str(tmp_path) in (tmp_path / "out" / file).read_text()]


@pytest.mark.usefixtures("tiny")
def test_seed_mnist_writes_its_page_without_comparison(tmp_path: Path) -> None:
    write_idx(tmp_path / "data" / "mnist")
    page, path = run("seed-mnist", out=tmp_path / "out", data_dir=str(tmp_path / "data"), device="cpu")
    text = path.read_text()
    assert (
        "without figures, so there is nothing to compare with" in text
        and "| epoch | plain, top-1 | recipe, top-1 | plain, loss | recipe, loss |" in text
    )
    assert len(page.findings) == 1 and f"recipe {100 * page.figures['top1']['recipe']:.2f} %" in page.findings[0]
    assert [len(of) for of in page.figures["epochs"].values()] == [14, 14] and page.figures["n"] == 20

"""The two small runs of the notes: what is read from a run, and each to its page in small."""

from pathlib import Path

import pytest
from helpers.datasets import write_cifar10, write_idx

from mlpmixer.reproduce import run
from mlpmixer.reproduce.published import NOTES_CIFAR10, Epoch
from mlpmixer.reproduce.seed import RUNS, WIDTHS, epochs, plain
from mlpmixer.training.recipe import Augment, Init, read_recipe
from mlpmixer.training.recipes import RECIPES
from mlpmixer.weights.run_folder import read_metrics


def test_an_epochs_training_figures_are_means_over_its_steps() -> None:
    def step(number: int, top1: float, loss: float) -> dict[str, object]:
        return {"kind": "step", "step": number, "top1": top1, "loss": loss}

    lines = [
        step(10, 0.2, 2.0),
        step(15, 0.5, 1.4),
        {"kind": "eval", "step": 15, "top1": 0.4, "nll": 1.5},
        step(30, 0.6, 1.0),
        {"kind": "eval", "step": 30, "top1": 0.7, "nll": 0.9},
    ]
    first, second = epochs(lines)
    assert (first.train_top1, first.train_loss) == (pytest.approx(0.3), pytest.approx(1.8)) and (
        first.val_top1,
        first.val_loss,
    ) == (
        0.4,
        1.5,
    )
    assert second == Epoch(train_top1=0.6, train_loss=1.0, val_top1=0.7, val_loss=0.9)


def test_the_figures_of_the_notes_are_those_of_the_source() -> None:
    assert len(NOTES_CIFAR10) == 10 and NOTES_CIFAR10[0] == Epoch(
        train_top1=0.3285, train_loss=1.8335, val_top1=0.4216, val_loss=1.6007
    )
    assert NOTES_CIFAR10[-1] == Epoch(train_top1=0.5779, train_loss=1.1851, val_top1=0.5562, val_loss=1.2237)
    losses = [epoch.val_loss for epoch in NOTES_CIFAR10]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("name", sorted(RUNS.values()))
def test_plain_is_the_recipe_without_what_is_the_projects_own(name: str) -> None:
    made = RECIPES[name]()
    bare = plain(made)
    assert (bare.model, bare.data, bare.run) == (made.model, made.data, made.run) and (bare.init, bare.augment) == (
        Init(),
        Augment(),
    )
    assert (bare.optim.name, bare.optim.locality, bare.optim.mirror, bare.optim.ema_decay) == ("adamw", 0, False, 0.0)


def test_our_run_is_as_long_as_that_of_the_notes() -> None:
    ours = RECIPES[RUNS["seed-cifar10"]]().run
    assert (ours.epochs, ours.batch_size, ours.eval_every) == (len(NOTES_CIFAR10), 64, 1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WIDTHS, "small", {"num_blocks": 1, "hidden_dim": 8, "tokens_mlp_dim": 4, "channels_mlp_dim": 8})


@pytest.mark.usefixtures("tiny")
def test_seed_cifar10_runs_to_its_page(tmp_path: Path) -> None:
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
    assert 2.2 < ours[0]["train_loss"] < 2.4  # ten classes of noise: about ln 10
    assert "The notes that this project is made from: a PyTorch class" in text and "The paper:" not in text
    assert (
        f"| 1 | 32.85 % | 42.16 % | {100 * ours[0]['train_top1']:.2f} % | {100 * ours[0]['val_top1']:.2f} % |" in text
    )
    assert f"| 10 | 1.1851 | 1.2237 | {ours[9]['train_loss']:.4f} | {ours[9]['val_loss']:.4f} |" in text
    assert "plain below the notes" in page.findings[1] and "in no epoch" in page.findings[3]
    assert (tmp_path / "out" / "epochs.png").stat().st_size > 5000


@pytest.mark.usefixtures("tiny")
def test_seed_mnist_runs_to_its_page_and_compares_with_nothing(tmp_path: Path) -> None:
    write_idx(tmp_path / "data" / "mnist")
    page, path = run("seed-mnist", out=tmp_path / "out", data_dir=str(tmp_path / "data"), device="cpu")
    text = path.read_text()
    assert (
        "No figures are published for it" in text
        and "| epoch | plain, train | plain, val | recipe, train | recipe, val |" in text
    )
    assert len(page.findings) == 1 and f"recipe {100 * page.figures['top1']['recipe']:.2f} %" in page.findings[0]
    assert [len(of) for of in page.figures["epochs"].values()] == [14, 14] and page.figures["n"] == 20

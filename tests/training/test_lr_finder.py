"""The range test finds the rates at which a network learns, and leaves no trace."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from PIL import Image

from mlpmixer import cli
from mlpmixer.data.config import Data
from mlpmixer.models.names import MIXERS
from mlpmixer.training.lr_finder import Sweep, find_lr, plot
from mlpmixer.training.recipe import Init, Optim, Recipe, Run

SMALL = dataclasses.replace(MIXERS["Pico/2"], num_blocks=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32)
BASE = Recipe(
    model=SMALL,
    data=Data(name="digits"),
    init=Init(stem="whitened"),
    optim=Optim(name="muon", lr=1e-3, muon_lr=2e-3, warmup_steps=50, ema_decay=0.9, head_steps=9),
    run=Run(batch_size=64, precision="float32"),
)


def test_sweep_finds_where_the_loss_is_lowest(tmp_path: Path) -> None:
    sweep = find_lr(BASE, steps=60)
    assert len(sweep.lr) == len(sweep.loss) == len(sweep.smooth) <= 60 and sweep.muon_per_lr == 2.0
    ratios = [b / a for a, b in zip(sweep.lr, sweep.lr[1:], strict=False)]
    assert ratios == pytest.approx([(10 / 1e-5) ** (1 / 59)] * len(ratios)) and sweep.lr[0] == pytest.approx(1e-5)
    assert sweep.smooth[5] == pytest.approx(math.log(10), abs=0.05)  # a head of zeros has learned nothing yet
    assert min(sweep.smooth) < 2.2 and sweep.smooth[-1] > 1.2 * min(sweep.smooth)
    assert 1e-4 < sweep.suggested == sweep.lowest / 10 < 0.1
    assert find_lr(BASE, steps=60) == sweep  # the recipe's seed decides
    with Image.open(plot(sweep, tmp_path / "new" / "sweep.png")) as picture:
        assert picture.format == "PNG"


def test_smoothed_loss_decides() -> None:
    sweep = Sweep(lr=(0.1, 1.0, 10.0), loss=(2.0, 1.5, 0.1), smooth=(2.0, 1.0, 1.5), muon_per_lr=3.0)
    assert sweep.suggested == 0.1 and sweep.to_json()["suggested_muon_lr"] == pytest.approx(0.3)


def test_wrong_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="0 < low < high"):
        find_lr(BASE, low=1.0, high=0.1)
    blown = dataclasses.replace(BASE, optim=Optim(name="sgd"))
    with pytest.raises(
        ValueError, match=r"the loss is not finite after \d steps, at a rate of .*: start lower than 1e\+25"
    ):
        find_lr(blown, low=1e25, high=1e30)


def test_command_prints_options_and_writes_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [
        "lr-find",
        "digits",
        "--sweep-steps",
        "20",
        "--model.num-blocks",
        "1",
        "--batch-size",
        "16",
        "--optim.name",
        "adamw",
    ]
    assert cli.main(line) == 0
    out = capsys.readouterr().out
    assert "try     --lr " in out and "muon" not in out and [p.name for p in tmp_path.iterdir()] == ["lr-find.png"]
    assert cli.main([*line, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert f"try     --lr {numbers['suggested']:.2g}\n" in out and len(numbers["lr"]) <= 20
    assert cli.main(["lr-find", "digitz"]) == 2 and "digits" in capsys.readouterr().err

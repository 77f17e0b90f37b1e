"""The paper as commands: the frame that every experiment runs in."""

import dataclasses
import json
import re
import sys
import time
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace

import pytest
import torch

from mlpmixer import cli
from mlpmixer.data.config import Data
from mlpmixer.models.names import MIXERS
from mlpmixer.reproduce import EXPERIMENTS, ExperimentContext, run
from mlpmixer.reproduce.experiment import Experiment
from mlpmixer.reproduce.page import Page, Panel, Plot, Series, make_table
from mlpmixer.training.recipe import Recipe, Run
from mlpmixer.weights.model_file import read_tensors

TINY = Recipe(
    model=dataclasses.replace(MIXERS["Pico/2"], num_blocks=1, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=8),
    data=Data(name="digits"),
    run=Run(steps=3, batch_size=32, log_every=1),
)


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An experiment "trial" that trains two networks and measures once, in an empty working directory."""

    def work(context: ExperimentContext) -> Page:
        context.num_parts = 3
        recipes = [dataclasses.replace(TINY, run=dataclasses.replace(TINY.run, seed=seed)) for seed in (0, 1)]
        top1 = [context.train(f"seed-{recipe.run.seed}", recipe).summary["top1"] for recipe in recipes]
        clock = context.measure("clock", lambda: {"now": time.time()})
        return Page(
            findings=("a finding.",),
            tables=(make_table("Runs", [{"run": i, "top-1": f"{x:.3f}"} for i, x in enumerate(top1)]),),
            plots=(Plot("curve", "Two points", [Panel("run", "top-1", [Series(list(enumerate(top1)), "test")])]),),
            figures={"top1": top1, **clock},
        )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mlpmixer.reproduce.trial", SimpleNamespace(work=work))  # type: ignore[misc]
    entry = Experiment(title="a trial", source="nowhere", scales={"small": "2 s"}, function="trial:work", data="digits")
    monkeypatch.setitem(EXPERIMENTS, "trial", entry)
    return tmp_path


def test_all_experiments_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce"]) == 0
    out = capsys.readouterr().out
    assert all(name in out and EXPERIMENTS[name].title in out for name in EXPERIMENTS)
    assert cli.main(["reproduce", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["experiment"] for row in listed] == list(EXPERIMENTS) and "full" in listed[0]["scales"]


def test_every_experiment_has_a_function() -> None:
    for name, experiment in EXPERIMENTS.items():
        assert callable(resolve_name(f"mlpmixer.reproduce.{experiment.function}")), name
        assert "small" in experiment.scales or name == "cifar10-transfer"


def test_page_is_complete_and_finished_parts_are_read(trial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "trial", "--quiet", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    folder = trial / "results" / "trial" / "small"
    text, told = (folder / "README.md").read_text(), json.loads((folder / "table.json").read_text())
    assert str(Path("results", "trial", "small", "README.md")) in out and "a finding." in out
    assert (
        "mlpmixer reproduce trial --scale small --device cpu" in text
        and re.search(r"threads?; torch", text)
        and "![Two points](curve.png)" in text
        and f"| 0 | {told['figures']['top1'][0]:.3f} |\n| 1 |" in text
    )
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert told["figures"]["top1"] == [
        json.loads((folder / "runs" / f"seed-{s}" / "summary.json").read_text())["top1"] for s in (0, 1)
    ]
    assert cli.main(["reproduce", "trial", "--json", "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == ["end", "end", "page"] and lines[-1]["figures"] == told["figures"]


def test_next_piece_resumes_bit_for_bit(trial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "trial", "--max-minutes", "0.0001", "--quiet"]) == 3
    err = capsys.readouterr().err
    assert "time limit reached; 0 of 3 parts are finished" in err and "the same command" in err

    def stop_soon(line: dict[str, object]) -> None:
        if line["kind"] == "step":
            time.sleep(0.3)

    for _ in range(20):  # pieces of 0.1 s
        try:
            run("trial", max_minutes=(10 + 0.1) / 60, report=stop_soon)
        except Exception as e:
            assert "of 3 parts are finished" in str(e)
        else:
            break
    else:
        pytest.fail("never done")
    run("trial", out="whole")
    for seed in (0, 1):
        files = [Path(out, "runs", f"seed-{seed}", "model.safetensors") for out in ("results/trial/small", "whole")]
        pieces, whole = (read_tensors(file)[0] for file in files)
        assert all(torch.equal(pieces[k], whole[k]) for k in whole)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tabel1"], "did you mean table1"),
        (["cifar10-transfr"], "did you mean cifar10-transfer"),
        (["trial", "--scale", "full"], "trial has no scale 'full'; it has: small"),
        (["trial", "--row", "B/16:imagenet1k"], "--check are options of cifar10-transfer, not of trial"),
        (["trial", "--check"], "--check are options of cifar10-transfer, not of trial"),
        (["cifar10-transfer", "--scale", "small"], "cifar10-transfer has no scale 'small'; it has: full"),
        (["trial", "--max-minutes", "-1"], "must be positive"),
    ],
)
def test_mistake_gets_a_suggestion(
    trial: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["reproduce", *words]) == 2
    assert says in capsys.readouterr().err and not (trial / "results").exists()


def test_runs_of_other_settings_are_refused(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("trial", out="here")
    monkeypatch.setattr(
        sys.modules[__name__], "TINY", dataclasses.replace(TINY, run=dataclasses.replace(TINY.run, steps=7))
    )
    with pytest.raises(ValueError, match="another out"):
        run("trial", out="here")


def test_table1_equals_the_paper(tmp_path: Path) -> None:
    page, path = run("table1", out=tmp_path)
    assert (
        all(row["equal"] and row["as_configured"] for row in page.figures) and "all seven are equal" in page.findings[0]
    )
    assert {row["size"]: row["params_without_head"] for row in page.figures} == {
        "S/32": 18_591_624,
        "S/16": 18_015_264,
        "B/32": 59_524_428,
        "B/16": 59_111_472,
        "L/32": 205_914_264,
        "L/16": 207_171_168,
        "H/14": 431_069_952,
    }
    assert "| B/16 | 12 | 16 | 768 | 196 | 3072 | 384 | 59 M | 59,111,472 | 59,880,472 | 25.20 |" in path.read_text()


def test_saved_activations_are_counted_exactly() -> None:
    from mlpmixer.models.configs import MixerConfig
    from mlpmixer.reproduce.table1 import measured

    widths = {"num_blocks": 1, "hidden_dim": 6, "tokens_mlp_dim": 3, "channels_mlp_dim": 7}
    cfg = MixerConfig(image_size=8, patch_size=4, in_channels=1, num_classes=5, **widths)
    s, c, ds, dc, patch = 4, 6, 3, 7, 16
    norms = 3 * (s * c + 2 * s)  # the input, and mean and deviation of each row
    token, channel = s * c + 2 * c * ds, s * c + 2 * s * dc
    assert measured(cfg)["kept_bytes"] == 4 * (s * patch + norms + token + channel + c)

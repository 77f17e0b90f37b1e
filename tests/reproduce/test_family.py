"""The comparison of the Mixer and its relatives: its networks, its recipes, how runs are shared, and its page."""

import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.datasets import write_cifar10

from mlpmixer import cli
from mlpmixer.data.config import Data
from mlpmixer.exporters import job
from mlpmixer.models import architecture
from mlpmixer.models.architecture import has
from mlpmixer.models.configs import MixerConfig, NetworkConfig, ResMLPConfig, ResNetConfig, ViTConfig
from mlpmixer.models.names import MIXERS
from mlpmixer.reproduce import ExperimentContext, run
from mlpmixer.reproduce.chance import verdict
from mlpmixer.reproduce.family.measured import Measured
from mlpmixer.reproduce.family.page import NO_RESULT, make_page
from mlpmixer.reproduce.family.published import PUBLISHED, mixing_rows, published_rows
from mlpmixer.reproduce.family.recipes import (
    BASELINES,
    LENGTHS,
    LOCAL,
    NETWORKS,
    RELATIVES,
    rate_recipe,
    rates_of,
    recipe,
)
from mlpmixer.reproduce.page import Page, Panel, Series, write
from mlpmixer.training.recipe import Recipe
from mlpmixer.training.recipes import cifar10
from mlpmixer.training.run import RunResult
from mlpmixer.weights.run_folder import InUse, locked


@pytest.fixture
def context(tmp_path: Path) -> ExperimentContext:
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    return ExperimentContext(name="family", scale="long", out=tmp_path / "out", data_dir="DIR", device="cpu")


# --- what is trained ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_of_one_size(name: str) -> None:
    for cfg in (NETWORKS[name], NETWORKS[name].deployed()):
        assert abs(cfg.num_params / 1.17e6 - 1) < 0.05
        assert 55e6 < sum(layer.flops for layer in cfg.layers()) / 2 < 100e6


@pytest.mark.parametrize("name", NETWORKS)
def test_first_table_is_torch_alone(name: str, context: ExperimentContext) -> None:
    plain, shipped = (recipe(name, context, 0.005, 100, shipped=shipped) for shipped in (False, True))
    assert plain.run.kernels == "torch" and shipped.run.kernels == "auto" and plain.model == NETWORKS[name]
    assert (plain.optim.locality, plain.optim.mirror) == ((3, True) if name == LOCAL else (0, False))
    assert plain.augment == cifar10().augment and plain.data.val_fraction == 0.02 and plain.run.steps == 100
    assert dataclasses.replace(plain, run=shipped.run) == shipped
    muon = has(NETWORKS[name], "hidden_matrices")
    assert plain.optim.name == ("muon" if muon else "adamw") and muon == (name != "ResNet")
    assert (plain.optim.muon_lr if muon else plain.optim.lr) == 0.005


def test_rates_are_chosen_without_test_images(context: ExperimentContext) -> None:
    short = rate_recipe("ViP", context, 0.004, LENGTHS["long"])
    assert not short.run.test and short.data.val_fraction == 0.1 and short.run.steps == 703
    assert all(len(rates_of(name)) >= 3 and rates_of(name) == tuple(sorted(rates_of(name))) for name in RELATIVES)
    assert rates_of(LOCAL) == ()


# --- several processes --------------------------------------------------------------------------------------------


def test_runs_are_shared_with_another_process(context: ExperimentContext, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def train(name: str, recipe: Recipe) -> RunResult:
        trained.append(name)
        if trained == ["b"]:  # between the look at its folder and the start, another one has begun
            raise InUse(name)
        return RunResult(context.out / name, {})

    monkeypatch.setattr(context, "train", train)
    with ExitStack() as busy:
        busy.enter_context(locked(context.out / "runs" / "a"))
        monkeypatch.setattr(context, "_wait", lambda: busy.close())
        results = context.train_all(dict.fromkeys("abc", Recipe(model=MIXERS["Pico/2"], data=Data())))
    assert list(results) == ["a", "b", "c"] and trained == ["b", "c", "b", "a"]


def test_what_another_process_measures_is_waited_for(
    context: ExperimentContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = context.out / "measured" / "speed.json"
    with ExitStack() as busy:
        busy.enter_context(locked(path.with_suffix("")))

        def wait(self: ExperimentContext) -> None:
            path.write_text('{"images_per_s": 7}')
            busy.close()

        monkeypatch.setattr(ExperimentContext, "_wait", wait)
        assert context.measure("speed", lambda: pytest.fail("measured twice")) == {"images_per_s": 7}
    path.write_text('{"images_')  # killed while it wrote, on a system that does not keep the order
    assert context.measure("speed", lambda: 8) == 8 and [p.name for p in path.parent.iterdir()] == ["speed.json"]


def test_folder_in_use_is_told_from_other_mistakes(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(InUse, match="is in use: process"), locked(tmp_path / "run"):
        pass
    assert issubclass(InUse, ValueError)


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["famly"], "did you mean family?"),
        (["family", "--scale", "full"], "family has no scale 'full'; it has: small, long"),
        (["family", "--data-dir", "nowhere"], "no folder 'nowhere' (--data-dir)"),
        (["family", "--data-dir", "."], "no files of cifar10 in ."),
    ],
)
def test_mistake_is_one_line(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", *words, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


@pytest.mark.parametrize(("room", "extra"), [(architecture, "rivals"), (job, "onnx")])
def test_missing_extra_is_named_before_hours_of_training(
    room: ModuleType, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    assert cli.main(["reproduce", "family"]) == 2
    assert f'pip install "mlpmixer[{extra}]"' in capsys.readouterr().err


# --- the page -----------------------------------------------------------------------------------------------------


def measured(**tops: float) -> Measured:
    """Made-up results: 70 % for all that `tops` does not name; a second seed of the Mixer has 0.5 points more."""
    top1 = dict.fromkeys(NETWORKS, 0.7) | tops

    def summary(name: str, more: float = 0.0, steps: int = 3828) -> dict[str, Any]:
        scores = {"top1": top1[name] + more, "val_top1": 0.69, "test": {"n": 10_000}, "val": {"n": 1000}}
        return scores | {"steps": steps, "precision": "bfloat16"}

    right = {"n": 1000, "right": 697, "right_float": 700, "agreeing": 980, "checked": 1000}
    whole = {"float32": "", "int8": "", "layers": 30, "float_layers": ["head", "stem"]}
    refused = {"float32": "", "int8": "no layer can be int8"}
    return Measured(
        tried={name: {rate: 0.4 - rate for rate in rates_of(name)} for name in NETWORKS if name != LOCAL}
        | {"gMLP": {0.004: 0.4, 0.008: 0.5, 0.016: 0.3}},
        equal={name: [summary(name), *([summary(name, 0.005)] * (name == "Mixer"))] for name in NETWORKS},
        speeds={name: {"torch": 400.0, "shipped": 500.0 if "Mixer" in name else 400.0} for name in NETWORKS},
        timed={name: summary(name, steps=3828 if "Mixer" in name else 3062) for name in NETWORKS},
        exported={name: refused if name == "ResNet" else whole | right for name in NETWORKS},
        forward={n: {"float32": 900.0} | ({} if n == "ResNet" else {"int8": 1350.0}) for n in NETWORKS},
    )


def text_of(page: Page, folder: Path) -> str:
    return write(page, "nine networks", folder, "mlpmixer reproduce family", "cpu").read_text()


def test_page_tells_a_winner_and_all_figures(tmp_path: Path) -> None:
    page = make_page(LENGTHS["long"], measured(ViP=0.74, gMLP=0.72))
    text = text_of(page, tmp_path)
    assert (
        "ViP (74.0 %) wins, 2.0 points above gMLP (72.0 %): more than two seeds differ (0.5 points)" in page.findings[0]
    )
    assert "In 8 minutes" in page.findings[1]
    assert "up to 0.5 points (Mixer; n = 2 each)" in page.findings[2]
    assert "ResNet below ViP (70.0 % against 74.0 %" in page.findings[3] and "No int8: ResNet" in page.findings[5]
    assert "an end of what was tried for Mixer, ResMLP, S2-MLP" in page.findings[6] and "gMLP" not in page.findings[6]
    main, beside = page.tables[:2]
    assert main.rows[0][:4] == ("ViP", "74.00 %", "73.1-74.9", "1") and len(main.rows) == 9
    assert ("Mixer", "70.25 % (70.00-70.50)") in [row[:2] for row in main.rows] and LOCAL not in str(main.rows)
    assert {row[0] for row in beside.rows} == {LOCAL, *BASELINES} and "AdamW" in beside.title
    assert "| gMLP | Muon | 0.004: 40.0 %, 0.008: 50.0 %, 0.016: 30.0 % | 0.008 |" in text
    assert "| Mixer | Muon | 0.004: 39.6 %, 0.008: 39.2 %, 0.016: 38.4 % | 0.004 (an end of what was tried) |" in text
    assert "| Mixer | 900 | 1,350 | 1.50 | 30 of 32 | -0.3 | 980 of 1,000 |  |" in text
    assert "| ResNet | 900 | refused |  |  |  |  | no layer can be int8 |" in text
    assert "244,992 images (5 epochs of 49,000)" in text and "tuned on a Mixer" in text and NO_RESULT not in text
    figures = json.loads((tmp_path / "table.json").read_text())["figures"]
    assert figures["rates"]["gMLP"] == 0.008 and figures["equal"]["Mixer"][1]["top1"] == 0.705
    assert figures["seeds_differ"] == pytest.approx(0.005) and figures["sizes"]["Mixer"]["params"] == 1_132_170
    assert {p.name for p in tmp_path.glob("*.png")} == {"training.png", "speed.png"}


def test_check_of_the_pipeline_is_no_result(tmp_path: Path) -> None:
    page = make_page(LENGTHS["small"], measured(ViP=0.9), result=False)
    text = text_of(dataclasses.replace(page, plots=()), tmp_path)
    assert text.startswith(f"# The family: {NO_RESULT}") and f"Nothing: this is {NO_RESULT}" in page.findings[0]
    assert len(page.findings) == 1
    assert all(NO_RESULT in table.title for table in page.tables[:-2])  # all that was measured here
    assert all(NO_RESULT in plot.caption for plot in page.plots) and not page.figures["is_result"]


def test_no_winner_within_the_noise() -> None:
    says = verdict({"A": 0.80, "B": 0.795, "C": 0.7}, 10_000, 0.0)  # as far as test images can tell
    assert says == (
        "no network wins: A (80.0 %) and B (79.5 %) are within the noise of seeds or test images; "
        "behind them C (70.0 %)"
    )
    assert "no network wins: A" in verdict({"A": 0.80, "B": 0.77}, 10_000, 0.04)  # as far as seeds can tell
    assert verdict({"B": 0.77, "A": 0.80}, 10_000, 0.01).startswith("A (80.0 %) wins, 3.0 points above B (77.0 %)")


def test_published_figures_have_their_sources() -> None:
    rows = published_rows()
    assert len(rows) == PUBLISHED.strip().count("\n") + 1
    assert {"network": "ViP-S/7", "parameters": "25,114,984", "multiply-adds, G": "6.90"}.items() <= next(
        row for row in rows if row["network"] == "ViP-S/7"
    ).items()
    networks = {str(row["network"]).split("-")[0] for row in rows}
    assert networks == {"Mixer", "ResMLP", "gMLP", "S2", "AS", "ViP", "RepMLPNet", "EAMLP"}
    assert {row["network"] for row in mixing_rows()} == set(NETWORKS) - {LOCAL}


def test_names_of_points_do_not_overlap() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from mlpmixer.reproduce.page import _name_points

    figure = Figure(figsize=(6, 5))
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    points = [(x / 10, y / 10) for x in range(3) for y in range(4)]
    names = [f"network {i}" for i in range(len(points))]
    axis.plot(*zip(*points, strict=True), "o")
    axis.margins(0.4)
    figure.draw_without_rendering()
    _name_points(axis, Panel(series=[Series(points, names=names, error=([0.02] * 12, [0.02] * 12))]))
    boxes = [Text.get_window_extent(text) for text in axis.texts]
    assert [text.get_text() for text in axis.texts] == names
    assert all(not box.count_overlaps(boxes[:i]) for i, box in enumerate(boxes))


# --- a whole run --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_family_writes_its_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in ("transformers", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason='pip install "mlpmixer[rivals,onnx]"')
    sizes: dict[str, Any] = {"image_size": 32, "num_classes": 10, "patch_size": 4}
    mixer = MixerConfig(**sizes, num_blocks=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=16)
    others = {
        "ViT": ViTConfig(**sizes, num_blocks=1, hidden_dim=16, num_heads=1, mlp_dim=32),
        "ResNet": ResNetConfig(
            image_size=32, num_classes=10, depths=(1, 1), width=4, bottleneck=False, small_images=True
        ),
    }
    relatives = {"Mixer": mixer, "ResMLP": ResMLPConfig(**sizes, num_blocks=1, hidden_dim=16, channels_mlp_dim=16)}
    networks: dict[str, NetworkConfig] = relatives | {LOCAL: mixer} | others
    for table, small in ((NETWORKS, networks), (RELATIVES, relatives)):
        for name in list(table):
            monkeypatch.delitem(table, name)
        for name, cfg in small.items():
            monkeypatch.setitem(table, name, cfg)
    monkeypatch.setitem(
        LENGTHS,
        "small",
        dataclasses.replace(LENGTHS["small"], rate_steps=1, epochs=0.003, rate_val_fraction=0.1, checked=10),
    )
    data = str(write_cifar10(tmp_path / "data", per_class=40))
    page, path = run("family", out=tmp_path / "out", data_dir=data, device="cpu")
    assert page.figures["exported"]["Mixer"]["layers"] and NO_RESULT in path.read_text()
    assert {name: of["int8"] for name, of in page.figures["exported"].items() if of["int8"]} == {}
    assert len(page.figures["equal"]["Mixer"]) + len(page.figures["equal"]["ResMLP"]) >= 2

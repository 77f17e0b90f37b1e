"""Pre-training, then the same few images from each start: long makes the weights, small takes those that are stored."""

import dataclasses
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import write_cifar10
from PIL import Image

from mlpmixer import cli
from mlpmixer.models.names import MIXERS
from mlpmixer.registry import Registry
from mlpmixer.reproduce import ExperimentContext, pretraining, run
from mlpmixer.reproduce.pretraining import SCRATCH, UPSTREAMS, Upstream
from mlpmixer.training.recipe import Recipe, read_recipe
from mlpmixer.training.recipes import finetune, photos, pretrain_photos
from mlpmixer.weights import own
from mlpmixer.weights.own import OWN, OwnWeights
from mlpmixer.weights.run_folder import read_summary

WIDTHS = {"num_blocks": 1, "hidden_dim": 8, "tokens_mlp_dim": 4, "channels_mlp_dim": 8}
NETWORKS = {"Thin/16": 8, "Wide/16": 12}  # hidden_dim
ROOT = Path(__file__).parents[2]


def write_photos(folder: Path, classes: int, each: int) -> None:
    """Noise, a folder for each class."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"kind-{label}").mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"kind-{label}" / f"{i}.png")


def shortened(recipe: Callable[[], Recipe], **run: object) -> Callable[[], Recipe]:
    """A recipe that takes three steps of eight images with a thin network."""

    def make() -> Recipe:
        made = recipe()
        model = dataclasses.replace(made.model, patch_size=16, **WIDTHS)
        return dataclasses.replace(made, model=model, run=dataclasses.replace(made.run, steps=3, batch_size=8, **run))

    return make


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the four data sets in small, and networks and recipes to match."""
    for name, width in NETWORKS.items():
        cfg = dataclasses.replace(MIXERS["Nano/8"], patch_size=16, **WIDTHS | {"hidden_dim": width})
        monkeypatch.setitem(MIXERS, name, cfg)
    thin, wide = NETWORKS
    small = {
        name: Upstream(network=thin, steps=3, share=share) for name, share in zip(UPSTREAMS, (0.5, 1.0), strict=False)
    }
    monkeypatch.setattr(pretraining, "UPSTREAMS", small | {[*UPSTREAMS][2]: Upstream(network=wide, steps=2)})
    monkeypatch.setattr(pretraining, "FEW_SHOT_SHARE", 0.9)
    monkeypatch.setattr(pretraining, "SEEDS", 1)
    for recipe in (photos, finetune, pretrain_photos):
        monkeypatch.setattr(pretraining, recipe.__name__, shortened(recipe))
    for name in pretraining.DATA:
        write_photos(tmp_path / "data" / name, classes=2, each=20)
    for split, each in (("train", 20), ("val", 4)):
        write_photos(tmp_path / "data" / "tiny-imagenet" / split, classes=3, each=each)
    write_cifar10(tmp_path / "data" / "cifar10", per_class=3)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def test_long_makes_the_weights_and_small_takes_them(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, path = run("pretraining", "long", out="long", data_dir=str(data), device="cpu", seed=5)
    text, figures, runs = path.read_text(), page.figures, Path("long", "runs")
    assert "tables 2 and 3 and figure 2" in text and "The networks were trained for this page." in text
    for name in ("time.png", "scale.png"):
        assert Path("long", name).read_bytes()[:4] == b"\x89PNG" and f"]({name})" in text
    starts = [SCRATCH, *UPSTREAMS]
    assert [*figures["starts"]] == starts and [*figures["outcomes"]["trashnet"]] == starts
    tenth, small, _ = (figures["starts"][name] for name in UPSTREAMS)
    assert (small["n"], small["images"], tenth["images"]) == (12, 57, 30) and small["train_s"] > 0
    upstream, started, fresh = (
        read_recipe(runs / name) for name in ("small-photos", "trashnet-small-photos-5", "trashnet-fresh-weights-5")
    )
    assert upstream.data.val_is_test and upstream.data.train_fraction == 1 and upstream.name == "small-photos"
    assert (started.init.weights, fresh.init.weights) == (str(runs / "small-photos" / "model.safetensors"), "")
    assert (started.init.stem, fresh.init.stem, started.run.seed) == ("lecun", "whitened", 5)
    wide = read_recipe(runs / "flowers89-small-photos-4m-5")
    assert wide.model.hidden_dim == NETWORKS["Wide/16"]  # type: ignore[union-attr]
    for name, of in figures["outcomes"].items():
        for key, outcome in of.items():
            assert [*outcome["few"]] == [1, 5, 10] and all(len(draws) == 3 for draws in outcome["few"].values())
            assert (name == "cifar10") == (outcome["linear"] is None) == (not outcome["trained"]), (name, key)
    summary = read_summary(runs / "trashnet-small-photos-5")
    assert summary and figures["outcomes"]["trashnet"]["small-photos"]["trained"] == (summary["top1"],)
    assert str(data) not in text and str(data) not in Path("long", "table.json").read_text()

    add = runpy.run_path(str(ROOT / "weights" / "add.py"))["add"]
    Path("weights").mkdir()
    add.__globals__.update(FOLDER=Path("weights"), OWN={})
    told = {"images": "photos", "terms": "noise", "limits": "None."}
    made = Registry[OwnWeights]("weights")
    made |= {name: add(name, runs / name, **told) for name in UPSTREAMS}
    for module in (own, pretraining):
        monkeypatch.setattr(module, "OWN", made)
    context = ExperimentContext(name="pretraining", weights_dir="weights")
    for name, stored in pretraining._stored(context).items():
        start = figures["starts"][name] | {"config": stored.config, "weights": f"weights/{name}.safetensors"}
        assert dataclasses.asdict(stored) | {"config": stored.config} == start | {
            "train_s": pytest.approx(start["train_s"], abs=0.5),
            "top1": pytest.approx(start["top1"], abs=1e-4),
        }


def test_what_is_missing_is_said_before_anything_is_trained(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reproduce", "pretraining", "--data-dir", str(data), "--weights-dir", "nowhere", "--out", "out"]
    made = Registry[OwnWeights]("weights")
    for module in (own, pretraining):
        monkeypatch.setattr(module, "OWN", made)
    assert cli.main(words) == 2
    assert "small-photos-tenth, small-photos, small-photos-4m are not stored: --scale long" in capsys.readouterr().err
    made |= dict.fromkeys(UPSTREAMS, OWN["digits"])
    monkeypatch.setattr(own, "folders", lambda folder=None: [Path(folder or "weights")])
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert "small-photos-tenth.safetensors" in err and "nowhere (no such folder)" in err
    (data / "trashnet").rename(data / "trash-net")
    assert cli.main(words) == 2
    assert "trash-net" in capsys.readouterr().err and not Path("out", "runs").exists()


def test_weights_are_known_by_the_names_of_the_table() -> None:
    assert all(
        name not in OWN
        or OWN[name].num_params == MIXERS[u.network].adapted(num_classes=OWN[name].num_classes).num_params
        for name, u in UPSTREAMS.items()
    )

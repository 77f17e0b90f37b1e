"""Another network in the Mixer's place: it trains, resumes, loads and is probed alike, and what only a Mixer has is
refused."""

import dataclasses
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.processes import Forks
from torch import Tensor, nn

from mlpmixer import cli
from mlpmixer.data.config import Data
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.evaluation.probe import probe
from mlpmixer.inference.load import load
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.models.names import MIXERS
from mlpmixer.training.loop import Interrupted
from mlpmixer.training.lr_finder import find_lr
from mlpmixer.training.optimizers import make_optimizers
from mlpmixer.training.recipe import Augment, Optim, Recipe, Run, read_recipe
from mlpmixer.training.run import train
from mlpmixer.training.threads import on_threads
from mlpmixer.weights import model_file, run_folder

RECIPE = Recipe(
    name="rival",
    model=dataclasses.replace(MIXERS["Pico/2"], num_blocks=1, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=8),
    data=Data(name="digits"),
    augment=Augment(pad_crop_px=1, mixup=0.2),
    optim=Optim(lr=1e-2, ema_decay=0.9, clip_norm=1.0),
    run=Run(steps=20, batch_size=64, eval_every=0.5, save_every_s=0, log_every=1),
)


class Conv(nn.Module):
    """A convolution, batch normalisation (which has buffers) and dropout (which draws)."""

    def __init__(self, cfg: MixerConfig, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(cfg.in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1), nn.Flatten()
        )
        self.head = nn.Linear(36 * width, cfg.num_classes)

    def pre_logits(self, images: Tensor) -> Tensor:
        out: Tensor = self.body(images)
        return out

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.pre_logits(images))
        return out


@dataclasses.dataclass(frozen=True)
class Wide:
    """The same as a builder with a field."""

    width: int

    def __call__(self, cfg: MixerConfig) -> nn.Module:
        return Conv(cfg, self.width)


def change(**parts: dict[str, Any]) -> Recipe:
    return dataclasses.replace(RECIPE, **{k: dataclasses.replace(getattr(RECIPE, k), **v) for k, v in parts.items()})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(RECIPE, out=tmp_path_factory.mktemp("runs") / "whole", network=Conv).path


def weights(run: Path) -> dict[str, Tensor]:
    return model_file.read_tensors(run / run_folder.MODEL_FILE)[0]


def test_it_learns_and_is_evaluated_as_it_was_trained(whole: Path) -> None:
    summary = train(RECIPE, out=whole, resume=True, network=Conv).summary
    assert summary["params"] == 8 * 9 + 8 + 16 + 288 * 10 + 10 and summary["top1"] > 0.5
    classifier = load(whole, network=Conv)
    assert evaluate(classifier).top1 == summary["top1"]
    assert read_recipe(whole).network == "Conv" and "Conv" in (whole / "report.html").read_text()
    few = probe(classifier, shots=(5,), seeds=(0,))
    assert few.num_features == 288 and 0.1 < few.few_shot[0].mean < 1
    nll = [line["nll"] for line in run_folder.read_metrics(whole / "metrics.jsonl") if line["kind"] == "eval"]
    assert nll[-1] < nll[0]


def stop_and_go_on(run: Path) -> None:
    def stop(line: dict[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(RECIPE, out=run, network=Conv, report=stop)
    train(RECIPE, out=run, network=Conv, resume=True)


def test_a_stopped_run_goes_on_to_the_same_bits_buffers_included(whole: Path, tmp_path: Path, forked: Forks) -> None:
    """In a process of its own: within that of many other tests it has crashed in native code, rarely and for a reason
    that is not known."""
    code = f"import sys, pathlib; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]}; import test_network; "
    code += "test_network.stop_and_go_on(pathlib.Path(sys.argv[1]))"
    done = forked(code, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = weights(whole), weights(tmp_path / "run")
    assert "body.1.running_mean" in first
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_mixer_given_as_the_network_is_the_mixer(tmp_path: Path) -> None:
    plain, given = (
        train(RECIPE, out=tmp_path / name, network=network).path for name, network in (("a", None), ("b", Mixer))
    )
    first, second = weights(plain), weights(given)
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_statistics_of_an_average_are_averaged(tmp_path: Path, whole: Path) -> None:
    state = model_file.read_tensors(model_file.states(whole)[0])[0]
    assert not torch.equal(state["average.body.1.running_mean"], state["model.body.1.running_mean"])
    assert torch.equal(state["average.body.1.num_batches_tracked"], state["model.body.1.num_batches_tracked"])
    assert not torch.equal(state["average.head.weight"], state["model.head.weight"])


def test_weight_decay_is_for_kernels_alone() -> None:
    model = Conv(MixerConfig(image_size=8, patch_size=4, in_channels=1, num_classes=3))
    decayed = {p for g in make_optimizers(model, Optim())[0].param_groups if g["weight_decay"] for p in g["params"]}
    assert {name for name, p in model.named_parameters() if p in decayed} == {"body.0.weight", "head.weight"}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"optim": {"layer_decay": 0.5}}, "Conv has no order of layers, which optim.layer_decay needs"),
        ({"optim": {"frozen_layers": 1}}, "Conv has no order of layers, which optim.frozen_layers needs"),
        ({"optim": {"locality": 3}}, "Conv has no locality that folds into its weights, which optim.locality needs"),
        ({"init": {"stem": "whitened"}}, "Conv has no linear stem over patches, which init.stem=whitened needs"),
        ({"init": {"weights": "runs/x"}}, "init.weights=runs/x is not for a network of your own"),
        ({"run": {"progressive": "4:0.5"}}, "which run.progressive needs"),
        ({"optim": {"name": "muon"}}, "Conv has no hidden matrices for Muon, which optim.name=muon needs"),
        (
            {"run": {"kernels": "compiled"}},
            "run.kernels=compiled is unavailable: Conv has no compiled kernels; use auto or torch",
        ),
    ],
)
def test_what_it_does_not_declare_is_refused(parts: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        train(change(**parts), out=tmp_path / "run", network=Conv)
    assert not (tmp_path / "run").exists()


def test_logits_of_another_shape_are_told_before_the_first_step(tmp_path: Path) -> None:
    def wrong(cfg: MixerConfig) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

    with pytest.raises(ValueError, match=r"answers two images with shape \(2, 7\); expected logits of shape \(2, 10\)"):
        train(RECIPE, out=tmp_path / "run", network=wrong)


@pytest.mark.parametrize("measured", [{"steps": 2}, {"time": "1s", "threads": 2}])
def test_a_module_that_its_builder_shares_is_left_as_it_is(
    measured: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpmixer.training.threads.SPEND_S", 0.01)
    shared = Conv(dataclasses.replace(RECIPE.model, num_classes=10))
    before = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
    run = Run(**{"batch_size": 64, "test": False, **measured})
    with on_threads(2):
        done = train(dataclasses.replace(RECIPE, run=run), out=tmp_path / "run", network=lambda cfg: shared)
    assert weights(done.path)["body.1.num_batches_tracked"] == done.summary["steps"], "trial steps are not the run's"
    assert all(torch.equal(before[name], tensor) for name, tensor in shared.state_dict().items())


def test_a_network_whose_copy_would_use_the_original_is_refused(tmp_path: Path) -> None:
    class Closure(Conv):
        def __init__(self, cfg: MixerConfig) -> None:
            super().__init__(cfg)
            self.features = lambda images: self.body(images)

        def pre_logits(self, images: Tensor) -> Tensor:
            out: Tensor = self.features(images)
            return out

    with pytest.raises(ValueError, match=r"Closure builds a network whose copy computes with a Sequential of the orig"):
        train(RECIPE, out=tmp_path / "run", network=Closure)


def test_a_network_that_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    def locked(cfg: MixerConfig) -> nn.Module:
        network = Conv(cfg)
        network.lock = threading.Lock()  # type: ignore[assignment]
        return network

    with pytest.raises(ValueError, match=r"locked builds a network that copy.deepcopy cannot copy: .*lock"):
        train(RECIPE, out=tmp_path / "run", network=locked)


def test_its_run_is_not_taken_for_a_mixers(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (started := tmp_path / "started").mkdir()
    run_folder.write_recipe(started, read_recipe(whole))
    with pytest.raises(ValueError, match="a network that a function builds, Conv: train it from Python"):
        train(read_recipe(started), out=started, resume=True)
    with pytest.raises(ValueError, match="two networks are given: the recipe says Conv"):
        train(read_recipe(started), out=started, resume=True, network=Wide(8))
    with pytest.raises(ValueError, match="train it from Python"):
        find_lr(read_recipe(started))
    for command in (["evaluate", str(whole)], ["summary", str(whole)], ["push", str(whole), str(tmp_path / "pushed")]):
        assert cli.main(command) == 2
        assert "a network that a function built, Conv: it can be used from Python" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"holds Conv, and Wide\(width=8\) is given"):
        load(whole, network=Wide(8))
    with pytest.raises(ValueError, match="cannot be changed for a network of your own"):
        load(whole, network=Conv, image_size=16)


def test_a_network_without_features_says_so(tmp_path: Path) -> None:
    def flat(cfg: MixerConfig) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, cfg.num_classes))

    run = train(change(run={"steps": 2}), out=tmp_path / "run", network=flat).path
    with pytest.raises(ValueError, match="a method pre_logits"):
        load(run, network=flat).features(np.zeros((1, 8, 8, 1), np.uint8))

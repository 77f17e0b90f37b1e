"""Weight files of the relatives in other homes: every layout comes in, what a file leaves open is the config's, and an
error names the array."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlpmixer import cli
from mlpmixer.models.architecture import build
from mlpmixer.models.configs import (
    ASMLPConfig,
    EAMLPConfig,
    GMLPConfig,
    NetworkConfig,
    RepMLPNetConfig,
    ResMLPConfig,
    S2MLPConfig,
    S2MLPv2Config,
    ViPConfig,
)
from mlpmixer.weights.create import create_model
from mlpmixer.weights.formats import WeightsError, to_foreign
from mlpmixer.weights.load import load_weights
from mlpmixer.weights.model_file import meta_of, save_model

VIP = ViPConfig(image_size=16, patch_size=4, num_classes=5, hidden_dims=(8, 12, 8), depths=(1, 2, 1), strides=(1, 2))
REP = RepMLPNetConfig(
    image_size=(16, 24), num_classes=5, hidden_dims=(10, 22), depths=(1, 2), share_sets=(5, 11), kernels=(5, 3)
)
ASMLP = ASMLPConfig(image_size=(8, 24), num_classes=5, hidden_dims=(7, 14), depths=(1, 1), shift_size=3)
CASES: dict[str, tuple[NetworkConfig, str]] = {
    "vip": (VIP, "official"),
    "vip with biases": (dataclasses.replace(VIP, bias=True, strides=(2, 1), mlp_ratio=2), "official"),
    "vip of one group": (
        dataclasses.replace(VIP, hidden_dims=(8,), depths=(2,), strides=(), num_classes=0),
        "official",
    ),
    "as-mlp": (ASMLP, "official"),
    "as-mlp without shift": (dataclasses.replace(ASMLP, image_size=8, shift_size=1), "official"),
    "repmlpnet": (REP, "official"),
    "repmlpnet folded": (dataclasses.replace(REP, folded=True), "official"),
    "repmlpnet without convolutions": (dataclasses.replace(REP, kernels=(), reduction=3), "official"),
    "gmlp": (
        GMLPConfig(
            image_size=(8, 24), patch_size=4, num_classes=5, num_blocks=2, hidden_dim=6, channels_mlp_dim=10
        ),
        "timm",
    ),
    "resmlp": (
        ResMLPConfig(
            image_size=(8, 24), patch_size=4, num_classes=5, num_blocks=2, hidden_dim=6, channels_mlp_dim=10
        ),
        "official",
    ),
}  # fmt: skip
FILES = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": {f"module.{name}": t for name, t in state.items()}, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"momentum": torch.ones(2)}},
    "state_dict_ema": lambda state: {"state_dict_ema": state},
}


def perturbed(cfg: NetworkConfig) -> Any:
    """A network none of whose parameters has its first value, with statistics of BatchNorm."""
    torch.manual_seed(0)
    model = build(cfg)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            else:
                tensor.add_(torch.rand_like(tensor), alpha=0.3)
    return model.eval()


def same(model: Any, other: Any) -> bool:
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("case", CASES)
def test_a_file_of_a_config_comes_back_bit_for_bit(case: str, tmp_path: Path) -> None:
    cfg, form = CASES[case]
    model = perturbed(cfg)
    theirs = to_foreign(cfg, model.state_dict(), form)
    save_file(theirs, tmp_path / "w.safetensors")
    for name, wrap in FILES.items():
        torch.save(wrap(theirs), tmp_path / f"{name}.pth")
    for file in tmp_path.iterdir():
        loaded = create_model(cfg, weights=file)
        assert loaded.cfg == cfg and same(loaded, model), file.name
        again = to_foreign(cfg, loaded.state_dict(), form)
        assert all(torch.equal(again[key], tensor) for key, tensor in theirs.items())


@pytest.mark.parametrize("case", ["vip", "as-mlp", "repmlpnet", "gmlp", "resmlp"])
def test_an_error_names_the_array(case: str, tmp_path: Path) -> None:
    cfg, form = CASES[case]
    theirs = to_foreign(cfg, perturbed(cfg).state_dict(), form)
    file = tmp_path / "w.safetensors"
    for name, tensor in theirs.items():
        longer = torch.ones(*tensor.shape[:-1], tensor.shape[-1] + 1 if tensor.ndim else 2)
        for wrong in ({k: v for k, v in theirs.items() if k != name}, theirs | {name: torch.ones(2, 2, 2, 2, 2)}):
            save_file(wrong, file)
            with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
                create_model(cfg, weights=file)
        if "proj.weight" not in name or "embed" not in name:  # of another patch size
            save_file(theirs | {name: longer}, file)
            with pytest.raises(ValueError, match=rf"{name}|patch_size"):
                create_model(cfg, weights=file)
    save_file(theirs | {"blocks.extra": torch.ones(2)}, file)
    with pytest.raises(WeightsError, match=r"extra blocks\.extra \(2,\)"):
        create_model(cfg, weights=file)


def test_what_a_file_leaves_open_is_said(tmp_path: Path) -> None:
    torch.save(to_foreign(VIP, perturbed(VIP).state_dict(), "official"), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth has the names of vip, but .* image_size 224 .*say image_size"):
        load_weights(tmp_path / "w.pth")
    assert load_weights(tmp_path / "w.pth", image_size=16)[0].cfg == VIP
    plain = CASES["vip of one group"][0]
    torch.save(to_foreign(plain, perturbed(plain).state_dict(), "official"), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="of vip work at the image_size they were made for, 16, and not at 32"):
        create_model(plain, weights=tmp_path / "w.pth", image_size=32)
    torch.save(to_foreign(ASMLP, perturbed(ASMLP).state_dict(), "official"), tmp_path / "w.pth")
    assert create_model(ASMLP, weights=tmp_path / "w.pth", image_size=(16, 8)).cfg.image_size == (16, 8)
    cfg = CASES["gmlp"][0]
    save_file(to_foreign(cfg, perturbed(cfg).state_dict(), "timm"), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"12 patches of 4x4 px; image_size 8 would have 4"):
        load_weights(tmp_path / "w.safetensors", image_size=8)


def test_a_folded_file_gives_a_folded_network(tmp_path: Path) -> None:
    training, folded = tmp_path / "training.pth", tmp_path / "folded.pth"
    deployed = dataclasses.replace(REP, folded=True)
    torch.save(to_foreign(REP, perturbed(REP).state_dict(), "official"), training)
    torch.save(to_foreign(deployed, perturbed(deployed).state_dict(), "official"), folded)
    assert create_model(REP, weights=folded).cfg == create_model(deployed, weights=folded).cfg == deployed
    before, after = create_model(REP, weights=training), create_model(REP, weights=training, folded=True)
    assert after.cfg == deployed
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(after.double().eval()(images), before.double().eval()(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"are folded: .* leave folded=False out"):
        create_model(REP, weights=folded, folded=False)


@pytest.mark.parametrize(
    "cfg",
    [
        S2MLPConfig(image_size=8, patch_size=4, num_classes=3, num_blocks=1, hidden_dim=6, channels_mlp_dim=8),
        S2MLPv2Config(image_size=8, patch_size=4, num_classes=3, hidden_dims=(6, 8), depths=(1, 1)),
        EAMLPConfig(image_size=8, patch_size=4, num_classes=3, num_blocks=1, hidden_dim=8, channels_mlp_dim=8),
        VIP,
        CASES["gmlp"][0],
    ],
    ids=lambda cfg: cfg.architecture,
)
def test_a_plain_state_dict_loads_into_its_config(cfg: NetworkConfig, tmp_path: Path) -> None:
    model = perturbed(cfg)
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "w.pth")
    assert same(create_model(dataclasses.replace(cfg, num_classes=7), weights=tmp_path / "w.pth"), model)
    torch.save({k: v for k, v in model.state_dict().items() if k != "stem.weight"}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"stem\.weight"):
        create_model(cfg, weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("case", "mean", "fit", "interpolation"),
    [
        ("vip", 0.485, "short_side_crop", "bicubic"),
        ("as-mlp", 0.485, "short_side_crop", "bicubic"),
        ("repmlpnet", 0.485, "crop", "bilinear"),
        ("gmlp", 0.5, "short_side_crop", "bicubic"),
    ],
)
def test_images_are_prepared_as_the_official_code_does(
    case: str, mean: float, fit: str, interpolation: str, tmp_path: Path
) -> None:
    cfg, form = CASES[case]
    for channels in (1, 3):
        wanted: Any = dataclasses.replace(cfg, in_channels=channels)
        torch.save(to_foreign(wanted, build(wanted).state_dict(), form), tmp_path / "w.pth")
        preprocess = load_weights(tmp_path / "w.pth", like=wanted)[1].preprocess
        assert (preprocess.fit, preprocess.interpolation) == (fit, interpolation)
        assert len(preprocess.mean) == channels and (preprocess.mean[0] == mean or channels == 1)


def test_a_run_is_written_with_the_official_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for cfg in (VIP, ASMLP, REP, CASES["resmlp"][0]):
        model = perturbed(cfg)
        save_model(tmp_path / "own.safetensors", model, meta_of(model))
        out = tmp_path / "official.safetensors"
        assert cli.main(["convert", str(tmp_path / "own.safetensors"), str(out), "--official"]) == 0
        theirs, written = to_foreign(cfg, model.state_dict(), "official"), load_file(out)
        assert written.keys() == theirs.keys() and all(torch.equal(written[name], theirs[name]) for name in theirs)
        assert same(create_model(cfg, weights=out), model)
    capsys.readouterr()
    for wrong in (["w.safetensors", "--official", "--timm"], ["w.npz"]):
        assert cli.main(["convert", str(tmp_path / "own.safetensors"), *wrong]) == 2
        assert "--official" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "network.0.0.norm1.weight", "network.0.0.mlp.fc1.weight"])
def test_a_hostile_file_is_one_line(name: str, tmp_path: Path) -> None:
    theirs = to_foreign(VIP, perturbed(VIP).state_dict(), "official")
    for shape in ((0,) * theirs[name].ndim, (1,) * theirs[name].ndim):
        torch.save(theirs | {name: torch.ones(shape)}, tmp_path / "w.pth")
        for like in (None, VIP):
            with pytest.raises(ValueError) as e:
                load_weights(tmp_path / "w.pth", like=like)
            assert len(str(e.value)) < 2000 and "\n" not in str(e.value)

"""timm's names and spellings: the networks that timm computes, and its weights where a name stands for some.

What timm computes is in the fixture timm.npz, and compared live where timm is installed.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlpmixer
from mlpmixer import cli
from mlpmixer.models.architecture import configured, count_params
from mlpmixer.models.configs import MixerConfig, ResMLPConfig
from mlpmixer.models.names import MODELS
from mlpmixer.weights import published
from mlpmixer.weights.create import create_model
from mlpmixer.weights.formats import to_foreign, write_foreign
from mlpmixer.weights.load import load_weights
from mlpmixer.weights.published import WEIGHTS, list_models, weights_for

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = {"num_blocks": 2, "hidden_dim": 24, "tokens_mlp_dim": 12, "channels_mlp_dim": 96, "patch_size": 4}
PARAMS = {  # of timm 1.0.31
    "mixer_s32_224": 19_104_624, "mixer_s16_224": 18_528_264, "mixer_b32_224": 60_293_428, "mixer_b16_224": 59_880_472,
    "mixer_l32_224": 206_939_264, "mixer_l16_224": 208_196_168, "resmlp_12_224": 15_350_872,
    "resmlp_24_224": 30_020_680, "resmlp_36_224": 44_690_488, "resmlp_big_24_224": 129_138_280,
    "gmlp_ti16_224": 5_867_328, "gmlp_s16_224": 19_422_656, "gmlp_b16_224": 73_075_392,
    "vit_tiny_patch16_224": 5_717_416, "vit_small_patch32_224": 22_878_952, "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656, "resnet18": 11_689_512, "resnet50": 25_557_032,
}  # fmt: skip


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_name_of_timms_has_the_parameters_of_timms_network() -> None:
    assert {name: MODELS[name].num_params for name in PARAMS} == PARAMS
    assert {name for name in MODELS if "_" in name} | {"resnet18", "resnet50"} == PARAMS.keys()


def test_timms_weights_give_timms_logits_under_its_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with np.load(FIXTURES / "timm.npz") as stored:
        theirs = {name[6:]: torch.from_numpy(stored[name]) for name in stored.files if name.startswith("state/")}
        images, expected = torch.from_numpy(stored["images"]), stored["logits"]
    save_file(theirs, tmp_path / "w.safetensors")
    fields: dict[str, Any] = {**SMALL, "img_size": 12, "num_classes": 7}
    model = create_model("mixer_b16_224", weights=tmp_path / "w.safetensors", **fields).eval()
    with torch.no_grad():
        np.testing.assert_allclose(model(images).numpy(), expected, rtol=0, atol=1e-5)
    fresh = create_model("mixer_b16_224", **fields).eval()
    fresh.load_state_dict(model.state_dict())
    ours = create_model("B/16", **fields).eval()
    ours.load_state_dict(model.state_dict())
    assert torch.equal(fresh(images), model(images))
    assert (ours(images) - model(images)).abs().max() > 1e-4  # the official code's GELU


def test_stochastic_depth_has_one_rate_as_in_timm() -> None:
    model = create_model("mixer_s32_224", drop_path_rate=0.1, **SMALL)
    assert [block.drop_path for block in model.blocks] == [0.1, 0.1] and all(block.rescale for block in model.blocks)
    ours = create_model("S/32", drop_path=0.1, **SMALL)
    assert [block.drop_path for block in ours.blocks] == [0.0, 0.1] and not ours.blocks[1].rescale


def test_models_are_listed_by_pattern() -> None:
    assert list_models() == list_models(None, exclude_filters=None) == list(MODELS)
    assert list_models("mixer_b*") == ["mixer_b32_224", "mixer_b16_224"]
    assert list_models("*16*")[:3] == ["S/16", "B/16", "L/16"] and "mixer_l16_224" in list_models("*16*")
    assert list_models(["b/*", "resnet?8"]) == ["B/32", "B/16", "resnet18"]
    assert list_models("resnet*", exclude_filters="*-*") == ["resnet18", "resnet50"]
    assert list_models("nothing") == [] and mlpmixer.list_models is list_models
    assert list_models(pretrained=True) == list(WEIGHTS)
    assert list_models("mixer_l16_224", pretrained=True) == [
        "mixer_l16_224.goog_in21k_ft_in1k",
        "mixer_l16_224.goog_in21k",
    ]
    assert list_models("S/*", pretrained=True) == ["S/16:gsam", "S/32:gsam", "S/8:gsam"]
    assert list_models("*", pretrained=True, exclude_filters=["*:*", "mixer*", "*fb_distilled*"])[:2] == [
        "resmlp_12_224.fb_in1k",
        "resmlp_24_224.fb_in1k",
    ]


def test_the_command_line_knows_the_same_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "models", "mixer_s*"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]] == ["mixer_s32_224", "mixer_s16_224"]
    assert cli.main(["list", "weights", "mixer_l16*"]) == 0
    assert "L/16:timm-imagenet21k" in capsys.readouterr().out
    assert cli.main(["list", "models", "mixer_s61*"]) == 2
    assert "no models have a name like 'mixer_s61*'; did you mean mixer_s16_224" in capsys.readouterr().err
    assert cli.main(["summary", "mixer_s16_224"]) == 0
    assert "18,528,264" in capsys.readouterr().out
    assert cli.main(["summary", "mixer_b16_224.miil_in21k"]) == 0
    assert "11221" in capsys.readouterr().out


# --- spellings --------------------------------------------------------------------------------------------------------


def test_timms_spellings_are_taken_with_every_name() -> None:
    small: dict[str, Any] = {"num_blocks": 1, "hidden_dim": 8, "channels_mlp_dim": 8}
    model = create_model("resmlp-s12", in_chans=1, img_size=(32, 48), drop_path_rate=0.1, drop_rate=0.0, **small)
    assert (model.cfg.in_channels, model.cfg.image_size, model.cfg.drop_path) == (1, (32, 48), 0.1)
    mixer = create_model("mixer_s32_224", False, proj_drop_rate=0.2, global_pool="avg", mlp_ratio=None, **SMALL)
    assert mixer.cfg.dropout == 0.2
    assert configured("resnet18", in_chans=None, drop_rate=None, bn_eps=None) == MODELS["resnet18"]
    vit = MODELS["vit_tiny_patch16_224"]
    assert configured(vit, global_pool="token") == vit


@pytest.mark.parametrize(
    ("model", "fields", "says"),
    [
        ("mixer_s32_224", {"drop_rate": 0.1}, "'drop_rate'; dropout within the MLPs of a Mixer is dropout="),
        ("mixer_s32_224", {"global_pool": ""}, "'global_pool'; forward_features"),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, "'global_pool'; forward_features"),
        ("digits", {"weights": "w.npz"}, "digits names weights already: leave weights='w.npz' out"),
        ("digits", {"pretrained": "imagenet21k"}, "pretrained='imagenet21k': expected bool"),
        (None, {}, "expected a name of `mlpmixer list models` or a config, got None"),
        (
            "mixer_s32_224",
            {"mlp_ratio": (0.5, 4)},
            "'mlp_ratio'; channels_mlp_dim= is the width itself, of a Mixer bes",
        ),
        ("as-mlp-t", {"embed_dim": 64}, "'embed_dim'; hidden_dim= is the width, hidden_dims= those of stages"),
        ("as-mlp-t", {"proj_drop_rate": 0.1}, r"no field 'proj_drop_rate'; did you mean drop_path_rate\?$"),
        ("resnet18", {"drop_path_rate": 0.1}, "resnet has no field 'drop_path_rate'"),
        ("mixer_s32_224", {"checkpoint_path": "w.pth"}, "'checkpoint_path'; weights=FILE loads it"),
        ("hf-hub:timm/mixer_b16_224.goog_in21k", {}, r"mlpmixer\.from_pretrained\('hf-hub:timm"),
        ("B/16:imagenet22k", {}, "no weights named 'B/16:imagenet22k' are published; did you mean B/16:imagenet21k"),
        ("mixer_s32_224", {"in_chan": 1}, "'in_chan'; did you mean in_chans"),
        ("mixer_s32_224", {"in_chans": 1, "in_channels": 3}, "in_channels is given twice"),
        ("mixer_s32_244", {}, "no model named 'mixer_s32_244'; did you mean mixer_s32_224"),
    ],
)
def test_what_is_not_here_is_refused_with_what_to_use(model: Any, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        create_model(model, **fields)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A network of timm's with published weights, all of it tiny: `tiny_12.first` and `tiny_12.second`."""
    cfg = dataclasses.replace(MODELS["mixer_b16_224"], image_size=12, **SMALL)  # type: ignore[arg-type]
    monkeypatch.setitem(MODELS, "tiny_12", cfg)
    torch.manual_seed(0)
    model = create_model("tiny_12")
    torch.nn.init.normal_(model.head.weight)
    file = tmp_path / "model.safetensors"
    write_foreign(file, model.cfg, model.state_dict(), "timm")
    for tag, preprocess in (("first", "timm"), ("second", "miil")):
        known = dataclasses.replace(WEIGHTS["B/16:timm-miil"], model="tiny_12", preprocess=preprocess)
        monkeypatch.setitem(WEIGHTS, f"tiny_12.{tag}", known)
    monkeypatch.setattr("mlpmixer.download.fetch", lambda url, **options: file)
    return model.eval()


def test_pretrained_takes_the_weights_of_the_name(tiny: Any) -> None:
    images = torch.randn(2, 3, 12, 12)
    for name in ("tiny_12", "tiny_12.second"):
        model = mlpmixer.create_model(name, pretrained=True)
        assert model.training and torch.equal(model.eval()(images), tiny(images))
        assert model.cfg == tiny.cfg
    fresh = create_model("tiny_12.second")
    assert fresh.num_classes == 1000 and not fresh.head.weight.any()


def test_pretrained_weights_get_another_head_size_and_stem(tiny: Any) -> None:
    images = torch.randn(2, 3, 12, 12)
    model = create_model("tiny_12", pretrained=True, num_classes=5).eval()
    assert model(images).shape == (2, 5) and not model.head.weight.any()
    assert torch.equal(model.pre_logits(images), tiny.pre_logits(images))
    bare = create_model("tiny_12", pretrained=True, num_classes=0).eval()
    assert torch.equal(bare(images), tiny.pre_logits(images))
    grey = create_model("tiny_12", pretrained=True, in_chans=1).eval()  # timm: the sum of the stem's kernels
    torch.testing.assert_close(grey(images[:, :1]), tiny(images[:, :1].expand(-1, 3, -1, -1)))
    larger = create_model("tiny_12", pretrained=True, img_size=(12, 20))
    assert larger.cfg.grid == (3, 5) and larger(torch.randn(1, 3, 12, 20)).isfinite().all()


def test_timms_default_tag_is_the_default() -> None:
    assert weights_for("mixer_b16_224") == "mixer_b16_224.goog_in21k_ft_in1k"
    assert weights_for("mixer_l16_224") == "mixer_l16_224.goog_in21k_ft_in1k"
    assert weights_for("resmlp_12_224") == "resmlp_12_224.fb_in1k"
    assert weights_for("gmlp_s16_224") == "gmlp_s16_224.ra3_in1k" and WEIGHTS["gmlp_s16_224.ra3_in1k"].top1 == 0.79652
    assert weights_for("B/16") == "B/16:imagenet1k" and weights_for("S/8") == "S/8:gsam"
    assert weights_for("resmlp-b24/8") == "resmlp-b24/8:timm-imagenet1k"
    assert WEIGHTS["mixer_b16_224.miil_in21k"] is WEIGHTS["B/16:timm-miil-imagenet21k"]
    assert all(w.config.num_classes == w.num_classes and published.model_of(n) in MODELS for n, w in WEIGHTS.items())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mixer_s16_224", r"no weights of mixer_s16_224 are known by name; of the same network.*: S/16:gsam$"),
        ("vit_base_patch16_224", "list weights has those that are, and weights=FILE"),
        ("vip-s/7", r"^no weights of vip-s/7 are known by name; [^;]*$"),  # its authors publish some
        ("mixer_b16_224.goog_in1k", r"no weights named 'mixer_b16_224.goog_in1k' are published; did you mean mixer_b1"),
        ("mixer_b61_224", "no model named 'mixer_b61_224'; did you mean mixer_b16_224"),
        (MODELS["S/16"], "takes the weights of a name; with a config, give weights=FILE"),
    ],
)
def test_where_no_weights_are_published_it_says_so(name: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        create_model(name, pretrained=True)
    with pytest.raises(ValueError, match="names weights already"):
        create_model("mixer_b16_224", pretrained=True, weights="x.npz")


def test_a_resmlp_of_other_code_is_normalised_as_it_was_trained(tmp_path: Path) -> None:
    cfg = ResMLPConfig(image_size=8, patch_size=4, num_classes=3, num_blocks=1, hidden_dim=8, channels_mlp_dim=8)
    state = create_model(cfg).state_dict()
    for form in ("official", "timm"):
        write_foreign(tmp_path / "w.safetensors", cfg, state, form)
        preprocess = load_weights(tmp_path / "w.safetensors")[1].preprocess
        assert preprocess.mean == (0.485, 0.456, 0.406) and preprocess.std == (0.229, 0.224, 0.225)


# --- live -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # timm's and torchvision's own
@pytest.mark.parametrize("name", ["mixer_s32_224", "mixer_b16_224", "resmlp_12_224", "gmlp_ti16_224"])
def test_timm_itself_gives_the_same_features_and_logits(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    ours = create_model(name, num_classes=7, in_chans=1, drop_path_rate=0.1)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p), alpha=0.02)
    theirs = timm.create_model(name, num_classes=7, in_chans=1, drop_path_rate=0.1)
    theirs.load_state_dict(to_foreign(ours.cfg, ours.state_dict(), "timm"))
    assert count_params(ours) == count_params(theirs)
    if isinstance(ours.cfg, MixerConfig):
        rates = [block.drop_path.drop_prob for block in theirs.blocks]
        assert rates == [block.drop_path for block in ours.blocks]
    images = torch.randn(2, 1, 224, 224)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        a, b = ours.forward_features(images), theirs.forward_features(images)
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.forward_head(a, pre_logits=True), theirs.forward_head(b, pre_logits=True))
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
    for network in (ours, theirs):
        network.reset_classifier(0)
        assert network(images).shape == (2, ours.num_features) and network.num_classes == 0
    assert ours.num_features == theirs.num_features


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "resnet50"])
def test_timms_vit_and_resnet_are_the_same_function(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    theirs = timm.create_model(name, num_classes=7).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean), torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    ours = create_model(name, num_classes=7).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        ours.load_state_dict(renamed(theirs, ours.state_dict()))
        torch.testing.assert_close(ours.forward_features(images), theirs.forward_features(images), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-3)


VIT = {  # ours, of the library transformers -> timm's
    "body.embeddings.position_embeddings": "pos_embed",
    "body.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "body.embeddings.": "",
    "body.layers.": "blocks.",
    "attention.o_proj": "attn.proj",
    "attention.": "attn.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "body.layernorm": "norm",
}


def renamed(theirs: Any, ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's weights under our names."""
    state, found = theirs.state_dict(), {}
    if "cls_token" in state:
        for name in [n for n in state if ".qkv." in n]:
            for part, values in zip("qkv", state.pop(name).chunk(3), strict=True):
                state[name.replace("qkv", f"{part}_proj")] = values
        for name in ours:
            timms = name
            for mine, other in VIT.items():
                timms = timms.replace(mine, other)
            found[name] = state[timms]
        return found
    pool = list(state.items())  # a ResNet has them in the same order, but for the shortcut of a stage
    for name, want in ours.items():

        def fits(other: str, tensor: torch.Tensor, name: str = name, want: torch.Tensor = want) -> bool:
            return (
                tensor.shape == want.shape
                and ("shortcut" in name, "head" in name) == ("downsample" in other, other.startswith("fc."))
                and name.rpartition(".")[2] == other.rpartition(".")[2]
            )

        found[name] = pool.pop(next(i for i, known in enumerate(pool) if fits(*known)))[1]
    return found

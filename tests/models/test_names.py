"""What the zoo says of networks and of published weights is right, worked out without either."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mlpmixer.models.architecture import create_model
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.models.names import MODELS
from mlpmixer.weights.published import WEIGHTS, class_names, wordnet_ids


def test_the_worked_example_of_a_100_px_image_with_10_px_patches() -> None:
    """100 x 100 RGB pixels, P = 10: a table of 100 patches with 300 numbers each, of which the stem makes 100
    tokens."""
    layers = {layer.name: layer for layer in MixerConfig(image_size=100, patch_size=10, hidden_dim=512).layers()}
    assert layers["images"].output == (3, 100, 100)
    assert layers["patches"].output == (100, 300)
    assert layers["stem"].output == (100, 512) and layers["stem"].params == 300 * 512 + 512
    assert layers["blocks.0.token_mixing"].output == layers["norm"].output == (100, 512)
    assert layers["mean over patches"].output == (512,) and layers["head"].output == (1000,)


def test_the_shapes_are_those_of_the_network() -> None:
    cfg = MixerConfig(
        image_size=(12, 8),
        patch_size=(4, 2),
        num_classes=5,
        num_blocks=2,
        hidden_dim=16,
        tokens_mlp_dim=12,
        channels_mlp_dim=24,
    )
    layers = {layer.name: layer.output for layer in cfg.layers()}
    stages = Mixer(cfg).eval().intermediates(torch.zeros(1, 3, 12, 8))
    assert stages["stem"].shape[1:] == layers["stem"]
    assert stages["block_1"].shape[1:] == layers["blocks.1.channel_mixing"]
    assert stages["pre_logits"].shape[1:] == layers["mean over patches"]
    assert stages["logits"].shape[1:] == layers["head"]


def test_parts_are_counted_as_the_network_counts_them() -> None:
    cfg = MixerConfig(
        image_size=32, patch_size=4, parts=(2, 4), num_blocks=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=24
    )
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = Mixer(cfg).eval()
        model(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == sum(layer.flops for layer in cfg.layers())
    assert sum(p.numel() for p in model.parameters()) == sum(layer.params for layer in cfg.layers())


def test_the_flops_are_those_that_torch_counts() -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        create_model("S/32").eval()(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() == sum(layer.flops for layer in MODELS["S/32"].layers())


def test_the_flops_of_the_papers_sizes_agree_with_published_multiply_adds() -> None:
    """timm's benchmark tables, GMACs at 224 px: S/32 1.00, S/16 3.79, B/32 3.24, B/16 12.62, L/32 11.27, L/16 44.60."""
    published = {"S/32": 1.00, "S/16": 3.79, "B/32": 3.24, "B/16": 12.62, "L/32": 11.27, "L/16": 44.60}
    for name, gmacs in published.items():
        assert sum(layer.flops for layer in MODELS[name].layers()) / 2e9 == pytest.approx(
            gmacs, rel=0.005
        )  # theirs count norms too


# --- published weights --------------------------------------------------------------------------------------------

OFFICIAL = {name: w for name, w in WEIGHTS.items() if w.form == "official"}


def test_the_eleven_official_files_have_the_size_of_the_bucket() -> None:
    """The listing in vit_jax.ipynb ends with 3,489,219,014 bytes, 6 of which are a folder mark."""
    assert len(OFFICIAL) == 11
    assert sum(w.num_bytes for w in OFFICIAL.values()) == 3_489_219_014 - 6


@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("B/16:imagenet1k", 228.47),
        ("L/16:imagenet1k", 794.29),
        ("B/16:imagenet21k", 289.61),
        ("L/16:imagenet21k", 875.78),
        ("B/16:sam", 228.47),
        ("B/32:sam", 230.04),
        ("B/16:gsam", 228.47),
        ("B/32:gsam", 230.04),
        ("S/16:gsam", 70.71),
        ("S/32:gsam", 72.91),
        ("S/8:gsam", 78.79),
    ],
)
def test_an_official_file_has_the_listed_size_and_holds_the_parameters_of_its_model_and_no_more(
    name: str, mib: float
) -> None:
    w = OFFICIAL[name]
    cfg = dataclasses.replace(MODELS[w.model], num_classes=w.num_classes)
    arrays = 12 * cfg.num_blocks + 6
    assert w.num_bytes / 2**20 == pytest.approx(mib, abs=0.005)
    assert 256 < (w.num_bytes - 4 * cfg.num_params) / arrays < 320  # the headers of .npy and zip, and the name twice


def test_every_published_file_can_be_used_with_a_model_of_the_zoo() -> None:
    ours = {name: w for name, w in WEIGHTS.items() if ":" in name}
    assert len(ours) == 27
    for name, w in ours.items():
        assert w.model in MODELS and name.startswith(f"{w.model}:")
        assert w.url.startswith(
            "https://storage.googleapis.com/mixer_models/"
            if w.form == "official"
            else ("hf:timm/mixer_", "hf:timm/resmlp_", "hf:timm/gmlp_")
        )
        assert w.source and w.licence
        assert w.top1 is None or 0.7 < w.top1 < 0.85
        assert w.top1 is None or w.classes == "imagenet1k", "a head of other classes has no ImageNet-1k accuracy"
    assert len({w.url for w in ours.values()}) == len(ours)
    assert all(WEIGHTS[w.url.split("/")[1]] is w for w in ours.values() if w.form == "timm")


def test_timms_goog_in21k_ft_in1k_are_listed_as_what_they_are() -> None:
    for size in "BL":
        w = WEIGHTS[f"{size}/16:timm-imagenet1k"]
        assert "goog_in21k_ft_in1k" in w.url and w.classes == "imagenet1k"
        assert w.top1 == pytest.approx(
            WEIGHTS[f"{size}/16:imagenet1k"].top1, abs=0.004
        )  # 0.8064 and 0.8289 after ImageNet-21k


def test_an_unknown_name_of_weights_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="B/16:imagenet21k"):
        WEIGHTS["B/16:imagenet22k"]


@pytest.mark.parametrize(("classes", "n"), [("imagenet1k", 1000), ("imagenet21k", 21843), ("imagenet21k-miil", 11221)])
def test_every_output_of_a_published_head_has_a_name_of_its_own(classes: Any, n: int) -> None:
    names = class_names(classes)
    assert len(names) == len(set(names)) == n


def test_the_classes_are_in_the_order_of_the_heads() -> None:
    names, ids = class_names("imagenet1k"), wordnet_ids("imagenet1k")
    assert (names[0], ids[0]) == ("tench, Tinca tinca", "n01440764")
    assert names[134] == "crane (n02012849)" and names[517] == "crane (n03126707)"  # a bird and a machine
    assert names[999] == "toilet tissue, toilet paper, bathroom tissue"
    assert list(ids) == sorted(ids)
    assert wordnet_ids("imagenet21k")[0] == "n00004475" and list(wordnet_ids("imagenet21k")) == sorted(
        wordnet_ids("imagenet21k")
    )
    assert set(ids) - set(wordnet_ids("imagenet21k")) == {
        "n04399382"
    }  # teddy, the one class that Google's 21k list does not have

"""What `mlpmixer summary` prints is worked out from the configuration alone, and right."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mlpmixer.config import MixerConfig
from mlpmixer.model import Mixer, create_model
from mlpmixer.zoo import MODELS, summary


def test_the_worked_example_of_a_100_px_image_with_10_px_patches() -> None:
    """100 x 100 RGB pixels, P = 10: a table of 100 patches with 300 numbers each, of which the stem makes 100 tokens."""
    layers = {layer.name: layer for layer in summary(MixerConfig(image_size=100, patch_size=10, hidden_dim=512))}
    assert layers["images"].output == (3, 100, 100)
    assert layers["patches"].output == (100, 300)
    assert layers["stem"].output == (100, 512) and layers["stem"].params == 300 * 512 + 512
    assert layers["blocks.0.token_mixing"].output == layers["norm"].output == (100, 512)
    assert layers["mean over patches"].output == (512,) and layers["head"].output == (1000,)


def test_the_shapes_are_those_of_the_network() -> None:
    cfg = MixerConfig(
        image_size=(12, 8), patch_size=(4, 2), num_classes=5, num_blocks=2, hidden_dim=16, tokens_mlp_dim=12, channels_mlp_dim=24
    )
    layers = {layer.name: layer.output for layer in summary(cfg)}
    stages = Mixer(cfg).eval().intermediates(torch.zeros(1, 3, 12, 8))
    assert stages["stem"].shape[1:] == layers["stem"]
    assert stages["block_1"].shape[1:] == layers["blocks.1.channel_mixing"]
    assert stages["pre_logits"].shape[1:] == layers["mean over patches"]
    assert stages["logits"].shape[1:] == layers["head"]


def test_the_flops_are_those_that_torch_counts() -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        create_model("S/32").eval()(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() == sum(layer.flops for layer in summary(MODELS["S/32"]))


def test_the_flops_of_the_papers_sizes_agree_with_published_multiply_adds() -> None:
    """timm's benchmark tables, GMACs at 224 px: S/32 1.00, S/16 3.79, B/32 3.24, B/16 12.62, L/32 11.27, L/16 44.60."""
    published = {"S/32": 1.00, "S/16": 3.79, "B/32": 3.24, "B/16": 12.62, "L/32": 11.27, "L/16": 44.60}
    for name, gmacs in published.items():
        assert sum(layer.flops for layer in summary(MODELS[name])) / 2e9 == pytest.approx(gmacs, rel=0.005)  # theirs count norms too

"""The official step rules, step for step: the named recipes, run through the step of our loop, against
fixtures/tiny_train.json.

The figures come from google-research/vision_transformer c6de1e5 and big_vision 0127fb6, run in JAX on a CPU: four steps
on seeded images from the weights of fixtures/tiny_weights.npz. A fingerprint is (sum, l2 norm, a seeded +-1 projection)
of an array; differences are measured against its l2 norm.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import seeded
from helpers.training import batch_of
from torch import Tensor

from mlpmixer.data.image_set import ImageSet, Splits, array_images, numbered
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.store import Store
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.initialization import set_head_bias
from mlpmixer.training.inputs import Stores
from mlpmixer.training.recipe import Recipe, Run
from mlpmixer.training.recipes import RECIPES
from mlpmixer.training.schedule import lr_factor
from mlpmixer.training.step import TrainingStep
from mlpmixer.weights import model_file

FIXTURES = Path(__file__).parents[1] / "fixtures"
EXPECTED = json.loads((FIXTURES / "tiny_train.json").read_text())
TINY = MixerConfig(
    image_size=32, patch_size=8, num_classes=10, num_blocks=2, hidden_dim=48, tokens_mlp_dim=24, channels_mlp_dim=96
)
STEPS, WARMUP_STEPS, BATCH, TAKEN = 10, 2, 6, 4
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit_jax_finetune": ("finetune-official", {}),
    "vit_jax_finetune_f32_momentum": ("finetune-official", {"momentum_dtype": "float32"}),
    "big_vision_pretrain": ("pretrain-imagenet1k", {}),
}


def official_name(name: str) -> str:
    """blocks.0.token_mixing.fc1.weight -> MixerBlock_0/token_mixing/Dense_0/kernel"""
    name = re.sub(r"^blocks\.", "MixerBlock_", re.sub(r"^norm\b", "pre_head_layer_norm", name))
    name = re.sub(
        r"\b(fc|norm)([12])\b", lambda m: f"{ {'fc': 'Dense', 'norm': 'LayerNorm'}[m[1]] }_{int(m[2]) - 1}", name
    )
    return name.replace("weight", "scale" if "norm" in name.lower() else "kernel").replace(".", "/")


def from_official(name: str, array: np.ndarray) -> Tensor:
    turned = array.transpose(3, 2, 0, 1).reshape(len(array.T), -1) if array.ndim == 4 else array.T
    return torch.from_numpy(np.ascontiguousarray(turned))


def to_official(name: str, value: Tensor) -> np.ndarray:
    p = TINY.patch_size
    value = (
        value.view(-1, 3, p, p).permute(2, 3, 1, 0) if name == "stem.weight" else value.T if value.ndim == 2 else value
    )
    return value.numpy()


def official_step(rule: str) -> TrainingStep:
    """The loop's step with the recipe of the rule, the official weights, and a warm-up of 2 of 10 steps."""
    name, changed = RULES[rule]
    recipe = RECIPES[name]()
    optim = dataclasses.replace(recipe.optim, warmup_steps=WARMUP_STEPS, **changed)
    recipe = Recipe(
        model=TINY, init=recipe.init, optim=optim, run=Run(steps=STEPS, batch_size=BATCH, precision="float32")
    )
    labels = seeded.training_batches()[1].ravel()
    pixels = seeded.images_uint8("tiny_train", TAKEN * BATCH, 32)
    images = ImageSet(tuple("0123456789"), labels, numbered("train", len(labels)), array_images(pixels))
    preprocess = Preprocess(image_size=(32, 32))
    store = Store(images, preprocess, cache_mib=1, workers=1)
    stores = Stores(Splits("seeded", images, images, None, images.classes, ()), preprocess, store, store)
    step = TrainingStep(recipe, stores, torch.device("cpu"), torch.float32)
    flat = np.load(FIXTURES / "tiny_weights.npz")
    step.model.load_state_dict({k: from_official(k, flat[official_name(k)]) for k in step.model.state_dict()})
    if recipe.init.head_bias:
        set_head_bias(step.model, recipe.init.head_bias)
    return step


def take(step: TrainingStep, number: int) -> float:
    """Take step `number` as the loop does; its loss."""
    batch = batch_of(step.images, number, np.arange(BATCH * (number - 1), BATCH * number))
    loss, _ = step(batch, lr_factor(number, STEPS, step.recipe.optim))
    return loss.item()


def assert_same_fingerprints(values: dict[str, Tensor], wanted: dict[str, list[float]]) -> None:
    assert {official_name(k) for k in values} == set(wanted)
    for name, value in values.items():
        if not name.endswith("token_mixing.fc2.bias"):  # dead: its gradient is rounding noise
            theirs = wanted[official_name(name)]
            ours = seeded.probe(official_name(name), to_official(name, value))
            assert np.abs(np.subtract(ours, theirs)).max() <= 1e-5 * theirs[1], (name, ours, theirs)


@pytest.mark.parametrize("rule", RULES)
def test_recipe_takes_the_official_steps(rule: str) -> None:
    step, wanted = official_step(rule), EXPECTED[rule]
    first: dict[str, Tensor] = {}
    for name, p in step.model.named_parameters():

        def keep(grad: Tensor, name: str = name) -> None:
            first.setdefault(name, grad.clone())

        p.register_hook(keep)
    losses = [take(step, number) for number in range(1, TAKEN + 1)]
    assert losses == pytest.approx(wanted["losses"], rel=1e-6)
    norm = torch.nn.utils.get_total_norm(list(first.values()))
    assert norm.item() == pytest.approx(wanted["first_grad_global_norm"], rel=1e-6)
    assert_same_fingerprints(first, wanted["first_grad"])
    assert_same_fingerprints({k: p.detach() for k, p in step.model.named_parameters()}, wanted["params_after"])


def test_bfloat16_momentum_differs_from_float32() -> None:
    step = official_step("vit_jax_finetune")
    for number in range(1, TAKEN + 1):
        take(step, number)
    with pytest.raises(AssertionError):
        assert_same_fingerprints(
            {k: p.detach() for k, p in step.model.named_parameters()},
            EXPECTED["vit_jax_finetune_f32_momentum"]["params_after"],
        )


@pytest.mark.parametrize("rule", RULES)
def test_official_rules_resume_bit_for_bit(rule: str, tmp_path: Path) -> None:
    whole, stopped, resumed = (official_step(rule) for _ in range(3))
    for number in (1, 2):
        take(whole, number)
        take(stopped, number)
    model_file.write_tensors(tmp_path / "state.safetensors", stopped.tensors(), {})
    tensors, _ = model_file.read_tensors(tmp_path / "state.safetensors")
    if rule == "vit_jax_finetune":
        assert {v.dtype for k, v in tensors.items() if k.endswith("momentum_buffer")} == {torch.bfloat16}
    resumed.load_tensors(tensors)
    assert [take(whole, n) for n in (3, 4)] == [take(resumed, n) for n in (3, 4)]
    ours, theirs = whole.tensors(), resumed.tensors()
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype for k in ours
    )


def test_schedules_equal_the_official_ones() -> None:
    finetune, pretrain = RECIPES["finetune-official"](), RECIPES["pretrain-imagenet1k"]()
    for count, rate in EXPECTED["schedules"]["vit_jax_mixer_cifar10"].items():
        if int(count) < finetune.run.steps:  # the official count starts at 0
            assert 0.03 * lr_factor(int(count) + 1, finetune.run.steps, finetune.optim) == pytest.approx(
                rate, rel=1e-5, abs=2e-9
            )
    stored = EXPECTED["schedules"]["big_vision_mixer_i1k"]
    assert pretrain.run.steps == stored["total_steps"]
    for count, share in stored["multiplier"].items():
        assert lr_factor(int(count) + 1, pretrain.run.steps, pretrain.optim) == pytest.approx(share, rel=1e-5, abs=1e-7)

"""Configurations survive JSON and answer mistakes with the nearest right thing."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpmixer.config import Augment, Data, MixerConfig, Optim, Recipe, Run, from_json, to_json


@given(
    image_size=st.one_of(st.integers(1, 8).map(lambda n: 8 * n), st.tuples(st.just(16), st.just(24))),
    lr=st.floats(1e-6, 10),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    name=st.text(max_size=20),
    flip=st.booleans(),
)
def test_a_recipe_survives_json(image_size: int | tuple[int, int], lr: float, betas: tuple[float, float], name: str, flip: bool) -> None:
    recipe = Recipe(
        name=name,
        model=MixerConfig(image_size=image_size, patch_size=8),
        data=Data(data_dir=None),
        augment=Augment(flip=flip),
        optim=Optim(lr=lr, betas=betas),
    )
    assert from_json(Recipe, json.loads(json.dumps(to_json(recipe)))) == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run": {"epoch": 3}}, "'run.epoch'; did you mean 'epochs'"),
        ({"run": {"epochs": "three"}}, "run.epochs='three' is not of type float"),
        ({"run": {"seed": True}}, "run.seed=True"),
        ({"optim": {"name": "adam"}}, "adamw, sgd, muon"),
        ({"optim": {"betas": [0.9]}}, "expected 2 values"),
        ({"model": 3}, "expected an object"),
    ],
)
def test_wrong_json_is_refused_with_the_field_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Recipe, values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixerConfig(image_size=30, patch_size=8), "nearest that is: 32x32"),
        (lambda: MixerConfig(hidden_dim=0), "hidden_dim must be at least 1"),
        (lambda: MixerConfig(drop_path=1.0), "drop_path"),
        (lambda: Data(val_fraction=1.5), "val_fraction"),
        (lambda: Augment(mixup=-1), "augment.mixup"),
        (lambda: Optim(lr=0), "optim.lr"),
        (lambda: Optim(layer_decay=0), "optim.layer_decay"),
        (lambda: Optim(lr_end=1), "optim.lr_end"),
        (lambda: Optim(frozen_layers=-1), "optim.frozen_layers"),
        (lambda: Run(batch_size=10, accumulate=3), "must divide"),
    ],
)
def test_impossible_values_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]

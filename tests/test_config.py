"""Configurations survive JSON and answer mistakes with the nearest right thing."""

import dataclasses
import json
import math
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mlpmixer
from mlpmixer.cli import main
from mlpmixer.config import Config, field_types, from_json, parse_json, to_json
from mlpmixer.data.config import Data
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.split_record import SplitRecord
from mlpmixer.download import Retry
from mlpmixer.models.architecture import ARCHITECTURES
from mlpmixer.models.configs import MixerConfig, ViPConfig
from mlpmixer.models.names import MODELS
from mlpmixer.registry import shortened, shown
from mlpmixer.reproduce import Overrides, cost, frontier
from mlpmixer.reproduce.variants import Grouped, Pyramid
from mlpmixer.serve.settings import Settings
from mlpmixer.training.recipe import Augment, Distill, Init, Optim, Recipe, Run
from mlpmixer.weights.model_file import ModelMeta

PREPROCESS = Preprocess(image_size=(8, 8))
CONFIGS = [
    *(architecture.config() for architecture in ARCHITECTURES.values()),
    Data(),
    Init(),
    Augment(),
    Optim(),
    Distill(),
    Run(),
    Recipe(),
]
CONFIGS += [PREPROCESS, SplitRecord.of({}), Settings(), Retry()]
CONFIGS += [
    ModelMeta(config=MixerConfig(image_size=8, patch_size=4, num_classes=2), classes=("a", "b"), preprocess=PREPROCESS),
    Grouped(2),
    Pyramid(2),
]
CONFIGS += [Overrides(), cost.SCALES["small"], frontier.SCALES["small"]]
TYPES = [
    (pytest.param(config, name, id=f"{type(config).__module__}.{type(config).__name__}.{name}"), hint)
    for config in CONFIGS
    for name, hint in field_types(type(config)).items()
]
FIELDS = [param for param, _ in TYPES]
WORDS = [param for param, hint in TYPES if typing.get_origin(hint) is Literal]
FLOATS = [param for param, hint in TYPES if hint is float]
INTS = [param for param, hint in TYPES if hint in (int, int | tuple[int, int])]


@dataclass(frozen=True, kw_only=True)
class Inner(Config, owner="inner"):
    word: Literal["left", "right"] = "left"
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer(Config):
    count: int = 1
    on: bool = False
    pair: tuple[int, float] = (1, 2.0)
    size: int | tuple[int, int] = 1
    folder: str | None = None
    inner: Inner = field(default_factory=Inner)
    more: tuple[Inner, ...] = ()
    table: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def test_every_config_is_in_the_table() -> None:
    sources = [path.read_text(encoding="utf-8") for path in Path(mlpmixer.__file__).parent.rglob("*.py")]
    names = [name for source in sources for name in re.findall(r"^class (\w+)\(\w*Config\b", source, re.MULTILINE)]
    names = [name for name in names if name not in ("NetworkConfig", "PatchConfig", "StagesConfig")]  # bases
    assert sorted(names) == sorted(type(c).__name__ for c in CONFIGS)


@pytest.mark.parametrize(("config", "name"), WORDS)
def test_wrong_word_suggests_the_nearest(config: Any, name: str) -> None:
    for word in typing.get_args(field_types(type(config))[name]):
        with pytest.raises(ValueError, match=rf"{name}='{word}e' is not one of .*; did you mean {word}\?"):
            dataclasses.replace(config, **{name: f"{word}e"})


@pytest.mark.parametrize(("config", "name"), FIELDS)
def test_wrong_type_is_refused(config: Any, name: str) -> None:
    for wrong in (object(), {1: 2}, b"", [None], (1, 2, 3, "x")):
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(config, **{name: wrong})
        with pytest.raises(ValueError, match=name):
            from_json(type(config), {name: wrong})


@pytest.mark.parametrize(("config", "name"), FLOATS)
def test_a_float_is_a_finite_number(config: Any, name: str) -> None:
    for wrong in (math.nan, math.inf, -math.inf, 10**400, np.float32("nan")):
        with pytest.raises(ValueError, match=rf"{name}=.*: expected a finite number"):
            dataclasses.replace(config, **{name: wrong})
    for wrong in ("1", True, None):
        with pytest.raises(ValueError, match=rf"{name}={wrong!r}: expected float, got {type(wrong).__name__}"):
            dataclasses.replace(config, **{name: wrong})


@pytest.mark.parametrize(("config", "name"), INTS)
def test_an_int_is_a_whole_number(config: Any, name: str) -> None:
    for wrong in (1.5, 2.0, True, "1", np.float64(2), np.True_):
        with pytest.raises(ValueError, match=rf"{name}=.*: expected int"):
            dataclasses.replace(config, **{name: wrong})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"on": 1}, "on=1: expected bool, got int"),
        ({"on": "yes"}, "on='yes': expected bool, got str"),
        ({"pair": (1,)}, r"pair=\(1,\): expected 2 values, got 1"),
        ({"pair": (1, "x")}, r"pair\[1\]='x': expected float, got str"),
        ({"pair": 3}, r"pair=3: expected tuple\[int, float\], got int"),
        ({"size": (1, 2, 3)}, r"size=\(1, 2, 3\): expected int \| tuple\[int, int\], got tuple"),
        ({"folder": 3}, r"folder=3: expected str \| None, got int"),
        ({"inner": Outer()}, "inner=.*: expected Inner, got Outer"),
        ({"inner": None}, "inner=None: expected Inner, got NoneType"),
        ({"inner": {"share": "x"}}, "inner.share='x': expected float, got str"),
        ({"more": [Inner(), {"word": "lift"}]}, r"more\[1\].word='lift' is not one of left, right; did you mean left."),
        ({"table": {"a": "x"}}, r"table\['a'\]='x': expected float, got str"),
        ({"table": {1: 1.0}}, "a key of table=1: expected str, got int"),
        ({"count": "9" * 1000}, "count='9{79}[.]{3}: expected int, got str"),
    ],
)
def test_message_names_field_value_and_type(values: dict[str, Any], message: str) -> None:
    for make in (lambda: Outer(**values), lambda: from_json(Outer, values)):
        with pytest.raises(ValueError, match=rf"^{message}$"):
            make()


@pytest.mark.parametrize(
    ("values", "right"),
    [
        ({"count": np.int64(3)}, {"count": 3}),
        ({"count": torch.tensor(3)}, {"count": 3}),
        ({"on": np.True_}, {"on": True}),
        ({"pair": [np.uint8(1), 2]}, {"pair": (1, 2.0)}),
        ({"size": np.int32(4)}, {"size": 4}),
        ({"folder": np.str_("x")}, {"folder": "x"}),
        ({"inner": Inner(share=1)}, {"inner": Inner(share=1.0)}),
        ({"inner": {"share": np.float32(0.1)}}, {"inner": Inner(share=float(np.float32(0.1)))}),
        ({"inner": {"word": "right"}}, {"inner": Inner(word="right")}),
        ({"more": [{"share": 0}]}, {"more": (Inner(share=0.0),)}),
        ({"table": {"a": 1}}, {"table": {"a": 1.0}}),
        ({"extra": {"a": [1, {"b": None}]}}, {"extra": {"a": [1, {"b": None}]}}),
    ],
)
def test_equivalent_values_are_converted(values: dict[str, Any], right: dict[str, Any]) -> None:
    config, expected = Outer(**values), Outer(**right)
    assert repr(config) == repr(expected)
    assert from_json(Outer, values) == config


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (Optim, {"name": "adam"}, "^optim.name='adam' is not one of adamw, sgd, muon; did you mean adamw"),
        (Optim, {"name": "SGD"}, "did you mean sgd"),
        (Data, {"fit": "crap"}, "^data.fit='crap' is not one of .*; did you mean crop"),
        (Run, {"precision": "bf16"}, "^run.precision='bf16' is not one of .*; did you mean bfloat16"),
        (MixerConfig, {"hidden_dim": "768"}, "^model.hidden_dim='768': expected int, got str"),
        (Recipe, {"model": {"hidden_dim": "768"}}, "^model.hidden_dim='768': expected int, got str"),
        (MixerConfig().adapted, {"method": "block"}, "^method='block' is not one of .*; did you mean blocks"),
    ],
)
def test_message_names_the_option(make: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_command_line_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--lr", "nan"]) == 2
    assert "--lr nan: expected a number" in capsys.readouterr().err


@given(
    image_size=st.one_of(st.integers(1, 8).map(lambda n: 8 * n), st.tuples(st.just(16), st.just(24))),
    lr=st.floats(1e-6, 10),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    name=st.text(max_size=20),
    flip=st.booleans(),
)
def test_a_recipe_survives_json(
    image_size: int | tuple[int, int], lr: float, betas: tuple[float, float], name: str, flip: bool
) -> None:
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
        ({"run": {"epoch": 3}}, r"'run.epoch'; did you mean epochs\?"),
        ({"run": {"epochs": "three"}}, "run.epochs='three': expected float, got str"),
        ({"run": {"seed": True}}, "run.seed=True"),
        ({"optim": {"name": "adam"}}, "adamw, sgd, muon"),
        ({"optim": {"betas": [0.9]}}, "expected 2 values"),
        ({"model": 3}, "model=3: expected NetworkConfig, got int"),
        ([], "Recipe: expected an object, got list"),
    ],
)
def test_wrong_json_names_the_field(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Recipe, values)


def test_missing_json_field() -> None:
    with pytest.raises(ValueError, match=r"^Preprocess: the field 'image_size' is missing$"):
        from_json(Preprocess, {"fit": "pad"})
    with pytest.raises(ValueError, match=r"^preprocess: the field 'image_size' is missing$"):
        from_json(ModelMeta, {"config": {}, "classes": ["a", "b"], "preprocess": {}})


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


@pytest.mark.parametrize(
    ("name", "fields", "hint"),
    [
        ("as-mlp-t", {"image_size": 50}, "64x64"),  # of 4 px and three merges, not 48x48, of 4 px alone
        ("s2-mlpv2-s/7", {"image_size": 64}, "70x70"),
        ("repmlpnet-t224", {"image_size": (24, 250)}, "32x256"),
        ("vip-s/7", {"image_size": 64}, "56x56"),
        ("vip-s/7", {"image_size": 98}, "84x84"),  # 14 places do not divide 192 channels
        ("vip-s/7", {"patch_size": 16}, "192x192"),
        ("vip-s/7", {"image_size": (112, 224)}, "112x112"),
    ],
)
def test_size_that_an_error_names_works(name: str, fields: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match=rf"nearest (that is|image_size that fits): {hint}$"):
        dataclasses.replace(MODELS[name], **fields)
    rows, cols = map(int, hint.split("x"))
    assert dataclasses.replace(MODELS[name], **fields | {"image_size": (rows, cols)}).grid


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_network_has_a_title_and_its_paper(name: str) -> None:
    config = ARCHITECTURES[name].config
    assert config.title and re.fullmatch(r"\d{4}\.\d{5}", config.arxiv) and config.arxiv in (config.__doc__ or "")


def test_no_size_is_named_where_none_fits() -> None:
    with pytest.raises(ValueError, match=r"make 4x4 places for 37 channels$"):
        ViPConfig(image_size=16, patch_size=4, hidden_dims=(37, 37), depths=(1, 1), strides=(2,))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 10**6, "more than|deeper than 64"),
        ("[" * 500 + "]" * 500, "deeper than 64 levels"),
        ('{"a":' * 65 + "1" + "}" * 65, "deeper than 64 levels"),
        ("[" + "1," * 10**6 + "1]", "more than 1,000,000 values"),
        (r'["\uD800"]', "surrogates not allowed"),
        (b"\xff", "decode"),
        ("9" * 5000, "4300"),
        ("{", "Expecting"),
    ],
    ids=str,
)
def test_hostile_json_is_a_value_error(text: str | bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(text)


def test_foreign_json_is_read() -> None:
    value = {"a": [1, {"b": None}], "ä": "\U0001f600 \\ud800"}
    assert parse_json(json.dumps(value)) == parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
    assert parse_json("[" * 64 + "]" * 64)


def test_error_quotes_no_more_than_a_line() -> None:
    assert shown("x" * 1000) == "'" + "x" * 79 + "..."
    assert shortened("a\n\n  b " * 1000, 5) == "a b a..."

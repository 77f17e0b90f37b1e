"""A config with a wrong value is refused in one line that names the field."""

import dataclasses
import math
from typing import Any

import pytest

from mlpmixer.models.configs import (
    ASMLPConfig,
    EAMLPConfig,
    GMLPConfig,
    MixerConfig,
    NetworkConfig,
    RepMLPNetConfig,
    ResMLPConfig,
    S2MLPConfig,
    S2MLPv2Config,
    ViPConfig,
)

SIZE: dict[str, Any] = {"image_size": 16, "patch_size": 4, "num_classes": 3}
BLOCKS: dict[str, Any] = SIZE | {"num_blocks": 1, "hidden_dim": 8}
STAGES: dict[str, Any] = SIZE | {"hidden_dims": (8, 16), "depths": (1, 1)}
CONFIGS: list[NetworkConfig] = [
    *(cls(**BLOCKS) for cls in (MixerConfig, ResMLPConfig, GMLPConfig, S2MLPConfig, EAMLPConfig)),
    *(cls(**STAGES) for cls in (S2MLPv2Config, ASMLPConfig)),
    ViPConfig(**STAGES, strides=(2,)),
    RepMLPNetConfig(**STAGES, share_sets=(1, 4)),
]
NEVER: list[Any] = [None, "x", "8", math.nan, math.inf, -1, 10**400, -(10**5000), {}, b"8", ("x",), (8, None), (-8, 8)]
LISTS: list[Any] = [(), (8,), (8, 16, 32), (0, 16), (8, 10**400), (True, 16), (1.5, 16), 8]


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda cfg: cfg.architecture)
def test_a_wrong_value_is_refused_in_one_line_that_names_the_field(cfg: NetworkConfig) -> None:
    for field in dataclasses.fields(cfg):
        several = isinstance(getattr(cfg, field.name), tuple) and field.name != "kernels"
        for value in NEVER + LISTS * several:
            if field.name == "strides" and value == ():
                continue
            with pytest.raises(ValueError) as wrong:
                dataclasses.replace(cfg, **{field.name: value})
            said = str(wrong.value)
            assert field.name in said and "\n" not in said and len(said) < 300, (field.name, said)


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (
            ViPConfig,
            {"strides": (2, 2)},
            r"strides must be 1 or 2, one for each .* but the last; got \(2, 2\) and depths",
        ),
        (ViPConfig, {"strides": (3,)}, r"strides must be 1 or 2"),
        (ViPConfig, {"hidden_dims": (10, 16)}, "hidden_dims that are multiples of that"),
        (ViPConfig, {"image_size": (16, 8)}, "as many places down as across"),
        (ASMLPConfig, {"shift_size": 4}, "shift_size must be odd, got 4"),
        (
            RepMLPNetConfig,
            {"share_sets": (3, 4)},
            r"share_sets must .* divides its hidden_dims \(8, 16\); got \(3, 4\)",
        ),
        (RepMLPNetConfig, {"kernels": (3, 3)}, r"kernels must be different odd numbers, got \(3, 3\)"),
        (RepMLPNetConfig, {"reduction": 9}, "hidden_dims must be at least reduction, 9"),
        (S2MLPv2Config, {"reduction": 9}, "hidden_dims must be at least reduction, 9"),
        (EAMLPConfig, {"num_heads": 3}, "hidden_dim 8 is not a multiple of num_heads 3"),
        (GMLPConfig, {"channels_mlp_dim": 33}, "channels_mlp_dim must be even"),
        (ResMLPConfig, {"layer_scale": 0.0}, "layer_scale must be positive, got 0.0"),
        (S2MLPConfig, {"norm": "afine"}, "norm='afine' is not one of layer, affine; did you mean affine"),
    ],
)
def test_what_does_not_fit_together_is_said(cls: type[NetworkConfig], fields: dict[str, Any], message: str) -> None:
    base = next(cfg for cfg in CONFIGS if type(cfg) is cls)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(base, **fields)

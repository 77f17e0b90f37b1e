"""The names of a Mixer's weights in other homes: the official Flax .npz, and state dicts, timm's and its own.

Official: google-research/vision_transformer (vit_jax/models_mixer.py) and google-research/big_vision
(models/mlp_mixer.py). Letters as in mixer.py: S patches, C hidden_dim, DS and DC the widths of the MLPs, P patch_size,
K classes.
"""

import re
from collections.abc import Mapping
from functools import partial

import numpy as np

from mlpmixer.config import one_if_square, pair
from mlpmixer.models.configs import Activation, MixerConfig
from mlpmixer.models.name_table import (
    Arrays,
    Known,
    NameTable,
    Row,
    classes_of,
    image_size_of,
    numbered,
    shape_of,
    with_stem_as_convolution,
)
from mlpmixer.models.names import MIXERS

OWN = {"stem": "stem", "token_mixing": "token_mixing", "channel_mixing": "channel_mixing"}
TIMM = {"stem": "stem.proj", "token_mixing": "mlp_tokens", "channel_mixing": "mlp_channels"}


def official_table(cfg: MixerConfig) -> list[Row]:
    """The official file of an architecture: 12 arrays a block and 6 more (4 without a head)."""
    c, (p, q) = cfg.hidden_dim, pair(cfg.patch_size)
    rows = [
        Row("stem.weight", "stem/kernel", (p, q, cfg.in_channels, c), "stem_hwio"),
        Row("stem.bias", "stem/bias", (c,)),
    ]
    for i in range(cfg.num_blocks):
        theirs = f"MixerBlock_{i}"
        for ours, norm in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_1")):
            rows += [
                Row(f"blocks.{i}.{ours}.{a}", f"{theirs}/{norm}/{b}", (c,))
                for a, b in (("weight", "scale"), ("bias", "bias"))
            ]
        for mlp, dim, width in (
            ("token_mixing", cfg.num_patches, cfg.tokens_mlp_dim),
            ("channel_mixing", c, cfg.channels_mlp_dim),
        ):
            for ours, dense, shape in (("fc1", "Dense_0", (dim, width)), ("fc2", "Dense_1", (width, dim))):
                rows.append(
                    Row(f"blocks.{i}.{mlp}.{ours}.weight", f"{theirs}/{mlp}/{dense}/kernel", shape, "transposed")
                )
                rows.append(Row(f"blocks.{i}.{mlp}.{ours}.bias", f"{theirs}/{mlp}/{dense}/bias", shape[1:]))
    rows += [Row("norm.weight", "pre_head_layer_norm/scale", (c,)), Row("norm.bias", "pre_head_layer_norm/bias", (c,))]
    if cfg.num_classes:
        k = cfg.num_classes
        rows += [Row("head.weight", "head/kernel", (c, k), "transposed"), Row("head.bias", "head/bias", (k,))]
    return rows


def state_dict_table(cfg: MixerConfig, names: Mapping[str, str]) -> list[Row]:
    """A state dict with a convolution as stem, as timm's MlpMixer has it, and these names for the stem and the MLPs."""
    rows = []
    for row in official_table(cfg):
        theirs = ".".join(names.get(part, part) for part in row.ours.split("."))
        if row.form == "stem_hwio":
            p, q, channels, c = row.shape
            rows.append(Row(row.ours, theirs, (c, channels, p, q), "stem_oihw"))
        else:
            rows.append(Row(row.ours, theirs, row.shape[::-1]))
    return rows


def current_names(arrays: Arrays) -> dict[str, np.ndarray]:
    """Arrays under today's official names, from any public variant: below params/ or opt/target/, or named as before
    Linen.

    Before Linen (big_vision's mlp_mixer.py, `load`): embedding, Mixer/encoder_norm,
    Mixer/encoderblock_i/*_mixing_phase_0 with kernel1, bias1, kernel2, bias2, and LayerNorms counted among all layers
    of the block.
    """
    for prefix in ("params/", "opt/target/"):
        if any(name.startswith(prefix) for name in arrays):  # what else is there is the state of an optimizer
            arrays = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
    out: dict[str, np.ndarray] = {}
    norms: dict[str, set[int]] = {}
    for name in arrays:
        if found := re.fullmatch(r"Mixer/encoderblock_(\d+)/LayerNorm_(\d+)/\w+", name):
            norms.setdefault(found[1], set()).add(int(found[2]))
    for name, array in arrays.items():
        if found := re.fullmatch(r"Mixer/encoderblock_(\d+)/LayerNorm_(\d+)/(\w+)", name):
            rank = sorted(norms[found[1]]).index(int(found[2]))
            name, array = f"MixerBlock_{found[1]}/LayerNorm_{rank}/{found[3]}", array.squeeze()
        elif found := re.fullmatch(
            r"Mixer/encoderblock_(\d+)/(token|channel)_mixing_phase_0/(kernel|bias)([12])", name
        ):
            name, array = (
                f"MixerBlock_{found[1]}/{found[2]}_mixing/Dense_{int(found[4]) - 1}/{found[3]}",
                array.squeeze(),
            )
        elif found := re.fullmatch(r"Mixer/encoder_norm/(\w+)", name):
            name, array = f"pre_head_layer_norm/{found[1]}", array.squeeze()
        elif found := re.fullmatch(r"embedding/(\w+)", name):
            name = f"stem/{found[1]}"
        out[name] = array
    return out


def official_config(arrays: Arrays, known: Known, where: str) -> MixerConfig:
    """The architecture that these arrays (today's names) are of. image_size must be known where the number of patches
    is not a square."""
    return _config(
        {
            "stem": shape_of(arrays, "stem/kernel", 4, where),
            "tokens": shape_of(arrays, "MixerBlock_0/token_mixing/Dense_0/kernel", 2, where),
            "channels": shape_of(arrays, "MixerBlock_0/channel_mixing/Dense_0/kernel", 2, where),
        },
        num_blocks=numbered(arrays, r"MixerBlock_(\d+)/"),
        num_classes=shape_of(arrays, "head/kernel", 2, where)[1] if "head/kernel" in arrays else 0,
        activation="gelu_tanh",
        known=known,
        where=where,
    )


def state_dict_config(arrays: Arrays, known: Known, where: str, names: Mapping[str, str] = TIMM) -> MixerConfig:
    """The architecture that a state dict of `state_dict_table` is of."""
    c, channels, p, q = shape_of(arrays, f"{names['stem']}.weight", 4, where)
    tokens, mixed = (
        shape_of(arrays, f"blocks.0.{names[mlp]}.fc1.weight", 2, where)[::-1]
        for mlp in ("token_mixing", "channel_mixing")
    )
    num_blocks = numbered(arrays, r"blocks\.(\d+)\.")
    return _config(
        {"stem": (p, q, channels, c), "tokens": tokens, "channels": mixed},
        num_blocks=num_blocks,
        num_classes=classes_of(arrays, where),
        activation="gelu_erf" if names is TIMM else _activation(num_blocks, c, tokens[1], mixed[1]),
        known=known,
        where=where,
    )


def _activation(*widths: int) -> Activation:
    """The activation of the named Mixer with these blocks and widths, or else the default: no weight tells it."""
    for known in MIXERS.values():
        if (known.num_blocks, known.hidden_dim, known.tokens_mlp_dim, known.channels_mlp_dim) == widths:
            return known.activation
    return MixerConfig.activation


def _config(
    shapes: dict[str, tuple[int, ...]],
    *,
    num_blocks: int,
    num_classes: int,
    activation: Activation,
    known: Known,
    where: str,
) -> MixerConfig:
    p, q, in_channels, c = shapes["stem"]
    s, tokens_mlp_dim = shapes["tokens"]
    size = image_size_of(s, p, q, known, where)
    return MixerConfig(
        image_size=size,
        patch_size=one_if_square(p, q),
        in_channels=in_channels,
        num_classes=num_classes,
        num_blocks=num_blocks,
        hidden_dim=c,
        tokens_mlp_dim=tokens_mlp_dim,
        channels_mlp_dim=shapes["channels"][1],
        activation=activation,
    )


TABLES = (
    NameTable(
        form="official",
        suffix=".npz",
        marker="stem/kernel",
        rows=official_table,
        config=official_config,
        activation="gelu_tanh",
        preprocess="bv_resmall_crop",
        current=current_names,
    ),
    NameTable(
        form="timm",
        suffix=".safetensors",
        marker="blocks.0.mlp_tokens.fc1.weight",
        rows=partial(state_dict_table, names=TIMM),
        config=state_dict_config,
        activation="gelu_erf",
    ),
    NameTable(
        form="own",
        suffix=".safetensors",
        marker="blocks.0.token_mixing.fc1.weight",
        rows=partial(state_dict_table, names=OWN),
        config=partial(state_dict_config, names=OWN),
        preprocess="",
        current=with_stem_as_convolution,
    ),
)

"""The official names of the weights of AS-MLP."""

import torch

from mlpmixer.config import one_if_square
from mlpmixer.models.asmlp import ASMLP
from mlpmixer.models.configs import ASMLPConfig
from mlpmixer.models.name_table import Arrays, Known, NameTable, Row, classes_of, numbered, renamed_rows, shape_of

NAMES = (
    (r"^stem\.", "patch_embed.proj."),
    (r"^merges\.0\.", "patch_embed.norm."),
    (r"^merges\.(\d+)\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"layers.\1.blocks.\2."),
    (r"\.fc_rows\.", ".conv2_1."),
    (r"\.fc_columns\.", ".conv2_2."),
    (r"\.axial_shift\.fc(\d)\.", r".axial_shift.conv\1."),
    (r"\.channel_mixing\.", ".mlp."),
)


def _rows(cfg: ASMLPConfig) -> list[Row]:
    with torch.device("meta"):
        state = ASMLP(cfg).state_dict()
    convolutions = {
        name: (*t.shape, 1, 1) for name, t in state.items() if t.ndim == 2 and name != "head.weight"
    }  # fmt: skip
    return renamed_rows(state, NAMES, convolutions | {"stem.weight": (cfg.hidden_dims[0], cfg.in_channels, *cfg.patch)})


def _config(arrays: Arrays, known: Known, where: str) -> ASMLPConfig:
    """The architecture that these arrays are of. They say neither the size of the image nor that of the shift: unless
    they are known, 224 px and 5, as in every published network."""
    c, channels, p, q = shape_of(arrays, "patch_embed.proj.weight", 4, where)
    stages = range(numbered(arrays, r"layers\.(\d+)\."))
    return ASMLPConfig(
        image_size=known.get("image_size", 224),
        patch_size=one_if_square(p, q),
        in_channels=channels,
        num_classes=classes_of(arrays, where),
        hidden_dims=tuple(shape_of(arrays, f"layers.{i}.blocks.0.norm1.weight", 1, where)[0] for i in stages),
        depths=tuple(numbered(arrays, rf"layers\.{i}\.blocks\.(\d+)\.") for i in stages),
        mlp_ratio=shape_of(arrays, "layers.0.blocks.0.mlp.fc1.weight", 4, where)[0] // c,
        shift_size=known.get("shift_size", 5),
    )


TABLES = (
    NameTable(
        form="official",
        suffix=".safetensors",
        marker="layers.0.blocks.0.axial_shift.conv2_1.weight",
        rows=_rows,
        config=_config,
        preprocess="timm_imagenet",
        left_open=("image_size", "shift_size"),
    ),
)

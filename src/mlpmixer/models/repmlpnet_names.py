"""The official names of the weights of RepMLPNet, in both of its forms."""

import re

import torch

from mlpmixer.config import one_if_square
from mlpmixer.models.configs import RepMLPNetConfig
from mlpmixer.models.name_table import (
    Arrays,
    Known,
    NameTable,
    Row,
    classes_of,
    image_size_of,
    numbered,
    renamed_rows,
    shape_of,
)
from mlpmixer.models.repmlpnet import RepMLPNet

NAMES = (
    (r"^stem\.", "conv_embedding.conv."),
    (r"^stem_bn\.", "conv_embedding.bn."),
    (r"^merges\.(\d+)\.", lambda m: f"embeds.{int(m[1]) - 1}."),
    (r"^norm\.", "head_norm."),
)


def _rows(cfg: RepMLPNetConfig) -> list[Row]:
    with torch.device("meta"):
        state = RepMLPNet(cfg).state_dict()
    shapes = {
        name: (*t.shape, 1, 1) for name, t in state.items() if t.ndim == 2 and not name.startswith(("head", "merges"))
    }
    for name, t in state.items():
        if ".fc3." in name:  # (S, h w, h w) and (S, h w, 1) here
            shapes[name] = (
                (t.shape[0] * t.shape[1],) if name.endswith("bias") else (t.shape[0] * t.shape[1], t.shape[2], 1, 1)
            )
    shapes["stem.weight"] = (cfg.hidden_dims[0], cfg.in_channels, *cfg.patch)
    for i, (before, c) in enumerate(zip(cfg.hidden_dims, cfg.hidden_dims[1:], strict=False), 1):
        shapes[f"merges.{i}.conv.weight"] = (c, before, 2, 2)
    return renamed_rows(state, NAMES, shapes)


def _config(arrays: Arrays, known: Known, where: str) -> RepMLPNetConfig:
    """The architecture that these arrays are of. The maps of its stages are square, and the kernels that were folded
    away 1 and 3, unless they are known."""
    c, channels, p, q = shape_of(arrays, "conv_embedding.conv.weight", 4, where)
    stages, first = range(numbered(arrays, r"stages\.(\d+)\.")), "stages.0.0.repmlp_block"
    dims = tuple(shape_of(arrays, f"stages.{i}.0.prebn1.weight", 1, where)[0] for i in stages)
    inner = [shape_of(arrays, f"stages.{i}.0.repmlp_block.gp.fc1.weight", 4, where)[0] for i in stages]
    folded = f"{first}.fc3.bias" in arrays
    kernels = tuple(sorted({int(m[1]) for name in arrays if (m := re.match(rf"{first}\.repconv(\d+)\.", name))}))
    mixing = [shape_of(arrays, f"stages.{i}.0.repmlp_block.fc3.weight", 4, where) for i in stages]
    return RepMLPNetConfig(
        image_size=image_size_of(mixing[0][1], p, q, known, where),
        patch_size=one_if_square(p, q),
        in_channels=channels,
        num_classes=classes_of(arrays, where),
        hidden_dims=dims,
        depths=tuple(numbered(arrays, rf"stages\.{i}\.(\d+)\.") for i in stages),
        share_sets=tuple(rows // places for rows, places, *_ in mixing),
        kernels=known.get("kernels", (1, 3)) if folded or set(kernels) == set(known.get("kernels", ())) else kernels,
        reduction=next(
            (r for r in (known.get("reduction", 4), *range(1, c + 1)) if inner == [c // r for c in dims]), 0
        ),
        mlp_ratio=shape_of(arrays, "stages.0.0.ffn_block.ffn_fc1.conv.weight", 4, where)[0] // c,
        folded=folded,
    )


TABLES = (
    NameTable(
        form="official",
        suffix=".safetensors",
        marker="stages.0.0.repmlp_block.fc3.weight",
        rows=_rows,
        config=_config,
        preprocess="imagenet_crop",
    ),
)

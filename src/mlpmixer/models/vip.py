"""Vision Permutator (ViP), the whole architecture on one page.

Paper: Hou et al., "Vision Permutator: A Permutable MLP-Like Architecture for Visual Recognition", arXiv:2106.12368,
section 3. Official code: houqb/VisionPermutator, models/vip.py.

Letters: B batch, H, W places down and across, C hidden_dim, G segments of s = C/G channels, K num_classes. What differs
from equation (1) of the Mixer: rows and columns are mixed apart, each together with a segment of the channels, and a
third layer mixes channels; their sum is weighed by the image.
"""

from typing import cast

import torch
from torch import Tensor, nn

from mlpmixer.config import one_if_square
from mlpmixer.models.configs import ViPConfig
from mlpmixer.models.layers import DropPath, Mlp, linear_head, linear_stem, truncated_normal
from mlpmixer.models.name_table import Arrays, Known, NameTable, Row, classes_of, numbered, renamed_rows, shape_of
from mlpmixer.models.patch_networks import StagedNetwork


class WeightedPermuteMlp(nn.Module):
    """Section 3.2, "Weighted Permute-MLP": (B, H, W, C) -> (B, H, W, C), where H = W = G."""

    def __init__(self, dim: int, segments: int, bias: bool = False) -> None:
        super().__init__()
        self.segments = segments
        self.mlp_c = nn.Linear(dim, dim, bias=bias)
        self.mlp_h = nn.Linear(dim, dim, bias=bias)
        self.mlp_w = nn.Linear(dim, dim, bias=bias)
        self.reweight = Mlp(dim, dim // 4, out_dim=3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, rows, cols, c = x.shape
        cut = x.reshape(b, rows, cols, self.segments, -1)  # (B, H, W, G, s)
        # a vector holds one segment of all rows of a column, (row, s), or of all columns of a row
        h = self.mlp_h(cut.permute(0, 3, 2, 1, 4).reshape(b, -1, cols, c))  # (B, G, W, H s)
        h = h.unflatten(-1, (rows, -1)).permute(0, 3, 2, 1, 4).reshape(b, rows, cols, c)
        w = self.mlp_w(cut.transpose(2, 3).reshape(b, rows, -1, c))  # (B, H, G, W s)
        w = w.unflatten(-1, (cols, -1)).transpose(2, 3).reshape(b, rows, cols, c)
        own = self.mlp_c(x)
        a = self.reweight((h + w + own).mean(dim=(1, 2)))  # (B, 3 C), the three branches next to each other
        a = a.view(b, c, 3).permute(2, 0, 1).softmax(dim=0)  # one after the other: contiguous, for the products
        a_h, a_w, a_c = a[:, :, None, None].unbind()
        return cast(Tensor, self.proj(h * a_h + w * a_w + own * a_c))


class Permutator(nn.Module):
    """One block, equations (1) and (2): (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, cfg: ViPConfig, stage: int, dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.permute_mlp = WeightedPermuteMlp(dim, cfg.grids[stage][0], cfg.bias)
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mixing = Mlp(dim, cfg.mlp_ratio * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.drop_path(self.permute_mlp(self.norm1(x)))
        return cast(Tensor, y + self.drop_path(self.channel_mixing(self.norm2(y))))


class ViP(StagedNetwork):
    """Images to logits: (B, in_channels, H, W) -> (B, K), or pre-logits (B, C) when num_classes is 0.

    Weights start as in the official code: truncated normal of deviation 0.02, zero biases; stem and merges as
    convolutions of torch do.
    """

    cfg: ViPConfig

    def __init__(self, cfg: ViPConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.stem = linear_stem(cfg, cfg.hidden_dims[0])
        self.merges = self.make_merges()
        self.stages = self.make_stages(lambda stage, dim, drop_path: Permutator(cfg, stage, dim, drop_path))
        self.norm = nn.LayerNorm(cfg.num_features)
        self.head = linear_head(cfg)
        truncated_normal(*self.stages.modules())
        self.start_head()

    def start_head(self) -> None:
        """As the other linear layers start."""
        truncated_normal(self.head)


# --- names in other homes ---------------------------------------------------------------------------------------------


def _rows(cfg: ViPConfig) -> list[Row]:
    """Official names count groups and merges together: network.K."""
    names, shapes, k = [(r"^stem\.", "patch_embed.proj.")], {}, 0
    with torch.device("meta"):
        model = ViP(cfg)
    shapes["stem.weight"] = (cfg.hidden_dims[0], cfg.in_channels, *cfg.patch)
    for i, merge in enumerate(model.merges):
        if not isinstance(merge, nn.Identity):
            names.append((rf"^merges\.{i}\.linear\.", f"network.{k}.proj."))
            size = 2 if cfg.merged[i] else 1
            shapes[f"merges.{i}.linear.weight"] = (cfg.hidden_dims[i], cfg.hidden_dims[i - 1], size, size)
            k += 1
        names.append((rf"^stages\.{i}\.", f"network.{k}."))
        k += 1
    names += [(r"\.permute_mlp\.", ".attn."), (r"\.channel_mixing\.", ".mlp.")]
    return renamed_rows(model.state_dict(), tuple(names), shapes)


def _config(arrays: Arrays, known: Known, where: str) -> ViPConfig:
    """The architecture that these arrays are of. They don't say the size of the image: 224 px unless it is known."""
    c, channels, p, q = shape_of(arrays, "patch_embed.proj.weight", 4, where)
    stride = 1
    dims: list[int] = []
    depths: list[int] = []
    strides: list[int] = []
    for k in range(numbered(arrays, r"network\.(\d+)\.")):
        if any(name.startswith(f"network.{k}.proj.") for name in arrays):
            stride = shape_of(arrays, f"network.{k}.proj.weight", 4, where)[-1]
            continue
        strides += [stride] if depths else []
        stride = 1
        dims.append(shape_of(arrays, f"network.{k}.0.norm1.weight", 1, where)[0])
        depths.append(numbered(arrays, rf"network\.{k}\.(\d+)\."))
    return ViPConfig(
        image_size=known.get("image_size", 224),
        patch_size=one_if_square(p, q),
        in_channels=channels,
        num_classes=classes_of(arrays, where),
        hidden_dims=tuple(dims),
        depths=tuple(depths),
        strides=tuple(strides),
        mlp_ratio=shape_of(arrays, "network.0.0.mlp.fc1.weight", 2, where)[0] // c,
        bias="network.0.0.attn.mlp_c.bias" in arrays,
    )


TABLES = (
    NameTable(
        form="official",
        suffix=".safetensors",
        marker="network.0.0.attn.reweight.fc1.weight",
        rows=_rows,
        config=_config,
        preprocess="timm_imagenet",
        left_open=("image_size",),
    ),
)

"""The relatives as their official codes compute them, written here from the equations: what `relatives.py` times ours
against.

The layout of the official code, maps (B, C, H, W) where it has them; its way to move data: permutations, rolls, slices
assigned to a copy, grouped convolutions; and its names, so that the weights of our network load strictly. S2-MLP has no
official code: its papers' slices, each written from the input into a copy. gMLP is timm's.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpmixer.models.configs import (
    ASMLPConfig,
    EAMLPConfig,
    GMLPConfig,
    RepMLPNetConfig,
    ResMLPConfig,
    S2MLPConfig,
    S2MLPv2Config,
    ViPConfig,
)
from mlpmixer.models.network import Network
from mlpmixer.weights.formats import to_foreign


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, out_dim: int = 0) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, out_dim or dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Stem(nn.Module):
    """(B, 3, H, W) -> (B, C, H/P, W/P)."""

    def __init__(self, cfg: Any, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(cfg.in_channels, dim, cfg.patch_size, cfg.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


# --- ResMLP and gMLP: tokens (B, S, C) --------------------------------------------------------------------------------


class Affine(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x + self.beta


class ResMLPBlock(nn.Module):
    def __init__(self, cfg: ResMLPConfig) -> None:
        super().__init__()
        c = cfg.hidden_dim
        self.norm1, self.norm2 = Affine(c), Affine(c)
        self.attn, self.mlp = nn.Linear(cfg.num_patches, cfg.num_patches), Mlp(c, cfg.channels_mlp_dim)
        self.gamma_1, self.gamma_2 = nn.Parameter(torch.ones(c)), nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma_1 * self.attn(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class Gate(nn.Module):
    def __init__(self, num_patches: int, dim: int) -> None:
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(dim // 2), nn.Linear(num_patches, num_patches)

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        return u * self.proj(self.norm(v).transpose(-1, -2)).transpose(-1, -2)


class GatedMlp(nn.Module):
    def __init__(self, cfg: GMLPConfig) -> None:
        super().__init__()
        self.fc1, self.fc2 = (
            nn.Linear(cfg.hidden_dim, cfg.channels_mlp_dim),
            nn.Linear(cfg.channels_mlp_dim // 2, cfg.hidden_dim),
        )
        self.gate = Gate(cfg.num_patches, cfg.channels_mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.gate(F.gelu(self.fc1(x))))


class GMLPBlock(nn.Module):
    def __init__(self, cfg: GMLPConfig) -> None:
        super().__init__()
        self.norm, self.mlp_channels = nn.LayerNorm(cfg.hidden_dim, eps=1e-6), GatedMlp(cfg)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp_channels(self.norm(x))


class EAMLPAttention(nn.Module):
    def __init__(self, cfg: EAMLPConfig) -> None:
        super().__init__()
        c, d = cfg.hidden_dim, cfg.hidden_dim // cfg.num_heads
        self.heads = 4 * cfg.num_heads
        self.trans_dims, self.proj = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.linear_0, self.linear_1 = nn.Linear(d, cfg.num_slots), nn.Linear(cfg.num_slots, d)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        a = self.linear_0(self.trans_dims(x).view(b, n, self.heads, -1).permute(0, 2, 1, 3)).softmax(dim=-2)
        a = a / (1e-9 + a.sum(dim=-1, keepdim=True))
        return self.proj(self.linear_1(a).permute(0, 2, 1, 3).reshape(b, n, -1))


class EAMLPBlock(nn.Module):
    def __init__(self, cfg: EAMLPConfig) -> None:
        super().__init__()
        c = cfg.hidden_dim
        self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.attn, self.mlp = EAMLPAttention(cfg), Mlp(c, cfg.channels_mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Tokens(nn.Module):
    """ResMLP, gMLP and EAMLP."""

    def __init__(self, cfg: Any, stem: str, block: type[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.stem_name = stem
        self.add_module(stem, Stem(cfg, cfg.hidden_dim))
        self.blocks = nn.Sequential(*(block(cfg) for _ in range(cfg.num_blocks)))
        self.norm, self.head = norm, nn.Linear(cfg.hidden_dim, cfg.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.get_submodule(self.stem_name)(images).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


# --- S2-MLP and S2-MLPv2: maps (B, H, W, C) ---------------------------------------------------------------------------


def shift_1(x: Tensor) -> Tensor:
    c, y = x.shape[-1], x.clone()
    y[:, 1:, :, : c // 4] = x[:, :-1, :, : c // 4]
    y[:, :-1, :, c // 4 : c // 2] = x[:, 1:, :, c // 4 : c // 2]
    y[:, :, 1:, c // 2 : 3 * c // 4] = x[:, :, :-1, c // 2 : 3 * c // 4]
    y[:, :, :-1, 3 * c // 4 :] = x[:, :, 1:, 3 * c // 4 :]
    return y


def shift_2(x: Tensor) -> Tensor:
    c, y = x.shape[-1], x.clone()
    y[:, :, 1:, : c // 4] = x[:, :, :-1, : c // 4]
    y[:, :, :-1, c // 4 : c // 2] = x[:, :, 1:, c // 4 : c // 2]
    y[:, 1:, :, c // 2 : 3 * c // 4] = x[:, :-1, :, c // 2 : 3 * c // 4]
    y[:, :-1, :, 3 * c // 4 :] = x[:, 1:, :, 3 * c // 4 :]
    return y


class S2MLPBlock(nn.Module):
    def __init__(self, cfg: S2MLPConfig) -> None:
        super().__init__()
        c, norm = cfg.hidden_dim, {"layer": nn.LayerNorm, "affine": Affine}[cfg.norm]
        self.fc1, self.fc2, self.norm1 = nn.Linear(c, c), nn.Linear(c, c), norm(c)
        self.channel_mixing, self.norm2 = Mlp(c, cfg.channels_mlp_dim), norm(c)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.fc2(shift_1(F.gelu(self.fc1(x)))))
        return x + self.norm2(self.channel_mixing(x))


class S2MLP(nn.Module):
    def __init__(self, cfg: S2MLPConfig) -> None:
        super().__init__()
        c = cfg.hidden_dim
        self.stem, self.stem_norm = Stem(cfg, c).proj, {"layer": nn.LayerNorm, "affine": Affine}[cfg.norm](c)
        self.blocks = nn.Sequential(*(S2MLPBlock(cfg) for _ in range(cfg.num_blocks)))
        self.head = nn.Linear(c, cfg.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem_norm(self.stem(images).permute(0, 2, 3, 1))).mean(dim=(1, 2)))


class SplitAttention(nn.Module):
    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = (
            nn.Linear(dim, dim // reduction, bias=False),
            nn.Linear(dim // reduction, 3 * dim, bias=False),
        )

    def forward(self, parts: Tensor) -> Tensor:
        b, k, h, w, c = parts.shape
        parts = parts.reshape(b, k, h * w, c)
        a = self.fc2(F.gelu(self.fc1(parts.sum(dim=1).sum(dim=1)))).reshape(b, k, c).softmax(dim=1)
        return (a.unsqueeze(-2) * parts).sum(dim=1).reshape(b, h, w, c)


class S2MLPv2Block(nn.Module):
    def __init__(self, cfg: S2MLPv2Config, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp1, self.mlp2 = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.split_attention, self.channel_mixing = SplitAttention(dim, cfg.reduction), Mlp(dim, cfg.mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        t, c = self.mlp1(self.norm1(x)), x.shape[-1]
        parts = torch.stack((shift_1(t[..., :c]), shift_2(t[..., c : 2 * c]), t[..., 2 * c :]), dim=1)
        x = x + self.mlp2(self.split_attention(parts))
        return x + self.channel_mixing(self.norm2(x))


# --- ViP: maps (B, H, W, C) -------------------------------------------------------------------------------------------


class WeightedPermuteMlp(nn.Module):
    def __init__(self, dim: int, segments: int) -> None:
        super().__init__()
        self.segments = segments
        self.mlp_c, self.mlp_h, self.mlp_w = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.reweight, self.proj = Mlp(dim, dim // 4, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        (b, h, w, c), g = x.shape, self.segments
        down = x.reshape(b, h, w, g, c // g).permute(0, 3, 2, 1, 4).reshape(b, g, w, h * c // g)
        down = self.mlp_h(down).reshape(b, g, w, h, c // g).permute(0, 3, 2, 1, 4).reshape(b, h, w, c)
        across = x.reshape(b, h, w, g, c // g).permute(0, 1, 3, 2, 4).reshape(b, h, g, w * c // g)
        across = self.mlp_w(across).reshape(b, h, g, w, c // g).permute(0, 1, 3, 2, 4).reshape(b, h, w, c)
        own = self.mlp_c(x)
        a = (down + across + own).permute(0, 3, 1, 2).flatten(2).mean(dim=2)
        a = self.reweight(a).reshape(b, c, 3).permute(2, 0, 1).softmax(dim=0).unsqueeze(2).unsqueeze(2)
        return self.proj(down * a[0] + across * a[1] + own * a[2])


class Permutator(nn.Module):
    def __init__(self, cfg: ViPConfig, dim: int, segments: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = WeightedPermuteMlp(dim, segments), Mlp(dim, cfg.mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Downsample(nn.Module):
    def __init__(self, dim: int, out_dim: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Pyramid(nn.Module):
    """ViP and S2-MLPv2."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.patch_embed = Stem(cfg, cfg.hidden_dims[0])
        block: Any = Permutator if isinstance(cfg, ViPConfig) else S2MLPv2Block
        groups: list[nn.Module] = []
        for i, (c, depth) in enumerate(zip(cfg.hidden_dims, cfg.depths, strict=True)):
            if i and (cfg.merged[i] or c != cfg.hidden_dims[i - 1]):
                groups.append(Downsample(cfg.hidden_dims[i - 1], c, 2 if cfg.merged[i] else 1))
            more = (cfg.grids[i][0],) if block is Permutator else ()
            groups.append(nn.Sequential(*(block(cfg, c, *more) for _ in range(depth))))
        self.network = nn.Sequential(*groups)
        self.norm, self.head = nn.LayerNorm(cfg.hidden_dims[-1]), nn.Linear(cfg.hidden_dims[-1], cfg.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.network(self.patch_embed(images).permute(0, 2, 3, 1))
        return self.head(self.norm(x.flatten(1, 2)).mean(dim=1))


# --- AS-MLP: maps (B, C, H, W) ----------------------------------------------------------------------------------------


def axial_shift(x: Tensor, size: int, axis: int) -> Tensor:
    """Padded all around, a roll of every chunk, and the middle cut out."""
    (h, w), pad = x.shape[-2:], size // 2
    chunks = F.pad(x, (pad, pad, pad, pad)).chunk(size, dim=1)
    moved = [chunk.roll(by, axis) for chunk, by in zip(chunks, range(-pad, pad + 1), strict=False)]
    return torch.cat(moved, dim=1).narrow(2, pad, h).narrow(3, pad, w)


class AxialShift(nn.Module):
    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.conv1, self.conv2_1, self.conv2_2, self.conv3 = (nn.Conv2d(dim, dim, 1) for _ in range(4))
        self.norm1, self.norm2 = nn.GroupNorm(1, dim), nn.GroupNorm(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        u = F.gelu(self.norm1(self.conv1(x)))
        across = F.gelu(self.conv2_1(axial_shift(u, self.size, 3)))
        down = F.gelu(self.conv2_2(axial_shift(u, self.size, 2)))
        return self.conv3(self.norm2(across + down))


class ConvMlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ASMLPBlock(nn.Module):
    def __init__(self, cfg: ASMLPConfig, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, dim), nn.GroupNorm(1, dim)
        self.axial_shift, self.mlp = AxialShift(dim, cfg.shift_size), ConvMlp(dim, cfg.mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.axial_shift(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.GroupNorm(1, 4 * dim), nn.Conv2d(4 * dim, out_dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        cells = (x[..., 0::2, 0::2], x[..., 1::2, 0::2], x[..., 0::2, 1::2], x[..., 1::2, 1::2])
        return self.reduction(self.norm(torch.cat(cells, dim=1)))


class NormedStem(Stem):
    def __init__(self, cfg: ASMLPConfig, dim: int) -> None:
        super().__init__(cfg, dim)
        self.norm = nn.GroupNorm(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class Stage(nn.Module):
    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.downsample = nn.Sequential(*blocks), downsample

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x if self.downsample is None else self.downsample(x)


class ASMLP(nn.Module):
    def __init__(self, cfg: ASMLPConfig) -> None:
        super().__init__()
        dims = cfg.hidden_dims
        self.patch_embed = NormedStem(cfg, dims[0])
        merges = [*(PatchMerging(a, b) for a, b in itertools.pairwise(dims)), None]
        self.layers = nn.Sequential(
            *(
                Stage([ASMLPBlock(cfg, c) for _ in range(depth)], merge)
                for c, depth, merge in zip(dims, cfg.depths, merges, strict=True)
            )
        )
        self.norm, self.head = nn.GroupNorm(1, dims[-1]), nn.Linear(dims[-1], cfg.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.patch_embed(images))).mean(dim=(2, 3)))


# --- RepMLPNet: maps (B, C, H, W) -------------------------------------------------------------------------------------


def conv_bn(dim: int, out_dim: int, size: int = 1, stride: int = 1, padding: int = 0, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(dim, out_dim, size, stride, padding, groups=groups, bias=False)
    both = nn.Sequential()
    both.add_module("conv", conv)
    both.add_module("bn", nn.BatchNorm2d(out_dim))
    return both


class RepBlock(nn.Module):
    """One tile."""

    def __init__(self, cfg: RepMLPNetConfig, dim: int, h: int, w: int, sets: int) -> None:
        super().__init__()
        self.h, self.w, self.sets, self.kernels = h, w, sets, cfg.kernels
        hidden = dim // cfg.reduction
        self.gp = nn.ModuleDict({"fc1": nn.Conv2d(dim, hidden, 1), "fc2": nn.Conv2d(hidden, dim, 1)})
        self.fc3 = nn.Conv2d(h * w * sets, h * w * sets, 1, groups=sets, bias=False)
        self.fc3_bn = nn.BatchNorm2d(sets)
        for k in cfg.kernels:
            self.add_module(f"repconv{k}", conv_bn(sets, sets, k, padding=k // 2, groups=sets))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gp["fc2"](F.relu(self.gp["fc1"](F.adaptive_avg_pool2d(x, 1)))))
        maps = x.reshape(-1, self.sets, self.h, self.w)
        y = self.fc3(maps.reshape(-1, self.sets * self.h * self.w, 1, 1)).reshape(-1, self.sets, self.h, self.w)
        y = self.fc3_bn(y) + sum(self.get_submodule(f"repconv{k}")(maps) for k in self.kernels)
        return y.reshape(x.shape) * gate


class RepUnit(nn.Module):
    def __init__(self, cfg: RepMLPNetConfig, stage: int) -> None:
        super().__init__()
        c, hidden = cfg.hidden_dims[stage], cfg.mlp_ratio * cfg.hidden_dims[stage]
        self.repmlp_block = RepBlock(cfg, c, *cfg.grids[stage], cfg.share_sets[stage])
        self.ffn_block = nn.ModuleDict({"ffn_fc1": conv_bn(c, hidden), "ffn_fc2": conv_bn(hidden, c)})
        self.prebn1, self.prebn2 = nn.BatchNorm2d(c), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.repmlp_block(self.prebn1(x))
        return x + self.ffn_block["ffn_fc2"](F.gelu(self.ffn_block["ffn_fc1"](self.prebn2(x))))


class RepMLPNet(nn.Module):
    def __init__(self, cfg: RepMLPNetConfig) -> None:
        super().__init__()
        dims, p = cfg.hidden_dims, cfg.patch_size
        assert isinstance(p, int)
        self.conv_embedding = conv_bn(cfg.in_channels, dims[0], p, p)
        self.stages = nn.ModuleList(
            nn.Sequential(*(RepUnit(cfg, i) for _ in range(depth))) for i, depth in enumerate(cfg.depths)
        )
        self.embeds = nn.ModuleList(conv_bn(a, b, 2, 2) for a, b in itertools.pairwise(dims))
        self.head_norm, self.head = nn.BatchNorm2d(dims[-1]), nn.Linear(dims[-1], cfg.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.conv_embedding(images))
        for i, stage in enumerate(self.stages):
            x = stage(F.relu(self.embeds[i - 1](x)) if i else x)
        return self.head(F.adaptive_avg_pool2d(self.head_norm(x), 1).flatten(1))


# --- ours as the official code would have it --------------------------------------------------------------------------


def build(cfg: Any) -> nn.Module:
    """The network of a config, with fresh weights."""
    match cfg:
        case ResMLPConfig():
            return Tokens(cfg, "patch_embed", ResMLPBlock, Affine(cfg.hidden_dim))
        case GMLPConfig():
            return Tokens(cfg, "stem", GMLPBlock, nn.LayerNorm(cfg.hidden_dim, eps=1e-6))
        case EAMLPConfig():
            return Tokens(cfg, "patch_embed", EAMLPBlock, nn.LayerNorm(cfg.hidden_dim))
        case S2MLPConfig():
            return S2MLP(cfg)
        case S2MLPv2Config() | ViPConfig():
            return Pyramid(cfg)
        case ASMLPConfig():
            return ASMLP(cfg)
        case RepMLPNetConfig():
            return RepMLPNet(cfg)
    raise ValueError(f"no official form of {cfg.architecture} is written here")


def named(cfg: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names -> under those of `build`, where the official files (of gMLP timm's) fix them."""
    match cfg:
        case S2MLPConfig():
            return dict(state)
        case EAMLPConfig():
            return {name.replace("stem.", "patch_embed.proj."): tensor for name, tensor in state.items()}
        case S2MLPv2Config():  # groups and merges counted together, as in ViP
            ours = re.compile(r"(stem|merges\.(\d+)\.linear|stages\.(\d+))\.")
            theirs = {"stem.": "patch_embed.proj."}
            for i in range(len(cfg.depths)):
                theirs |= {f"merges.{i}.linear.": f"network.{2 * i - 1}.proj.", f"stages.{i}.": f"network.{2 * i}."}
            return {ours.sub(lambda m: theirs[m[0]], name): tensor for name, tensor in state.items()}
        case _:
            return to_foreign(cfg, state, "timm" if isinstance(cfg, GMLPConfig) else "official")


def official_form(ours: Network) -> nn.Module:
    """The network as its official code computes it, with weights of its own that are equal to ours."""
    made = build(ours.cfg).to(next(ours.parameters()).dtype)
    shapes = {name: tensor.shape for name, tensor in made.state_dict().items()}
    state = named(ours.cfg, ours.state_dict())
    made.load_state_dict({name: tensor.reshape(shapes.get(name, tensor.shape)) for name, tensor in state.items()})
    return made

"""What every network of this package is, and the parts that several of them share.

`architecture` has the table of networks, and what they can do beyond this.
"""

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlpmixer.config import pair
from mlpmixer.models.architecture import capability, own_fields
from mlpmixer.models.configs import Activation, NetworkConfig, PatchConfig, StagesConfig

if TYPE_CHECKING:
    from mlpmixer.data.preprocess import Preprocess
    from mlpmixer.weights.model_file import ModelMeta

TRUNCATED_STD = (
    0.87962566103423978  # standard deviation of a unit normal cut at +-2: official lecun_normal divides by it
)


class Network(nn.Module):
    """Images to logits: (B, in_channels, H, W) -> (B, K), or pre-logits (B, D) when num_classes is 0.

    A network has `forward_features` and `pool`; all else follows from them and the head. The names are timm's.
    """

    cfg: NetworkConfig
    head: nn.Module
    """nn.Linear(D, K); nn.Identity() without classes."""
    checkpointing: bool
    """Recompute each block in the backward pass instead of storing its activations; of networks that can."""
    meta: "ModelMeta | None" = None
    """Classes and preprocessing that came with its weights; None for a fresh one."""

    def forward_features(self, images: Tensor) -> Tensor:
        """What `pool` reads: normalised tokens (B, S, C), or the last feature map (B, C, h, w)."""
        raise NotImplementedError

    def pool(self, features: Tensor) -> Tensor:
        """`forward_features` -> pre-logits (B, D)."""
        raise NotImplementedError

    def pre_logits(self, images: Tensor) -> Tensor:
        """Features for a linear classifier: (B, D)."""
        return self.pool(self.forward_features(images))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """`forward_features` -> logits (B, K), or what the head reads, (B, D)."""
        pooled = self.pool(features)
        return pooled if pre_logits else cast(Tensor, self.head(pooled))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) -> logits (B, K)."""
        return cast(Tensor, self.head(self.pre_logits(images)))

    @property
    def num_features(self) -> int:
        """D, the width of pre-logits."""
        return self.cfg.num_features

    @property
    def num_classes(self) -> int:
        """K; 0 without a head."""
        return self.cfg.num_classes

    def get_classifier(self) -> nn.Module:
        """The head: nn.Linear(D, K), or nn.Identity() without classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh head of `num_classes` outputs in the place of the old one, as a new network starts; 0: none.

        global_pool: as timm has it; the pooling stays as it is, "avg", of a ViT "token".

        Errors: ValueError for a number below 0, and for another pooling.
        """
        own_fields(self.cfg, {"global_pool": global_pool})
        like = next(self.parameters())
        self.cfg = dataclasses.replace(self.cfg, num_classes=num_classes)
        with torch.device("meta"):  # draws nothing from torch's generator
            head = linear_head(self.cfg)
        self.head = head.to_empty(device=like.device).to(like.dtype).train(self.training)
        self.start_head()
        self.meta = self.meta and self.meta.with_fresh_head(num_classes)

    @torch.no_grad()
    def start_head(self) -> None:
        """Give the head the values that it starts with: zeros, as in the official code."""
        for p in self.head.parameters():
            nn.init.zeros_(p)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch activation checkpointing on or off: less memory for a slower backward pass, and the same gradients.

        Errors: ValueError when the network has none.
        """
        if enable:
            capability(self, "checkpointing", "set_grad_checkpointing")
        self.checkpointing = enable

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **fields: Any) -> Self:
        """A trained network, see `mlpmixer.from_pretrained`. ValueError where it is of another class."""
        from mlpmixer.weights.load import from_pretrained

        found = from_pretrained(name, **fields)
        if not isinstance(found, cls):
            kind = type(found).__name__
            raise ValueError(f"{os.fspath(name)} is a {kind}, not a {cls.__name__}: say {kind}.from_pretrained")
        return found

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        preprocess: "Preprocess | None" = None,
        licence: str = "",
    ) -> str:
        """Write the network to a new folder, as `mlpmixer push` does: weights, description and card; gives the folder.

        classes: a name for each output; else those that came with the weights, or of a fresh head "class 0", ...
        preprocess: what came with the weights, of a fresh network that of a run: crop, -1..1.
        licence: as the Hub writes it (apache-2.0, mit, ...).

        Errors: ValueError for a folder that holds something, for other than K classes, and for a network that could not
        be loaded again, such as one with a head of another number of outputs than its config.
        """
        return self._push(os.path.abspath(save_directory), classes, preprocess, licence=licence)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        classes: Sequence[str] | None = None,
        preprocess: "Preprocess | None" = None,
        licence: str = "",
        private: bool = False,
    ) -> str:
        """Publish the network as owner/name on the Hugging Face Hub: what `save_pretrained` writes; gives its address.

        private: who may see a repository that this call creates.

        Errors: ValueError when the Hub refuses or cannot be reached.
        """
        target = f"hf:{repo_id.removeprefix('hf:')}"
        return self._push(target, classes, preprocess, licence=licence, private=private)

    def _push(self, target: str, classes: Sequence[str] | None, preprocess: "Preprocess | None", **how: Any) -> str:
        from mlpmixer.weights.hub import push_network
        from mlpmixer.weights.model_file import meta_of

        meta = meta_of(self, classes, preprocess)
        plain = all(p.dtype == torch.float32 for p in self.parameters())  # as model files hold them
        network = self if plain else copy.deepcopy(self).float()
        return push_network(network, meta, target, **how)

    def extra_repr(self) -> str:
        cfg, (h, w) = self.cfg, pair(self.cfg.image_size)
        params = sum(p.numel() for p in self.parameters())
        out = f"{cfg.num_classes:,} classes" if cfg.num_classes else f"{cfg.num_features:,} features"
        return f"{cfg.architecture}: {cfg.in_channels} x {h} x {w} px -> {out}, {params:,} parameters"


def linear_head(cfg: NetworkConfig) -> nn.Module:
    """(B, D) -> (B, K), with values of torch's default start; nothing to do without classes."""
    return nn.Linear(cfg.num_features, cfg.num_classes) if cfg.num_classes else nn.Identity()


class TokenNetwork(Network):
    """A linear stem over patches, blocks of one width, a norm, the mean over the tokens, and a linear head."""

    cfg: PatchConfig
    stem: nn.Linear
    blocks: nn.ModuleList
    norm: nn.Module
    checkpointing = False

    def patches(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, S, in_channels*P*P), what the stem reads."""
        return cut_patches(images, self.cfg)

    def embed(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, S, C), what the blocks read."""
        return cast(Tensor, self.stem(self.patches(images)))  # contiguous, and so is every residual sum after it

    def tokens(self, images: Tensor) -> Tensor:
        """Normalised tokens (B, S, C), before pooling."""
        x = self.embed(images)
        for block in self.blocks:
            x = recomputed(block, x) if self.checkpointing and self.training else block(x)
        return cast(Tensor, self.norm(x))

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised tokens (B, S, C), before pooling."""
        return self.tokens(images)

    def pool(self, features: Tensor) -> Tensor:
        """The mean over the patches: (B, S, C) -> (B, C)."""
        return features.mean(dim=1)

    def layers(self) -> list[list[nn.Module]]:
        """From the stem to the head, for rates that fall with depth and for layers that stay frozen."""
        return [[self.stem], *([block] for block in self.blocks), [self.norm, self.head]]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices of every block."""
        return [p for p in self.blocks.parameters() if p.ndim == 2]


def cells(x: Tensor, n: int) -> Tensor:
    """Cells of n x n places side by side, a cell as a convolution reads it: (B, H, W, C) -> (B, H/n, W/n, C*n*n)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // n, n, w // n, n, c).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(b, h // n, w // n, c * n * n)


class Merge(nn.Module):
    """A convolution of size and stride 2 over a map, or 1 where only the width changes: (B, H, W, C) -> (B, H/2, W/2,
    C').

    Its weight is the convolution's, (C', C, 2, 2), as a matrix.
    """

    def __init__(self, dim: int, out_dim: int, size: int = 2) -> None:
        super().__init__()
        self.size = size
        self.linear = nn.Linear(dim * size * size, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(cells(x, self.size)))


class StagedNetwork(Network):
    """A linear stem over patches, stages of blocks over maps (B, H, W, C) with a merge before all but the first, a
    norm, the mean over the places of the last, and a linear head."""

    cfg: StagesConfig
    stem: nn.Linear
    merges: nn.ModuleList
    """One a stage: what comes before it; nn.Identity() where nothing does."""
    stages: nn.ModuleList
    norm: nn.Module
    checkpointing = False

    def make_stages(self, block: Callable[[int, int, float], nn.Module]) -> nn.ModuleList:
        """block: (stage, its width, rate of stochastic depth, linear over all blocks) -> a block."""
        cfg, most = self.cfg, max(sum(self.cfg.depths) - 1, 1)
        rates = iter([cfg.drop_path * i / most for i in range(sum(cfg.depths))])
        return nn.ModuleList(
            nn.ModuleList(block(i, c, next(rates)) for _ in range(depth))
            for i, (c, depth) in enumerate(zip(cfg.hidden_dims, cfg.depths, strict=True))
        )

    def make_merges(self) -> nn.ModuleList:
        cfg, dims = self.cfg, self.cfg.hidden_dims
        return nn.ModuleList(
            Merge(dims[i - 1], c, 2 if cfg.merged[i] else 1)
            if i and (cfg.merged[i] or c != dims[i - 1])
            else nn.Identity()
            for i, c in enumerate(dims)
        )

    def patches(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, S, in_channels*P*P), what the stem reads."""
        return cut_patches(images, self.cfg)

    def embed(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> the map of the first stage (B, H/P, W/P, C)."""
        (h, w), (p, q) = images.shape[-2:], pair(self.cfg.patch_size)
        x: Tensor = self.stem(self.patches(images))
        return x.view(x.shape[0], h // p, w // q, -1)  # len() would fix the batch in a traced graph

    def tokens(self, images: Tensor) -> Tensor:
        """Normalised places of the last stage (B, S, C), before pooling."""
        x = self.embed(images)
        for merge, blocks in zip(self.merges, self.stages, strict=True):
            x = merge(x)
            for block in cast(nn.ModuleList, blocks):
                x = recomputed(block, x) if self.checkpointing and self.training else block(x)
        return cast(Tensor, self.norm(x)).flatten(1, 2)

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised places of the last stage (B, S, C), before pooling."""
        return self.tokens(images)

    def pool(self, features: Tensor) -> Tensor:
        """The mean over the places: (B, S, C) -> (B, C)."""
        return features.mean(dim=1)

    def layers(self) -> list[list[nn.Module]]:
        """From the stem to the head, for rates that fall with depth and for layers that stay frozen."""
        blocks = [
            [merge, block] if j == 0 else [block]
            for merge, stage in zip(self.merges, self.stages, strict=True)
            for j, block in enumerate(cast(nn.ModuleList, stage))
        ]
        return [[self.stem], *blocks, [self.norm, self.head]]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices of every block; (S, m, n) is S of them."""
        return [p for p in self.stages.parameters() if p.ndim in (2, 3) and min(p.shape[-2:]) > 1]


@contextmanager
def buffers_unchanged(module: nn.Module) -> Iterator[None]:
    """Within, the module computes as always; afterwards its buffers are as before: no batch counts twice in the running
    statistics of a BatchNorm."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """The output of a block, whose activations the backward pass computes again instead of finding them stored."""
    contexts = partial(lambda block: (nullcontext(), buffers_unchanged(block)), block)
    return cast(Tensor, checkpoint(block, x, use_reentrant=False, context_fn=contexts))


def lecun_normal(layer: nn.Linear) -> None:
    """A linear layer starts from a truncated normal of deviation 1/sqrt(inputs), cut at two of the untruncated one's,
    with zero biases."""
    std = layer.in_features**-0.5 / TRUNCATED_STD
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)


def truncated_normal(*layers: nn.Module) -> None:
    """Linear layers start from a truncated normal of deviation 0.02, with zero biases."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Mlp(nn.Module):
    """W2 gelu(W1 x) over the last axis: (..., dim) -> (..., out_dim), which is dim unless it is given.

    linear: the class of both layers.
    """

    def __init__(
        self,
        dim: int,
        mlp_dim: int,
        activation: Activation = "gelu_erf",
        dropout: float = 0.0,
        out_dim: int = 0,
        linear: type[nn.Linear] = nn.Linear,
    ) -> None:
        super().__init__()
        self.fc1 = linear(dim, mlp_dim)
        self.fc2 = linear(mlp_dim, out_dim or dim)
        self.dropout = nn.Dropout(dropout)
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"  # tanh: Flax's default

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.gelu(self.fc1(x), approximate=self.approximate))
        return cast(Tensor, self.dropout(self.fc2(x)))


class TokenLinear(nn.Linear):
    """A linear layer over the tokens, the same for every channel: (B, S, C) -> (B, S, C).

    A product for each image, so that no map is copied to turn it. A traced graph has the layer itself between two
    transpositions, with its weight where int8 looks for one.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().forward(x.mT).mT
        return torch.baddbmm(self.bias[:, None], self.weight.expand(x.shape[0], -1, -1), x)


class MapLinear(nn.Linear):
    """A linear layer over the channels of maps: (B, H, W, C) -> (B, H, W, C').

    On a CPU a 1x1 convolution over the same memory, in float32 with few channels up to twice as fast as the library's
    matrix product. A traced graph has the layer itself, for int8.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not x.is_cpu:
            return super().forward(x)
        return F.conv2d(x.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)


class DropPath(nn.Module):
    """Stochastic depth: a branch (B, ...) is left out for a sample with probability `rate`, and scaled by 1 / (1 -
    rate) otherwise. In evaluation nothing changes."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return branch
        mask = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * (mask / (1 - self.rate))


def require_size(images: Tensor, cfg: NetworkConfig) -> None:
    """ValueError on any other size than the network's: nothing is padded or cut."""
    h, w = pair(cfg.image_size)
    if images.ndim != 4 or images.shape[1:] != (cfg.in_channels, h, w):
        raise ValueError(
            f"expected images of shape (B, {cfg.in_channels}, {h}, {w}), got {tuple(images.shape)}; "
            f"{cfg.architecture} works at the image size it was made for"
        )


def cut_patches(images: Tensor, cfg: PatchConfig) -> Tensor:
    """(B, in_channels, H, W) -> (B, S, in_channels*P*P), row-major. ValueError on any other size."""
    require_size(images, cfg)
    (h, w), (p, q) = pair(cfg.image_size), pair(cfg.patch_size)
    rows, cols = h // p, w // q
    x = images.reshape(-1, cfg.in_channels, rows, p, cols, q)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, cfg.num_patches, cfg.in_channels * p * q)  # (B, S, in*P*P)

"""A trained Mixer at another image size, patch size or number of channels. Nothing is trained here.

Letters: S patches, S' patches of the new grid, C hidden_dim, DS tokens_mlp_dim, P patch_size.

A resize is linear: tokens on the new grid are U x for tokens x on the old one, U (S', S), so whatever *writes* a grid
(W2 and its bias) becomes U W2. W1, which *reads* a grid, becomes W1 U+, with the pseudo-inverse: then W1 U+ (U x) = W1
x on a finer grid, and the hidden layer sees what it saw before. Resampling the columns of W1 like pictures instead
would make its sums S'/S times as large. The stem reads a grid of pixels. It takes the pseudo-inverse, too (Beyer et al.
2023, "FlexiViT", arXiv:2212.08013), but not where a larger patch shows new detail: there it becomes W R, with the
resize R back to the old patch.
"""

import dataclasses
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mlpmixer.config import pair, require
from mlpmixer.models.architecture import build_with_weights
from mlpmixer.models.configs import Method, MixerConfig
from mlpmixer.models.configs import Size as AnySize
from mlpmixer.models.mixer import Mixer

Size = tuple[int, int]
Filter = Literal["bicubic", "bilinear", "nearest"]


@torch.no_grad()
def resize(
    model: Mixer,
    *,
    image_size: AnySize | None = None,
    patch_size: AnySize | None = None,
    in_channels: int | None = None,
    method: Method = "bicubic",
    magnified: bool = False,
) -> Mixer:
    """A new Mixer from the weights of `model`, which stays as it is. What is not named is kept.

    image_size    pixels, (height, width) or one number. The patch stays the same, so the grid of patches changes.
    patch_size    pixels. A larger patch is read as if it were resized to the old size before the stem, a smaller one by
                  the pseudo-inverse of the resize. Without an image_size the image grows or shrinks with the patch, and
                  the grid is kept: of the ways to another size the one that costs the least accuracy before further
                  training (docs/how-to/transfer.md).
    in_channels   grey from many: the sum; more from fewer: repeated and divided; the output is kept when all channels
                  are equal.
    method        how token mixing, which is made for one grid, comes to another:
      bicubic, bilinear, nearest   any grid: the weights are resampled over it. One network of the old widths sees the
                  whole image.
      blocks      grids that are K x L times the old one (paper, appendix C): block-diagonal weights, tokens_mlp_dim
                  times K * L. The logits are exactly the mean of the old network's logits on the K x L crops.
      parts       the same function with the block stored once (`MixerConfig.parts`); `to_dense` turns it into the
                  former.
    magnified     the images at the new size are enlargements and show no more than the old ones did (CIFAR at 64 px).
                  Larger patches, too, are then read by the pseudo-inverse, so that the stem's output on an enlarged
                  patch is exactly what it was, and token mixing on a finer grid has a gain for what smooth tokens take
                  from its strength.

    bicubic is the default: it exists for every size, keeps the widths and the cost per patch, and lets every patch see
    every other at once, while blocks never mix their parts before they are trained further. Measured: docs/lab/LOG.md.

    Errors: ValueError for sizes that do not fit together and for a method that cannot make the new grid.
    """
    old = model.cfg
    sizes: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "in_channels": in_channels}
    cfg = old.adapted(**sizes, method="parts" if method == "blocks" else method)  # blocks by way of parts
    state = {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    if (cfg.in_channels, pair(cfg.patch_size)) != (old.in_channels, pair(old.patch_size)):
        state["stem.weight"] = _stem(state["stem.weight"], old, cfg, magnified)
    if cfg.part_grid != old.part_grid:
        assert method in get_args(Filter)
        _resample_token_mixing(state, old, cfg, method, magnified)  # type: ignore[arg-type]
    new: Mixer = build_with_weights(cfg, state)  # type: ignore[assignment]
    return to_dense(new) if method == "blocks" else new


@torch.no_grad()
def to_dense(model: Mixer) -> Mixer:
    """A new Mixer without parts that is the same function: block-diagonal token mixing, tokens_mlp_dim times the number
    of parts.

    Paper, appendix C, which assumes that the tokens come part by part. Ours come row by row: the token in row r, column
    c of the grid is token (r % h) * w + c % w of part (r // h) * L + c // w, for parts of h x w patches, L across.
    """
    cfg, (k, m), (h, w) = model.cfg, pair(model.cfg.parts), model.cfg.part_grid
    r, c = torch.arange(k * h)[:, None], torch.arange(m * w)
    part = (r // h * m + c // w).flatten()  # (S)
    local = (r % h * w + c % w).flatten()  # (S)
    token = torch.arange(cfg.num_patches)
    state = {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    for i in range(cfg.num_blocks):
        name = f"blocks.{i}.token_mixing."
        w1, w2 = state[name + "fc1.weight"], state[name + "fc2.weight"]  # (DS, S / parts) and its transpose's shape
        big1, big2 = (w1.new_zeros(cfg.num_patches, k * m, cfg.tokens_mlp_dim) for _ in range(2))
        big1[token, part], big2[token, part] = w1.T[local], w2[local]
        state[name + "fc1.weight"] = big1.flatten(1).T.contiguous()  # (parts * DS, S)
        state[name + "fc1.bias"] = state[name + "fc1.bias"].repeat(k * m)
        state[name + "fc2.weight"] = big2.flatten(1)  # (S, parts * DS)
        state[name + "fc2.bias"] = state[name + "fc2.bias"][local]
    wide = dataclasses.replace(cfg, parts=1, tokens_mlp_dim=k * m * cfg.tokens_mlp_dim)
    dense: Mixer = build_with_weights(wide, state)  # type: ignore[assignment]
    return dense.train(model.training)


def _stem(weight: Tensor, old: MixerConfig, new: MixerConfig, magnified: bool) -> Tensor:
    """(C, in*P*P) -> (C, in'*P'*P').

    A pseudo-inverse on patches that grow undoes the blur of an enlargement. On photos, which are not enlargements, it
    sharpens what the network has never seen: 37 instead of 62 % on flowers from 8 to 12 px (docs/lab/LOG.md).
    """
    w = weight.double().view(old.hidden_dim, old.in_channels, -1)  # (C, in, P*P)
    axes = zip(pair(old.patch_size), pair(new.patch_size), strict=True)
    w = w @ torch.kron(
        *(_pinv_axis(p, q, "bicubic") if q < p or magnified else _resize_axis(q, p, "bicubic") for p, q in axes)
    )
    fewer = min(old.in_channels, new.in_channels)
    share = (torch.arange(new.in_channels)[:, None] % fewer == torch.arange(old.in_channels) % fewer).to(w)  # (in', in)
    share /= share.sum(0)  # each old channel is dealt out in whole: equal channels give the output they gave
    return (share @ w).flatten(1).to(weight.dtype)


@torch.no_grad()
def share_normalisation(
    model: Mixer, mean: tuple[float, ...], std: tuple[float, ...], in_channels: int
) -> tuple[Mixer, tuple[float, ...], tuple[float, ...]]:
    """The same function of the pixels, with one normalisation for the channels that become one of `in_channels`; and
    the mean and deviation of those.

    So a grey image gives the same output from one channel as from equal ones, whatever the old normalisation was.
    """
    require(in_channels >= 1, f"in_channels must be at least 1, got {in_channels}")
    fewer = min(len(mean), in_channels)

    def together(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
        means = [sum(values[c::fewer]) / len(values[c::fewer]) for c in range(fewer)]
        return tuple(means[c % fewer] for c in range(channels))

    old_mean, old_std = (torch.tensor(v, dtype=torch.float64) for v in (mean, std))  # (in)
    new_mean, new_std = (torch.tensor(together(v, len(mean)), dtype=torch.float64) for v in (mean, std))
    state = {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    w = state["stem.weight"].double().view(model.cfg.hidden_dim, len(mean), -1)  # (C, in, P*P)
    state["stem.bias"] += w.sum(2) @ ((new_mean - old_mean) / old_std)
    state["stem.weight"] = (w * (new_std / old_std)[:, None]).flatten(1).to(state["stem.weight"].dtype)
    same: Mixer = build_with_weights(model.cfg, state)  # type: ignore[assignment]
    return same, together(mean, in_channels), together(std, in_channels)


def _resample_token_mixing(
    state: dict[str, Tensor], old: MixerConfig, new: MixerConfig, method: Filter, magnified: bool
) -> None:
    """Token mixing of another (part) grid, in place.

    On a finer grid the resize of W2 puts averages of neighbours between them, and so takes strength from whatever is
    not smooth in it. Photos make up for it: their finer tokens are less smooth. Magnified pictures do not, so there the
    gain g gives it back, as far as the weights know: for M = W2 W1, the mixing without its GELU, and tokens U' n of
    white noise n (as smooth as the resize leaves them), the mean square of g U M U' n is that of M U' n. Both were
    measured (docs/lab/LOG.md); benchmarks/resize.py fits g to images instead.
    """
    write, read = _resize(old.part_grid, new.part_grid, method), _pinv_resize(old.part_grid, new.part_grid, method)
    (h, w), (new_h, new_w) = old.part_grid, new.part_grid
    finer = _resize(
        (h, w), (max(h, new_h), max(w, new_w)), method
    )  # the U of the gain: the resize of the axes that get finer
    for i in range(old.num_blocks):
        name = f"blocks.{i}.token_mixing."
        w1, w2, b2 = (state[name + key].double() for key in ("fc1.weight", "fc2.weight", "fc2.bias"))
        before = w2 @ (w1 @ finer.T)
        after = (finer @ before).square().mean()
        gain = (before.square().mean() / after).sqrt() if magnified and after > 0 else 1.0
        for key, value in (("fc1.weight", w1 @ read), ("fc2.weight", gain * (write @ w2)), ("fc2.bias", write @ b2)):
            state[name + key] = value.to(state[name + key].dtype)


def _resize(old: Size, new: Size, method: Filter) -> Tensor:
    """The matrix of a resize of a grid, (new cells, old cells), float64; antialiased, as Pillow resizes; rows sum to
    1."""
    return torch.kron(*(_resize_axis(a, b, method) for a, b in zip(old, new, strict=True)))


def _pinv_resize(old: Size, new: Size, method: Filter) -> Tensor:
    """The pseudo-inverse of `_resize`, (old cells, new cells); of one axis at a time, which is the same and cheap."""
    return torch.kron(*(_pinv_axis(a, b, method) for a, b in zip(old, new, strict=True)))


def _pinv_axis(old: int, new: int, method: Filter) -> Tensor:
    inverse: Tensor = torch.linalg.pinv(_resize_axis(old, new, method))
    return inverse.contiguous()


def _resize_axis(old: int, new: int, method: Filter) -> Tensor:
    if old == new:
        return torch.eye(old, dtype=torch.float64)
    identity = torch.eye(old, dtype=torch.float64)[None, None]
    if method == "nearest":
        return F.interpolate(identity, (new, old), mode="nearest-exact")[0, 0]
    return F.interpolate(identity, (new, old), mode=method, antialias=True, align_corners=False)[0, 0]

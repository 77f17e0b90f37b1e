"""Token mixing made visible: how patches depend on each other in one image, and what the weights look for.

B images, S patches in a grid of h x w, D = in_channels * P * P values of a patch, C hidden_dim, DS tokens_mlp_dim, N
blocks. Images (B, in_channels, H, W) are normalised. Models are in evaluation mode.
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.models.locality import LocalLinear
from mlpmixer.models.mixer import Mixer, MixerBlock

CHUNK = 64  # directions, or channels, that are worked on at once; bounds memory, changes no result
EXACT = 64  # patches of up to so many values have their Jacobian computed in full; larger ones have it estimated
DIRECTIONS = 16  # random directions of an estimate

# --- one image --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def mixing_maps(model: Mixer, images: Tensor) -> Tensor:
    """How much the token mixing of each block alone carries from patch t to patch s, exactly: (B, N, S, S), [.., s, t].

    It is the squared Frobenius norm of the (C, C) Jacobian of the branch's output at s with respect to its input at t,
    without the skip connection. In channel i the branch is W2 gelu(W1 x), so its Jacobian is
    M_i = W2 diag(gelu'(W1 x)) W1; LayerNorm comes before it.
    """
    x, maps = model.stem(model.patches(images)), []
    for block in cast(Iterable[MixerBlock], model.blocks):
        maps.append(_mixing_map(block, x))
        x = block(x)
    return torch.stack(maps, dim=1)


def _mixing_map(block: MixerBlock, x: Tensor) -> Tensor:
    """(B, S, C) -> (B, S, S)."""
    mlp, (b, s, c) = block.token_mixing, x.shape
    w1, w2 = _weight(mlp.fc1), _weight(mlp.fc2)
    with torch.enable_grad():
        hidden = mlp.fc1(block.columns(block.norm1(x))).detach().requires_grad_()  # (B * parts, C, DS)
        (slope,) = torch.autograd.grad(F.gelu(hidden, approximate=mlp.approximate).sum(), hidden)
    # row i of LayerNorm's Jacobian: gain_i / std * (e_i - 1/C - z_i z / C), where z is the token before gain and bias
    variance = x.var(dim=2, correction=0, keepdim=True) + block.norm1.eps
    z = (x - x.mean(dim=2, keepdim=True)) / variance.sqrt()
    norm = 1 - 1 / c - z**2 * (2 / c - (z**2).sum(dim=2, keepdim=True) / c**2)  # squared
    row = block.norm1.weight**2 / variance * norm
    row = block.columns(row.clamp_min(0))  # (B * parts, C, S / parts)
    squares = torch.zeros(len(row), row.shape[2], row.shape[2], device=x.device, dtype=x.dtype)
    for slopes, rows in zip(torch.split(slope, CHUNK, dim=1), torch.split(row, CHUNK, dim=1), strict=True):
        squares += ((w2 * slopes[:, :, None]) @ w1).square().mul(rows[:, :, None]).sum(dim=1)
    tokens_of = block.columns(torch.arange(s, device=x.device).reshape(1, s, 1))[:, 0]  # (parts, S / parts)
    out = x.new_zeros(b, s, s)
    for part, tokens in enumerate(tokens_of):
        out[:, tokens[:, None], tokens] = squares[part :: len(tokens_of)]
    return out


def dependence(model: Mixer, image: Tensor, directions: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """How much each token after each block depends on each patch of an image (in_channels, H, W).

    Returns (N, S, S), [.., s, t], and its standard errors. It is the squared Frobenius norm of the (C, D) Jacobian of
    token s with respect to the values of patch t, through all layers before it, from Jacobian-vector products.

    directions: None takes each of the D axes, which is exact (errors 0); a number draws so many random sign vectors v,
        for which the mean of |J v|^2 is that norm (Hutchinson 1990).
    """
    x = model.patches(image[None])
    s, d = x.shape[1:]
    if directions is None:
        along = torch.eye(d).repeat(s, 1)
    elif directions < 2:
        raise ValueError(f"a standard error needs at least 2 directions, got {directions}")
    else:
        along = torch.randint(0, 2, (s * directions, d), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1

    def through(patches: Tensor) -> Tensor:
        tokens, after = model.stem(patches), []
        for block in model.blocks:
            tokens = block(tokens)
            after.append(tokens)
        return torch.stack(after)  # (N, 1, S, C)

    def response(token: Tensor, direction: Tensor) -> Tensor:
        tangent = (token[:, None] * direction)[None]  # (1, S, D): one patch moves
        return cast(Tensor, torch.func.jvp(through, (x,), (tangent,))[1]).square().sum(dim=(1, 3))

    each = torch.eye(s).repeat_interleave(len(along) // s, dim=0)
    with torch.no_grad(), warnings.catch_warnings():
        # torch 2.13's own, at its first jvp
        warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", DeprecationWarning)
        seen = torch.vmap(response, chunk_size=CHUNK)(each.to(x), along.to(x))
    seen = seen.reshape(s, -1, len(model.blocks), s).permute(1, 2, 3, 0)  # (directions, N, S of tokens, S of patches)
    if directions is None:
        return seen.sum(dim=0), torch.zeros_like(seen[0])
    return seen.mean(dim=0), seen.std(dim=0) / math.sqrt(directions)


def spread(maps: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Three summaries of squared norms (..., S, S), each (...), as means over the output patches s.

    The share of the patch itself; the mean distance, in patches, of what it depends on; the effective number of patches
    that it depends on, which is exp of the entropy of their shares.
    """
    share = maps / maps.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    place = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).to(maps)
    own = share.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    distance = (share * torch.cdist(place, place)).sum(dim=-1).mean(dim=-1)
    matter = torch.special.entr(share).sum(dim=-1).exp().mean(dim=-1)
    return own, distance, matter


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How patches depend on each other in one image, squared norms (N, S, S): `mixing_maps` and `dependence`."""

    layers: NDArray[np.float32]
    whole: NDArray[np.float32]
    whole_error: NDArray[np.float32]
    """Standard errors; zeros where `whole` is exact."""
    spread: NDArray[np.float32]
    """(N, 3) of `whole`: see `spread`."""


def mixing_of(network: Mixer, image: Tensor) -> Mixing:
    """`mixing_maps` and `dependence` of one image (in_channels, H, W)."""
    whole, error = dependence(network, image, None if network.stem.in_features <= EXACT else DIRECTIONS)
    numbers = torch.stack(spread(whole, network.cfg.grid), dim=1)
    layers = mixing_maps(network, image[None])[0]
    return Mixing(
        layers=layers.cpu().numpy(),
        whole=whole.cpu().numpy(),
        whole_error=error.cpu().numpy(),
        spread=numbers.cpu().numpy(),
    )


# --- in the weights: the paper's figures 5, 6 and 7 -------------------------------------------------------------------


def hidden_units(model: Mixer, block: int) -> Tensor:
    """The hidden units of a block's token-mixing MLP: rows of W1 as maps over the grid (of a part), (DS, h, w).

    block: counted from 0. ValueError when the model does not have it.
    """
    if not 0 <= block < len(model.blocks):
        raise ValueError(f"there is no block {block}: the model has {len(model.blocks)}, counted from 0")
    mixer_block = cast(MixerBlock, model.blocks[block])
    return _weight(mixer_block.token_mixing.fc1).detach().reshape(-1, *mixer_block.part_grid)


def stem_filters(model: Mixer) -> Tensor:
    """The rows of the stem's weights as patches: (C, in_channels, P, P)."""
    return model.stem.weight.detach().reshape(-1, model.cfg.in_channels, *pair(model.cfg.patch_size))


def frequency(maps: Tensor) -> Tensor:
    """Mean spatial frequency (n,) of maps (n, ..., h, w), in cycles per patch, weighted by power; inf for zeros."""
    power = torch.fft.fft2(maps).abs().square()
    h, w = maps.shape[-2:]
    radius = torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.fftfreq(w)).to(power)
    power, weighted = (p.flatten(1).sum(dim=1) for p in (power, power * radius))
    return torch.where(power > 0, weighted / power, math.inf)


def opposite_pairs(units: Tensor) -> tuple[Tensor, Tensor]:
    """An order of units (n, h, w) in pairs, and the cosine of each pair: (n,) int64, (n // 2,). Paper, appendix D.

    First comes the unit of the lowest frequency, then the one with the smallest cosine to it, then the lowest of the
    rest, and so on. A cosine of -1 is the same pattern in opposite phase.
    """
    flat = F.normalize(units.flatten(1), dim=1)
    cosine = flat @ flat.T
    left, order, cosines = frequency(units).argsort(stable=True).tolist(), [], []
    while len(left) > 1:
        first = left.pop(0)
        among = cosine[first, left]
        cosines.append(among.min())
        order += [first, left.pop(int(among.argmin()))]
    return torch.tensor(order + left), torch.stack(cosines) if cosines else units.new_zeros(0)


def _weight(layer: nn.Linear) -> Tensor:
    """The weight that the network computes with, even while it is still learnt through locality kernels."""
    return layer.whole_weight() if isinstance(layer, LocalLinear) else layer.weight

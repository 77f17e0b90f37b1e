"""Mirror symmetry: a Mixer whose logits are the same for an image and its mirror image, by its weights alone.

Letters as in mixer.py. Mirroring an image left to right reverses the pixels of each patch and the columns of the patch
grid. What the network makes of it is the same up to an order of its units: unit i of the channels, of the DS and of the
DC hidden ones is the partner of unit i + n/2, which sees the mirror image as i sees the image; one left over is its own
partner. So a matrix W is symmetric when W = R W Q, with R and Q the orders of its rows and columns: in pairs, reversed
within the grid or the patch, or as they are (classes). LayerNorm, GELU and the residual sums keep to any order of
units, the mean over the patches to any order of patches: the logits cannot tell.

Training stays where it starts: a gradient of such weights is made symmetric, as the sum of the images' and the mirror
images' gradients would be, which costs two orders of the weights instead of twice the images. The saved network is a
plain Mixer. (Groups of symmetries: Cohen and Welling 2016, arXiv:1602.07576; mirrored features in ViT, ResMLP and
ConvNeXt: Bökman, Nordström, Kahl 2025, arXiv:2502.05169.)
"""

import itertools

import torch
from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.models.mixer import Mixer, MixerBlock

Parameters = list[nn.Parameter]
Symmetric = tuple[Parameters, Tensor]  # the parameters one after the other, and of each entry the number of its partner


def _paired(units: int) -> Tensor:
    """Partners of units in pairs i, i + n/2: [3, 4, 5, 0, 1, 2] of six, [2, 3, 0, 1, 4] of five."""
    half = units // 2
    order = torch.arange(units)
    order[: 2 * half] = order[: 2 * half].roll(half)
    return order


def _reversed(*shape: int) -> Tensor:
    """Partners of the entries of an array of that shape when its last axis is reversed."""
    return torch.arange(torch.Size(shape).numel()).view(shape).flip(-1).flatten()


def _sides(model: Mixer) -> dict[str, tuple[Tensor, Tensor]]:
    """Orders of the outputs and inputs of every layer, by name."""
    cfg = model.cfg
    channels = _paired(cfg.hidden_dim)
    sides = {"stem": (channels, _reversed(cfg.in_channels, *pair(cfg.patch_size))), "norm": (channels, channels)}
    sides["head"] = torch.arange(cfg.num_classes), channels
    for i, block in enumerate(model.blocks):
        assert isinstance(block, MixerBlock)
        patches, name = _reversed(*block.part_grid), f"blocks.{i}"
        sides[f"{name}.norm1"] = sides[f"{name}.norm2"] = channels, channels
        for mlp, outer, width in (
            ("token_mixing", patches, cfg.tokens_mlp_dim),
            ("channel_mixing", channels, cfg.channels_mlp_dim),
        ):
            sides[f"{name}.{mlp}.fc1"], sides[f"{name}.{mlp}.fc2"] = (_paired(width), outer), (outer, _paired(width))
    return sides


def _orders(model: Mixer) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter with the numbers of its entries' partners within it, flat. The kernels of `locality` are
    reversed."""
    sides, found = _sides(model), []
    for name, p in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        if kind == "kernel":
            order = _reversed(*p.shape)
        else:
            rows, columns = sides[layer]
            order = (rows[:, None] * len(columns) + columns).flatten() if p.ndim == 2 else rows
        found.append((p, order.to(p.device)))
    return found


def _mirrored(p: Tensor, order: Tensor) -> Tensor:
    return p.flatten()[order].view_as(p)


@torch.no_grad()
def begin(model: Mixer) -> None:
    """Make fresh weights symmetric, in place: matrices by (W + R W Q) / sqrt(2), which keeps the variance, all else by
    the mean of both."""
    for p, order in _orders(model):
        p.add_(_mirrored(p, order)).mul_(0.5**0.5 if p.ndim == 2 else 0.5)


@torch.no_grad()
def asymmetry(model: Mixer) -> float:
    """The largest share, over the parameters, that is not symmetric: |W - R W Q| / |W|, 0 for a symmetric network."""
    return max(float((p - _mirrored(p, order)).norm() / p.norm().clamp(min=1e-12)) for p, order in _orders(model))


def symmetric(model: Mixer) -> Symmetric:
    """Pairs of parameters of a model, as `keep` needs them."""
    orders = _orders(model)
    before = [0, *itertools.accumulate(p.numel() for p, _ in orders)]
    return [p for p, _ in orders], torch.cat([start + order for start, (_, order) in zip(before, orders, strict=False)])


@torch.no_grad()
def keep(of: Symmetric, *, gradients: bool) -> None:
    """Replace the weights, or their gradients, by the mean of them and their mirrored ones. What was symmetric stays,
    to the bit."""
    parameters, partners = of
    values = [p.grad if gradients else p for p in parameters]
    flat = torch.cat(
        [torch.zeros_like(p).flatten() if v is None else v.flatten() for p, v in zip(parameters, values, strict=True)]
    )
    mean = flat.index_select(0, partners).add_(flat).mul_(0.5)
    parts = torch.split_with_sizes(mean, [p.numel() for p in parameters])
    pairs = [(v, part.view_as(v)) for v, part in zip(values, parts, strict=True) if v is not None]
    torch._foreach_copy_([v for v, _ in pairs], [part for _, part in pairs])

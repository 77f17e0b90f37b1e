"""A trained network whose weights know no grid, at another image size: the same weights, and nothing is resampled.

S2-MLP, AS-MLP and external attention are such networks. What their features are statistics of does change with the
number of places; S2-MLPv2's weights of its three branches come from a sum over them.
"""

from typing import Any

import torch

from mlpmixer.config import require
from mlpmixer.models.architecture import build_with_weights
from mlpmixer.models.configs import Method, Size
from mlpmixer.models.network import Network


@torch.no_grad()
def resize(
    model: Network,
    *,
    image_size: Size | None = None,
    patch_size: Size | None = None,
    in_channels: int | None = None,
    method: Method = "bicubic",
    magnified: bool = False,
) -> Any:
    """A new network from the weights of `model`, which stays as it is. What is not named is kept.

    image_size: pixels, (height, width) or one number.

    Errors: ValueError for another patch_size or in_channels, for a method or `magnified`, which say how weights change,
    and for a size that patches and merges do not divide.
    """
    require(
        not magnified,
        f"magnified changes the weights for another grid; {model.cfg.architecture} has none: leave it out",
    )
    cfg = model.cfg.adapted(image_size=image_size, patch_size=patch_size, in_channels=in_channels, method=method)
    return build_with_weights(cfg, {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()})

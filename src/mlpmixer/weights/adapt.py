"""A trained network with another head, image size, patch size or number of channels. Nothing is trained here.

Any network gets another head. Other sizes are for networks that declare `resize`, whose module says how.
"""

import dataclasses
from typing import Any

import torch

from mlpmixer.config import pair
from mlpmixer.models.architecture import build_with_weights, capability, name_of
from mlpmixer.models.configs import Method, NetworkConfig, Size
from mlpmixer.models.network import Network
from mlpmixer.weights.model_file import ModelMeta


@torch.no_grad()
def adapt(
    model: Network,
    *,
    num_classes: int | None = None,
    image_size: Size | None = None,
    patch_size: Size | None = None,
    in_channels: int | None = None,
    method: Method = "bicubic",
    magnified: bool = False,
) -> Any:
    """Make a new network from the weights of `model`, which is not changed. Sizes that are not given stay the same.

    num_classes: another number gets a fresh head, as `Network.reset_classifier` makes it; 0: no head.
    image_size, patch_size (pixels), in_channels, method, magnified: see `models.mixer_resize.resize`.

    Errors: ValueError for sizes that do not fit together, and for a network that has no way to another size.
    """
    sizes: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "in_channels": in_channels}
    cfg = model.cfg.adapted(**sizes, method=method)
    new = model
    if cfg != model.cfg:
        module = capability(model, "resize", "another image_size, patch_size or in_channels")
        new = module.resize(model, **sizes, method=method, magnified=magnified)
    state = {name: tensor.to("cpu", copy=True) for name, tensor in new.state_dict().items()}
    adapted = _with_weights(cfg, state, model)
    if num_classes not in (None, cfg.num_classes):
        adapted.reset_classifier(num_classes)
    return adapted


def adapt_to(model: Network, target: NetworkConfig, method: Method = "bicubic", magnified: bool = False) -> Any:
    """A new network of the architecture `target` from the weights of `model`: `adapt`, with the dropout rates and other
    fields of `target` that no weight depends on.

    Errors: ValueError naming every width or count of `target` that the weights do not have.
    """
    if name_of(model) != name_of(target):
        raise ValueError(f"the weights are of another network: {name_of(model)} instead of {name_of(target)}")
    if getattr(target, "folded", False):
        model = capability(model, "folding", "folded=True").folded(model)
    elif getattr(model.cfg, "folded", False):
        raise ValueError(
            f"these weights of {target.architecture} are folded: their convolutions cannot be taken out of the "
            "matrices again, so leave folded=False out, or take weights in training form"
        )
    new = adapt(
        model,
        num_classes=target.num_classes,
        image_size=target.image_size,
        patch_size=getattr(target, "patch_size", None),
        in_channels=target.in_channels,
        method=method,
        magnified=magnified,
    )
    cfg = dataclasses.replace(new.cfg, **{name: getattr(target, name) for name in target.weight_free})
    if different := cfg.differences(target):
        raise ValueError(f"the weights are of another {target.architecture}: {', '.join(different)}")
    return _with_weights(cfg, new.state_dict(), new)


def adapt_trained(
    model: Any,
    meta: ModelMeta,
    *,
    image_size: Size | None = None,
    patch_size: Size | None = None,
    in_channels: int | None = None,
    method: Method = "bicubic",
    magnified: bool = False,
) -> tuple[Any, ModelMeta]:
    """`adapt` for a model and what belongs to it: the preprocessing follows in size and channels.

    Channels that become one get one mean and deviation, the average of theirs, and the stem is changed to match.
    """
    preprocess = meta.preprocess
    model.cfg.adapted(image_size=image_size, patch_size=patch_size, in_channels=in_channels, method=method)
    if in_channels not in (None, preprocess.in_channels):
        module = capability(model, "resize", "another in_channels")
        model, mean, std = module.share_normalisation(model, preprocess.mean, preprocess.std, in_channels)
        preprocess = dataclasses.replace(preprocess, in_channels=in_channels, mean=mean, std=std)
    sizes: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "in_channels": in_channels}
    new = adapt(model, **sizes, method=method, magnified=magnified)
    preprocess = dataclasses.replace(preprocess, image_size=pair(new.cfg.image_size))
    meta = dataclasses.replace(meta, config=new.cfg, preprocess=preprocess)
    new.meta = meta.without_history()
    return new, meta


def _with_weights(cfg: NetworkConfig, state: dict[str, torch.Tensor], like: Network) -> Any:
    """The network of `cfg` with these weights, in the mode and on the device of another."""
    model: Any = build_with_weights(cfg, state)
    if hasattr(like, "checkpointing"):
        model.checkpointing = like.checkpointing
    model.meta = like.meta
    return model.train(like.training).to(next(like.parameters()).device)

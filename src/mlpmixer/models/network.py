"""The base of all networks: images to logits, with the methods that users of timm and the Hub expect.

`architecture` has the table of networks, and what each can do beyond this.
"""

import copy
import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.models.architecture import capability, own_fields
from mlpmixer.models.configs import NetworkConfig
from mlpmixer.models.layers import linear_head

if TYPE_CHECKING:
    from mlpmixer.data.preprocess import Preprocess
    from mlpmixer.weights.model_file import ModelMeta


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
        """Features for `pool`: normalised tokens (B, S, C), or the last feature map (B, C, h, w)."""
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
        """Replace the head with a fresh one of `num_classes` outputs, initialised as in a new network; 0: none.

        global_pool: for timm's signature; the pooling cannot change: "avg", or "token" for a ViT.

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
        from mlpmixer.weights.create import from_pretrained

        found = from_pretrained(name, **fields)
        if not isinstance(found, cls):
            kind = type(found).__name__
            raise ValueError(f"{os.fspath(name)} is a {kind}, not a {cls.__name__}: use {kind}.from_pretrained")
        return found

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        preprocess: "Preprocess | None" = None,
        licence: str = "",
    ) -> str:
        """Write the network to a new folder, as `mlpmixer push` does: weights, description, card; returns the folder.

        classes: a name for each output; default: those that came with the weights, or "class 0", ... for a fresh head.
        preprocess: default: what came with the weights; for a fresh network, that of a run: crop, -1..1.
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
        """Publish what `save_pretrained` writes as owner/name on the Hugging Face Hub; returns its address.

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

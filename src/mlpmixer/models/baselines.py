"""What a Mixer is compared with: a Vision Transformer and a ResNet, of the library transformers (extra `rivals`), built
without a download.

They are values for `train(recipe, network=...)`: called with a configuration, they make a network of its images and
classes.
"""

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from mlpmixer.config import Config, pair
from mlpmixer.models.configs import MixerConfig

EPS = 1e-6  # of the ViT's LayerNorm, as in the official code


def require() -> None:
    """ValueError when the extra is not installed."""
    if find_spec("transformers") is None:
        raise ValueError('the rivals need the package transformers: pip install "mlpmixer[rivals]"')


class Headed(nn.Module):
    """A body of images -> pre_logits (B, D), and a linear head that starts at zero, as a Mixer's does."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def pre_logits(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pre_logits(images))
        return logits


@dataclass(frozen=True, kw_only=True)
class ViT(Config):
    """A Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929): a class token, learnt positions, pre-norm
    blocks."""

    patch_size: int = 16
    num_blocks: int = 12
    hidden_dim: int = 384
    num_heads: int = 6
    mlp_dim: int = 1536

    def __call__(self, cfg: MixerConfig) -> "ViTNetwork":
        return ViTNetwork(self, cfg)


class ViTNetwork(Headed):
    """Images (B, C, H, W) -> logits (B, K), from the class token."""

    def __init__(self, spec: ViT, cfg: MixerConfig) -> None:
        require()
        from transformers import ViTConfig, ViTModel

        super().__init__(spec.hidden_dim, cfg.num_classes)
        config = ViTConfig(
            image_size=pair(cfg.image_size),
            patch_size=spec.patch_size,
            num_channels=cfg.in_channels,
            num_hidden_layers=spec.num_blocks,
            hidden_size=spec.hidden_dim,
            num_attention_heads=spec.num_heads,
            intermediate_size=spec.mlp_dim,
            layer_norm_eps=EPS,
            attn_implementation="sdpa",  # torch's own fused attention
        )
        self.body = ViTModel(config, add_pooling_layer=False)

    def pre_logits(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.body(pixel_values=images).last_hidden_state  # (B, 1 + S, D)
        return tokens[:, 0]


@dataclass(frozen=True, kw_only=True)
class ResNet(Config):
    """A ResNet (He et al. 2016, arXiv:1512.03385), with batch normalisation."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Layers of each stage; a stage has twice the channels of the one before, at half its resolution."""
    width: int = 64
    """Channels of the first stage (times 4 with bottlenecks)."""
    bottleneck: bool = True
    small_images: bool = False
    """A stem of one 3x3 convolution at full resolution, as for 32 px (section 4.2 there), instead of 7x7 and pooling at
    a quarter."""

    def __call__(self, cfg: MixerConfig) -> "ResNetNetwork":
        return ResNetNetwork(self, cfg)


class ResNetNetwork(Headed):
    """Images (B, C, H, W) -> logits (B, K), from the mean over the last stage."""

    def __init__(self, spec: ResNet, cfg: MixerConfig) -> None:
        require()
        from transformers import ResNetConfig, ResNetModel

        channels = [spec.width * (4 if spec.bottleneck else 1) * 2**i for i in range(len(spec.depths))]
        super().__init__(channels[-1], cfg.num_classes)
        config = ResNetConfig(
            num_channels=cfg.in_channels,
            embedding_size=spec.width,
            hidden_sizes=channels,
            depths=list(spec.depths),
            layer_type="bottleneck" if spec.bottleneck else "basic",
        )
        self.body = ResNetModel(config)
        if spec.small_images:
            stem = nn.Conv2d(cfg.in_channels, spec.width, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(
                stem.weight, mode="fan_out", nonlinearity="relu"
            )  # as the library starts the others
            self.body.embedder.embedder.convolution = stem
            self.body.embedder.pooler = nn.Identity()

    def pre_logits(self, images: Tensor) -> Tensor:
        return torch.flatten(self.body(pixel_values=images).pooler_output, 1)

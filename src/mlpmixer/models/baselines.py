"""What the all-MLP networks are compared with: a Vision Transformer and a ResNet, of the library transformers (extra
`rivals`), built without a download."""

import torch
from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.models.configs import NetworkConfig, ResNetConfig, ViTConfig
from mlpmixer.models.network import Network

EPS = 1e-6  # of the ViT's LayerNorm, as in the official code


def _zero_head(cfg: NetworkConfig) -> nn.Module:
    """A linear head that starts at zero, as a Mixer's does."""
    if not cfg.num_classes:
        return nn.Identity()
    head = nn.Linear(cfg.num_features, cfg.num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class ViT(Network):
    """Images (B, in_channels, H, W) -> logits (B, K), from the class token."""

    def __init__(self, cfg: ViTConfig) -> None:
        from transformers import ViTConfig as LibraryConfig
        from transformers import ViTModel

        super().__init__()
        self.cfg = cfg
        self.head = _zero_head(cfg)
        config = LibraryConfig(
            image_size=pair(cfg.image_size),
            patch_size=cfg.patch_size,
            num_channels=cfg.in_channels,
            num_hidden_layers=cfg.num_blocks,
            hidden_size=cfg.hidden_dim,
            num_attention_heads=cfg.num_heads,
            intermediate_size=cfg.mlp_dim,
            layer_norm_eps=EPS,
            attn_implementation="sdpa",  # torch's own fused attention
        )
        self.body = ViTModel(config, add_pooling_layer=False)

    def pre_logits(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.body(pixel_values=images).last_hidden_state  # (B, 1 + S, D)
        return tokens[:, 0]


class ResNet(Network):
    """Images (B, in_channels, H, W) -> logits (B, K), from the mean over the last stage."""

    def __init__(self, cfg: ResNetConfig) -> None:
        from transformers import ResNetConfig as LibraryConfig
        from transformers import ResNetModel

        super().__init__()
        self.cfg = cfg
        self.head = _zero_head(cfg)
        config = LibraryConfig(
            num_channels=cfg.in_channels,
            embedding_size=cfg.width,
            hidden_sizes=cfg.channels,
            depths=list(cfg.depths),
            layer_type="bottleneck" if cfg.bottleneck else "basic",
        )
        self.body = ResNetModel(config)
        if cfg.small_images:
            stem = nn.Conv2d(cfg.in_channels, cfg.width, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(
                stem.weight, mode="fan_out", nonlinearity="relu"
            )  # as the library starts the others
            self.body.embedder.embedder.convolution = stem
            self.body.embedder.pooler = nn.Identity()

    def pre_logits(self, images: Tensor) -> Tensor:
        return torch.flatten(self.body(pixel_values=images).pooler_output, 1)

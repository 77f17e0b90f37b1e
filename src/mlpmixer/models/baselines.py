"""Baselines of the all-MLP networks: a Vision Transformer and a ResNet, of the library transformers (extra
`rivals`), built without a download."""

import torch
from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.models.configs import ResNetConfig, ViTConfig
from mlpmixer.models.layers import linear_head
from mlpmixer.models.network import Network

EPS = 1e-6  # of the ViT's LayerNorm, as in the official code
FUSED_FROM = 256  # patches; with fewer, plain products train faster on a CPU than torch's fused attention (64: 2 times)


class ViT(Network):
    """Images (B, in_channels, H, W) -> logits (B, K), from the class token."""

    def __init__(self, cfg: ViTConfig) -> None:
        from transformers import ViTConfig as LibraryConfig
        from transformers import ViTModel

        super().__init__()
        self.cfg = cfg
        self.head = linear_head(cfg)
        self.start_head()
        config = LibraryConfig(
            image_size=pair(cfg.image_size),
            patch_size=cfg.patch_size,
            num_channels=cfg.in_channels,
            num_hidden_layers=cfg.num_blocks,
            hidden_size=cfg.hidden_dim,
            num_attention_heads=cfg.num_heads,
            intermediate_size=cfg.mlp_dim,
            layer_norm_eps=EPS,
            attn_implementation="sdpa" if cfg.num_patches >= FUSED_FROM else "eager",
        )
        self.body = ViTModel(config, add_pooling_layer=False)

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised tokens (B, 1 + S, D), the class token first."""
        tokens: Tensor = self.body(pixel_values=images).last_hidden_state
        return tokens

    def pool(self, features: Tensor) -> Tensor:
        """The class token: (B, 1 + S, D) -> (B, D)."""
        return features[:, 0]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices of every block."""
        return [p for p in self.body.parameters() if p.ndim == 2]


class ResNet(Network):
    """Images (B, in_channels, H, W) -> logits (B, K), from the mean over the last stage."""

    def __init__(self, cfg: ResNetConfig) -> None:
        from transformers import ResNetConfig as LibraryConfig
        from transformers import ResNetModel

        super().__init__()
        self.cfg = cfg
        self.head = linear_head(cfg)
        self.start_head()
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

    def forward_features(self, images: Tensor) -> Tensor:
        """The last feature map (B, C, h, w)."""
        features: Tensor = self.body(pixel_values=images).last_hidden_state
        return features

    def pool(self, features: Tensor) -> Tensor:
        """The mean over its places: (B, C, h, w) -> (B, C)."""
        return torch.flatten(self.body.pooler(features), 1)

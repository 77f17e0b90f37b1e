"""Names for architectures: the paper's Table 1, and small-image sizes of our own. No torch."""

from dataclasses import dataclass

from mlpmixer.config import MixerConfig, pair
from mlpmixer.registry import Registry, suggest

__all__ = ["MODELS", "Layer", "count_params", "suggest", "summary"]

MODELS: Registry[MixerConfig] = Registry("model")


def _paper(size: str, num_blocks: int, hidden_dim: int, tokens_mlp_dim: int, channels_mlp_dim: int, patches: tuple[int, ...]) -> None:
    for p in patches:
        MODELS[f"{size}/{p}"] = MixerConfig(
            patch_size=p,
            num_blocks=num_blocks,
            hidden_dim=hidden_dim,
            tokens_mlp_dim=tokens_mlp_dim,
            channels_mlp_dim=channels_mlp_dim,
        )


#      size  N   C     D_S  D_C   P           Table 1; S/8 is in no table, but its weights are public (D_S 256 at S = 784)
_paper("S", 8, 512, 256, 2048, (32, 16, 8))
_paper("B", 12, 768, 384, 3072, (32, 16))
_paper("L", 24, 1024, 512, 4096, (32, 16))
_paper("H", 32, 1280, 640, 5120, (14,))


def _small(
    name: str, image_size: int, in_channels: int, num_blocks: int, hidden_dim: int, tokens_mlp_dim: int, channels_mlp_dim: int
) -> None:
    MODELS[name] = MixerConfig(
        image_size=image_size,
        in_channels=in_channels,
        patch_size=int(name.split("/")[1]),
        num_classes=10,
        num_blocks=num_blocks,
        hidden_dim=hidden_dim,
        tokens_mlp_dim=tokens_mlp_dim,
        channels_mlp_dim=channels_mlp_dim,
        activation="gelu_erf",  # on a CPU torch's erf form is 2-4 times faster than its tanh form
    )


#      name     px  ch  N   C    D_S  D_C
_small("Pico/1", 8, 1, 4, 64, 64, 256)
_small("Pico/2", 8, 1, 4, 64, 32, 256)
_small("Nano/4", 32, 3, 8, 128, 64, 512)
_small("Nano/2", 32, 3, 8, 96, 128, 384)
_small("Nano/8", 64, 3, 8, 128, 64, 512)
_small("Tiny/8", 64, 3, 8, 256, 128, 1024)
_small("Mini/4", 28, 1, 8, 96, 64, 384)


@dataclass(frozen=True)
class Layer:
    """One line of a model's summary. Shapes are without the batch; FLOPs are per image, 2 per multiply-add, matrix products only."""

    name: str
    output: tuple[int, ...]
    params: int
    flops: int


def summary(cfg: MixerConfig) -> list[Layer]:
    """The network line by line, from the input table of patches to the logits, worked out from the configuration alone."""
    s, c, ds, dc, (p, q) = cfg.num_patches, cfg.hidden_dim, cfg.tokens_mlp_dim, cfg.channels_mlp_dim, pair(cfg.patch_size)
    patch = cfg.in_channels * p * q
    rows = [
        Layer("images", (cfg.in_channels, *pair(cfg.image_size)), 0, 0),
        Layer("patches", (s, patch), 0, 0),
        Layer("stem", (s, c), patch * c + c, 2 * s * patch * c),
    ]
    for i in range(cfg.num_blocks):
        rows += [
            Layer(f"blocks.{i}.norm1", (s, c), 2 * c, 0),
            Layer(f"blocks.{i}.token_mixing", (s, c), 2 * s * ds + ds + s, 4 * s * ds * c),
            Layer(f"blocks.{i}.norm2", (s, c), 2 * c, 0),
            Layer(f"blocks.{i}.channel_mixing", (s, c), 2 * c * dc + dc + c, 4 * s * c * dc),
        ]
    rows += [Layer("norm", (s, c), 2 * c, 0), Layer("mean over patches", (c,), 0, 0)]
    if cfg.num_classes:
        rows.append(Layer("head", (cfg.num_classes,), c * cfg.num_classes + cfg.num_classes, 2 * c * cfg.num_classes))
    return rows


def count_params(cfg: MixerConfig) -> int:
    return sum(layer.params for layer in summary(cfg))

"""Names for architectures: the paper's Table 1, small-image sizes of our own, the published sizes of the relatives, and
timm's names. No torch."""

import dataclasses

from mlpmixer.models.configs import (
    ASMLPConfig,
    EAMLPConfig,
    GMLPConfig,
    MixerConfig,
    NetworkConfig,
    RepMLPNetConfig,
    ResMLPConfig,
    ResNetConfig,
    S2MLPConfig,
    S2MLPv2Config,
    ViPConfig,
    ViTConfig,
)
from mlpmixer.registry import Registry

MIXERS: Registry[MixerConfig] = Registry("Mixer")
MODELS: Registry[NetworkConfig] = Registry("model")
"""All of them, the Mixers first, timm's names last."""


def _paper(
    size: str, num_blocks: int, hidden_dim: int, tokens_mlp_dim: int, channels_mlp_dim: int, patches: tuple[int, ...]
) -> None:
    for p in patches:
        MIXERS[f"{size}/{p}"] = MixerConfig(
            patch_size=p,
            num_blocks=num_blocks,
            hidden_dim=hidden_dim,
            tokens_mlp_dim=tokens_mlp_dim,
            channels_mlp_dim=channels_mlp_dim,
        )


# size  N   C     D_S  D_C   P           Table 1; S/8 is in no table, but its weights are public (D_S 256 at S = 784)
_paper("S", 8, 512, 256, 2048, (32, 16, 8))
_paper("B", 12, 768, 384, 3072, (32, 16))
_paper("L", 24, 1024, 512, 4096, (32, 16))
_paper("H", 32, 1280, 640, 5120, (14,))


def _small(
    name: str,
    image_size: int,
    in_channels: int,
    num_blocks: int,
    hidden_dim: int,
    tokens_mlp_dim: int,
    channels_mlp_dim: int,
) -> None:
    MIXERS[name] = MixerConfig(
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


MODELS |= MIXERS

# Paper, table 1; every released B24 has patches of 8 px.
for _name, _dim, _blocks, _patch, _scale in (
    ("s12", 384, 12, 16, 0.1), ("s24", 384, 24, 16, 1e-5), ("s36", 384, 36, 16, 1e-6),
    ("b24/16", 768, 24, 16, 1e-6), ("b24/8", 768, 24, 8, 1e-6),
):  # fmt: skip
    MODELS[f"resmlp-{_name}"] = ResMLPConfig(
        patch_size=_patch, num_blocks=_blocks, hidden_dim=_dim, channels_mlp_dim=4 * _dim, layer_scale=_scale
    )

# arXiv:2105.08050, table 1.
for _name, _dim in (("ti", 128), ("s", 256), ("b", 512)):
    MODELS[f"gmlp-{_name}/16"] = GMLPConfig(hidden_dim=_dim, channels_mlp_dim=6 * _dim)

# arXiv:2106.07477, table 1; arXiv:2108.01072, table 1.
MODELS["s2-mlp-wide"] = S2MLPConfig()
MODELS["s2-mlp-deep"] = S2MLPConfig(num_blocks=36, hidden_dim=384, channels_mlp_dim=1536, norm="affine")
MODELS["s2-mlpv2-s/7"] = S2MLPv2Config()
MODELS["s2-mlpv2-m/7"] = S2MLPv2Config(hidden_dims=(256, 512), depths=(7, 17))
MODELS["s2-mlpv2-s/14"] = S2MLPv2Config(patch_size=14, hidden_dims=(384,), depths=(18,))

# arXiv:2106.12368, table 1, as the official code groups the blocks (its large network has 8 + 28, not 9 + 27).
MODELS["vip-s/14"] = ViPConfig(patch_size=14, hidden_dims=(384,) * 4, strides=(1, 1, 1))
MODELS["vip-s/7"] = ViPConfig()
MODELS["vip-m/7"] = ViPConfig(hidden_dims=(256, 256, 512, 512), depths=(4, 3, 14, 3), strides=(1, 2, 1))
MODELS["vip-l/7"] = ViPConfig(hidden_dims=(256, 512, 512, 512), depths=(8, 8, 16, 4))

# arXiv:2107.08391, table 1.
MODELS["as-mlp-t"] = ASMLPConfig()
MODELS["as-mlp-s"] = ASMLPConfig(depths=(2, 2, 18, 2))
MODELS["as-mlp-b"] = ASMLPConfig(hidden_dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2))

# arXiv:2112.11081, table 1.
for _name, _px, _dim, _depth, _sets in (
    ("t224", 224, 64, 6, (1, 4, 16, 128)),
    ("b224", 224, 96, 12, (1, 4, 32, 128)),
    ("t256", 256, 64, 6, (1, 4, 16, 128)),
    ("b256", 256, 96, 12, (1, 4, 32, 128)),
    ("d256", 256, 80, 18, (1, 4, 16, 128)),
    ("l256", 256, 96, 18, (1, 4, 32, 256)),
):
    MODELS[f"repmlpnet-{_name}"] = RepMLPNetConfig(
        image_size=_px, hidden_dims=(_dim, 2 * _dim, 4 * _dim, 8 * _dim), depths=(2, 2, _depth, 2), share_sets=_sets
    )

MODELS["eamlp-nano"] = EAMLPConfig(image_size=32, patch_size=4, num_classes=10)

# What the all-MLP networks are compared with (extra `rivals`).
for _name, _patch, _dim, _heads in (
    ("Ti/16", 16, 192, 3),
    ("S/32", 32, 384, 6),
    ("S/16", 16, 384, 6),
    ("B/16", 16, 768, 12),
):
    MODELS[f"vit-{_name.lower()}"] = ViTConfig(patch_size=_patch, hidden_dim=_dim, num_heads=_heads, mlp_dim=4 * _dim)
MODELS["resnet-18"] = ResNetConfig(depths=(2, 2, 2, 2), bottleneck=False)
MODELS["resnet-50"] = ResNetConfig()

# timm's names stand for what timm 1.0.31 computes: the erf form of GELU, one rate of stochastic depth for all blocks,
# and its own start of the scales of resmlp_12. Matrices start as everywhere here.
for _name, _ours in (
    *((f"mixer_{_size.lower()}{_patch}_224", f"{_size}/{_patch}") for _size in "SBL" for _patch in (32, 16)),
    ("resmlp_12_224", "resmlp-s12"), ("resmlp_24_224", "resmlp-s24"), ("resmlp_36_224", "resmlp-s36"),
    ("resmlp_big_24_224", "resmlp-b24/8"),
    *((f"gmlp_{_size}16_224", f"gmlp-{_size}/16") for _size in ("ti", "s", "b")),
    ("vit_tiny_patch16_224", "vit-ti/16"), ("vit_small_patch32_224", "vit-s/32"),
    ("vit_small_patch16_224", "vit-s/16"), ("vit_base_patch16_224", "vit-b/16"), ("resnet18", "resnet-18"),
    ("resnet50", "resnet-50"),
):  # fmt: skip
    MODELS[_name] = MODELS[_ours]
    if _ours in MIXERS:
        MODELS[_name] = dataclasses.replace(MIXERS[_ours], activation="gelu_erf", drop_path_form="constant")
MODELS["resmlp_12_224"] = dataclasses.replace(MODELS["resmlp-s12"], layer_scale=1e-4)  # type: ignore[call-arg]

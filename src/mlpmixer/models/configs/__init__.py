"""The configs of all networks: frozen, in the paper's words, each able to list its own layers. No torch.

Widths are absolute (paper: D_S, D_C), sizes are in pixels. A config is the architecture and nothing else: it is saved
with every model, and its JSON names the architecture.
"""

from mlpmixer.models.configs.asmlp import ASMLPConfig
from mlpmixer.models.configs.baselines import ResNetConfig, ViTConfig
from mlpmixer.models.configs.external_attention import EAMLPConfig
from mlpmixer.models.configs.gmlp import GMLPConfig
from mlpmixer.models.configs.mixer import MixerConfig
from mlpmixer.models.configs.network import (
    MAX_BLOCKS,
    MAX_CHANNELS,
    MAX_CLASSES,
    MAX_INPUT_PIXELS,
    MAX_WIDTH,
    Activation,
    Layer,
    Method,
    NetworkConfig,
    PatchConfig,
    Size,
    StagesConfig,
)
from mlpmixer.models.configs.repmlpnet import RepMLPNetConfig
from mlpmixer.models.configs.resmlp import ResMLPConfig
from mlpmixer.models.configs.s2mlp import S2MLPConfig, S2MLPv2Config
from mlpmixer.models.configs.vip import ViPConfig

__all__ = [
    "MAX_BLOCKS",
    "MAX_CHANNELS",
    "MAX_CLASSES",
    "MAX_INPUT_PIXELS",
    "MAX_WIDTH",
    "ASMLPConfig",
    "Activation",
    "EAMLPConfig",
    "GMLPConfig",
    "Layer",
    "Method",
    "MixerConfig",
    "NetworkConfig",
    "PatchConfig",
    "RepMLPNetConfig",
    "ResMLPConfig",
    "ResNetConfig",
    "S2MLPConfig",
    "S2MLPv2Config",
    "Size",
    "StagesConfig",
    "ViPConfig",
    "ViTConfig",
]

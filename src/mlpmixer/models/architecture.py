"""The contract of a network, the table of architectures, and `create_model`. Imports no torch until a network is built.

A network is an `nn.Module` with `cfg`, `forward(images) -> logits` and `pre_logits(images)`, where logits are
`head(pre_logits)`: see `network.Network`. What it can do beyond that is a capability: a method of the network, or a
function elsewhere in this folder that takes the network first. An architecture declares its capabilities in its row of
ARCHITECTURES. Whoever needs one asks `capability`; nothing outside this folder asks what class a network is of.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mlpmixer.config import did_you_mean, pair
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
from mlpmixer.models.names import MODELS
from mlpmixer.registry import Registry, shown

if TYPE_CHECKING:
    from torch import nn

    from mlpmixer.models.name_table import NameTable

Build = Callable[[Any], "nn.Module"]
"""A function of one's own: config -> a network of images (B, in_channels, H, W) -> logits (B, K). Of the config it must
take image_size, in_channels and num_classes; with a method `pre_logits`, images -> (B, D), it has features, and any
other capability that is a method."""

CAPABILITIES = {
    "tokens": "tokens whose mean a linear head reads",
    "layers": "order of layers",
    "hidden_matrices": "hidden matrices for Muon",
    "checkpointing": "activation checkpointing",
    "patches": "linear stem over patches",
    "resize": "way to bring trained weights to another size",
    "locality": "locality that folds into its weights",
    "folding": "training-time structure that folds away",
    "mirror": "mirror symmetry",
    "kernels": "compiled kernels",
    "mixing": "token mixing that can be drawn",
}
"""Capabilities of networks, in the words that refuse an option.

tokens(images) -> (B, S, C): logits are head(tokens.mean(1)), so what each patch adds to a logit is exact.
layers() -> list of lists of modules: all of the network, from the stem to the head.
hidden_matrices() -> list of parameters: what Muon updates.
checkpointing: an attribute; set it to True to trade time for memory.
patches(images) -> (B, S, in*P*P): what stem.weight (C, in*P*P) reads.
resize, locality, folding, mirror, kernels, mixing: modules of this folder, whose docstrings say what they do.
"""
METHOD = ""
ALIGNMENT = 64  # bytes, of torch's own tensors on a CPU

TIMM_FIELDS = {
    "in_chans": "in_channels",
    "img_size": "image_size",
    "drop_path_rate": "drop_path",
    "proj_drop_rate": "dropout",
}
"""timm's spellings of fields."""
TIMM_ONLY: dict[str, tuple[Any, str]] = {
    "drop_rate": (0, "dropout within the MLPs of a Mixer is dropout=, timm's proj_drop_rate"),
    "global_pool": ("", "forward_features(images) gives what a pooling of your own can read"),
    "features_only": (False, "forward_features(images) gives the tokens before pooling"),
    "mlp_ratio": ("", "channels_mlp_dim= is the width itself, of a Mixer beside tokens_mlp_dim="),
    "embed_dim": ("", "hidden_dim= is the width, hidden_dims= those of stages"),
    "act_layer": ("", "activation='gelu_erf' or 'gelu_tanh' chooses the GELU of a Mixer"),
    "checkpoint_path": ("", "weights=FILE loads it"),
    "cache_dir": ("", "what is fetched is kept in ~/.cache/mlpmixer"),
    "pretrained_cfg": ("", "mlpmixer.load(name) has the preprocessing of weights"),
    "scriptable": (False, "torch.export takes every network as it is"),
    "exportable": (False, "torch.export takes every network as it is"),
}
"""Arguments that only timm takes: the value that changes nothing, and what to use instead of any other."""


@dataclass(frozen=True)
class Architecture:
    """One kind of network: what describes it, what computes it, and what it can do."""

    config: type[NetworkConfig]
    network: str
    """module:class, made from the config."""
    capabilities: Mapping[str, str] = field(default_factory=dict)
    """Names in CAPABILITIES, each with METHOD (a method of the network) or the module that has it."""
    name_tables: str = ""
    """module:name of the `NameTable`s of its weights in other homes."""
    extra: str = ""
    """The extra whose library computes it; empty where this package does."""


def _ours(name: str) -> str:
    return f"mlpmixer.models.{name}"


TOKENS = dict.fromkeys(("tokens", "layers", "hidden_matrices", "checkpointing", "patches"), METHOD)
ANY_SIZE = {"resize": _ours("any_size")}

ARCHITECTURES: Registry[Architecture] = Registry("architecture")
ARCHITECTURES |= {
    "mixer": Architecture(
        MixerConfig,
        _ours("mixer:Mixer"),
        TOKENS
        | {
            "resize": _ours("mixer_resize"),
            "locality": _ours("locality"),
            "folding": _ours("locality"),
            "mirror": _ours("mirror"),
        }
        | {"kernels": _ours("kernels"), "mixing": _ours("mixing")},
        name_tables=_ours("mixer_names:TABLES"),
    ),
    "resmlp": Architecture(
        ResMLPConfig,
        _ours("resmlp:ResMLP"),
        TOKENS,
        name_tables=_ours("resmlp:TABLES"),
    ),
    "gmlp": Architecture(GMLPConfig, _ours("gmlp:GMLP"), TOKENS, name_tables=_ours("gmlp:TABLES")),
    "s2-mlp": Architecture(S2MLPConfig, _ours("s2mlp:S2MLP"), TOKENS | ANY_SIZE),
    "s2-mlpv2": Architecture(S2MLPv2Config, _ours("s2mlpv2:S2MLPv2"), TOKENS | ANY_SIZE),
    "as-mlp": Architecture(
        ASMLPConfig, _ours("asmlp:ASMLP"), TOKENS | ANY_SIZE, name_tables=_ours("asmlp_names:TABLES")
    ),
    "vip": Architecture(ViPConfig, _ours("vip:ViP"), TOKENS, name_tables=_ours("vip:TABLES")),
    "repmlpnet": Architecture(
        RepMLPNetConfig,
        _ours("repmlpnet:RepMLPNet"),
        TOKENS | {"folding": _ours("repmlpnet")},
        name_tables=_ours("repmlpnet_names:TABLES"),
    ),
    "eamlp": Architecture(EAMLPConfig, _ours("external_attention:EAMLP"), TOKENS | ANY_SIZE),
    "vit": Architecture(ViTConfig, _ours("baselines:ViT"), {"hidden_matrices": METHOD}, extra="rivals"),
    "resnet": Architecture(ResNetConfig, _ours("baselines:ResNet"), extra="rivals"),
}


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    found = import_module(module)
    return getattr(found, name) if name else found


def build(cfg: NetworkConfig) -> "nn.Module":
    """A fresh network, its weights drawn from torch's global generator. ValueError when its library is not
    installed."""
    require_library(cfg)
    network: nn.Module = _load(ARCHITECTURES[cfg.architecture].network)(cfg)
    return network


def require_library(cfg: NetworkConfig) -> None:
    """ValueError when the library that computes a network is not installed."""
    extra = ARCHITECTURES[cfg.architecture].extra
    if extra and find_spec("transformers") is None:
        raise ValueError(
            f"{cfg.architecture} needs the package transformers, which is not installed: "
            f'pip install "mlpmixer[{extra}]"'
        )


def build_with_weights(cfg: NetworkConfig, state: Mapping[str, Any], network: Build | None = None) -> "nn.Module":
    """A network on the CPU that holds the tensors of `state`, in training mode; strict both ways.

    They are the tensors themselves where they lie as torch lays them out. Those mapped from a file may not, and are
    copied: the last bits of a product depend on it, and so would differ between a file, a copy of it with a longer
    header, and a pickle.
    network: what builds it instead. RuntimeError, torch's own, when names or shapes do not fit.
    """
    import torch

    ours = network is None and not ARCHITECTURES[cfg.architecture].extra
    with torch.device("meta" if ours else "cpu"):  # the constructor of other code may compute with its weights
        model = build(cfg) if network is None else build_custom(network, cfg)
    aligned = {name: t.clone() if t.data_ptr() % ALIGNMENT else t for name, t in state.items()}
    model.load_state_dict(aligned, strict=True, assign=True)
    return model.requires_grad_(True)


def build_custom(network: Build, cfg: NetworkConfig) -> "nn.Module":
    """A copy, in training mode, of what a function of one's own builds, which may be the same module each time.

    ValueError when it cannot be copied, or does not answer images with logits of the right shape.
    """
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    def refuse(module: "nn.Module", _: Any) -> None:
        if module in originals:
            raise ValueError(
                f"{name_of(network)} builds a network whose copy computes with a {type(module).__name__} of the "
                "original, as where it holds a lambda that uses self; make that a method"
            )

    with torch.no_grad():
        original = network(cfg)
        try:
            model = copy.deepcopy(original)
        except (RuntimeError, TypeError) as e:
            raise ValueError(f"{name_of(network)} builds a network that copy.deepcopy cannot copy: {e}") from e
        originals = set(original.modules())
        with register_module_forward_pre_hook(refuse):
            logits: Any = model.eval()(torch.zeros(2, cfg.in_channels, *pair(cfg.image_size)))
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (2, cfg.num_classes):
        got = f"shape {shape}" if shape else type(logits).__name__
        raise ValueError(
            f"{name_of(network)} answers two images with {got}; expected logits of shape (2, {cfg.num_classes})"
        )
    return model.train()


def configured(model: str | NetworkConfig, **fields: Any) -> Any:
    """The config of a name ("S/16", see `mlpmixer list models`) or config, with fields replaced: `num_classes=10`.

    timm's spellings are taken, too (in_chans, img_size, drop_path_rate, proj_drop_rate), and what timm has and is not
    here, as long as it changes nothing (drop_rate=0).

    Errors: ValueError for an unknown name or field (with the nearest right one) and for sizes that do not fit together.
    """
    cfg = MODELS[model] if isinstance(model, str) else model
    if not isinstance(cfg, NetworkConfig):
        raise ValueError(f"expected a name of `mlpmixer list models` or a config, got {shown(model)}")
    return dataclasses.replace(cfg, **own_fields(cfg, fields))


def own_fields(cfg: NetworkConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a config, some of them spelt as timm spells them, under their own names. ValueError for others."""
    known = [f.name for f in dataclasses.fields(cfg)]
    own: dict[str, Any] = {}
    for name, value in fields.items():
        ours = TIMM_FIELDS.get(name, name)
        if value is None:  # not given, as timm has it
            continue
        nothing, instead = TIMM_ONLY.get(name, (0 if name in TIMM_FIELDS else dataclasses.MISSING, ""))
        if name == "global_pool":
            nothing = cfg.global_pool
        if ours in known:
            if ours in own:
                raise ValueError(f"{ours} is given twice, once in timm's spelling")
            own[ours] = value
        elif value != nothing:
            hint = (
                f"; {instead}"
                if instead
                else did_you_mean(name, [*known, *(t for t in TIMM_FIELDS if TIMM_FIELDS[t] in known)])
            )
            raise ValueError(f"{cfg.architecture} has no field {name!r}{hint}")
    return own


def create_model(model: str | NetworkConfig, **fields: Any) -> Any:
    """A fresh network by name or config, see `configured`. (`mlpmixer.create_model` also knows trained weights.)"""
    return build(configured(model, **fields))


def count_params(model: "nn.Module") -> int:
    return sum(p.numel() for p in model.parameters())


def name_of(network: object) -> str:
    """The name of a network, of its config, or of a function that builds one, as files and errors give it.

    A dataclass that builds one is called by its fields, too, so that a run goes on with the same network.
    """
    if known := architecture_of(network):
        return known
    if dataclasses.is_dataclass(network):
        return repr(network)
    return getattr(network, "__qualname__", type(network).__name__)


def architecture_of(network: object) -> str:
    """The name in ARCHITECTURES of a network or a config; "" for other code's."""
    cfg = network if isinstance(network, NetworkConfig) else getattr(network, "cfg", None)
    if not isinstance(cfg, NetworkConfig) or cfg.architecture not in ARCHITECTURES:
        return ""
    own = network is cfg or type(network).__qualname__ == ARCHITECTURES[cfg.architecture].network.partition(":")[2]
    return cfg.architecture if own else ""


def has(network: object, name: str) -> bool:
    """Whether a network, or the network of a config, declares a capability. A network of one's own declares its
    methods."""
    assert name in CAPABILITIES
    known = architecture_of(network)
    return name in ARCHITECTURES[known].capabilities if known else hasattr(network, name)


def capability(network: object, name: str, option: str, instead: str = "") -> Any:
    """The method or module behind a capability, for the option or command that needs it.

    ValueError in one sentence, which names network and option, where the network does not declare it.
    """
    if not has(network, name):
        *others, last = [a for a, known in ARCHITECTURES.items() if name in known.capabilities]
        raise ValueError(
            f"{name_of(network)} has no {CAPABILITIES[name]}, which {option} needs; "
            + (f"{', '.join(others)} and {last} have it" if others else f"{last} has it")
            + (f". Use {instead}" if instead else "")
        )
    known = architecture_of(network)
    where = ARCHITECTURES[known].capabilities[name] if known else METHOD
    return _load(where) if where else getattr(network, name)


def name_tables(architecture: str = "") -> "Iterator[tuple[str, NameTable]]":
    """(architecture, table) of all forms in which others store weights, or of those of one architecture."""
    for name, known in ARCHITECTURES.items():
        if known.name_tables and architecture in ("", name):
            for table in _load(known.name_tables):
                yield name, table

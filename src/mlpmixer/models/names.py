"""Names for architectures (the paper's Table 1, and small-image sizes of our own) and for published weights. No
torch."""

import gzip
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from mlpmixer.config import pair
from mlpmixer.models.configs import Activation, MixerConfig
from mlpmixer.registry import Registry, suggest

__all__ = [
    "MODELS",
    "WEIGHTS",
    "Layer",
    "Weights",
    "class_names",
    "count_params",
    "numbered",
    "suggest",
    "summary",
    "wordnet_ids",
]

MODELS: Registry[MixerConfig] = Registry("model")


def _paper(
    size: str, num_blocks: int, hidden_dim: int, tokens_mlp_dim: int, channels_mlp_dim: int, patches: tuple[int, ...]
) -> None:
    for p in patches:
        MODELS[f"{size}/{p}"] = MixerConfig(
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
    """One line of a model's summary. Shapes are without the batch; FLOPs are per image, 2 per multiply-add, matrix
    products only."""

    name: str
    output: tuple[int, ...]
    params: int
    flops: int


def summary(cfg: MixerConfig) -> list[Layer]:
    """The network line by line, from the input table of patches to the logits, worked out from the configuration
    alone."""
    s, c, ds, dc, (p, q) = (
        cfg.num_patches,
        cfg.hidden_dim,
        cfg.tokens_mlp_dim,
        cfg.channels_mlp_dim,
        pair(cfg.patch_size),
    )
    patch = cfg.in_channels * p * q
    mixed = cfg.part_grid[0] * cfg.part_grid[1]  # S unless there are parts
    rows = [
        Layer("images", (cfg.in_channels, *pair(cfg.image_size)), 0, 0),
        Layer("patches", (s, patch), 0, 0),
        Layer("stem", (s, c), patch * c + c, 2 * s * patch * c),
    ]
    for i in range(cfg.num_blocks):
        rows += [
            Layer(f"blocks.{i}.norm1", (s, c), 2 * c, 0),
            Layer(f"blocks.{i}.token_mixing", (s, c), 2 * mixed * ds + ds + mixed, 4 * s * ds * c),
            Layer(f"blocks.{i}.norm2", (s, c), 2 * c, 0),
            Layer(f"blocks.{i}.channel_mixing", (s, c), 2 * c * dc + dc + c, 4 * s * c * dc),
        ]
    rows += [Layer("norm", (s, c), 2 * c, 0), Layer("mean over patches", (c,), 0, 0)]
    if cfg.num_classes:
        rows.append(Layer("head", (cfg.num_classes,), c * cfg.num_classes + cfg.num_classes, 2 * c * cfg.num_classes))
    return rows


def count_params(cfg: MixerConfig) -> int:
    return sum(layer.params for layer in summary(cfg))


# --- published weights --------------------------------------------------------------------------------------------

Classes = Literal["imagenet1k", "imagenet21k", "imagenet21k-miil"]
NUM_CLASSES: dict[Classes, int] = {"imagenet1k": 1000, "imagenet21k": 21843, "imagenet21k-miil": 11221}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One published file of weights."""

    model: str
    """Its architecture, a name in MODELS; the head has `num_classes` outputs."""
    form: Literal["official", "timm"]
    """official: Google's .npz, made with gelu_tanh. timm: timm's state dict as safetensors, made for gelu_erf."""
    url: str
    """https://..., or hf:owner/name/file on the Hugging Face Hub."""
    num_bytes: int
    """Exact size of the file, checked after a download; 0 where no source states it."""
    classes: Classes
    """What the outputs of the head mean, see `class_names`."""
    preprocess: Literal["vit_jax_eval", "bv_resmall_crop", "bv_resize_crop", "timm", "miil"]
    """Name of the evaluation preprocessing that belongs to the weights."""
    top1: float | None
    """ImageNet-1k top-1 on the validation images, a fraction, as reported by `source`; None where nobody was seen to
    report one."""
    source: str
    """Who reports the accuracy, and what is worth knowing."""
    licence: str
    """Under which licence, and who says so."""

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return NUM_CLASSES[self.classes]

    @property
    def config(self) -> MixerConfig:
        """The architecture, with this head and the activation of the origin."""
        activation: Activation = "gelu_tanh" if self.form == "official" else "gelu_erf"
        return replace(MODELS[self.model], num_classes=self.num_classes, activation=activation)


WEIGHTS: Registry[Weights] = Registry("weights")


def _official(name: str, num_bytes: int, top1: float | None, source: str) -> None:
    model, folder = name.split(":")
    WEIGHTS[name] = Weights(
        model=model,
        form="official",
        url=f"https://storage.googleapis.com/mixer_models/{folder}/Mixer-{model.replace('/', '_')}.npz",
        num_bytes=num_bytes,
        classes="imagenet21k" if folder == "imagenet21k" else "imagenet1k",
        preprocess="bv_resmall_crop",
        top1=top1,
        source=source,
        licence="Apache-2.0, the licence of google-research/vision_transformer, which publishes the files; the files name none",
    )


def _timm(
    name: str, repo: str, classes: Classes, preprocess: Literal["timm", "miil"], top1: float | None, source: str
) -> None:
    WEIGHTS[name] = Weights(
        model=name.split(":")[0],
        form="timm",
        url=f"hf:timm/{repo}/model.safetensors",
        num_bytes=0,
        classes=classes,
        preprocess=preprocess,
        top1=top1,
        source=source,
        licence="Apache-2.0, says timm's model card",
    )


_FINE_TUNED = (
    "is of the model fine-tuned on ImageNet-1k, which was never published; fine-tuned on CIFAR-10 (vision_transformer)"
)
_SAM = "trained on ImageNet-1k with SAM (Chen et al. 2106.01548) and plain Inception crops"
_GSAM = "trained on ImageNet-1k with GSAM (Zhuang et al. 2203.08065) and plain Inception crops; no accuracy of this file was seen"

# Sizes: the arrays' names and shapes as numpy.savez writes them. Each agrees with the bucket's listing in
# vit_jax.ipynb (MiB, two digits),
# and their sum, 3,489,219,008, with its total of 3,489,219,014 less the 6 bytes of a folder mark.
_official(
    "B/16:imagenet1k",
    239_564_448,
    0.7644,
    "Mixer paper, table 3 (from scratch, 300 epochs); timm measures 76.616 % on its copy",
)
_official(
    "L/16:imagenet1k",
    832_868_560,
    0.7176,
    "Mixer paper, table 3 (from scratch, 300 epochs); timm measures 72.084 % on its copy",
)
_official("B/16:imagenet21k", 303_677_516, None, f"the paper's 80.64 % {_FINE_TUNED}: 96.82 %")
_official("L/16:imagenet21k", 918_324_860, None, f"the paper's 82.89 % {_FINE_TUNED}: 98.34 %")
_official(
    "B/16:sam",
    239_567_448,
    0.7736,
    f"as ports of the file list it; one port measures 75.58 % with its own preprocessing; {_SAM}",
)
_official("B/32:sam", 241_219_272, 0.7247, f"as ports of the file list it; {_SAM}")
_official("B/16:gsam", 239_567_448, None, _GSAM)
_official("B/32:gsam", 241_219_272, None, _GSAM)
_official("S/16:gsam", 74_143_928, None, _GSAM)
_official("S/32:gsam", 76_449_368, None, _GSAM)
_official("S/8:gsam", 82_616_888, None, _GSAM)

# timm's names say "in21k, fine-tuned on in1k", but these are the ImageNet-1k models: a paper author says so in timm's
# pull request 651,
# and the accuracies are those of training from scratch.
_MISNAMED = "timm's results table; Google's ImageNet-1k model, whatever goog_in21k_ft_in1k says (a paper author in timm's PR 651)"
_timm("B/16:timm-imagenet1k", "mixer_b16_224.goog_in21k_ft_in1k", "imagenet1k", "timm", 0.76616, _MISNAMED)
_timm("L/16:timm-imagenet1k", "mixer_l16_224.goog_in21k_ft_in1k", "imagenet1k", "timm", 0.72084, _MISNAMED)
_timm(
    "B/16:timm-imagenet21k", "mixer_b16_224.goog_in21k", "imagenet21k", "timm", None, "timm's copy of B/16:imagenet21k"
)
_timm(
    "L/16:timm-imagenet21k", "mixer_l16_224.goog_in21k", "imagenet21k", "timm", None, "timm's copy of L/16:imagenet21k"
)
_timm(
    "B/16:timm-miil",
    "mixer_b16_224.miil_in21k_ft_in1k",
    "imagenet1k",
    "miil",
    0.82314,
    "timm's results table; ImageNet-21K-P (Ridnik et al. 2104.10972), then ImageNet-1k; pixels in 0..1, bilinear",
)
_timm(
    "B/16:timm-miil-imagenet21k",
    "mixer_b16_224.miil_in21k",
    "imagenet21k-miil",
    "miil",
    None,
    "ImageNet-21K-P (Ridnik et al. 2104.10972), 11,221 classes; pixels in 0..1, bilinear",
)


@cache
def _class_table(classes: Classes) -> tuple[tuple[str, str], ...]:
    """(WordNet id, synonyms) of each class, in the order of the outputs; classes/*.tsv.gz: index, id, synonyms, under a
    header."""
    with gzip.open(Path(__file__).with_name("classes") / f"{classes}.tsv.gz", "rt", encoding="utf-8") as f:
        rows = [line.rstrip("\n").split("\t") for line in f][1:]
    assert [int(index) for index, _, _ in rows] == list(range(NUM_CLASSES[classes]))
    return tuple((wnid, synonyms) for _, wnid, synonyms in rows)


def class_names(classes: Classes) -> tuple[str, ...]:
    """The names of a head's outputs, in order, each different: WordNet synonyms such as "tench, Tinca tinca".

    Where two classes bear the same name, the WordNet id follows it: "crane (n02012849)". imagenet21k is the order of
    the official files, 21,843 classes. For imagenet21k-miil no list comes with this package: its names are numbers,
    "class 0" to "class 11220".
    """
    if classes == "imagenet21k-miil":
        return numbered(NUM_CLASSES[classes])
    table = _class_table(classes)
    times = Counter(name for _, name in table)
    return tuple(name if times[name] == 1 else f"{name} ({wnid})" for wnid, name in table)


def wordnet_ids(classes: Literal["imagenet1k", "imagenet21k"]) -> tuple[str, ...]:
    """The same classes as ImageNet's folders call them: "n01440764", ..."""
    return tuple(wnid for wnid, _ in _class_table(classes))


def numbered(num_classes: int) -> tuple[str, ...]:
    """The names of classes whose names nobody tells: "class 0", "class 1", ..."""
    return tuple(f"class {i}" for i in range(num_classes))

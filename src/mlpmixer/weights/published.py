"""Published weights by name, and the names of ImageNet's classes. No torch."""

import gzip
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from mlpmixer.models.configs import Activation, MixerConfig, NetworkConfig
from mlpmixer.models.names import MODELS
from mlpmixer.registry import Registry, matching, shown, suggest

Preprocessing = Literal["vit_jax_eval", "bv_resmall_crop", "bv_resize_crop", "timm", "miil", "timm_imagenet"]
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
    """Meaning of the head's outputs, see `class_names`."""
    preprocess: Preprocessing
    """Name of the evaluation preprocessing that belongs to the weights."""
    top1: float | None
    """ImageNet-1k top-1 on the validation images, a fraction, as reported by `source`; None where no report was
    found."""
    source: str
    """Who reports the accuracy, and what is worth knowing."""
    licence: str
    """The licence, and who states it."""

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return NUM_CLASSES[self.classes]

    @property
    def config(self) -> NetworkConfig:
        """The architecture, with this head and the activation of the origin."""
        own = replace(MODELS[self.model], num_classes=self.num_classes)
        activation: Activation = "gelu_tanh" if self.form == "official" else "gelu_erf"
        return replace(own, activation=activation) if isinstance(own, MixerConfig) else own


WEIGHTS: Registry[Weights] = Registry("weights")
"""Published weights by name, MODEL:WEIGHTS; those of timm's also by their name there, mixer_b16_224.miil_in21k."""


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
        licence=(
            "Apache-2.0, the licence of google-research/vision_transformer, which publishes the files; the "
            "files name none"
        ),
    )


def _timm(name: str, repo: str, classes: Classes, preprocess: Preprocessing, top1: float | None, source: str) -> None:
    WEIGHTS[name] = WEIGHTS[repo] = Weights(
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
_GSAM = (
    "trained on ImageNet-1k with GSAM (Zhuang et al. 2203.08065) and plain Inception crops; no accuracy of "
    "this file was seen"
)

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
_MISNAMED = (
    "timm's results table; Google's ImageNet-1k model, whatever goog_in21k_ft_in1k says (a paper author in "
    "timm's PR 651)"
)
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
for _size, _model, _plain, _distilled in (
    ("12", "resmlp-s12", 0.76660, 0.77948), ("24", "resmlp-s24", 0.79380, 0.80766),
    ("36", "resmlp-s36", 0.79772, 0.81150), ("big_24", "resmlp-b24/8", 0.81034, 0.83594),
):  # fmt: skip
    for _tag, _short, _top1, _how in (
        ("fb_in1k", "imagenet1k", _plain, "trained on ImageNet-1k (Touvron et al. 2105.03404)"),
        ("fb_distilled_in1k", "distilled", _distilled, "distilled on ImageNet-1k from a convolutional teacher"),
    ):
        _timm(
            f"{_model}:timm-{_short}", f"resmlp_{_size}_224.{_tag}", "imagenet1k", "timm_imagenet", _top1,
            f"timm's results table; {_how}",
        )  # fmt: skip
_timm(
    "resmlp-b24/8:timm-imagenet22k-imagenet1k",
    "resmlp_big_24_224.fb_in22k_ft_in1k",
    "imagenet1k",
    "timm_imagenet",
    0.84414,
    "timm's results table; trained on ImageNet-22k, then on ImageNet-1k",
)


_timm(
    "gmlp-s/16:timm-imagenet1k", "gmlp_s16_224.ra3_in1k", "imagenet1k", "timm", 0.79652,
    "timm's results table; trained by timm on ImageNet-1k",
)  # fmt: skip


def model_of(name: str) -> str:
    """The architecture in a name of weights: B/16 of B/16:sam, mixer_b16_224 of mixer_b16_224.goog_in21k."""
    return name.partition(":")[0] if ":" in name else name.partition(".")[0]


def list_models(
    filter: str | Iterable[str] | None = "",
    *,
    pretrained: bool = False,
    exclude_filters: str | Iterable[str] | None = None,
) -> list[str]:
    """Names for `create_model`, ours and timm's, as `mlpmixer list models` has them.

    filter: a pattern such as `*16*` or `mixer*`, or several; case is ignored. "": all.
    pretrained: list published weights instead, matched by their own name or that of their architecture.
    exclude_filters: patterns of names to leave out.
    """
    names = list(WEIGHTS if pretrained else MODELS)
    wanted = {*matching(names, filter), *matching(map(model_of, WEIGHTS) if pretrained else (), filter)}
    left_out = {*matching(names, exclude_filters)} if exclude_filters else set()
    return [n for n in names if not wanted.isdisjoint((n, model_of(n))) and n not in left_out]


def weights_for(name: str) -> str:
    """The published weights that `pretrained=True` stands for: the first of an architecture, or those of the name.

    ValueError where none are published, with those of the same network under another name.
    """
    if name in WEIGHTS:
        return name
    base = model_of(name)
    cfg = MODELS[base]
    own = [key for key in WEIGHTS if model_of(key) == base]
    if name != base:
        raise ValueError(f"no weights named {shown(name)} are published; {suggest(name, own or WEIGHTS)}")
    if own:
        return own[0]
    free = {"num_classes", *cfg.weight_free}
    same = [key for key, w in WEIGHTS.items() if not cfg.differences(w.config, free)]
    raise ValueError(
        f"no weights of {name} are known by name; "
        + (
            f"of the same network, but for its activation, are: {', '.join(same)}"
            if same
            else "mlpmixer list weights has those that are, and weights=FILE takes a file"
        )
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
    """Numbers as names, for classes whose names are unknown: "class 0", "class 1", ..."""
    return tuple(f"class {i}" for i in range(num_classes))

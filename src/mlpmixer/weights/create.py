"""Networks by name: fresh, or with trained weights that are brought to the sizes asked for."""

import dataclasses
import os
import re
from typing import TYPE_CHECKING, Any, Literal

from mlpmixer.config import checked, pair, require
from mlpmixer.models.architecture import build, configured, own_fields
from mlpmixer.models.configs import NetworkConfig
from mlpmixer.models.names import MODELS
from mlpmixer.weights import published
from mlpmixer.weights.load import architecture, load_weights, split_key
from mlpmixer.weights.own import OWN, require_model
from mlpmixer.weights.published import WEIGHTS

if TYPE_CHECKING:
    from mlpmixer.download import Report

SIZES = {"image_size", "patch_size", "in_channels", "num_classes"}  # fields that trained weights may be brought to
FILES_OWN = (
    "image_size",
    "in_channels",
    "activation",
    "parts",
    "folded",
)  # fields that are the file's unless asked for
Head = Literal["keep", "reset", "drop"]
HUB = r"^(hf-hub|hf_hub|hf):"  # before owner/name of a repository, as timm writes it and as we do


def create_model(
    model: str | NetworkConfig,
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    head: Head = "keep",
    report: "Report | None" = None,
    **fields: Any,
) -> Any:
    """A network in training mode, a torch module: fresh, or with trained weights.

    model: a name of `mlpmixer list models` ("S/16"), one of `mlpmixer list weights` ("B/16:imagenet21k", "digits"), or
        a config. A name of timm's ("mixer_s16_224") is the network that timm computes, with the erf form of GELU, so
        that timm's weights give timm's logits; ours have the official code's tanh form, but for the small sizes.
    pretrained: take the published weights of that name: the first in `mlpmixer list weights`, which for timm's names
        are timm's; a tag, as in "mixer_b16_224.miil_in21k", selects others. Another num_classes gets a fresh head.
    weights: whatever `load_weights` takes. Patch size and widths must be those of `model`; image size, channels,
        classes, and whether convolutions are folded, are the file's.
    head: keep the file's; reset it to a fresh one of num_classes outputs; drop it, so that the output is pre_logits.
    fields: fields of the config to replace: num_classes=10, image_size=64, also in timm's spelling (in_chans,
        img_size), see `architecture.configured`. With weights, `adapt.adapt_to` adapts them.
    report: receives the progress of a download.

    Errors: ValueError for unknown names and fields, sizes that do not fit together, weights of another architecture,
    and for a num_classes other than the file's while its head is kept.
    """
    pretrained = bool(checked(bool | None, pretrained, "pretrained"))
    if isinstance(model, str):
        model, weights, fields = _named(model, pretrained, weights, fields)
    elif pretrained:
        raise ValueError("pretrained=True takes the weights of a name; with a config, give weights=FILE")
    base = configured(model)
    fields = own_fields(base, fields)
    base = dataclasses.replace(base, **fields)
    checked(Head, head, "head")
    if weights is None:
        if head != "keep":
            raise ValueError(f"head={head!r} is about trained weights, and there are none")
        return build(base)
    from mlpmixer.weights.adapt import adapt_to

    like = configured(model) if fields.keys() <= SIZES else base
    found, meta = load_weights(weights, like=like, report=report)
    if hasattr(base, "patch_size") and found.cfg.architecture == base.architecture:
        found.cfg.adapted(patch_size=base.patch_size)  # or says that it cannot be
        different = found.cfg.differences(base, (*SIZES - {"patch_size"}, *FILES_OWN, *base.weight_free))
        require(
            "patch_size" in fields or pair(base.patch_size) == pair(found.cfg.patch_size),
            f"the weights in {os.fspath(weights)} are of another {base.architecture}: {', '.join(different)}"
            + f"; say patch_size={base.patch_size} to have them resampled" * (len(different) == 1),
        )
    have = meta.config.num_classes
    asked = fields.get("num_classes", 0 if head == "drop" else have)
    if pretrained and head == "keep" and asked != have:
        head = "reset" if asked else "drop"
    if head == "keep" and asked != have:
        raise ValueError(
            f"{os.fspath(weights)} has a head of {have} classes, asked for {asked}: use head='reset' for a new head of "
            "zeros, or head='drop' for features"
        )
    if head == "drop" and asked:
        raise ValueError(f"head='drop' leaves no head: leave num_classes={asked} out")
    files_own = {
        f: getattr(meta.config, f)
        for f in FILES_OWN
        if f not in fields and hasattr(base, f) and hasattr(meta.config, f)
    }
    adapted = adapt_to(found, dataclasses.replace(base, **files_own, num_classes=asked))
    if head == "reset":
        adapted.reset_classifier(asked)
    return adapted.train()


def _named(
    name: str, pretrained: bool, weights: str | os.PathLike[str] | None, fields: dict[str, Any]
) -> tuple[str | NetworkConfig, str | os.PathLike[str] | None, dict[str, Any]]:
    """The architecture, weights and fields that a name for `create_model` stands for, beside those that are given."""
    if re.match(HUB, name) or (name not in (*MODELS, *OWN) and os.path.exists(name)):
        raise ValueError(f"{name} is not an architecture: mlpmixer.from_pretrained({name!r}) gives the network there")
    if name not in OWN and (pretrained or ":" in name):
        name = published.weights_for(name)
    if weights is not None and (name in WEIGHTS or name in OWN):
        raise ValueError(
            f"{name} names weights already: leave weights={os.fspath(weights)!r} out, or name the architecture alone"
        )
    if name in OWN:
        return architecture(name), name, fields
    if name not in WEIGHTS:
        require_model(name)
        return name, weights, fields
    if pretrained or ":" in name:
        return published.model_of(name), name, fields
    classes = WEIGHTS[name].num_classes  # as in timm, where a tag alone says no more than how many classes
    return published.model_of(name), None, {"num_classes": classes} | fields


def from_pretrained(name: str | os.PathLike[str], *, report: "Report | None" = None, **fields: Any) -> Any:
    """A trained network by name, path or repository, in evaluation mode: a torch module.

    name: whatever `load_weights` takes; a name of `mlpmixer list models`, for its published weights as
        `create_model(name, pretrained=True)` takes them; owner/name on the Hugging Face Hub. A folder here comes first.
    report: receives the progress of a download.
    fields: other sizes: num_classes=10 (a fresh head), image_size=448, in_channels=1, also as timm spells them.

    Errors: ValueError for what is not there, damaged, or not a known network, and for sizes that do not fit together.
    """
    wanted = os.fspath(name)
    source = _source(wanted)
    try:
        model, _ = load_weights(source, report=report)
    except ValueError as e:
        if source == f"hf:{wanted}":
            raise ValueError(f"{wanted} is not a file or folder here, and on the Hub: {e}") from e
        raise
    if fields:
        from mlpmixer.weights.adapt import adapt_to

        model = adapt_to(model, configured(model.cfg, **fields))
    return model


def _source(name: str) -> str:
    """The name that `load_weights` has for weights with another one: owner/name, hf-hub:timm/NAME, B/16."""
    if name in WEIGHTS or os.path.exists(split_key(name)[0]):
        return name
    bare = re.sub(HUB, "", name)
    if (timms := bare.removeprefix("timm/")) in WEIGHTS:
        return timms
    if published.model_of(bare) in MODELS:
        return published.weights_for(bare)
    return f"hf:{bare}" if re.fullmatch(r"[\w.-]+/[\w.-]+", bare) else name

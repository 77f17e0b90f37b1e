"""Trained weights by name, path or address -> a network and all that belongs to it.

    load_weights("digits")                  a model that comes with this package (`published.BUNDLED`)
    load_weights("B/16:imagenet21k")        a published file (`published.WEIGHTS`), fetched once
    load_weights("Mixer-B_16.npz")          an official file; .safetensors, .pth, .pt, .ckpt, ...: a state dict
    load_weights("last.pth:state_dict_ema") one of several networks in a file
    load_weights("runs/photos")             a run, or its model.safetensors
    load_weights("hf:owner/name")           what `mlpmixer push` wrote

The activation follows the origin: gelu_tanh for official files, gelu_erf for timm's.
"""

import dataclasses
import difflib
import os
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlpmixer.config import checked, pair, require
from mlpmixer.data.preprocess import Preprocess, create_preprocess
from mlpmixer.models.architecture import build, build_with_weights, configured, name_of, own_fields
from mlpmixer.models.configs import NetworkConfig, Size
from mlpmixer.models.names import MODELS
from mlpmixer.weights import published
from mlpmixer.weights.model_file import (
    CheckpointError,
    ForeignFile,
    ModelMeta,
    Precision,
    load_model,
    read_header,
    read_meta,
    require_network,
)
from mlpmixer.weights.published import BUNDLED, WEIGHTS, Weights
from mlpmixer.weights.run_folder import MODEL_FILE, is_cross_validation

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
STATE_DICTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")  # .tar: of .pth.tar
HUB = r"^(hf-hub|hf_hub|hf):"  # before owner/name of a repository, as timm writes it and as we do
EXPECTED = (
    f"expected a run folder, written by `mlpmixer train` (it holds {MODEL_FILE}), that .safetensors file, an official "
    f".npz, a state dict (.safetensors, .pth, .ckpt, ...), hf:owner/name, or a name of `mlpmixer list weights`"
)


def load_weights(
    name: str | os.PathLike[str],
    *,
    image_size: Size | None = None,
    like: NetworkConfig | None = None,
    report: "Report | None" = None,
) -> tuple[Any, ModelMeta]:
    """The network, on the CPU and in evaluation mode, and what is stored with it: classes, preprocessing, provenance.

    image_size: of a foreign file whose patches fill no square, (height, width) in pixels; otherwise the file says it.
    like: the config that the weights are for, for what a foreign file leaves open: image_size, AS-MLP's shift_size, ...
    report: receives the progress of a download, and {"kind": "note", "note": ...} where a file leaves something open.

    A foreign file with 1000, 21,843 or 11,221 outputs gets the class names of ImageNet-1k, of Google's ImageNet-21k, or
    numbers.
    Errors: ValueError (WeightsError, CheckpointError) for what is not there, damaged, or not a known network.
    """
    name = os.fspath(name)
    return load_file(locate(name, report=report), name, image_size, like, report)


def load_file(
    file: Path,
    name: str,
    image_size: Size | None = None,
    like: NetworkConfig | None = None,
    report: "Report | None" = None,
) -> tuple[Any, ModelMeta]:
    """`load_weights` of a `name` whose file `locate` has found."""
    model, meta = _load_file(file, name, image_size, like, report or (lambda event: None))
    model.meta = meta.without_history()
    return model, meta


def _load_file(
    file: Path, name: str, image_size: Size | None, like: NetworkConfig | None, report: "Report"
) -> tuple[Any, ModelMeta]:
    if name not in WEIGHTS and file.suffix == ".safetensors":
        with suppress(ForeignFile):
            found = load_model(file)
            if key := split_key(name)[1]:
                raise ValueError(f"{file} is a model file, which holds one network: leave :{key} out")
            return found
    known = WEIGHTS.get(name.removeprefix("hf:timm/"))
    return _foreign(file, known, name, image_size, known.config if known else like, report)


def split_key(name: str) -> tuple[str, str]:
    """A path, and which of several networks in that file: FILE or FILE:KEY."""
    path, _, place = name.rpartition(":")
    return (path, place) if os.path.isfile(path) and not os.path.exists(name) else (name, "")


def locate(name: str, *, report: "Report | None" = None) -> Path:
    """The file behind a name, path or address; fetched when it is not here yet. ValueError saying what was expected."""
    if name in WEIGHTS:
        from mlpmixer.download import fetch

        return fetch(WEIGHTS[name].url, num_bytes=WEIGHTS[name].num_bytes, report=report)
    if name.startswith("hf:"):
        from mlpmixer.weights.hub import download

        return download(name)
    path, own = Path(split_key(name)[0]), BUNDLED.get(name)
    if own and not path.exists():
        _note(report, f"{name} is the model that comes with mlpmixer; a folder or file of that name would come first")
        return own
    try:
        file = _file_at(path, name)
    except ValueError as e:
        if not own:
            raise
        raise ValueError(f"{e}; the model {name} that comes with mlpmixer is {own}") from None
    if own:
        _note(report, f"{name} is what lies in {path.absolute()}; the model that comes with mlpmixer is {own}")
    return file


def _file_at(path: Path, name: str) -> Path:
    """The model file in a folder, or that is at a path. ValueError when there is none."""
    if path.is_dir():
        if (path / MODEL_FILE).is_file():
            return path / MODEL_FILE
        if (path / "recipe.json").is_file():
            raise ValueError(
                f"the run in {path} has saved no {MODEL_FILE} yet: let its training finish, then try again"
            )
        if is_cross_validation(path):
            raise ValueError(
                f"{path} is a cross-validation, each fold of which is a run: name one, such as {path / 'fold-1'}, or "
                "train one of its own (mlpmixer train DATA)"
            )
        inside = sorted(str(p.parent) for p in path.glob(f"*/{MODEL_FILE}"))
        raise ValueError(
            f"{path} is not a run: {EXPECTED}" + (f"; runs in it: {', '.join(inside[:5])}" if inside else "")
        )
    if not path.exists():
        if name in MODELS:
            named = ", ".join(w for w in WEIGHTS if w.startswith((f"{name}:", f"{name}."))) or "their file"
            raise ValueError(
                f"{name} is an architecture: expected trained weights, {named} or a run (mlpmixer train DATA --model "
                f"{name})"
            )
        beside = [str(p.parent) for p in path.parent.glob(f"*/{MODEL_FILE}")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(name, [*beside, *BUNDLED, *WEIGHTS], 1, 0.5)
        raise ValueError(
            f"{path} does not exist" + (f"; did you mean {close[0]}? E{EXPECTED[1:]}" if close else f": {EXPECTED}")
        )
    if path.suffix not in (".npz", *STATE_DICTS):
        raise ValueError(f"{path} is not a model: {EXPECTED}")
    if not path.is_file():  # a named pipe would wait for ever
        raise ValueError(f"{path} is not a regular file")
    return path


def _note(report: "Report | None", text: str) -> None:
    if report:
        report({"kind": "note", "note": text})


def architecture(name: str) -> NetworkConfig:
    """The config of the weights at a path or address; imports no torch where the file is ours."""
    file = locate(name)
    if _is_ours(file):
        meta = read_meta(file)
        require_network(file, meta)
        return meta.config
    cfg: NetworkConfig = load_file(file, name)[0].cfg
    return cfg


def trained_on(name: str) -> str | None:
    """The data that this package trained the weights at a name, path or address on, "" if they do not say; None: they
    are of other code."""
    if name in WEIGHTS or not _is_ours(file := locate(name)):
        return None
    return str(read_meta(file).provenance.get("data", ""))


def _is_ours(file: Path) -> bool:
    """Whether this package wrote the file. A damaged .safetensors counts as ours, whose reader says what is wrong with
    it."""
    if file.suffix != ".safetensors":
        return False
    try:
        read_header(file)
    except ForeignFile:
        return False
    except CheckpointError:
        pass
    return True


def _foreign(
    file: Path,
    known: Weights | None,
    name: str,
    image_size: Size | None,
    like: NetworkConfig | None,
    report: "Report",
) -> tuple[Any, ModelMeta]:
    from mlpmixer.weights.formats import read_foreign

    place = split_key(name)[1]
    note = partial(_note, report)
    cfg, state, table = read_foreign(file, image_size, place, note, like)
    if known:
        _require_same_architecture(cfg, known.config, str(file))
    preprocess, size = known.preprocess if known else table.preprocess, pair(cfg.image_size)
    prepare = partial(create_preprocess, preprocess) if preprocess else Preprocess
    heads = {count: classes for classes, count in published.NUM_CLASSES.items()}
    k = cfg.num_classes
    provenance = {"weights": name if known else f"{file.name}:{place}".rstrip(":"), "form": table.form}
    if known:
        provenance |= {"source": known.source, "licence": known.licence}
    meta = ModelMeta(
        config=cfg,
        classes=published.class_names(heads[k]) if k in heads else published.numbered(k),
        preprocess=prepare(image_size=size, in_channels=cfg.in_channels),
        provenance=provenance,
    )
    return build_with_weights(cfg, state).eval(), meta


def _require_same_architecture(found: NetworkConfig, wanted: NetworkConfig, where: str) -> None:
    """ValueError naming every width, size or count in which the weights at `where` are not what was asked for."""
    if name_of(found) != name_of(wanted):
        raise ValueError(
            f"the weights in {where} are of another network: {name_of(found)} instead of {name_of(wanted)}"
        )
    if different := found.differences(wanted, found.weight_free):
        raise ValueError(f"the weights in {where} are of another {name_of(found)}: {', '.join(different)}")


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
        are timm's; with another tag, "mixer_b16_224.miil_in21k", those. Another num_classes gets a fresh head.
    weights: whatever `load_weights` takes. Patch size and widths must be those of `model`; image size, channels,
        classes, and whether convolutions are folded, are the file's.
    head: keep the file's; reset it to a fresh one of num_classes outputs; drop it, so that the output is pre_logits.
    fields: of the config, replaced: num_classes=10, image_size=64, or in timm's spelling (in_chans, img_size), see
        `architecture.configured`. With weights `adapt.adapt_to` brings them about.
    report: receives the progress of a download.

    Errors: ValueError for unknown names and fields, sizes that do not fit together, weights of another architecture,
    and for a num_classes other than the file's while its head is kept.
    """
    pretrained = bool(checked(bool | None, pretrained, "pretrained"))
    if isinstance(model, str):
        model, weights, fields = _named(model, pretrained, weights, fields)
    elif pretrained:
        raise ValueError("pretrained=True takes the weights of a name; with a config say weights=FILE")
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
            f"{os.fspath(weights)} has a head of {have} classes, asked for {asked}: say head='reset' for a new head of "
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
    if re.match(HUB, name) or (name not in (*MODELS, *BUNDLED) and os.path.exists(name)):
        raise ValueError(f"{name} is not an architecture: mlpmixer.from_pretrained({name!r}) gives the network there")
    if name not in BUNDLED and (pretrained or ":" in name):
        name = published.weights_for(name)
    if weights is not None and (name in WEIGHTS or name in BUNDLED):
        raise ValueError(
            f"{name} names weights already: leave weights={os.fspath(weights)!r} out, or name the architecture alone"
        )
    if name in BUNDLED:
        return read_meta(BUNDLED[name]).config, BUNDLED[name], fields
    if name not in WEIGHTS:
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
    """What `load_weights` calls the weights of a name that is not only for it: owner/name, hf-hub:timm/NAME, B/16."""
    if name in WEIGHTS or os.path.exists(split_key(name)[0]):
        return name
    bare = re.sub(HUB, "", name)
    if (timms := bare.removeprefix("timm/")) in WEIGHTS:
        return timms
    if published.model_of(bare) in MODELS:
        return published.weights_for(bare)
    return f"hf:{bare}" if re.fullmatch(r"[\w.-]+/[\w.-]+", bare) else name


def convert(
    name: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    timm: bool = False,
    official: bool = False,
    precision: Precision = "float32",
    report: "Report | None" = None,
) -> list[str]:
    """Write the model behind `name` (see `load_weights`) to the file `out`; returns what that form cannot say.

    out: .safetensors is ours, with `timm` or `official` the names of theirs; .npz is a Mixer's official form.
    precision: float16 is half as large, in our form only; see `model_file.save_model`.
    report: receives the progress of a download.

    Errors: ValueError for another suffix and an unreadable model, OSError when `out` cannot be written.
    """
    from mlpmixer.weights.formats import name_table, write_foreign
    from mlpmixer.weights.model_file import save_model

    path = Path(out)
    if path.suffix not in (".npz", ".safetensors") or (timm and (official or path.suffix == ".npz")):
        raise ValueError(
            f"cannot write {path}: expected FILE.npz (official of a Mixer), FILE.safetensors (ours), or "
            "FILE.safetensors with either --timm or --official"
        )
    checked(Precision, precision, "precision")
    ours = path.suffix == ".safetensors" and not (timm or official)
    if precision != "float32" and not ours:
        raise ValueError(f"{precision} is for FILE.safetensors of this package; the other forms are float32")
    model, meta = load_weights(name, report=report)
    if ours:
        save_model(path, model, meta, precision)
        return []
    cfg, form = model.cfg, "timm" if timm else "official"
    table = name_table(cfg, form)
    if pair(getattr(cfg, "parts", 1)) != (1, 1):
        raise ValueError("the other forms have no parts: write the dense form, models.mixer_resize.to_dense")
    if table.suffix != path.suffix:
        instead = " with --official" if table.suffix == ".safetensors" else ""
        raise ValueError(f"cannot write {path}: the {form} form of {cfg.architecture} is FILE{table.suffix}{instead}")
    write_foreign(path, cfg, model.state_dict(), form)
    notes = ["class names and preprocessing are not part of this form"]
    if table.activation and cfg.activation != table.activation:
        notes.append(
            f"the model was trained with {cfg.activation}, but what reads this form computes {table.activation}"
        )
    return notes

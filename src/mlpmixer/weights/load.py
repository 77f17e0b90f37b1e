"""Trained weights by name, path or address -> a network and all that belongs to it.

    load_weights("digits")                  a model of ours (`own.OWN`)
    load_weights("B/16:imagenet21k")        a published file (`published.WEIGHTS`), fetched once
    load_weights("Mixer-B_16.npz")          an official file; .safetensors, .pth, .pt, .ckpt, ...: a state dict
    load_weights("last.pth:state_dict_ema") one of several networks in a file
    load_weights("runs/photos")             a run, or its model.safetensors
    load_weights("hf:owner/name")           what `mlpmixer push` wrote

The activation follows the origin: gelu_tanh for official files, gelu_erf for timm's.
"""

import difflib
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpmixer.config import pair
from mlpmixer.data.preprocess import Preprocess, create_preprocess
from mlpmixer.models.architecture import build_with_weights, name_of
from mlpmixer.models.configs import NetworkConfig, Size
from mlpmixer.models.names import MODELS
from mlpmixer.weights import own, published
from mlpmixer.weights.model_file import (
    CheckpointError,
    ForeignFile,
    ModelMeta,
    load_model,
    read_header,
    read_meta,
    require_network,
)
from mlpmixer.weights.own import OWN
from mlpmixer.weights.published import WEIGHTS, Weights
from mlpmixer.weights.run_folder import MODEL_FILE, is_cross_validation

if TYPE_CHECKING:
    from mlpmixer.download import Report

STATE_DICTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")  # .tar: of .pth.tar
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
    path = Path(split_key(name)[0])
    if name not in OWN:
        return _file_at(path, name)
    if not path.exists():
        file, known = own.get(name, report=report), OWN[name]
        about = f"trained on {known.data} ({known.terms}); a folder or file of that name would come first"
        _note(report, f"{name} is a model of mlpmixer's own, {about}")
        return file
    ours = f"mlpmixer's own model {name} is {own.here(name) or 'not here'}"
    try:
        file = _file_at(path, name)
    except ValueError as e:
        raise ValueError(f"{e}; {ours}") from None
    _note(report, f"{name} is what lies in {path.absolute()}; {ours}")
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
        close = difflib.get_close_matches(name, [*beside, *OWN, *WEIGHTS], 1, 0.5)
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


def own_meta(name: str) -> ModelMeta | None:
    """Metadata of weights of this package at a name, path or address; None: they are of other code."""
    return read_meta(file) if name not in WEIGHTS and _is_ours(file := locate(name)) else None


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

"""Trained weights by name, path or address -> a Mixer and all that belongs to it.

    load_weights("B/16:imagenet21k")        a published file (`zoo.WEIGHTS`), fetched once
    load_weights("Mixer-B_16.npz")          an official file; .safetensors, .pth, .pt, .bin: timm's
    load_weights("runs/photos")             a run, or its model.safetensors
    load_weights("hf:owner/name")           what `mlpmixer push` wrote

The activation follows the origin: gelu_tanh for official files, gelu_erf for timm's.
"""

import dataclasses
import difflib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlpmixer.config import checked, pair
from mlpmixer.data.preprocess import named
from mlpmixer.models import names
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.names import WEIGHTS, Weights
from mlpmixer.weights.model_file import (
    CheckpointError,
    ForeignFile,
    ModelMeta,
    load_model,
    read_header,
    read_meta,
    require_mixer,
)
from mlpmixer.weights.run_folder import MODEL_FILE

if TYPE_CHECKING:
    from mlpmixer.models.mixer import Mixer

Report = Callable[[dict[str, Any]], None]
Size = int | tuple[int, int]
Head = Literal["keep", "reset", "drop"]
TIMM_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
EXPECTED = (
    f"expected a run folder, written by `mlpmixer train` (it holds {MODEL_FILE}), that .safetensors file, an official "
    f".npz, "
    "timm's .safetensors or .pth, hf:owner/name, or a name of `mlpmixer list weights`"
)


def load_weights(
    name: str | os.PathLike[str], *, image_size: Size | None = None, report: Report | None = None
) -> "tuple[Mixer, ModelMeta]":
    """The Mixer, on the CPU and in evaluation mode, and what travels with it: classes, preprocessing, provenance.

    image_size: of a foreign file whose patches fill no square, (height, width) in pixels; otherwise the file says it.
    report: receives the progress of a download.

    A foreign file with 1000, 21,843 or 11,221 outputs gets the class names of ImageNet-1k, of Google's ImageNet-21k, or
    numbers.
    Errors: ValueError (WeightsError, CheckpointError) for what is not there, damaged, or no Mixer.
    """
    name = os.fspath(name)
    return load_file(locate(name, report=report), name, image_size)


def load_file(file: Path, name: str, image_size: Size | None = None) -> "tuple[Mixer, ModelMeta]":
    """`load_weights` of a `name` whose file `locate` has found."""
    if name not in WEIGHTS and file.suffix == ".safetensors":
        with suppress(ForeignFile):
            return load_model(file)
    return _foreign(file, WEIGHTS.get(name), name, image_size)


def locate(name: str, *, report: Report | None = None) -> Path:
    """The file behind a name, path or address; fetched when it is not here yet. ValueError saying what was expected."""
    if name in WEIGHTS:
        from mlpmixer.download import fetch

        return fetch(WEIGHTS[name].url, num_bytes=WEIGHTS[name].num_bytes, report=report)
    if name.startswith("hf:"):
        from mlpmixer.weights.hub import download

        return download(name)
    path = Path(name)
    if path.is_dir():
        if (path / MODEL_FILE).is_file():
            return path / MODEL_FILE
        if (path / "recipe.json").is_file():
            raise ValueError(
                f"the run in {path} has saved no {MODEL_FILE} yet: let its training finish, then try again"
            )
        inside = sorted(str(p.parent) for p in path.glob(f"*/{MODEL_FILE}"))
        raise ValueError(f"{path} is no run: {EXPECTED}" + (f"; runs in it: {', '.join(inside[:5])}" if inside else ""))
    if not path.exists():
        beside = [str(p.parent) for p in path.parent.glob(f"*/{MODEL_FILE}")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(name, [*beside, *WEIGHTS], 1, 0.5)
        raise ValueError(f"{path} does not exist: {EXPECTED}" + (f"; did you mean {close[0]}?" if close else ""))
    if path.suffix not in (".npz", *TIMM_SUFFIXES):
        raise ValueError(f"{path} is no model: {EXPECTED}")
    return path


def architecture(name: str) -> MixerConfig:
    """Of the weights at a path or address; imports no torch where the file is ours."""
    file = locate(name)
    if _is_ours(file):
        meta = read_meta(file)
        require_mixer(file, meta)
        return meta.config
    return load_file(file, name)[0].cfg


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


def _foreign(file: Path, known: Weights | None, name: str, image_size: Size | None) -> "tuple[Mixer, ModelMeta]":
    import torch

    from mlpmixer.models.mixer import Mixer
    from mlpmixer.weights.formats import read_official, read_timm

    official = file.suffix == ".npz"
    cfg, state = (read_official if official else read_timm)(file, image_size)
    if known:
        _require_same_architecture(cfg, known.config, str(file))
    with torch.device("meta"):
        model = Mixer(cfg)
    model.load_state_dict(state, assign=True)
    preprocess = known.preprocess if known else "bv_resmall_crop" if official else "timm"
    heads = {count: classes for classes, count in names.NUM_CLASSES.items()}
    classes = names.class_names(heads[cfg.num_classes]) if cfg.num_classes in heads else names.numbered(cfg.num_classes)
    provenance = {"weights": name if known else file.name, "form": "official" if official else "timm"}
    if known:
        provenance |= {"source": known.source, "licence": known.licence}
    meta = ModelMeta(
        config=cfg,
        classes=classes,
        preprocess=named(preprocess, image_size=pair(cfg.image_size), in_channels=cfg.in_channels),
        provenance=provenance,
    )
    return model.requires_grad_(True).eval(), meta


def _require_same_architecture(found: MixerConfig, wanted: MixerConfig, where: str) -> None:
    """ValueError naming every width, size or count in which the weights at `where` are not what was asked for."""
    fields = (
        "image_size",
        "patch_size",
        "in_channels",
        "num_classes",
        "num_blocks",
        "hidden_dim",
        "tokens_mlp_dim",
        "channels_mlp_dim",
    )
    different = [
        f"{f} {getattr(found, f)} instead of {getattr(wanted, f)}"
        for f in fields
        if getattr(found, f) != getattr(wanted, f)
    ]
    if different:
        raise ValueError(f"the weights in {where} are of another Mixer: {', '.join(different)}")


def create_model(
    model: str | MixerConfig,
    *,
    weights: str | os.PathLike[str] | None = None,
    head: Head = "keep",
    report: Report | None = None,
    **fields: Any,
) -> "Mixer":
    """A Mixer in training mode: fresh, or with trained weights.

    model: a name of `mlpmixer list models` ("S/16"), one of `mlpmixer list weights` ("B/16:imagenet21k"), or a
    MixerConfig.
    weights: whatever `load_weights` takes. Patch size and widths must be those of `model`; image size, channels and
    classes are the file's.
    head: keep the file's; reset it to zeros, with num_classes outputs; drop it, so that the output is pre_logits.
    fields: of MixerConfig, replaced: num_classes=10, image_size=64. With weights `transfer.adapt_to` brings them about.
    report: receives the progress of a download.

    Errors: ValueError for unknown names and fields, sizes that do not fit together, weights of another architecture,
    and for a num_classes other than the file's while its head is kept.
    """
    from mlpmixer.models import mixer as fresh

    if isinstance(model, str) and model in WEIGHTS:
        if weights is not None:
            raise ValueError(
                f"{model} names weights already: leave weights={os.fspath(weights)!r} out, or name the architecture "
                f"alone"
            )
        model, weights = WEIGHTS[model].model, model
    base = fresh.configured(model, **fields)
    if weights is None:
        if head != "keep":
            raise ValueError(f"head={head!r} is about trained weights, and there are none")
        return fresh.Mixer(base)
    from mlpmixer.weights.adapt import adapt_to, reset_head

    checked(Head, head, "head")
    oblong = (
        isinstance(model, MixerConfig) and model.grid[0] != model.grid[1]
    )  # a foreign file tells only the number of patches
    found, meta = load_weights(
        weights, image_size=base.image_size if oblong and "image_size" not in fields else None, report=report
    )
    have = meta.config.num_classes
    asked = fields.get("num_classes", 0 if head == "drop" else have)
    if head == "keep" and asked != have:
        raise ValueError(
            f"{os.fspath(weights)} has a head of {have} classes, asked for {asked}: say head='reset' for a new head of "
            f"zeros, "
            "or head='drop' for features"
        )
    if head == "drop" and asked:
        raise ValueError(f"head='drop' leaves no head: leave num_classes={asked} out")
    files_own = {
        f: getattr(meta.config, f) for f in ("image_size", "in_channels", "activation", "parts") if f not in fields
    }
    adapted = adapt_to(found, dataclasses.replace(base, **files_own, num_classes=asked))
    if head == "reset":
        reset_head(adapted)
    return adapted.train()


def convert(
    name: str | os.PathLike[str], out: str | os.PathLike[str], *, timm: bool = False, report: Report | None = None
) -> list[str]:
    """Write the model behind `name` (see `load_weights`) to the file `out`; returns what that form cannot say.

    out: .npz is the official form; .safetensors is ours, or timm's with `timm`.
    report: receives the progress of a download.

    Errors: ValueError for another suffix and an unreadable model, OSError when `out` cannot be written.
    """
    from mlpmixer.weights.formats import write_official, write_timm
    from mlpmixer.weights.model_file import save_model

    path = Path(out)
    if path.suffix not in (".npz", ".safetensors") or (timm and path.suffix == ".npz"):
        raise ValueError(
            f"cannot write {path}: expected FILE.npz (official), FILE.safetensors (ours), or FILE.safetensors with "
            f"--timm"
        )
    model, meta = load_weights(name, report=report)
    if path.suffix == ".safetensors" and not timm:
        save_model(path, model, meta)
        return []
    if pair(model.cfg.parts) != (1, 1):
        raise ValueError("the other forms know no parts: write the dense form, transfer.to_dense")
    (write_timm if timm else write_official)(path, model.cfg, model.state_dict())
    theirs = "gelu_erf" if timm else "gelu_tanh"
    notes = ["class names and preprocessing are not part of this form"]
    if model.cfg.activation != theirs:
        notes.append(f"the model was trained with {model.cfg.activation}, but what reads this form computes {theirs}")
    return notes

"""A trained model as a repository of the Hugging Face Hub: pushed from a run, to the Hub or to a folder, and fetched
again. No torch.

A repository holds model.safetensors, which is all that `mlpmixer.load` needs, config.json (the same description,
readable without this package) and README.md, a model card that says what the run's own files say and nothing else.
"""

import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlpmixer.config import to_json
from mlpmixer.download import FetchError, hub_file
from mlpmixer.durable import write_json, write_text
from mlpmixer.models.architecture import architecture_of
from mlpmixer.registry import shortened
from mlpmixer.weights import own
from mlpmixer.weights.card import model_card
from mlpmixer.weights.model_file import (
    FORMAT,
    CheckpointError,
    ModelMeta,
    load_model,
    public,
    read_meta,
    require_network,
    rewrite_meta,
    save_model,
)
from mlpmixer.weights.own import OWN
from mlpmixer.weights.run_folder import MODEL_FILE, is_cross_validation

if TYPE_CHECKING:
    from torch import nn


def push(
    run: str | os.PathLike[str], target: str | os.PathLike[str], *, licence: str = "", private: bool = False
) -> str:
    """Publish the model of a run folder (or a model.safetensors): to a new folder, or to the Hub when `target` is
    hf:owner/name.

    licence: as the Hub writes it (apache-2.0, mit, ...); without one the card says that none is stated.
    private: who may see a repository that this call creates on the Hub; an existing one stays as it is and gets a new
    commit.

    Returns the folder, or the repository's address.

    Errors: ValueError when `run` holds no model, when the folder is not empty, and when the Hub refuses or cannot be
    reached; OSError when nothing can be written.
    """
    run, place = Path(run), os.fspath(target)
    if str(run) in OWN and not run.exists():
        run = own.get(str(run))
    model = run / MODEL_FILE if run.is_dir() else run
    if not model.is_file():
        folds = ", a cross-validation: name one of its folds" if is_cross_validation(run) else ""
        raise ValueError(
            f"nothing to push: expected a finished run, which holds {MODEL_FILE}, or that file, got {run}{folds}"
        )
    meta = read_meta(model)
    require_network(model, meta)
    if place.startswith("hf:"):
        repo = _repo(place)
        with tempfile.TemporaryDirectory() as scratch:
            _write(model, meta, Path(scratch), model_card(model.parent, meta, repo.split("/")[1], place, licence))
            return _upload(Path(scratch), repo, private)
    folder = Path(place)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    _write(model, meta, folder, model_card(model.parent, meta, folder.resolve().name, ".", licence))
    return str(folder)


def push_network(
    network: "nn.Module",
    meta: ModelMeta,
    target: str | os.PathLike[str],
    *,
    file: Path | None = None,
    licence: str = "",
    private: bool = False,
) -> str:
    """`push` of a network in memory, in float32.

    file: where it was loaded from. If it still holds this network, it is what is pushed, with the card of its run;
    otherwise the card states nothing that was measured.

    Errors: as `push`, and ValueError for a network that could not be loaded again.
    """
    if file and _holds(file, network, meta):
        return push(file, target, licence=licence, private=private)
    if not meta.network and not architecture_of(network):
        kind = type(network).__name__
        raise ValueError(
            f"{kind} is a network of your own, and would be loaded as a {meta.config.architecture}: "
            f"store its state_dict() with torch.save, and load that into a {kind}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        origin = {name: value for name, value in meta.provenance.items() if name != "metrics"}
        model = Path(scratch) / MODEL_FILE
        try:
            save_model(model, network, replace(meta, provenance=origin))
            if not meta.network:
                load_model(model)
        except (CheckpointError, RuntimeError) as e:  # another head, say, layers of other kinds, or shared ones
            reason = shortened(e).replace(f"{model}: ", "").replace(str(model), MODEL_FILE)
            raise ValueError(
                f"the network could not be loaded again: {reason}. Its modules must be those of its config; "
                "network.reset_classifier(K) gives it a head of K classes"
            ) from e
        return push(scratch, target, licence=licence, private=private)


def _holds(file: Path, network: "nn.Module", meta: ModelMeta) -> bool:
    import torch

    try:
        stored, of_file = load_model(file)
    except (CheckpointError, OSError):  # other code's file, or gone
        return False
    theirs, ours = stored.state_dict(), network.state_dict()
    same = theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name].cpu()) for name in ours)
    return same and of_file == meta


def download(name: str) -> Path:
    """The model file of the Hub's repository `name`, hf:owner/name, in huggingface-hub's cache; looked up anew where
    there is a network.

    ValueError, which says what to do without a network, when it cannot be had.
    """
    repo = _repo(name)
    try:
        return hub_file(repo, MODEL_FILE)
    except FetchError as e:
        raise ValueError(
            f"{name} could not be fetched: {e}. Without a network: download "
            f"https://huggingface.co/{repo}/resolve/main/{MODEL_FILE} "
            f"elsewhere and give the path of that file instead of {name}"
        ) from e


def _repo(name: str) -> str:
    if not re.fullmatch(r"hf:[\w.-]+/[\w.-]+", name):
        raise ValueError(f"expected hf:owner/name, got {name!r}")
    return name[3:]


def _upload(folder: Path, repo: str, private: bool) -> str:
    try:
        import huggingface_hub as hub
    except ImportError as e:
        raise ValueError(
            'pushing to the Hub needs huggingface-hub: pip install "mlpmixer[hf]"; or push to a folder'
        ) from e
    try:
        hub.HfApi().create_repo(repo, private=private, exist_ok=True)
        hub.HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="Push with mlpmixer")
    except Exception as e:  # no network, not logged in, no right to write: the hub has many ways to say so
        reason = str(e).strip().partition("\n")[0].rstrip(".") or type(e).__name__
        raise ValueError(
            f"hf:{repo} could not be written: {reason}. Log in with a token that may write (hf auth login), or push to "
            f"a folder and upload that"
        ) from e
    return f"https://huggingface.co/{repo}"


def _write(model: Path, meta: ModelMeta, folder: Path, card: str) -> None:
    shutil.copyfile(model, folder / MODEL_FILE)
    if meta != public(meta):
        rewrite_meta(folder / MODEL_FILE, public)
    described = to_json(replace(public(meta), splits=None))  # to be read by people: without a hash for each image
    write_json(folder / "config.json", {"library_name": "mlpmixer", "format": FORMAT, **described})
    write_text(folder / "README.md", card)

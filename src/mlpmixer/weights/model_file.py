"""Models and training states on disk: safetensors with JSON in the header, written atomically. Never pickle.

A model file carries everything needed to use it: architecture, weights, class names, preprocessing, provenance.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlpmixer.config import Config, from_json, pair, parse_json, require, to_json
from mlpmixer.data.config import Data
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.split_record import SplitRecord
from mlpmixer.durable import replacing
from mlpmixer.models.configs import NetworkConfig
from mlpmixer.registry import shortened, shown
from mlpmixer.weights.published import numbered

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mlpmixer.models.architecture import Build

FORMAT = 1
DIGEST = "sha256"
STORED_AS = "stored_as"  # of the provenance: float16, where the weights of a file are
Precision = Literal["float32", "float16"]
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
STATES_KEPT = 2


class CheckpointError(ValueError):
    """A file that is not a sound model or training state; the message says what is wrong with it."""


class ForeignFile(CheckpointError):
    """A file that this package did not write."""


@dataclass(frozen=True, kw_only=True)
class ModelMeta(Config):
    """Metadata stored with the weights."""

    config: NetworkConfig
    classes: tuple[str, ...]
    preprocess: Preprocess
    network: str = ""
    """Name of the user's function that built it, if one did; `config` then only has the sizes of input and output."""
    data: Data | None = None
    """Its training data; None where that is not stored, as in old files and those of other code."""
    splits: SplitRecord | None = None
    """Which images it was trained, validated and tested on; None where the file does not say."""
    threshold: float | None = None
    """Lowest probability at which a class counts as present, where an image may have several or none; None where it
    has one."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where it comes from: recipe, data, metrics, version, date, loss."""

    def validate(self) -> None:
        k, names = self.config.num_classes, len(self.classes)
        require_threshold(self.threshold)
        require(names == k, f"classes has {names:,} names for the {k:,} outputs of the network")
        require(len(set(self.classes)) == names, "classes has a name twice")
        size = (*pair(self.config.image_size), self.config.in_channels)
        given = (*self.preprocess.image_size, self.preprocess.in_channels)
        require(
            given == size, f"preprocess makes images of {given}, the network takes {size} (height, width, channels)"
        )

    @property
    def sigmoid(self) -> bool:
        """Whether probabilities are of each class alone, and do not sum to 1."""
        return self.provenance.get("loss") == "sigmoid"

    def without_history(self) -> "ModelMeta":
        """The part that stays true when a network is trained further: classes, preprocessing; no data or figures."""
        loss = {key: value for key, value in self.provenance.items() if key == "loss"}
        return replace(self, data=None, splits=None, provenance=loss)

    def with_fresh_head(self, num_classes: int) -> "ModelMeta":
        """The part that stays true with another head: the preprocessing. The classes are numbers."""
        config = replace(self.config, num_classes=num_classes)
        return ModelMeta(config=config, classes=numbered(num_classes), preprocess=self.preprocess)


def meta_of(network: Any, classes: Sequence[str] | None = None, preprocess: Preprocess | None = None) -> ModelMeta:
    """Metadata of a network by itself: what came with its weights, where that is not given; of a fresh one,
    numbered classes and the preprocessing of a run here.

    ValueError for another number of classes than the network has outputs.
    """
    cfg, size = network.cfg, pair(network.cfg.image_size)
    known = network.meta or ModelMeta(
        config=cfg,
        classes=numbered(cfg.num_classes),
        preprocess=Preprocess(image_size=size, in_channels=cfg.in_channels),
    )
    if preprocess is None:
        preprocess = replace(known.preprocess, image_size=size)
        if (n := preprocess.in_channels) != cfg.in_channels:
            mean, std = sum(preprocess.mean) / n, sum(preprocess.std) / n
            preprocess = replace(preprocess, in_channels=cfg.in_channels, mean=(mean,), std=(std,))
    return replace(
        known, config=cfg, classes=known.classes if classes is None else tuple(classes), preprocess=preprocess
    )


def require_threshold(value: float | None) -> None:
    """ValueError unless the threshold is above 0 and below 1, or None."""
    require(value is None or 0 < value < 1, f"a threshold is a probability above 0 and below 1, got {value}")


def public(meta: ModelMeta) -> ModelMeta:
    """A copy that may leave this machine: without the folders that the data lies in and the names of its images."""
    return replace(meta, data=None, splits=meta.splits and meta.splits.without_names())


def write_tensors(path: str | os.PathLike[str], tensors: "Mapping[str, Tensor]", meta: Mapping[str, Any]) -> None:
    """Write as `replacing` does, with the digest of it all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored = {k: v.detach().contiguous().cpu() for k, v in tensors.items()}
    meta = {"format": FORMAT, **meta}
    header = {"mlpmixer": json.dumps(meta | {DIGEST: _digest(stored, meta)})}
    with replacing(Path(path)) as part:
        try:
            save_file(stored, part, header)
        except SafetensorError as e:
            raise OSError(str(e)) from e


def _digest(tensors: "Mapping[str, Tensor | NDArray[Any]]", meta: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and bytes of the tensors, on the CPU, or arrays, and of the other JSON beside
    them."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in meta.items() if k != DIGEST}).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name!r} torch.{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: "Tensor | NDArray[Any]") -> memoryview:
    if isinstance(tensor, np.ndarray):
        return tensor.reshape(-1).view(np.uint8).data
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON that `write_tensors` was given, read without torch and without trusting the file's own sizes."""
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        head = f.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(f"{path} is not a safetensors file, or it is cut off")
        header = _json(path, f.read(length))
    try:
        text = header["__metadata__"]["mlpmixer"]
        end = 8 + length + max((t["data_offsets"][1] for k, t in header.items() if k != "__metadata__"), default=0)
    except (KeyError, TypeError, IndexError, AttributeError) as e:
        raise ForeignFile(f"{path} is not a file that mlpmixer wrote: no 'mlpmixer' entry in its header") from e
    meta = _json(path, text)
    if end != size:
        raise CheckpointError(f"{path} is cut off or damaged: {size} bytes where {shown(end)} are expected")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {shown(meta.get('format') if isinstance(meta, dict) else meta)}; this version reads "
            f"format {FORMAT}"
        )
    return meta


def _json(path: str | os.PathLike[str], text: bytes | str) -> Any:
    try:
        return parse_json(text)
    except (ValueError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{path} is damaged: its header cannot be read: {shortened(e)}") from e


def read_tensors(path: str | os.PathLike[str]) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Tensors and JSON of a file. CheckpointError when it is damaged, FileNotFoundError when it is not there.

    Old files hold no digest: there, only what makes the file unreadable is seen.
    """
    from safetensors.torch import load_file

    return _read(path, load_file)


def read_arrays(path: str | os.PathLike[str]) -> "tuple[dict[str, NDArray[Any]], dict[str, Any]]":
    """`read_tensors` as arrays, without torch; TypeError for a type that numpy lacks, bfloat16."""
    from safetensors.numpy import load_file

    return _read(path, load_file)


def _read(path: str | os.PathLike[str], load_file: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    from safetensors import SafetensorError

    meta = read_header(path)
    try:
        tensors = load_file(path)
    except SafetensorError as e:
        raise CheckpointError(f"{path} is damaged: {shortened(e)}") from e
    if DIGEST in meta and meta[DIGEST] != _digest(tensors, meta):
        raise CheckpointError(f"{path} is damaged: its content is not what was written, by the digest stored with it")
    return tensors, meta


def save_model(
    path: str | os.PathLike[str], model: "nn.Module", meta: ModelMeta, precision: Precision = "float32"
) -> None:
    """One file that is enough to use the model (with the function that builds it, if there is one).

    precision: float16 rounds every weight to 11 bits, in half the space; the file is loaded in float32 again.
    Errors: OSError, and ValueError for a weight beyond the range of float16.
    """
    assert meta.network or getattr(model, "cfg", None) == meta.config
    state, origin = model.state_dict(), {k: v for k, v in meta.provenance.items() if k != STORED_AS}
    if precision == "float16":
        state = {name: _half(name, tensor) for name, tensor in state.items()}
        origin[STORED_AS] = precision
    write_tensors(path, state, {"model": to_json(replace(meta, provenance=origin))})


def _half(name: str, tensor: "Tensor") -> "Tensor":
    if not tensor.is_floating_point():
        return tensor
    if not (half := tensor.half()).isfinite().all():
        raise ValueError(f"{name} has weights up to {tensor.abs().max():.3g}, and float16 ends at 65,504: keep float32")
    return half


def rewrite_meta(path: str | os.PathLike[str], change: Callable[[ModelMeta], ModelMeta]) -> None:
    """Replace what travels with the weights, atomically; the weights stay as they are."""
    tensors, _ = read_tensors(path)
    write_tensors(path, tensors, {"model": to_json(change(read_meta(path)))})


def read_meta(path: str | os.PathLike[str]) -> ModelMeta:
    """Metadata of the weights at `path`; imports no torch."""
    return _meta_in(read_header(path), path)


def _meta_in(header: dict[str, Any], path: str | os.PathLike[str]) -> ModelMeta:
    """CheckpointError, too, for a network that is larger than the file: what is built takes no more than it holds, or
    twice as much for one in float16."""
    if "model" not in header:
        raise CheckpointError(f"{path} is not a model file")
    try:
        meta = from_json(ModelMeta, header["model"])
    except (ValueError, TypeError) as e:
        raise CheckpointError(f"{path}: {shortened(e)}") from e
    width = 2 if meta.provenance.get(STORED_AS) == "float16" else 4
    if not meta.network and width * (values := meta.config.num_params) > (size := os.path.getsize(path)):
        raise CheckpointError(
            f"{path} has {size:,} bytes, too few for the {values:,} weights of the {meta.config.architecture} that it "
            f"describes"
        )
    return meta


def load_model(path: str | os.PathLike[str], network: "Build | None" = None) -> tuple[Any, ModelMeta]:
    """The network in evaluation mode, float32, on the CPU, and what travels with it. Strict: names and shapes must fit
    the stored architecture. Weights in float16 have the same values in float32.

    network: what built it, where that is a function of one's own.
    """
    import torch

    from mlpmixer.models.architecture import build_with_weights, name_of

    tensors, header = read_tensors(path)
    meta = _meta_in(header, path)
    require_network(path, meta, network and name_of(network))
    for name, tensor in tensors.items():
        if not meta.network and tensor.dtype == torch.float16:
            tensors[name] = tensor.float()
    try:
        model = build_with_weights(meta.config, tensors, network)
    except RuntimeError as e:
        problems = shortened(str(e).partition("\n")[2] or e)
        raise CheckpointError(f"{path}: the weights do not fit the architecture stored with them: {problems}") from e
    for name, tensor in tensors.items():
        if not meta.network and tensor.dtype not in (torch.float32, torch.int64):  # int64: steps of batch norm
            raise CheckpointError(
                f"{path}: {shown(name)} is of {tensor.dtype}; expected torch.float32 or torch.float16"
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {shown(name)} is not finite: training diverged, or the file is damaged")
    return model.eval(), meta


def require_network(path: str | os.PathLike[str], meta: ModelMeta, given: str | None = None) -> None:
    """CheckpointError when what built the network is not what is given, or is not given at all."""
    if meta.network and not given:
        raise CheckpointError(
            f"{path} holds a network that a function built, {meta.network}: it can be used from Python, "
            "mlpmixer.load(run, network=what built it)"
        )
    if given and given != meta.network:
        raise CheckpointError(
            f"{path} holds {meta.network or meta.config.architecture}, and {given} is given to build it"
        )


def best_model(run: Path, step: int) -> Path:
    """The model that was the best on validation after `step`. Each has a file of its own, as the run may have to go on
    from a state for which another one is the best."""
    return run / "checkpoints" / f"best-{step:09d}.safetensors"


def drop_best_models(run: Path, before: int) -> None:
    """Remove those of earlier steps."""
    for path in (run / "checkpoints").glob(f"best-{'[0-9]' * 9}.safetensors"):
        if int(path.stem.removeprefix("best-")) < before:
            path.unlink()


def states(run: Path) -> list[Path]:
    """Training states of a run, newest first."""
    return sorted((run / "checkpoints").glob(f"step-{'[0-9]' * 9}.safetensors"), reverse=True)


def last_state(run: Path, note: Callable[[str], None] = lambda text: None) -> Path | None:
    """The newest training state that is sound; None when there is none. `note` is told of each newer one what is wrong
    with it."""
    for path in states(run):
        try:
            tensors, meta = read_tensors(path)
            if "state" not in meta:
                raise CheckpointError(f"{path} is not a training state")
            if broken := [name for name, tensor in tensors.items() if tensor.isnan().any()]:
                raise CheckpointError(f"{path} is damaged: {broken[0]} is not a number")
        except (CheckpointError, OSError) as e:
            note(str(e))
            continue
        return path
    return None


def save_state(run: Path, step: int, tensors: "Mapping[str, Tensor]", meta: Mapping[str, Any]) -> None:
    """Write the whole training state atomically, then drop the older ones. Errors: OSError, with the older ones
    left."""
    write_tensors(run / "checkpoints" / f"step-{step:09d}.safetensors", tensors, meta)
    drop_old_states(run)


def drop_old_states(run: Path) -> None:
    for old in states(run)[STATES_KEPT:]:
        old.unlink(missing_ok=True)


def set_aside(run: Path, newer_than: Path | None) -> None:
    """Rename the states newer than a sound one, all without one, so that they are neither read nor counted again."""
    for path in states(run):
        if path == newer_than:
            break
        os.replace(path, path.with_suffix(".damaged"))

"""Distillation: a teacher's answers as targets beside the labels (Hinton et al. 2015, arXiv:1503.02531; hard: DeiT).

B images of a batch, N training images, K classes in the order of the data. `loss.training_loss` is what is made of the
targets.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mlpmixer.data.paths import TRAIN, similar_paths
from mlpmixer.data.preprocess import standardise
from mlpmixer.data.split_record import Hashes, SplitRecord
from mlpmixer.data.store import Store
from mlpmixer.download import Report
from mlpmixer.durable import replacing
from mlpmixer.evaluation.evaluate import match_all_classes
from mlpmixer.inference.onnx_model import OnnxModel, copy_onnx, has_answers, open_onnx
from mlpmixer.registry import shortened
from mlpmixer.training.augment import resize, statistics
from mlpmixer.training.device_store import to_device
from mlpmixer.training.recipe import Distill, Recipe, variant
from mlpmixer.training.stream import Stream
from mlpmixer.weights.adapt import adapt_trained
from mlpmixer.weights.formats import read_npz
from mlpmixer.weights.load import load_weights
from mlpmixer.weights.model_file import ModelMeta, save_model

TeacherFunction = Callable[[Tensor], Tensor]
"""Augmented images, float32 (B,C,h,w) in 0..255 on the device of the run -> logits (B,K). Called without gradients."""
COPIES = ("teacher.npy", "teacher.npz", "teacher.onnx", "teacher.safetensors")  # logits, a graph, a network
FUNCTION = "function"  # distill.teacher of a run whose teacher was given in Python


@dataclass(frozen=True)
class StoredLogits:
    """A teacher's answers to N images, as an .npz holds them under these names; an .npy holds the logits alone."""

    logits: np.ndarray
    """(N,K), any float."""
    hashes: Hashes | None = None
    """The `content_hash` of each image (N,). Without it, row i is taken for training image i."""
    classes: np.ndarray | None = None
    """The K names of the columns. Without it, they are taken for the classes of the data, in order."""
    trained: Hashes | None = None
    """The `content_hash` of each image that the teacher was trained on (M,); None: it is not known."""

    def validate(self, name: str) -> None:
        """ValueError, with the name of the file, for another type or shape than above."""
        logits, found = self.logits, f"{self.logits.dtype} of shape {self.logits.shape}"
        is_matrix = logits.ndim == 2 and logits.dtype.kind == "f"
        if not is_matrix or not has_answers(logits):
            what = "rows without a finite maximum (NaN or infinity)" if is_matrix else found
            raise ValueError(
                f"{name} holds {what}; expected logits or log-probabilities, float (training images, classes)"
            )
        n, k = logits.shape
        m = 0 if self.trained is None else self.trained.size
        for field, array, kind, shape in (
            ("hashes", self.hashes, "u8", (n,)),
            ("classes", self.classes, "U", (k,)),
            ("trained", self.trained, "u8", (m,)),
        ):
            if array is not None and (not array.dtype.str[1:].startswith(kind) or array.shape != shape):
                expected = f"{'uint64' if kind == 'u8' else 'text'} of shape {shape}"
                raise ValueError(f"{field} in {name}: expected {expected}, got {array.dtype} of shape {array.shape}")

    def rows(self, name: str, train: Store) -> np.ndarray:
        """The row of each readable training image. ValueError when some have none."""
        if self.hashes is None:
            if len(self.logits) != len(train.images):
                raise ValueError(
                    f"{name} holds logits of shape {self.logits.shape}; this run has {len(train.images)} training "
                    f'images, as data.datasets.open_images(recipe.data, "train") gives them'
                )
            return train.indices
        hashes, first = np.unique(self.hashes, return_index=True)
        wanted = train.hashes[train.indices]
        if missing := np.flatnonzero(~np.isin(wanted, hashes)).tolist():
            raise ValueError(
                f"{name} has no row for {len(missing):,} of the {len(wanted):,} training images, such as "
                f"{train.names[missing[0]]}: its rows are of other images or another split; make it for these"
            )
        rows: np.ndarray = first[np.searchsorted(hashes, wanted)]
        return rows


TeacherSource = TeacherFunction | StoredLogits | tuple[Any, ModelMeta] | OnnxModel | None


@dataclass(frozen=True)
class StoredTeacher:
    """Stored logits: targets for the training images as they are, to be mixed as labels are."""

    logits: np.ndarray
    """(N,K)"""
    rows: np.ndarray
    """The row of each image that a run's numbers count."""
    columns: np.ndarray | slice
    """The column of each class of the data."""
    cfg: Distill
    device: torch.device
    notes: tuple[str, ...] = ()

    def targets(self, numbers: np.ndarray) -> Tensor:
        """Image numbers (B,) -> target distributions (B,K)."""
        logits = self.logits[self.rows[numbers]][:, self.columns].astype(np.float32)
        return distribution(to_device(torch.from_numpy(logits), self.device), self.cfg)


@dataclass(frozen=True)
class OnlineTeacher:
    """A network or function that answers every batch: targets for the images after augmentation and mixing."""

    answer: TeacherFunction
    num_classes: int
    cfg: Distill
    notes: tuple[str, ...] = ()
    """Assumptions about it."""

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """Augmented images, float32 (B,C,h,w) in 0..255 -> target distributions (B,K)."""
        logits, expected = self.answer(images), (len(images), self.num_classes)
        if logits.shape != expected:
            raise ValueError(f"the teacher's answer has shape {tuple(logits.shape)}; expected logits {expected}")
        return distribution(logits.float(), self.cfg)


Teacher = StoredTeacher | OnlineTeacher


def with_teacher(recipe: Recipe, function: TeacherFunction | None) -> Recipe:
    """The recipe of a run that learns from `function`, if one is given.

    Errors: ValueError when the recipe names another teacher, or needs a function that is not given.
    """
    named = recipe.distill.teacher
    if function is None and named == FUNCTION:
        raise ValueError(
            "this run's teacher is a Python function: train it with mlpmixer.train(recipe, ..., teacher=that function)"
        )
    if function is not None and named not in ("", FUNCTION):
        raise ValueError(f"two teachers are given, distill.teacher={named!r} and a function; leave one of them out")
    if function is None:
        return recipe
    return variant(recipe, distill={"teacher": FUNCTION})


def open_teacher(name: str, report: Report | None = None, copy: Path | None = None) -> TeacherSource:
    """The teacher that `distill.teacher` names: stored logits, an ONNX model, or a trained network.

    report: receives the progress of a download.
    copy: the copy that `store_teacher` made, to be read instead.

    Errors: ValueError or FileNotFoundError when the name is none of these.
    """
    if copy is not None:
        source = open_teacher(str(copy))
        return dataclasses.replace(source, name=name) if isinstance(source, OnnxModel) else source
    if not name:
        return None
    path = Path(name)
    if path.suffix in (".npy", ".npz") and not path.exists():
        close = f"; did you mean {', '.join(near)}?" if (near := similar_paths(name)) else ""
        raise FileNotFoundError(f"{name} does not exist: expected a file of a teacher's logits, or of weights{close}")
    if path.suffix == ".npy":
        try:
            logits = np.load(path, mmap_mode="r")
        except OSError:
            raise
        except Exception as e:  # numpy's header is Python, and raises what its tokens run into
            raise ValueError(f"{name} cannot be read as an array of logits: {shortened(e)}") from e
        return _stored_logits({"logits": logits}, name)
    if path.suffix == ".npz" and path.is_file():
        arrays = read_npz(path, [field.name for field in dataclasses.fields(StoredLogits)])
        if "logits" in arrays:  # otherwise it may be an official weight file
            return _stored_logits(arrays, name)
    if path.suffix == ".onnx":
        return open_onnx(name, threads=torch.get_num_threads())
    return load_weights(name, report=report)


def _stored_logits(arrays: dict[str, np.ndarray], name: str) -> StoredLogits:
    found = StoredLogits(**arrays)
    found.validate(name)
    return found


def store_teacher(run: Path, source: TeacherSource) -> None:
    """Copy a teacher (not a function) beside the states of its run, so that the run resumes without the original.

    A kill at any moment leaves the whole copy or none. Errors: OSError.
    """
    drop_teacher(run)
    logits, with_hashes, graph, network = (run / "checkpoints" / name for name in COPIES)
    if isinstance(source, StoredLogits):
        arrays = {name: array for name, array in vars(source).items() if array is not None}
        with replacing(with_hashes if len(arrays) > 1 else logits) as part, open(part, "wb") as file:
            np.savez(file, **arrays) if len(arrays) > 1 else np.save(file, source.logits)
    elif isinstance(source, OnnxModel):
        with replacing(graph) as part:
            copy_onnx(source.name, part, f"{graph.name}.data")
    elif isinstance(source, tuple):
        save_model(network, *source)


def stored_teacher(run: Path) -> Path | None:
    """The copy that `store_teacher` made."""
    return next((path for name in COPIES if (path := run / "checkpoints" / name).exists()), None)


def drop_teacher(run: Path) -> None:
    """Remove the copy, which a finished run no longer needs."""
    for path in (run / "checkpoints").glob("teacher.*"):
        path.unlink()


def make_teacher(
    source: TeacherSource,
    cfg: Distill,
    train: Store | Stream,
    classes: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Teacher | None:
    """The teacher of a run whose training images and classes are known.

    Errors: ValueError for stored logits of other images or classes, and for a network with other classes or channels.
    """
    if source is None:
        return None
    record, notes = record_of(source), tuple[str, ...]()
    if record is None or record.shards:
        notes += (
            f"the teacher ({cfg.teacher}) does not say which images it was trained on: if those of validation or test "
            "are among them, their scores are too high",
        )
    if isinstance(source, StoredLogits):
        if isinstance(train, Stream):
            raise ValueError(
                f"{cfg.teacher} holds logits by image, but these images are streamed: use a network as teacher"
            )
        rows = source.rows(cfg.teacher, train)
        columns = slice(None) if source.classes is None else match_all_classes(classes, source.classes.tolist())
        if (k := source.logits.shape[1]) != len(classes):
            raise ValueError(f"{cfg.teacher} has logits of {k} classes; this run has {len(classes)}")
        if source.hashes is None:
            notes = (f"{cfg.teacher} holds no hashes of its images: its rows are matched by their order alone", *notes)
        return StoredTeacher(source.logits, rows, columns, cfg, device, notes)
    if isinstance(source, OnnxModel):
        answer, assumed = _onnx_answer(source, train, classes, device)
        return OnlineTeacher(answer, len(classes), cfg, (*assumed, *notes))
    if isinstance(source, tuple):
        source = _network_answer(*source, train, classes, device, dtype)
    return OnlineTeacher(source, len(classes), cfg, notes)


def record_of(network: Any) -> SplitRecord | None:
    """Which images a teacher, or the network that a run starts from, was trained on; None where it does not say."""
    if isinstance(network, StoredLogits):
        return None if network.trained is None else SplitRecord.of({TRAIN: ((), network.trained)}).without_names()
    if isinstance(network, OnnxModel):
        return network.metadata.splits if network.metadata else None
    return network[1].splits if isinstance(network, tuple) else None


def distribution(logits: Tensor, cfg: Distill) -> Tensor:
    """Logits (B,K) -> targets (B,K): the most likely class alone, or all classes at the temperature."""
    return F.one_hot(logits.argmax(1), logits.shape[1]).float() if cfg.hard else (logits / cfg.temperature).softmax(1)


def _network_answer(
    network: Any,
    meta: ModelMeta,
    train: Store | Stream,
    classes: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> TeacherFunction:
    """A network on the student's augmented images, in the size, channels and normalisation that it was trained with."""
    network, meta = adapt_trained(network, meta, in_channels=train.preprocess.in_channels)
    network = network.to(device).eval().requires_grad_(False)
    order = torch.from_numpy(match_all_classes(classes, meta.classes)).to(device)
    mean, std = statistics(meta.preprocess, train.preprocess.in_channels, device)

    def answer(images: Tensor) -> Tensor:
        images = resize(images, meta.preprocess.image_size)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits: Tensor = network(standardise(images, mean, std))[:, order]
        return logits

    return answer


def _onnx_answer(
    model: OnnxModel, train: Store | Stream, classes: tuple[str, ...], device: torch.device
) -> tuple[TeacherFunction, tuple[str, ...]]:
    """An ONNX graph on the student's augmented images, in its size, normalised as its metadata say; and notes.

    Without metadata, images are normalised as for the student, and a note says so.
    """
    channels, said = train.preprocess.in_channels, model.metadata
    _, wanted, *sides = model.input_shape
    if wanted not in (None, channels):
        raise ValueError(
            f"{model.name} takes images of {wanted} channels, but the run's have {channels}; try --in-channels {wanted}"
        )
    if said is None and model.num_classes not in (None, len(classes)):
        raise ValueError(f"{model.name} has {model.num_classes} classes, but the data has {len(classes)}")
    order: slice | np.ndarray = slice(None) if said is None else match_all_classes(classes, said.classes)
    preprocess = train.preprocess if said is None else said.preprocess
    mean, std = statistics(preprocess, channels, device)

    def answer(images: Tensor) -> Tensor:
        given = tuple(images.shape[2:]) if said is None else said.preprocess.image_size
        height, width = (side or free for side, free in zip(sides, given, strict=True))
        images = standardise(resize(images, (height, width)), mean, std)
        return to_device(torch.from_numpy(model(images.cpu().numpy())[:, order]), device)

    if said is not None:
        return answer, ()
    rule = f"mean {', '.join(map(str, preprocess.mean))}, std {', '.join(map(str, preprocess.std))} of the 0..1 range"
    return answer, (
        f"{model.name} has no metadata: its images are normalised as for the student ({rule}), its classes taken in "
        "the data's order",
    )

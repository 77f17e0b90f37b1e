"""A teacher's answers as targets beside the labels: distillation (Hinton et al. 2015, arXiv:1503.02531; hard: Touvron
et al. 2021, DeiT).

B images of a batch, N training images, K classes in the order of the data. `loss.loss_of` says what is made of the
answers.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mlpmixer.data.preprocess import standardise
from mlpmixer.data.store import Store
from mlpmixer.evaluation.evaluate import match_classes
from mlpmixer.inference.onnx_model import OnnxModel, copy_onnx, open_onnx
from mlpmixer.models.mixer import Mixer
from mlpmixer.training.augment import resize, statistics
from mlpmixer.training.device_store import send
from mlpmixer.training.recipe import Distill, Recipe
from mlpmixer.training.stream import Stream
from mlpmixer.weights.adapt import adapt_trained
from mlpmixer.weights.load import Report, load_weights
from mlpmixer.weights.model_file import ModelMeta, replacing, save_model

Answer = Callable[[Tensor], Tensor]
"""Augmented images, float32 (B,C,h,w) in 0..255 on the device of the run -> logits (B,K). Called without gradients."""
Source = Answer | np.ndarray | tuple[Mixer, ModelMeta] | OnnxModel | None
COPIES = ("teacher.npy", "teacher.onnx", "teacher.safetensors")  # logits, a graph, a network
FUNCTION = "function"  # what the recipe of a run says whose teacher was given in Python


@dataclass(frozen=True)
class Teacher:
    """Target distributions, (B,K) from one of the two, (B,0) from the other; from both without a teacher."""

    before: Callable[[np.ndarray], Tensor]
    """Of training images by number, (B,) int64: stored answers. They are of the images as they are, and are mixed as
    labels are."""
    after: Answer
    """Of images that have been augmented and mixed."""
    notes: tuple[str, ...] = ()
    """What was assumed about it."""


def with_teacher(recipe: Recipe, function: Answer | None) -> Recipe:
    """The recipe of a run that learns from `function`, if there is one.

    ValueError when the recipe names another teacher, or needs a function and there is none.
    """
    named = recipe.distill.teacher
    if function is None and named == FUNCTION:
        raise ValueError(
            "this run learns from a function: train it from Python, mlpmixer.train(recipe, ..., teacher=that function)"
        )
    if function is not None and named not in ("", FUNCTION):
        raise ValueError(f"two teachers: distill.teacher={named!r}, and a function; leave one of them out")
    return (
        recipe
        if function is None
        else dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, teacher=FUNCTION))
    )


def open_teacher(name: str, report: Report | None = None, copy: Path | None = None) -> Source:
    """What `distill.teacher` names: logits (N,K) as an array, an ONNX model, or a trained network.

    report: receives the progress of a download.
    copy: what `store_teacher` has made of it, to be read instead.

    Errors: ValueError, FileNotFoundError for what is none of them.
    """
    if copy is not None:
        source = open_teacher(str(copy))
        return dataclasses.replace(source, name=name) if isinstance(source, OnnxModel) else source
    if not name:
        return None
    path = Path(name)
    if path.suffix == ".npy":
        return _logits(np.load(path, mmap_mode="r"), name)
    if path.suffix == ".npz" and path.is_file():
        with np.load(path) as arrays:
            if "logits" in arrays.files:  # else it may be an official weight file
                return _logits(arrays["logits"], name)
    if path.suffix == ".onnx":
        return open_onnx(name, threads=torch.get_num_threads())
    return load_weights(name, report=report)


def _logits(logits: np.ndarray, name: str) -> np.ndarray:
    if logits.ndim != 2 or logits.dtype.kind != "f" or np.isnan(logits).any():
        what = f"{logits.dtype} of shape {logits.shape}" if logits.ndim != 2 or logits.dtype.kind != "f" else "NaN"
        raise ValueError(f"{name} holds {what}; expected logits or log-probabilities, float (training images, classes)")
    return logits


def store_teacher(run: Path, source: Source) -> None:
    """Copy a teacher beside the states of its run, so that the run can go on without the original; of a function there
    is no copy.

    A kill at any moment leaves the whole copy or none. Errors: OSError.
    """
    drop_teacher(run)
    logits, graph, network = (run / "checkpoints" / name for name in COPIES)
    if isinstance(source, np.ndarray):
        with replacing(logits) as part, open(part, "wb") as file:
            np.save(file, source)
    elif isinstance(source, OnnxModel):
        with replacing(graph) as part:
            copy_onnx(source.name, part, f"{graph.name}.data")
    elif isinstance(source, tuple):
        save_model(network, *source)


def stored_teacher(run: Path) -> Path | None:
    """The copy that `store_teacher` made."""
    return next((path for name in COPIES if (path := run / "checkpoints" / name).exists()), None)


def drop_teacher(run: Path) -> None:
    """Remove the copy: a run that is over needs it no more."""
    for path in (run / "checkpoints").glob("teacher.*"):
        path.unlink()


def make_teacher(
    source: Source,
    cfg: Distill,
    train: Store | Stream,
    classes: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Teacher:
    """The teacher of a run whose training images and classes are known.

    Errors: ValueError for stored logits of another number of images or classes, and for a network with other classes or
    channels.
    """

    def nothing(batch: np.ndarray | Tensor) -> Tensor:
        return torch.empty((len(batch), 0), device=device)

    def stored(indices: np.ndarray) -> Tensor:
        assert isinstance(source, np.ndarray) and not isinstance(train, Stream)
        return distribution(send(torch.from_numpy(source[train.indices[indices]].astype(np.float32)), device), cfg)

    if source is None:
        return Teacher(nothing, nothing)
    if isinstance(source, np.ndarray):
        if isinstance(train, Stream):
            raise ValueError(
                f"{cfg.teacher} holds logits by image number, but these images are streamed: let a network be the "
                f"teacher"
            )
        wanted = (len(train.images), len(classes))
        if source.shape != wanted:
            raise ValueError(
                f"{cfg.teacher} holds logits of shape {source.shape}; this run has {wanted[0]} training images, as "
                f'data.datasets.open_images(recipe.data, "train") gives them, of {wanted[1]} classes'
            )
        return Teacher(stored, nothing)
    notes: tuple[str, ...] = ()
    if isinstance(source, OnnxModel):
        answer, notes = _onnx_answer(source, train, classes, device)
    else:
        answer = _network_answer(*source, train, classes, device, dtype) if isinstance(source, tuple) else source

    @torch.no_grad()
    def after(images: Tensor) -> Tensor:
        logits = answer(images)
        if logits.shape != (len(images), len(classes)):
            raise ValueError(
                f"the teacher's answer has shape {tuple(logits.shape)}; expected logits ({len(images)}, {len(classes)})"
            )
        return distribution(logits.float(), cfg)

    return Teacher(nothing, after, notes)


def distribution(logits: Tensor, cfg: Distill) -> Tensor:
    """Logits (B,K) -> targets (B,K): the likeliest class alone, or all of them at the temperature."""
    return F.one_hot(logits.argmax(1), logits.shape[1]).float() if cfg.hard else (logits / cfg.temperature).softmax(1)


def _network_answer(
    network: Mixer,
    meta: ModelMeta,
    train: Store | Stream,
    classes: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Answer:
    """The same augmented images, brought to the network's size and channels and normalised as it has been trained."""
    network, meta = adapt_trained(network, meta, in_channels=train.preprocess.in_channels)
    network = network.to(device).eval().requires_grad_(False)
    order = torch.from_numpy(match_classes(classes, meta.classes)).to(device)
    mean, std = statistics(meta.preprocess, train.preprocess.in_channels, device)

    def answer(images: Tensor) -> Tensor:
        images = resize(images, meta.preprocess.image_size)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits: Tensor = network(standardise(images, mean, std))[:, order]
        return logits

    return answer


def _onnx_answer(
    model: OnnxModel, train: Store | Stream, classes: tuple[str, ...], device: torch.device
) -> tuple[Answer, tuple[str, ...]]:
    """The same augmented images, brought to the graph's size and normalised as its metadata say; without any as for the
    student, noted."""
    channels, said = train.preprocess.in_channels, model.metadata
    _, wanted, *sides = model.input_shape
    if wanted not in (None, channels):
        raise ValueError(
            f"{model.name} takes images of {wanted} channels, those of this run have {channels}; try --in-channels "
            f"{wanted}"
        )
    if said is None and model.num_classes not in (None, len(classes)):
        raise ValueError(f"{model.name} answers with {model.num_classes} classes, the data has {len(classes)}")
    order: slice | np.ndarray = slice(None) if said is None else match_classes(classes, said.classes)
    preprocess = train.preprocess if said is None else said.preprocess
    mean, std = statistics(preprocess, channels, device)

    def answer(images: Tensor) -> Tensor:
        given = tuple(images.shape[2:]) if said is None else said.preprocess.image_size
        height, width = (side or free for side, free in zip(sides, given, strict=True))
        images = standardise(resize(images, (height, width)), mean, std)
        return send(torch.from_numpy(model(images.cpu().numpy())[:, order]), device)

    if said is not None:
        return answer, ()
    rule = f"mean {', '.join(map(str, preprocess.mean))}, std {', '.join(map(str, preprocess.std))} of the 0..1 range"
    return answer, (
        f"{model.name} says nothing of its images and classes: normalised as for the student ({rule}), in the data's "
        f"order",
    )

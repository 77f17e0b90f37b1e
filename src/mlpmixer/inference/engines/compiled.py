"""The package's own kernels and numpy, without torch: a plain Mixer in a model file, float32, on the CPU.

A process that classifies one image spends its time on importing torch; this starts in about a tenth of it.

Letters as in models/mixer.py; J values in a patch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpmixer import __version__
from mlpmixer.config import pair
from mlpmixer.inference.engines.session import Precision, Session, Value
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.native import Unavailable, call, constant, library
from mlpmixer.weights.model_file import ForeignFile, read_arrays, read_meta

Floats = NDArray[np.float32]
IMAGES, LOGITS, FEATURES = "images", "logits", "features"
EPS = 1e-6  # of every LayerNorm, as in models/mixer.py
PORTION = 1 << 21  # values of patches or tokens at a time: 8 MiB


BLOCK = ("norm1", "token_mixing.fc1", "token_mixing.fc2", "norm2", "channel_mixing.fc1", "channel_mixing.fc2")


class Unsuitable(ValueError):
    """A model or a machine that this engine is not for, and torch is; the message says why."""


def open_file(file: Path, precision: Precision, streams: int, threads: int) -> Session:
    """A session of the network in a model file: normalised images (B,C,H,W) -> logits (B,K) and features (B,D).

    Errors: Unsuitable; CheckpointError for a damaged file.
    """
    try:
        cfg = plain_mixer(file)
        library("float32")
        network = Network(cfg, weights_in(file, cfg))
    except Unavailable as e:
        raise Unsuitable(str(e)) from None
    except ModuleNotFoundError as e:  # safetensors
        raise Unsuitable(f"{e.name} is not installed") from None

    def compute(images: NDArray[Any], outputs: Sequence[str]) -> list[NDArray[Any]]:
        if images.shape[1:] != (want := (cfg.in_channels, *pair(cfg.image_size))):
            raise ValueError(f"expected (B, {', '.join(map(str, want))})")
        with on_threads(threads):
            features = network.features(images)
        return [features if name == FEATURES else network.logits(features) for name in outputs]

    return Session(
        version=__version__,
        metadata=None,
        inputs=(Value(IMAGES, "float32", (None, cfg.in_channels, *pair(cfg.image_size))),),
        outputs=(
            Value(LOGITS, "float32", (None, cfg.num_classes)),
            Value(FEATURES, "float32", (None, cfg.num_features)),
        ),
        compute=compute,
    )


def plain_mixer(file: Path) -> MixerConfig:
    """The config in a model file. Unsuitable where it is not of the paper's Mixer, CheckpointError for a damaged
    file."""
    try:
        meta = read_meta(file)
    except ForeignFile as e:
        raise Unsuitable(str(e)) from None
    if meta.network:
        raise Unsuitable(f"{file} holds a network that a function built")
    cfg = meta.config
    if not isinstance(cfg, MixerConfig) or cfg.part_grid != cfg.grid:
        what = cfg.architecture if not isinstance(cfg, MixerConfig) else "Mixer in parts"
        raise Unsuitable(f"the compiled kernels are for the plain Mixer, and {file} holds a {what}")
    return cfg


def shapes(cfg: MixerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights, those of torch: a matrix is (out, in)."""
    (p, q), c, s = pair(cfg.patch_size), cfg.hidden_dim, cfg.num_patches
    linear = {"stem": (cfg.in_channels * p * q, c)}  # (in, out)
    for i in range(cfg.num_blocks):
        for name, dim, hidden in (
            ("token_mixing", s, cfg.tokens_mlp_dim),
            ("channel_mixing", c, cfg.channels_mlp_dim),
        ):
            linear |= {f"blocks.{i}.{name}.fc1": (dim, hidden), f"blocks.{i}.{name}.fc2": (hidden, dim)}
    linear |= {"head": (c, cfg.num_classes)} if cfg.num_classes else {}
    norms = ["norm", *(f"blocks.{i}.norm{k}" for i in range(cfg.num_blocks) for k in (1, 2))]
    found: dict[str, tuple[int, ...]] = {f"{name}.{part}": (c,) for name in norms for part in ("weight", "bias")}
    for name, (k, n) in linear.items():
        found |= {f"{name}.weight": (n, k), f"{name}.bias": (n,)}
    return found


def weights_in(file: Path, cfg: MixerConfig) -> dict[str, Floats]:
    """The weights in float32. Unsuitable where they are not those of the config: torch's loader says what is wrong."""
    try:
        arrays, _ = read_arrays(file)
    except TypeError as e:  # a type that numpy lacks
        raise Unsuitable(f"{file}: {e}") from None
    if {name: array.shape for name, array in arrays.items()} != shapes(cfg):
        raise Unsuitable(f"the weights in {file} are not those of the Mixer that it describes")
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float16) or not np.isfinite(array).all():
            raise Unsuitable(f"{file}: {name} is not of finite values in float32 or float16")
        arrays[name] = np.ascontiguousarray(array, np.float32)
    return arrays


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """A context for calls of the kernels from this thread: on so many threads (0: unchanged)."""
    openmp = library("float32")  # finds what it was linked with, too
    before = openmp.omp_get_max_threads()
    openmp.omp_set_num_threads(threads or before)
    try:
        yield
    finally:
        openmp.omp_set_num_threads(before)


class Network:
    """The Mixer of models/mixer.py in evaluation mode."""

    def __init__(self, cfg: MixerConfig, weights: dict[str, Floats]) -> None:
        """The matrices of the blocks are taken out of `weights` as they are packed, so that each is held once."""
        self.cfg = cfg
        self.blocks = [
            [take(weights, f"blocks.{i}.{name}.{part}") for name in BLOCK for part in ("weight", "bias")]
            for i in range(cfg.num_blocks)
        ]
        self.weights = weights

    def features(self, images: Floats) -> Floats:
        """(B, in_channels, H, W) -> pre-logits (B, C)."""
        each = max(PORTION // max(images[0].size if len(images) else 1, self.cfg.num_patches * self.cfg.hidden_dim), 1)
        starts = range(0, max(len(images), 1), each)
        return np.concatenate([self.pooled(images[i : i + each]) for i in starts])

    def pooled(self, images: Floats) -> Floats:
        w, x = self.weights, self.patches(images) @ self.weights["stem.weight"].T  # (B, S, C)
        x += w["stem.bias"]
        for block in self.blocks:
            x = self.block(x, block)
        x -= x.mean(axis=2, keepdims=True)
        with np.errstate(over="ignore", invalid="ignore"):
            variance = np.square(x).mean(axis=2, keepdims=True)
            x /= np.sqrt(variance + np.float32(EPS))
            x += 0 * variance  # not a number where it overflows, rather than 0
        mean: Floats = x.mean(axis=1) * w["norm.weight"] + w["norm.bias"]
        return mean

    def logits(self, features: Floats) -> Floats:
        """(B, C) -> (B, K); the features themselves without classes."""
        w = self.weights
        return features @ w["head.weight"].T + w["head.bias"] if self.cfg.num_classes else features

    def patches(self, images: Floats) -> Floats:
        """(B, in_channels, H, W) -> (B, S, J), row-major."""
        cfg, (h, w), (p, q) = self.cfg, pair(self.cfg.image_size), pair(self.cfg.patch_size)
        x = images.reshape(-1, cfg.in_channels, h // p, p, w // q, q)
        return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, cfg.num_patches, cfg.in_channels * p * q)

    def block(self, x: Floats, weights: list[Floats]) -> Floats:
        """Equation (1): (B, S, C) -> (B, S, C)."""
        (b, s, c), cfg = x.shape, self.cfg
        out, moments = np.empty_like(x), tuple(np.empty((2, b * s), np.float32))
        threads = library("float32").omp_get_max_threads()
        sizes = (b, s, c, cfg.tokens_mlp_dim, cfg.channels_mlp_dim, threads, cfg.activation == "gelu_erf")
        call("forward", "float32", x, *weights, None, None, *moments, *moments, None, None, out, out, *sizes)
        return out


def take(weights: dict[str, Floats], name: str) -> Floats:
    """A weight of a block as block.c reads it; it is taken out of `weights`."""
    found = weights.pop(name)
    if found.ndim == 1:
        return found
    (n, k), lanes = found.shape, constant("lanes")
    packed = np.empty((-(-n // lanes), k, lanes), np.float32)
    call("pack", "float32", found, packed, n, k, k, 1)
    return packed

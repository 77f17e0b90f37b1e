"""Made-up data sets in the files in which the real ones come."""

import gzip
import lzma
from pathlib import Path

import numpy as np

MNIST_IMAGES = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
MNIST_LABELS = np.arange(60, dtype=np.uint8) % 10


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_idx(folder: Path, dot: str = "-", suffix: str = "") -> None:
    """MNIST's four files: 60 noise images to train on and 20 to test on."""
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    folder.mkdir(parents=True, exist_ok=True)
    for stem, n in (("train", 60), ("t10k", 20)):
        (folder / f"{stem}-images{dot}idx3-ubyte{suffix}").write_bytes(pack(idx(MNIST_IMAGES[:n])))
        (folder / f"{stem}-labels{dot}idx1-ubyte{suffix}").write_bytes(pack(idx(MNIST_LABELS[:n])))


def write_cifar10(folder: Path, per_class: int = 2) -> Path:
    """CIFAR-10 in its binary form: 5 batches and a test batch of `per_class` noise images a class."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        labels = np.arange(10 * per_class, dtype=np.uint8)[:, None] % 10
        pixels = rng.integers(0, 256, (10 * per_class, 3072), dtype=np.uint8)
        (folder / f"{name}.bin").write_bytes(np.hstack([labels, pixels]).tobytes())
    return folder

"""A model and images for probes and features."""

import numpy as np
import pytest
from PIL import Image

from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.classifier import Classifier


class Counted:
    """A network that is the mean colour, and counts the images it has seen."""

    def __init__(self):
        self.seen = 0

    def __call__(self, x):
        self.seen += len(x)
        return x.mean(axis=(2, 3))


@pytest.fixture
def network():
    return Counted()


@pytest.fixture
def model(network, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return Classifier(
        classes=("a", "b"), preprocess=Preprocess(image_size=(4, 4)), logits=network, pre_logits=network, path=path
    )


@pytest.fixture
def photos(tmp_path):
    """Three classes of colours, other than those of the model; of each 12 images for train, 3 for val and 3 for
    test."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 12), ("val", 3), ("test", 3)):
        for c, name in enumerate(("red", "green", "blue")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 60, (5, 6, 3), dtype=np.uint8)
                pixels[..., c] += 150
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{i}.png")
    return tmp_path / "photos"

"""A classifier by brightness, without torch, and images for it."""

import numpy as np
from PIL import Image

from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.classifier import Classifier

GREYS = ("dark", "middle", "bright")


def by_brightness(**kwargs):
    """Three classes by mean brightness; no torch."""

    def logits(x):  # (B,3,H,W) in -1..1
        mean = x.mean(axis=(1, 2, 3))
        return -8 * np.abs(mean[:, None] - np.array([-1, 0, 1], dtype=np.float32)[None])

    return Classifier(
        classes=GREYS,
        preprocess=Preprocess(image_size=(8, 8)),
        logits=logits,
        pre_logits=lambda x: x.mean(axis=(2, 3)),
        **kwargs,
    )


def grey(path, value, size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)
    return str(path)

"""One engine's answers and speed, measured in a process of its own. `exporters.benchmark` starts one per engine.

    python -m mlpmixer.inference.measure MODEL ENGINE PRECISION THREADS BATCH...

It prints a line of JSON about the loaded model, and then, for each batch size that it reads from standard input, a line
with the seconds of some calls. {"error": ...} is the last line when something is wrong.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from mlpmixer.data.images import Pixels
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.hardware import peak_mib
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.engines import Precision
from mlpmixer.inference.exported_classifier import Exported
from mlpmixer.inference.load import load

IMAGES = 32  # generated, to compare answers on
TURN_S = 0.1  # of calls at a time, or one call


def sample_images(preprocess: Preprocess, count: int) -> Pixels:
    """Generated images (count,H,W,C), the same ones each time: noise, from single pixels to large blocks."""
    (height, width), rng = preprocess.image_size, np.random.default_rng(0)
    images = np.empty((count, height, width, preprocess.in_channels), np.uint8)
    for i in range(count):
        blocks = max(max(height, width) >> i % 6, 2)
        noise = rng.integers(0, 256, (blocks, blocks, preprocess.in_channels))
        images[i] = noise[np.arange(height) * blocks // height][:, np.arange(width) * blocks // width]
    pixels: Pixels = images.astype(preprocess.dtype)
    return pixels


def start(
    model: str, engine: str, precision: Precision, threads: int, batches: list[int]
) -> tuple[Classifier, dict[str, Any]]:
    """The loaded model, and the first line about it; `batches` in ascending order. Errors: ValueError."""
    if engine == "torch" and precision == "bfloat16":
        _require_bfloat16()
    begin = time.perf_counter()
    classifier = load(model, engine=engine, precision=precision, threads=threads)
    images = sample_images(classifier.preprocess, max(IMAGES, *batches))
    classifier.probabilities(images[: batches[0]])
    start_s = time.perf_counter() - begin
    parts = [classifier.probabilities(images[i : i + batches[0]]) for i in range(0, IMAGES, batches[0])]
    peaks: dict[int, float | None] = {}
    for batch in batches:
        classifier.probabilities(images[:batch])  # the first call allocates
        peaks[batch] = peak_mib()
    runtime = classifier.runtime
    assert runtime
    return classifier, {
        "version": runtime.version,
        "precision": runtime.precision_label,
        "start_s": start_s,
        "peak_mib": peaks,
        "answers": np.concatenate(parts)[:IMAGES].tolist(),
        "made": classifier.export.made if isinstance(classifier, Exported) else {},
    }


def time_calls(classifier: Classifier, images: Pixels, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each call; at least one."""
    times: list[float] = []
    while not times or sum(times) < TURN_S:
        begin = clock()
        classifier.probabilities(images)
        times.append(clock() - begin)
    return times


def _require_bfloat16() -> None:
    import torch

    from mlpmixer.hardware import has_bf16

    if not has_bf16(torch.device("cpu")):
        raise ValueError("this processor has no bfloat16 products, and torch would emulate them, slower than float32")


def main(model: str, engine: str, precision: str, threads: str, *batches: str) -> None:
    """The program of this module, with the words of its command line."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what a library prints is not part of the answer

        def say(answer: Any) -> None:
            out.write(json.dumps(answer) + "\n")
            out.flush()

        try:
            classifier, found = start(model, engine, cast(Precision, precision), int(threads), [*map(int, batches)])
            images = sample_images(classifier.preprocess, max(map(int, batches)))
            say(found)
            for line in sys.stdin:
                say(time_calls(classifier, images[: int(line)]))
        except ValueError as e:
            say({"error": str(e)})


if __name__ == "__main__":
    main(*sys.argv[1:])

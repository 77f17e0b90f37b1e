"""Images with red, green and blue squares on noise, the classes that they have: several, one or none."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ("red", "green", "blue")


def write_squares(folder: Path, n: int = 120, seed: int = 0) -> Path:
    """FOLDER/0.png ... of 16x16 px, and the table FOLDER/labels.csv, whose path is returned."""
    rng, rows = np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels, labels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8), []
        for k, colour in enumerate(COLOURS):
            if rng.random() < 0.4:
                y, x = rng.integers(0, 9, 2)
                pixels[y : y + 7, x : x + 7, k] = 255
                labels.append(colour)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append((f"{i}.png", ";".join(labels)))
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "labels"), *rows])
    return folder / "labels.csv"

"""The confusion matrix of a page, for any number of classes: a table, or a picture with names on its axes."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlpmixer.evaluation.html import data_uri

TABLE_CLASSES = 20  # up to here the matrix is a table of numbers, above it a picture
NUMBERED_CELLS = 8000  # up to so many cells other than 0 the picture has numbers, too, which bounds the page
NUMBERED_PX, PLAIN_PX = 22, 14  # sides of a cell with a number, and of one without: a name's line fits into both
HIT, MISS = (0, 114, 178), (213, 94, 0)  # Okabe and Ito's blue and orange, as in style.css
STRONGEST = 70  # percent of colour at most, so that a number on it can be read


def confusion(test: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ten most frequent confusions, and the matrix for `confusion.html`; None above 1000 classes."""
    if not test["confusion"]:
        return None
    counts = np.array(test["confusion"], dtype=np.int64)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    strength = np.sqrt(share)  # the square root keeps rare confusions visible
    classes = [str(c) for c in test["classes"]]
    pairs = [(int(counts[i, j]), int(i), int(j)) for i, j in zip(*np.nonzero(counts), strict=True) if i != j]
    most = sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))[:10]
    found = {"classes": classes, "pairs": [(classes[i], classes[j], n, share[i, j]) for n, i, j in most]}
    if len(classes) > TABLE_CLASSES:
        return found | {"cells": None} | _picture(counts, strength)
    tints = (STRONGEST * strength).tolist()
    cells = [list(zip(*row, strict=True)) for row in zip(counts.tolist(), tints, strict=True)]
    return found | {"cells": list(zip(classes, cells, strict=True))}


def _picture(counts: NDArray[np.int64], strength: NDArray[np.float64]) -> dict[str, Any]:
    """One pixel for each cell, to be enlarged without blur to `cell_px`, and the numbers to write on it."""
    hit = np.eye(len(counts), dtype=bool)[:, :, None]
    alpha = np.round(2.55 * STRONGEST * strength)[:, :, None]
    file = io.BytesIO()
    pixels = np.concatenate([np.where(hit, np.array(HIT), np.array(MISS)), alpha], axis=2).astype(np.uint8)
    Image.fromarray(np.where(alpha > 0, pixels, 0)).save(file, "PNG", optimize=True)  # zeros compress to nothing
    filled = [(int(i), int(j), int(counts[i, j])) for i, j in zip(*np.nonzero(counts), strict=True)]
    numbered = len(filled) <= NUMBERED_CELLS
    return {
        "picture": data_uri(file.getvalue()),
        "cell_px": NUMBERED_PX if numbered else PLAIN_PX,
        "numbers": filled if numbered else [],
    }

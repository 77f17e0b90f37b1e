"""Many images: found, decoded ahead of the network, and predicted. B images of H x W pixels with C channels."""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlpmixer.data.images import ImageError, Pixels, is_image_file
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.prediction import Failure, Floats, Prediction

if TYPE_CHECKING:
    from mlpmixer.data.image_set import ImageSet
    from mlpmixer.download import Report
    from mlpmixer.inference.inputs import ImageLike

Key = TypeVar("Key")
PathLike = str | os.PathLike[str]
ADDRESS = re.compile(r"[a-z][a-z0-9+]+://", re.IGNORECASE)


def find_images(sources: PathLike | Iterable[PathLike], *, allow_urls: bool = False) -> Iterator[str | Failure]:
    """The image files behind files, folders and glob patterns, one or several, in a fixed order, each once.

    A named file is taken whatever its suffix. A folder is searched recursively for image suffixes (upper or lower
    case), sorted, without hidden files and folders. A pattern may hold `**`. What does not exist, matches nothing or
    cannot be opened is a Failure in its place, and so is an address, unless `allow_urls` passes it on. Names are
    remembered, so that each is yielded once.
    """
    seen: set[str] = set()
    for given in [sources] if isinstance(sources, str | os.PathLike) else sources:
        source = str(os.fsdecode(given))  # numpy's str, too
        for found in [source] if allow_urls and ADDRESS.match(source) else _expand(source):
            key = os.path.abspath(found) if isinstance(found, str) else f"\0{found.name}"
            if key not in seen:
                seen.add(key)
                yield found


def _expand(source: str) -> Iterator[str | Failure]:
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        yield from _walk(path)
    elif os.path.exists(path):
        yield path
    elif ADDRESS.match(path):
        yield Failure(
            source,
            "an address, and images are read from files: download it first (curl -LO), or let `predict` fetch it "
            "(--allow-urls, in Python allow_urls=True)",
        )
    elif glob.has_magic(path):
        matches = sorted(glob.glob(path, recursive=True))
        suffix = Path(path).suffix
        named_suffix = suffix and not glob.has_magic(suffix)  # *.dat means these files, whatever they are
        files = [m for m in matches if os.path.isfile(m) and (named_suffix or is_image_file(m))]
        folders = [m for m in matches if os.path.isdir(m) and "**" not in path]
        yield from files
        for folder in folders:
            yield from _walk(folder)
        if not files and not folders:
            yield Failure(source, "no image file matches this pattern")
    else:
        yield Failure(source, "no such file or folder")


def _walk(folder: str) -> Iterator[str | Failure]:
    unreadable: list[OSError] = []
    visited: set[str] = set()  # links may lead in circles
    found = False
    for where, folders, files in os.walk(folder, onerror=unreadable.append, followlinks=True):
        real = os.path.realpath(where)
        folders[:] = [] if real in visited else sorted(f for f in folders if not f.startswith("."))
        if real in visited:
            continue
        visited.add(real)
        for file in sorted(files):
            if not file.startswith(".") and is_image_file(os.path.join(where, file)):
                found = True
                yield os.path.join(where, file)
    yield from (Failure(str(error.filename), f"cannot be opened: {error.strerror}") for error in unreadable)
    if not found and not unreadable:
        yield Failure(folder, "the folder holds no image files (.jpg, .png, .webp or another format that Pillow reads)")


def decoded_batches(
    items: Iterable[tuple[Key, Callable[[], Any] | Failure]],
    preprocess: Callable[[Any], Pixels],
    batch_size: int,
) -> Iterator[list[tuple[Key, Pixels | Failure]]]:
    """Batches of (key, (H,W,C) array or Failure) in the order of `items`, the last one partial.

    Images are opened and decoded in threads, one batch ahead, so at most two batches are in memory at a time.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")

    def decode(name: str, open_source: Callable[[], Any]) -> Pixels | Failure:
        try:
            return preprocess(open_source())
        except ImageError as error:
            return Failure(name, error.reason)
        except (ValueError, OSError) as error:
            return Failure(name, str(error) or type(error).__name__)

    todo = iter(items)
    pool = ThreadPoolExecutor(os.cpu_count() or 1)

    def submit() -> list[tuple[Key, Failure | Future[Pixels | Failure]]]:
        part = islice(todo, batch_size)
        return [
            (key, open_ if isinstance(open_, Failure) else pool.submit(decode, str(key), open_)) for key, open_ in part
        ]

    try:
        ahead = submit()
        while ahead:
            now, ahead = ahead, submit()
            yield [(key, result.result() if isinstance(result, Future) else result) for key, result in now]
    finally:
        pool.shutdown(cancel_futures=True)


def map_batches(
    batches: Iterable[tuple[NDArray[np.int64], Pixels]], function: Callable[[Pixels], Floats]
) -> tuple[NDArray[np.int64], Floats]:
    """The loop of every evaluation: indices (N,) and values (N, ...) of `function` for batches of (indices (B,),
    images)."""
    done = [(indices, function(images)) for indices, images in batches]
    if not done:
        return np.empty(0, np.int64), np.empty((0, 1), np.float32)
    indices, values = (np.concatenate(column) for column in zip(*done, strict=True))
    return indices, values


def map_images(
    classifier: Classifier,
    images: "ImageSet",
    function: Callable[[NDArray[Any]], Floats],
    batch_size: int,
    preprocess: Callable[[Any], Pixels] | None = None,
    report: "Report | None" = None,
) -> tuple[NDArray[np.int64], Floats, list[tuple[str, str]]]:
    """Values of a function for every readable image: indices (N,), values (N, ...), and the bad images.

    function: of a batch, such as classifier.probabilities. preprocess: None for that of the classifier.
    report: receives {"kind": "progress", "what": "image", "done", "of"} before each batch.
    bad: (name, reason) of the images that could not be read. ValueError when none could.
    """
    bad: list[tuple[str, str]] = []

    def readable() -> Iterator[tuple[NDArray[np.int64], Pixels]]:
        # decoded by index, in threads; names are looked up for failures only
        items = ((i, lambda i=i: images.source(i)) for i in range(len(images)))
        for batch in decoded_batches(items, preprocess or classifier.preprocess_image, batch_size):
            if report:
                report({"kind": "progress", "what": "image", "done": batch[0][0], "of": len(images)})
            bad.extend((str(images.names[i]), image.reason) for i, image in batch if isinstance(image, Failure))
            good = [(i, image) for i, image in batch if not isinstance(image, Failure)]
            if good:
                yield np.array([i for i, _ in good], np.int64), np.stack([image for _, image in good])

    kept, values = map_batches(readable(), function)
    if not len(kept):
        first = "; ".join(f"{name}: {reason}" for name, reason in bad[:3])
        raise ValueError(
            f"none of the {len(images)} images could be read" + (f" ({first})" if first else ": the data is empty")
        )
    return kept, values, bad


def predict_files(
    classifier: Classifier,
    paths: "PathLike | Iterable[PathLike | Failure | tuple[str, ImageLike]]",
    top_k: int = 5,
    batch_size: int = 64,
    *,
    features: bool = False,
    allow_urls: bool = False,
) -> Iterator[Prediction | Failure]:
    """A Prediction or a Failure for every path, in order, batch by batch; memory does not grow with their number.

    classifier: what `load` gives.
    paths: one folder, pattern or file, or as `find_images` yields them; its failures pass through. An image that is in
    memory: its name and the image, in any form that `Classifier.predict` takes for one image.
    top_k: number of classes of each prediction.
    batch_size: images computed at a time.
    features: whether the predictions also carry the features.
    allow_urls: whether paths may be addresses, http:// or https://, which are fetched (`download.read_image`).
    """

    def item(given: "PathLike | Failure | tuple[str, ImageLike]") -> tuple[str, Callable[[], Any] | Failure]:
        if isinstance(given, Failure):
            return given.name, given
        name, source = given if isinstance(given, tuple) else (os.fsdecode(given), os.fsdecode(given))
        if allow_urls and isinstance(source, str) and ADDRESS.match(source):
            from mlpmixer.download import read_image

            return name, partial(read_image, source)
        return name, lambda: source

    if isinstance(paths, str | os.PathLike):
        paths = find_images(paths, allow_urls=allow_urls)
    for batch in decoded_batches(map(item, paths), classifier.preprocess_image, batch_size):
        good = [(name, image) for name, image in batch if not isinstance(image, Failure)]
        names, arrays = [name for name, _ in good], [image for _, image in good]
        answers = iter(classifier.rank(names, np.stack(arrays), top_k, features=features) if good else [])
        for _, image in batch:
            yield image if isinstance(image, Failure) else next(answers)

"""Save test images of any data set as PNG files, named after their class: python examples/save_images.py digits images
5"""

import sys
from pathlib import Path

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_images
from mlpmixer.data.images import decode


def main(data: str, out: str, count: str) -> None:
    images = open_images(Data(name=data), "test")
    Path(out).mkdir(parents=True, exist_ok=True)
    for i in range(min(int(count), len(images))):
        name = images.classes[images.labels[i]].replace("/", "_")
        decode(images.source(i), "L" if images.channels == 1 else "RGB").save(Path(out) / f"{i}-{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Our own trained weights by name, each file accepted by its digest alone. No torch.

`digits` is part of the package. The others lie in weights/ of the repository and are not installed: they are found in
the folder that the variable MLPMIXER_WEIGHTS names (--weights-dir sets it), or in a checkout that the package runs
from or that one works in. weights/add.py makes such a file of a finished run, its card, and its entry here.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mlpmixer.models.configs import Size
from mlpmixer.models.names import MODELS
from mlpmixer.registry import Registry, UnknownName, shown, suggest

if TYPE_CHECKING:
    from mlpmixer.download import Report

VARIABLE = "MLPMIXER_WEIGHTS"
SOURCE = "trained by this project"
PACKAGED = Path(__file__).with_name("bundled")
DIGITS_SHOWN = 16  # of a digest's 64, in a message


@dataclass(frozen=True, kw_only=True)
class OwnWeights:
    """A model file of ours: what is worth knowing without opening it."""

    sha256: str
    num_bytes: int
    num_params: int
    num_classes: int
    image_size: Size
    data: str
    """Its training data in words: how many of which images."""
    terms: str
    """The terms of that data."""
    top1: float
    """Top-1 on images that it was not trained on, a fraction."""
    measured_on: str
    """Which images, and how many."""
    train_s: float = 0.0
    """How long its training took, in seconds; its card says on what."""
    gains: Mapping[str, float] = field(default_factory=dict)
    """Top-1, as a fraction, that fine-tuning gained over training from scratch, for each data set that was tried."""
    url: str = ""
    """Where the file can be fetched; empty until it is published."""


OWN: Registry[OwnWeights] = Registry("weights")
OWN["digits"] = OwnWeights(
    sha256="190a947517acae087f1394e91a59b12e6948413b5d7bfa3d9ccafbd4c336e6af",
    num_bytes=304_796,
    num_params=139_530,
    num_classes=10,
    image_size=16,
    data="1,221 images of scikit-learn's digits",
    terms="CC BY 4.0",
    top1=0.9889,
    measured_on="360 test images",
)
OWN["cifar10"] = OwnWeights(
    sha256="5566e14ea8d54e68993ffadb44070e84b3db59bc2febca306c7c8aa89003447f",
    num_bytes=2_981_868,
    num_params=1_165_194,
    num_classes=10,
    image_size=32,
    data="49,000 images of CIFAR-10",
    terms="CIFAR-10 states none; collected for research",
    top1=0.9241,
    measured_on="10,000 test images, before rounding to float16",
    train_s=10_791,
)
OWN["mnist"] = OwnWeights(
    sha256="202ba21c44b0d0e4a7d8b9c366ab23a1349f1110dc2be5e59c797cc7b8a0edd6",
    num_bytes=2_059_148,
    num_params=650_610,
    num_classes=10,
    image_size=28,
    data="55,000 images of MNIST",
    terms="CC BY-SA 3.0",
    top1=0.9949,
    measured_on="10,000 test images, before rounding to float16",
    train_s=1359,
)
OWN["small-photos"] = OwnWeights(
    sha256="ddc9f44de67133b7b0afba450977a83c019bcc33f237cb50f37df88cfa4cefc8",
    num_bytes=2_897_544,
    num_params=1_175_112,
    num_classes=200,
    image_size=64,
    data="44,100 photos of Tiny-ImageNet",
    terms="ImageNet's terms: non-commercial research",
    top1=0.4396,
    measured_on="5,000 images of its own validation split, before rounding to float16",
    train_s=4512,
)
OWN["small-photos-tenth"] = OwnWeights(
    sha256="4e787655dfc76e5dbb4cfd569c9cc5e35e3ec6c9d3d888c68ca250ae72ebd8a1",
    num_bytes=2_897_640,
    num_params=1_175_112,
    num_classes=200,
    image_size=64,
    data="4,500 photos of Tiny-ImageNet",
    terms="ImageNet's terms: non-commercial research",
    top1=0.1798,
    measured_on="5,000 images of its own validation split, before rounding to float16",
    train_s=4577,
)


def folders(folder: str | None = None) -> list[Path]:
    """Where the files are looked for, in this order. folder: in place of the one that MLPMIXER_WEIGHTS names."""
    named, roots = folder or os.environ.get(VARIABLE), dict.fromkeys((Path(__file__).parents[3], Path.cwd()))
    checkouts = [root / "weights" for root in roots if (root / "src" / "mlpmixer").is_dir()]
    return [PACKAGED, *([Path(named).expanduser()] if named else []), *checkouts]


def find(name: str, folder: str | None = None) -> Path | None:
    """The file of these weights, where it is here. ValueError if only a file of that name with another content is."""
    files = [file for place in folders(folder) if (file := place / f"{name}.safetensors").is_file()]
    right = next((file for file in files if _digest(file) == OWN[name].sha256), None)
    return right or (_accepted(files[0], name) if files else None)


def here(name: str) -> Path | None:
    """The file of these weights; None where it is not here, or is another."""
    with suppress(ValueError, OSError):
        return find(name)
    return None


def get(name: str, *, folder: str | None = None, report: "Report | None" = None) -> Path:
    """The file of these weights, fetched where it has an address. ValueError that says where it was looked for."""
    if file := find(name, folder):
        return file
    if url := OWN[name].url:
        from mlpmixer.download import fetch

        return _accepted(fetch(url, num_bytes=OWN[name].num_bytes, report=report), name)
    places = [place for place in folders(folder) if place != PACKAGED]
    looked = [f"{place}{'' if place.is_dir() else ' (no such folder)'}" for place in places]
    raise ValueError(
        f"{name}.safetensors, {SOURCE}, is not in {' or '.join(looked) or 'the package'}: take it from weights/ of the "
        f"repository, and name its folder with --weights-dir DIR or {VARIABLE}=DIR, or give the path of the file"
    )


def _accepted(file: Path, name: str) -> Path:
    expected, found = OWN[name].sha256, _digest(file)
    if found != expected:
        raise ValueError(
            f"{file} is not the {name} of this version: expected the SHA-256 digest {expected[:DIGITS_SHOWN]}..., "
            f"found {found[:DIGITS_SHOWN]}...; put the right file there, or give its path to use it as it is"
        )
    return file


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def require_model(name: str) -> None:
    """ValueError, which suggests the nearest, unless this is a network's name or that of weights of ours."""
    if name not in MODELS and name not in OWN:
        raise UnknownName(f"no model named {shown(name)}; {suggest(name, (*MODELS, *OWN))}")

"""A folder as the world makes them: 2,000 good files of every kind, 200 broken ones; trained through, counted, in
bounded memory."""

import dataclasses
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import Forks
from PIL import Image

from mlpmixer.config import to_json
from mlpmixer.data.images import decode
from mlpmixer.training.recipes import photos

CLASSES = {"left bright": 0, "right bright": 1}
GOOD, BROKEN = 1000, 100
KINDS = [
    "rgb.JPG",
    "cmyk.jpg",
    "16bit.png",
    "palette.png",
    "alpha.png",
    "animated.gif",
    "rotated.jpeg",
    "grey.webp",
    "anim.webp",
    "é ü.bmp",
]


def picture(label: int, rng: np.random.Generator) -> Image.Image:
    """48x40 px: one half bright, the other dark, which tells the class; the colour and the noise tell nothing."""
    half = np.where((np.arange(48) < 24) == (label == 0), 200, 40)[None, :, None] * np.ones((40, 1, 3))
    return Image.fromarray(
        np.clip(half + rng.normal(0, 12, (40, 48, 3)) + rng.integers(-30, 30, 3), 0, 255).astype(np.uint8)
    )


def save(image: Image.Image, path: Path, kind: str, rng: np.random.Generator) -> None:
    """Write the picture so that only a reader who does it right sees it as it is."""
    if kind == "cmyk.jpg":
        image.convert("CMYK").save(path, quality=95)
    elif kind == "16bit.png":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
    elif kind == "palette.png":
        image.quantize(64).save(path)
    elif kind == "alpha.png":
        image.putalpha(255)
        image.save(path)
    elif kind in ("animated.gif", "anim.webp"):  # the later frame shows the other class
        flipped, options = (
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            {"lossless": True} if "webp" in kind else {},
        )
        image.save(path, save_all=True, append_images=[flipped], duration=50, **options)
    elif kind == "rotated.jpeg":  # stored lying on its side; the tag says how to stand it up
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    else:
        image.save(path)


def broken(i: int, image: Image.Image) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if i % 5 == 4 else "JPEG")
    whole = buffer.getvalue()
    if i % 5 == 0:
        return "truncated.jpg", whole[: len(whole) // 2]
    if i % 5 == 1:
        return "zero.jpg", b""
    if i % 5 == 2:
        return "text.jpg", b"this is not a photograph\n" * 20
    if i % 5 == 3:
        header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + header
        idat = b"IDAT" + zlib.compress(b"")
        parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, idat)]
        return "bomb.png", b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    return "cut.png", whole[: len(whole) // 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
    for i in range(GOOD):
        name = list(CLASSES)[i % 2]
        kind = KINDS[i // 2 % len(KINDS)]
        save(picture(CLASSES[name], rng), root / name / f"{i:04d} {kind}", kind, rng)
    for i in range(BROKEN):
        suffix, content = broken(i, picture(i % 2, rng))
        (root / list(CLASSES)[i % 2] / f"bad {i:03d} {suffix}").write_bytes(content)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_seen_as_it_is(kind: str, tmp_path: Path) -> None:
    for label in (0, 1):
        image = picture(label, np.random.default_rng(label))
        save(image.copy(), tmp_path / kind, kind, np.random.default_rng(0))
        seen = decode(tmp_path / kind, "RGB")
        assert seen.size == (48, 40)
        left, right = np.asarray(seen)[:, :24].mean(), np.asarray(seen)[:, 24:].mean()
        assert (left > right + 80) == (label == 0) and (right > left + 80) == (label == 1)


TRAIN = """
    import json, resource, sys
    from mlpmixer.training.recipe import Recipe
    from mlpmixer.config import from_json
    from mlpmixer.training.run import train

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summary = train(from_json(Recipe, json.load(sys.stdin)), out=sys.argv[1]).summary
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"summary": summary, "grown_mib": grown / 1024}))
"""


@pytest.mark.parametrize("cache_mib", [4096, pytest.param(0, marks=pytest.mark.slow)])
def test_trains_and_accounts_for_every_file(folder: Path, tmp_path: Path, cache_mib: int, forked: Forks) -> None:
    base = photos()
    recipe = dataclasses.replace(
        base,
        model=dataclasses.replace(
            base.model, image_size=32, patch_size=8, num_blocks=2, hidden_dim=32, channels_mlp_dim=64
        ),
        data=dataclasses.replace(base.data, name=str(folder), cache_mib=cache_mib),
        augment=dataclasses.replace(base.augment, flip=False),
        run=dataclasses.replace(base.run, epochs=4, precision="float32"),
    )
    done = forked(TRAIN, tmp_path / "run", input=json.dumps(to_json(recipe)))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    summary = result["summary"]
    bad = {Path(name).name for name, _ in summary["bad_images"]}
    good = summary["train_images"] + summary["val"]["n"] + summary["test"]["n"]
    assert len(summary["bad_images"]) == len(bad) == BROKEN and all(name.startswith("bad ") for name in bad)
    assert good == GOOD
    assert summary["top1"] > 0.97  # only the right orientation, frame and colours make this possible
    assert result["grown_mib"] < 500

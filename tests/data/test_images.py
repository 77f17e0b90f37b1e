"""Any image that Pillow reads is read rightly; anything else is an ImageError, fast and without memory."""

import io
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mlpmixer.data.config import Fit
from mlpmixer.data.images import IMAGE_SUFFIXES, ImageError, _heic, decode, is_image_file
from mlpmixer.data.preprocess import Preprocess

GRADIENT = np.add.outer(np.arange(20) * 5, np.arange(30) * 5).astype(np.uint8)
COLOUR = np.stack([GRADIENT, GRADIENT[::-1], GRADIENT[:, ::-1]], axis=-1)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(b"\0" * 1000)
    chunks = b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (ihdr, idat, b"IEND")
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM", "TGA", "GIF"])
def test_lossless_files_come_back_exactly(kind: str, tmp_path: Path) -> None:
    grey = Image.fromarray(GRADIENT)
    content = encoded(grey, kind, **({"lossless": True} if kind == "WEBP" else {}))
    path = tmp_path / f"x.{kind}"
    path.write_bytes(content)
    for source in (content, path, str(path)):
        assert np.array_equal(np.asarray(decode(source, "L")), GRADIENT)
        assert np.array_equal(np.asarray(decode(source, "RGB")), np.stack([GRADIENT] * 3, -1))


def test_image_of_the_right_mode_is_returned() -> None:
    image = Image.fromarray(COLOUR)
    assert decode(image, "RGB") is image


@pytest.mark.parametrize("dtype", ["I;16", "I;16B", "I"])
def test_16_bit_is_scaled_not_clipped(dtype: str) -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    image = Image.frombytes("I;16", (6, 1), values.astype("<u2").tobytes())
    if dtype == "I;16B":
        image = Image.frombytes("I;16B", (6, 1), values.astype(">u2").tobytes())
    if dtype == "I":
        image = Image.fromarray(values.astype(np.int32))
    assert np.asarray(decode(image, "L")).tolist() == [[0, 0, 1, 1, 128, 255]]
    assert np.asarray(decode(encoded(Image.fromarray(values), "PNG"), "RGB"))[0, :, 0].tolist() == [
        0,
        0,
        1,
        1,
        128,
        255,
    ]


@pytest.mark.parametrize(("top", "expected"), [(1.0, 255), (255.0, 255), (65535.0, 255)])
def test_float_images_are_scaled_by_range(top: float, expected: int) -> None:
    image = Image.fromarray(np.array([[0, top / 2, top]], np.float32))
    assert np.asarray(decode(image, "L")).tolist() == [[0, 128, expected]]
    assert np.asarray(decode(Image.fromarray(np.array([[np.nan, -5, 5]], np.float32)), "L")).tolist() == [[128, 0, 255]]


def test_transparency_lies_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 128, 255]
    expected = [255, 127, 0]
    for image in (Image.fromarray(rgba), Image.fromarray(rgba).convert("LA")):
        for source in (image, encoded(image, "PNG")):
            assert np.asarray(decode(source, "RGB"))[0, :, 1].tolist() == expected
            assert np.asarray(decode(source, "L"))[0].tolist() == expected
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.info["transparency"] = 0
    for transparency in (0, b"\x00\xff"):
        assert np.asarray(decode(encoded(palette, "PNG", transparency=transparency), "RGB")).tolist() == [
            [[255] * 3, [40, 50, 60]]
        ]
    colour_key = encoded(Image.fromarray(COLOUR), "PNG", transparency=tuple(int(v) for v in COLOUR[0, 0]))
    assert np.asarray(decode(colour_key, "RGB"))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes_look_the_same(mode: str) -> None:
    smooth = Image.fromarray(np.full((8, 8, 3), (255, 255, 255), np.uint8))
    source = smooth.convert(mode) if mode != "LAB" else Image.new("LAB", (8, 8), (255, 128, 128))
    assert np.asarray(decode(source, "RGB")).min() >= 253
    assert np.asarray(decode(source, "L")).min() >= 253


def test_cmyk_jpeg_is_not_inverted() -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK")
    r, g, b = np.asarray(decode(encoded(red, "JPEG", quality=95), "RGB"))[8, 8].astype(int)
    assert abs(r - 200) < 12 and abs(g - 30) < 12 and abs(b - 30) < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = np.zeros((24, 40), np.uint8)
    upright[:8, :8] = 255  # a corner
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM}
    undo |= {
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(upright)
    stored = image.transpose(undo[orientation]) if orientation > 1 else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = np.asarray(decode(encoded(stored, kind, exif=exif), "L")).astype(int)
    assert seen.shape == (24, 40)
    assert np.abs(seen - upright).mean() < 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_image() -> None:
    content = encoded(Image.fromarray(COLOUR), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert decode(content, "RGB").size == (30, 20)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        content = encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert np.asarray(decode(content, "RGB"))[4, 4].tolist() == [255, 0, 0], kind


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash", "short_side_crop", "bv_resize_crop"])
def test_a_file_and_its_pillow_image_give_the_same_pixels(
    mode: str, orientation: int, fit: Fit, tmp_path: Path
) -> None:
    photo, exif = Image.fromarray(COLOUR).resize((640, 480), Image.Resampling.BICUBIC), Image.Exif()
    exif[0x0112] = orientation
    photo.convert(mode).save(tmp_path / "x.jpg", exif=exif)
    shape = Preprocess(image_size=(32, 24), fit=fit)
    pixels = shape.array(tmp_path / "x.jpg")
    with Image.open(tmp_path / "x.jpg") as opened:
        assert np.array_equal(shape.array(opened), pixels) and opened.size == (640, 480)
        assert np.array_equal(shape.array(opened.convert("RGB")), pixels)
        assert np.array_equal(shape.array(np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))), pixels)
    assert np.array_equal(shape.array((tmp_path / "x.jpg").read_bytes()), pixels)


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf"


@pytest.mark.parametrize("head", [HEIC, HEIC.replace(b"heic", b"mif1"), b"\0\0\0\x18ftypmsf1\0\0\0\0msf1hevc"])
def test_heic_is_named_with_what_to_do(head: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    _heic.cache_clear()
    (tmp_path / "photo").write_bytes(head + bytes(100))
    for source in (head + bytes(100), tmp_path / "photo"):
        with pytest.raises(ImageError, match=r'a HEIC photo.*pip install "mlpmixer\[heic\]"; or convert it to JPEG'):
            decode(source, "RGB")
    assert is_image_file(str(tmp_path / "photo")) and is_image_file("x.HEIC")


def test_heic_is_read_upright_with_pillow_heif() -> None:
    heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    _heic.cache_clear()
    photo, exif = Image.fromarray(COLOUR).resize((64, 48), Image.Resampling.BICUBIC), Image.Exif()
    exif[0x0112] = 1
    buffer = io.BytesIO()
    heif.from_pillow(photo).save(buffer, format="HEIF", quality=100, exif=exif.tobytes())
    content = buffer.getvalue()
    assert np.abs(np.asarray(decode(content, "RGB")).astype(int) - np.asarray(photo)).mean() < 4
    with pytest.raises(ImageError):
        decode(content[: len(content) // 2], "RGB")


@pytest.mark.parametrize("kind", ["AVIF", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000"])
def test_what_pillow_reads_is_read(kind: str) -> None:
    content = encoded(Image.fromarray(COLOUR), kind)
    assert np.abs(np.asarray(decode(content, "RGB")).astype(int) - COLOUR).mean() < 8


def test_a_file_without_a_suffix_is_an_image_by_its_content(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "AVIF"):
        (tmp_path / kind).write_bytes(encoded(Image.fromarray(COLOUR), kind))
        assert is_image_file(str(tmp_path / kind)), kind
    for content in (
        b"",
        b"\0",
        b"\n\x00\x02",
        b"BM a text",
        b"all: test\n",
        b"#!/bin/sh\n",
        b"\0\0\x0a\0" * 20,
        b"P6 words",
    ):
        (tmp_path / "other").write_bytes(content)
        assert not is_image_file(str(tmp_path / "other")), content
    (tmp_path / "x.txt").write_bytes(encoded(Image.fromarray(COLOUR), "PNG"))
    assert not is_image_file(str(tmp_path / "x.txt")) and not is_image_file(str(tmp_path))
    assert not is_image_file(str(tmp_path / "missing"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_truncated_files_are_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    with pytest.raises(ImageError):
        decode(content[: int(len(content) * share)], "RGB")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello, this is text\n" * 50, b"<html></html>", b"\0" * 4096, b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n"],
)
def test_refuses_what_is_not_an_image(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    for source in (content, path):
        with pytest.raises(ImageError, match=r".+"):
            decode(source, "RGB")


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "fifo.png")
    for name, reason in (
        ("none.png", "no such file"),
        ("link.png", "broken link"),
        ("fifo.png", "regular"),
        ("", "regular"),
    ):
        with pytest.raises(ImageError, match=reason):
            decode(tmp_path / name, "RGB")


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (178_956_971, 1), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ImageError, match="limit of 178,956,970 px"):
        decode(png_header(width, height), "RGB")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.perf_counter() - start < 1 and peak < 10_000_000


def test_large_image_gives_no_warning(tmp_path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(tmp_path / "x.png")  # 100 million pixels; Pillow warns from 89 million on
    code = "import sys; from mlpmixer.data.images import open_image\n"
    code += "with open_image(sys.argv[1]) as image: print(image.size)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.png"], capture_output=True, text=True, env=env)
    assert (done.stdout, done.stderr) == ("(10000, 10000)\n", "")


def test_pillows_global_state_is_left_alone() -> None:
    from PIL import ImageFile

    assert Image.MAX_IMAGE_PIXELS == 89_478_485 and not ImageFile.LOAD_TRUNCATED_IMAGES
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif"} <= IMAGE_SUFFIXES


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]),
    seed=st.integers(0, 10_000),
    flips=st.integers(1, 20),
)
def test_damage_gives_an_image_or_an_image_error(kind: str, seed: int, flips: int) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(encoded(Image.fromarray(COLOUR), kind))
    for at in rng.integers(0, len(content), flips):
        content[at] = rng.integers(0, 256)
    try:
        assert decode(bytes(content), "RGB").mode == "RGB"
    except ImageError as e:
        assert str(e)

"""One image of any kind -> one 8-bit RGB or grey Pillow image, or an ImageError that says why not."""

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mode = Literal["RGB", "L"]
Source = str | os.PathLike[str] | bytes | Image.Image
Pixels = NDArray[np.uint8 | np.float32]  # 0..255, whatever the type

MAX_PIXELS = 178_956_970  # where Pillow raises DecompressionBombError
_SUFFIXES = """apng avif avifs bmp dds dib gif ico j2c j2k jfif jp2 jpe jpeg jpf jpg jpx mpo pbm pcx pgm png pnm ppm qoi
    ras sgi tga tif tiff webp xbm"""
IMAGE_SUFFIXES = frozenset(f".{s}" for s in _SUFFIXES.split())

_COMMON = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_REFUSED = frozenset({"EPS", "WMF"})  # these run Ghostscript or the system's renderer: not on files of strangers
_EXIF_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_quiet = threading.Lock()


class ImageError(ValueError):
    """An image that cannot be read; the message is the reason."""


def decode(source: Source, mode: Mode, *, max_px: int = 0) -> Image.Image:
    """The image as 8-bit `mode`, upright (EXIF), its first frame, transparency on white, 16-bit values divided by 257.

    `source` is a path, the bytes of a file or a Pillow image (returned as it is when nothing is to be done).
    32-bit integers outside 0..65535 are scaled by their own range; floats are taken as 0..1, 0..255 or 0..65535, the
    first range that holds them all, else by their own. `max_px`: the caller needs no more pixels than this on a side;
    large JPEG files are then decoded at a half, quarter or eighth, never below twice `max_px` on the short side.
    Raises ImageError: truncated, empty, not an image, more than MAX_PIXELS by its header (seen before any allocation).
    """
    try:
        return _decode(source, mode, max_px)
    except Warning:  # a complaint about metadata, where warnings are errors: the pixels are what counts
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(source, mode, max_px)


def _decode(source: Source, mode: Mode, max_px: int) -> Image.Image:
    with opened(source) as image:
        if max_px and image.format in ("JPEG", "MPO") and not isinstance(source, Image.Image):
            image.draft(
                None, (2 * max_px, 2 * max_px)
            )  # twice: libjpeg's scaling plus our resize stays close to a full decode
        image.load()
        return _upright(_eight_bit(image, mode), image)


@contextmanager
def opened(source: Source) -> Iterator[Image.Image]:
    """The image with its header read and its size checked, pixels not decoded; any failure inside is an ImageError."""
    try:
        if isinstance(source, Image.Image):
            yield _checked(source)
        elif isinstance(source, bytes):
            if not source:
                raise ImageError("empty file (0 bytes)")
            yield _open(io.BytesIO(source))
        else:
            info = os.stat(source)
            if not stat.S_ISREG(info.st_mode):
                raise ImageError("not a regular file")
            if not info.st_size:
                raise ImageError("empty file (0 bytes)")
            with open(source, "rb") as file:
                yield _open(file)
    except (ImageError, Warning):
        raise
    except FileNotFoundError as e:
        raise ImageError(
            "broken link" if not isinstance(source, bytes | Image.Image) and os.path.islink(source) else "no such file"
        ) from e
    except Exception as e:  # Pillow's plugins raise nearly anything on damaged files
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e) or type(e).__name__
        raise ImageError(f"cannot be decoded: {reason}") from e


def _checked(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} px is more than the limit of {MAX_PIXELS:,} px")
    if not width * height:
        raise ImageError(f"an image of {width}x{height} px")
    return image


def _open(file: IO[bytes]) -> Image.Image:
    """Image.open without its size warning, which depends on global state, and with our limit instead."""
    prefix = file.read(16)
    tried: set[str] = set()
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        for kind in (*_COMMON, *Image.ID):
            if kind in tried or kind in _REFUSED or kind not in Image.OPEN:
                continue
            tried.add(kind)
            factory, accept = Image.OPEN[kind]
            try:
                accepted = accept is None or accept(prefix)
                if accepted and not isinstance(accepted, str):
                    file.seek(0)
                    return _checked(factory(file, ""))
            except (
                SyntaxError,
                IndexError,
                TypeError,
                KeyError,
                EOFError,
                UnicodeDecodeError,
                OverflowError,
                ZeroDivisionError,
            ) as e:
                if kind in _COMMON:
                    raise ImageError(f"a damaged {kind} file: {e}") from e
            except Exception:
                if accept is not None:
                    raise
                continue  # a format without a signature: it is just not this one
    raise ImageError("not an image, or of a kind that is not supported")


def _eight_bit(image: Image.Image, mode: Mode) -> Image.Image:
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scaled(np.asarray(image))).convert(mode)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
        return white.convert(mode)
    if image.mode in ("1", "L"):
        return image.convert(mode)
    return image.convert("RGB").convert(mode)


def _scaled(values: np.ndarray) -> np.ndarray:
    """(H, W) of 16 or 32 bit -> uint8, by the range of the type."""
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    x = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=65535.0, neginf=0.0)
    low, high = float(x.min()), float(x.max())
    tops = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
    top = next((t for t in tops if low >= 0 and high <= t), None)
    if top is None:
        x, top = x - low, high - low or 1.0
    return np.floor(x * (255 / top) + 0.5).clip(0, 255).astype(np.uint8)


def _upright(image: Image.Image, original: Image.Image) -> Image.Image:
    if not any(key in original.info for key in _EXIF_KEYS):
        return image
    try:
        method = _TRANSPOSE.get(original.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata: the pixels stand as they are
        method = None
    return image if method is None else image.transpose(method)

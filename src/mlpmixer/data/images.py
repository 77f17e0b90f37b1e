"""One image of any kind -> one 8-bit RGB or grey Pillow image, or an ImageError that says why not."""

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Mode = Literal["RGB", "L"]
Source = str | os.PathLike[str] | bytes | Image.Image
Pixels = NDArray[np.uint8 | np.float32]  # 0..255, whatever the type

MAX_PIXELS = 178_956_970  # where Pillow raises DecompressionBombError
_SUFFIXES = """apng avif avifs bmp dds dib gif heic heics heif heifs hif ico j2c j2k jfif jp2 jpe jpeg jpf jpg jpx mpo
    pbm pcx pgm png pnm ppm qoi ras sgi tga tif tiff webp xbm"""
IMAGE_SUFFIXES = frozenset(f".{s}" for s in _SUFFIXES.split())

_REFUSED = frozenset({"EPS", "WMF"})  # they run Ghostscript or the system's renderer: not on files of strangers
_HEAD = 64  # bytes that tell HEIC
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_ORIENTATION = 0x0112  # EXIF
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is the limit here


class ImageError(ValueError):
    """An image that cannot be read. The message names the file, if there is one; `reason` does not."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(reason, name)
        self.reason, self.name = reason, name

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.name else self.reason


def decode(source: Source, mode: Mode) -> Image.Image:
    """The image as 8-bit `mode`, upright (EXIF), its first frame, transparency on white, 16-bit values divided by 257.

    `source` is a path, the bytes of a file or a Pillow image (returned as it is when nothing has to be done).
    32-bit integers outside 0..65535 are scaled by their own range; floats are taken as 0..1, 0..255 or 0..65535, the
    first range that holds them all, else by their own. A file and the Pillow image of it give the same pixels.
    Raises ImageError: truncated, empty, not an image, more than MAX_PIXELS by its header (seen before any allocation).
    """
    with open_image(source) as image:
        image.load()
        return _eight_bit(_upright(image), mode)


def content_hash(source: Source) -> int:
    """64 bits of what is stored: the bytes of a file, or the pixels and size of an array; 0 when it cannot be read."""
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(source, Image.Image):
        digest.update(f"{source.mode} {source.size}".encode() + source.tobytes())
    elif isinstance(source, bytes):
        digest.update(source)
    else:
        try:
            with open(_regular_file(source), "rb") as file:
                while part := file.read(1 << 20):
                    digest.update(part)
        except (OSError, ValueError):
            return 0
    return int.from_bytes(digest.digest(), "little")


@contextmanager
def open_image(source: Source) -> Iterator[Image.Image]:
    """The image with its header read and its size checked, pixels not decoded; any failure inside is an ImageError."""
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    try:
        if isinstance(source, Image.Image):
            yield _size_checked(source)
            return
        with io.BytesIO(source) if isinstance(source, bytes) else open(_regular_file(source), "rb") as file:
            head = file.read(_HEAD)
            if not head:
                raise ImageError("empty file (0 bytes)")
            file.seek(0)
            yield _size_checked(Image.open(file, formats=_heic() if is_heic(head) else _formats()))
    except ImageError as e:
        e.name = e.name or name
        raise
    except FileNotFoundError as e:
        raise ImageError("broken link" if os.path.islink(name) else "no such file", name) from e
    except UnidentifiedImageError as e:
        raise ImageError("not an image, damaged at its start, or of a format that is not supported", name) from e
    except Image.DecompressionBombError as e:
        raise ImageError(f"more than the limit of {MAX_PIXELS:,} px", name) from e
    except Exception as e:  # Pillow's plugins raise nearly anything on damaged files
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e) or type(e).__name__
        raise ImageError(f"cannot be decoded: {reason}", name) from e


def is_image_file(path: str) -> bool:
    """Whether a file is an image: by its suffix or, if it has none, by its content."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix:
        return suffix in IMAGE_SUFFIXES
    try:
        with open(_regular_file(path), "rb") as file:
            if is_heic(file.read(_HEAD)):
                return True
            file.seek(0)
            Image.open(file, formats=[name for name in _formats() if Image.OPEN[name][1]])  # those with a signature
            return True
    except Exception:  # as in `open_image`
        return False


@cache
def _formats() -> list[str]:
    Image.preinit()  # the common ones first
    Image.init()
    return [name for name in Image.ID if name not in _REFUSED]


def is_heic(head: bytes) -> bool:
    """Whether a file begins as HEIC or another HEIF does, other than AVIF (ISO/IEC 23008-12, annex B)."""
    brands = {head[i : i + 4] for i in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)}
    return head[4:8] == b"ftyp" and bool(brands & _HEIF_BRANDS) and not brands & {b"avif", b"avis"}


@cache
def _heic() -> list[str]:
    try:
        import pillow_heif
    except ImportError as e:
        raise ImageError(
            'a HEIC photo, which pillow-heif reads: pip install "mlpmixer[heic]"; or convert it to JPEG (heif-convert '
            "IN OUT.jpg, on a Mac sips -s format jpeg IN --out OUT.jpg)"
        ) from e
    pillow_heif.register_heif_opener()
    return ["HEIF"]


def _regular_file(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ImageError("not a regular file")
    return path


def _size_checked(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} px is more than the limit of {MAX_PIXELS:,} px")
    if not width * height:
        raise ImageError(f"an image of {width}x{height} px")
    return image


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


def _upright(image: Image.Image) -> Image.Image:
    try:
        return image if image.getexif().get(_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata: the pixels stay as they are
        return image

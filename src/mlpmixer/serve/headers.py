"""Format, size and cost of an uploaded image by its header, before anything is decoded."""

import struct
from dataclasses import dataclass

from mlpmixer.data.images import ImageError, is_heic, open_image

NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
MAX_PARTS = 10_000  # of chunks or segments, which Pillow goes through one by one
# A scan of a progressive JPEG may be a few bytes, but covers the whole image: pixels times scans bounds decoding time
MAX_SCANNED_PX = 1_000_000_000
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type

STARTS: dict[str, bytes | tuple[bytes, ...]] = {
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": b"BM",
    "TIFF": (b"II*\0", b"MM\0*"),
}


class NotServed(ValueError):
    """A file that the service does not read; the message says what it is."""


@dataclass(frozen=True)
class Header:
    """Facts about an image that are known before it is decoded."""

    width: int
    height: int
    too_many_scans: bool
    cost_px: int
    """Cost of decoding, in pixels of a PNG in 8-bit colour, about 16 ns each."""


def read_header(data: bytes) -> Header:
    """The header of a file. NotServed for another format, ImageError for a damaged one."""
    kind = format_of(data)
    try:
        width, height = SIZES.get(kind, _pillow_size)(data)
    except (struct.error, IndexError) as e:
        raise ImageError(f"a damaged {kind} file: its header is cut off") from e
    pixels, scans = width * height, data.count(b"\xff\xda") if kind == "JPEG" else 0
    cost_px = pixels
    if kind == "JPEG":
        cost_px = pixels * (1 + scans) // 8
    elif kind == "PNG" and len(data) > 25:
        cost_px = pixels * (8 + data[24] * PNG_CHANNELS.get(data[25], 4)) // 32
    return Header(width, height, scans * pixels > MAX_SCANNED_PX, cost_px + len(data))


def format_of(data: bytes) -> str:
    """Format by the first bytes: JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF or HEIC. NotServed for another one."""
    for kind, starts in STARTS.items():
        if data.startswith(starts):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if is_heic(data[:64]):
        return "HEIC"
    if data[4:8] == b"ftyp" and b"avif" in data[8 : min(int.from_bytes(data[:4], "big"), 256)]:
        return "AVIF"
    raise NotServed("another format" if data else "an empty file")


def _png_size(data: bytes) -> tuple[int, int]:
    at = 8
    for _ in range(MAX_PARTS):
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at >= len(data):
            width, height = struct.unpack(">II", data[16:24])
            return width, height
    raise ImageError(f"a PNG file of more than {MAX_PARTS:,} chunks")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """The largest size that a segment before the first scan says (ISO/IEC 10918-1, annex B)."""
    at, size = 2, (0, 0)
    for _ in range(MAX_PARTS):
        at = data.find(b"\xff", at) + 1 or len(data)
        marker = data[at]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # padding, and markers without a segment
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 4 : at + 8])
            size = max(size, (width, height), key=lambda s: s[0] * s[1])
        if marker == 0xDA:
            return size
        at += 1 + int.from_bytes(data[at + 1 : at + 3], "big")
    raise ImageError(f"a JPEG file of more than {MAX_PARTS:,} segments")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP file by RFC 9649, sections 2.5 to 2.7; Pillow would allocate the canvas on opening."""
    chunk = data[12:16]
    if chunk == b"VP8X":  # 24 bits each, less one
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":  # behind the signature 14 bits each, less one
        (bits,) = struct.unpack("<I", data[21:25])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":  # behind the start code 14 bits each
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise ImageError("a damaged WEBP file: no image chunk")


def _pillow_size(data: bytes) -> tuple[int, int]:
    """For formats whose header Pillow reads without allocating pixels."""
    with open_image(data) as image:
        size, mode, compression = image.size, image.mode, image.info.get("compression")
    if data.startswith(STARTS["TIFF"]) and compression != "raw":  # libtiff writes to stderr, and was at fault often
        raise NotServed(f"a TIFF file with {compression} compression: save it without, or as PNG")
    if mode in ("I", "F"):
        raise NotServed("a TIFF file of 32-bit values: save it with 8 or 16")
    return size


SIZES = {"PNG": _png_size, "JPEG": _jpeg_size, "WEBP": _webp_size}

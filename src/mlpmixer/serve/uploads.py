"""Request body -> images -> pixels at the model's size. Reads only the body: never a path or a URL from it."""

import base64
import binascii
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from threading import Event

from fastapi import HTTPException
from PIL.JpegImagePlugin import JpegImageFile
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field as FormField
from python_multipart.multipart import File, FormParser, parse_options_header

from mlpmixer.data.images import ImageError, Pixels
from mlpmixer.inference.classifier import Classifier
from mlpmixer.serve.limits import IMAGE_TYPES, RETRY
from mlpmixer.serve.settings import Settings

# A scan of a progressive JPEG may be a few bytes, but covers the whole image: pixels times scans bounds decoding time
MAX_SCANNED_PX = 5_000_000_000
EXPECTED = 'expected {"image": BASE64} or {"images": [BASE64, ...]}'


@dataclass(frozen=True)
class Upload:
    """An uploaded image file. `name` identifies it in the response."""

    name: str
    data: bytes


class Images(BaseModel):
    """One or several images in JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str | None = Field(None, description="a JPEG, PNG or WebP file in base64")
    images: list[str] | None = Field(None, description="several such files")


def parse_uploads(content_type: str, body: bytes, settings: Settings) -> list[Upload]:
    """The images in the body of a request.

    HTTPException: 413 for too many images, 422 for none and for a malformed body.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in IMAGE_TYPES:
        return [Upload("image", body)]
    uploads = _from_json(body) if kind == "application/json" else _from_form(content_type, body, settings)
    if not uploads:
        raise HTTPException(422, "the request has no image")
    if len(uploads) > settings.max_images:
        raise _too_many(settings.max_images)
    return uploads


def _too_many(most: int) -> HTTPException:
    return HTTPException(413, f"more than {most} images in one request")


def _from_json(body: bytes) -> list[Upload]:
    try:
        given = Images.model_validate_json(body)
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise HTTPException(422, f"{where + ': ' if where else ''}{first['msg']}; {EXPECTED}") from None
    if (given.image is None) == (given.images is None):
        raise HTTPException(422, EXPECTED)
    if given.image is not None:
        return [Upload("image", _from_base64("image", given.image))]
    return [Upload(f"images[{i}]", _from_base64(f"images[{i}]", text)) for i, text in enumerate(given.images or ())]


def _from_base64(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(
            422, f"{name} is not base64; expected the bytes of the file alone, without data:image/..."
        ) from None


def _from_form(content_type: str, body: bytes, settings: Settings) -> list[Upload]:
    """The files of a multipart form. They stay in memory, as the body is there already."""
    uploads, complete = list[Upload](), Event()

    def add(file: File) -> None:
        if len(uploads) == settings.max_images:
            raise _too_many(settings.max_images)
        file.file_object.seek(0)
        uploads.append(
            Upload((file.file_name or file.field_name or b"").decode("utf-8", "replace"), file.file_object.read())
        )

    def refuse(field: FormField) -> None:
        name = (field.field_name or b"").decode("utf-8", "replace")[:100]
        raise HTTPException(
            422, f"the field {name!r} is not a file; send only files, and options in the query string: ?top_k=3"
        )

    kind, options = parse_options_header(content_type)
    config = {"MAX_MEMORY_FILE_SIZE": settings.max_bytes, "UPLOAD_ERROR_ON_BAD_CTE": True}
    try:
        parser = FormParser(
            kind.decode("latin-1"), refuse, add, complete.set, options.get(b"boundary", b""), config=config
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as e:
        raise HTTPException(422, f"malformed form: {e}") from None
    if not complete.is_set():
        raise HTTPException(422, "the form is truncated")
    return uploads


# --- pixels -----------------------------------------------------------------------------------------------------------


def decode_uploads(
    uploads: Sequence[Upload], classifier: Classifier, settings: Settings, deadline: float
) -> list[Pixels]:
    """Decoded and preprocessed images. Runs in a decoder thread; `deadline` is in time.monotonic().

    HTTPException: 415 for files that are not JPEG, PNG or WebP, 413 for too many pixels, 422 for damaged files,
    503 after the deadline.
    """
    pixels = []
    for upload in uploads:
        if time.monotonic() > deadline:
            raise HTTPException(503, f"no response within {settings.answer_s:g} s", RETRY)
        _check_header(upload, settings.max_pixels)
        try:
            pixels.append(classifier.preprocess_image(upload.data))
        except ValueError as e:  # ImageError, or a size that the preprocessing cannot handle
            raise HTTPException(422, f"{upload.name}: {e}") from None
    return pixels


def _check_header(upload: Upload, max_pixels: int) -> None:
    """Checks format, size and scans by the header alone, before anything is decoded."""
    data = upload.data
    kind = format_of(data)
    if kind is None:
        raise HTTPException(
            415,
            f"{upload.name}: expected a JPEG, PNG or WebP file, got {'another format' if data else 'an empty file'}",
        )
    try:
        width, height = size_of(data, kind)
    except ImageError as e:
        raise HTTPException(422, f"{upload.name}: {e}") from None
    if width * height > max_pixels:
        raise HTTPException(413, f"{upload.name}: {width}x{height} px exceeds the limit of {max_pixels:,} px")
    if kind == "JPEG" and data.count(b"\xff\xda") * width * height > MAX_SCANNED_PX:
        raise HTTPException(413, f"{upload.name}: too many scans for an image of {width}x{height} px")


def format_of(data: bytes) -> str | None:
    """Format by the first bytes: JPEG, PNG, WEBP or None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def size_of(data: bytes, kind: str) -> tuple[int, int]:
    """Width and height from the header, without allocating pixels. ImageError for a damaged header."""
    try:
        if kind == "PNG":
            return struct.unpack(">II", data[16:24])
        if kind == "WEBP":
            return _webp_size(data)
        with JpegImageFile(BytesIO(data)) as image:  # the size comes after segments of any length
            return image.width, image.height
    except Exception as e:  # Pillow raises nearly anything on damaged files
        raise ImageError(f"a damaged {kind} file: {e}") from e


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
    raise ValueError("no image chunk")

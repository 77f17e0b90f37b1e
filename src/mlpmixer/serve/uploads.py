"""The body of a request -> images -> pixels of the model's size. Nothing but the body is read: no path, no address."""

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
from mlpmixer.predict import Classifier
from mlpmixer.serve.limits import IMAGE_TYPES, RETRY
from mlpmixer.serve.settings import Settings

# Each scan of a progressive JPEG goes over the whole image and may be a few bytes of the file: pixels times scans bound the time (seconds)
MAX_SCANNED_PX = 5_000_000_000
EXPECTED = 'expected {"image": BASE64} or {"images": [BASE64, ...]}'


@dataclass(frozen=True)
class Upload:
    """An image as it came. `name` is what the answer calls it."""

    name: str
    data: bytes


class Images(BaseModel):
    """Images in JSON: one or several."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str | None = Field(None, description="a JPEG, PNG or WebP file in base64")
    images: list[str] | None = Field(None, description="several of them")


def parse_uploads(content_type: str, body: bytes, settings: Settings) -> list[Upload]:
    """The images in the body of a request.

    HTTPException: 413 for too many images, 422 for none and for a malformed body.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in IMAGE_TYPES:
        return [Upload("image", body)]
    uploads = _from_json(body) if kind == "application/json" else _from_form(content_type, body, settings)
    if not uploads:
        raise HTTPException(422, "there is no image in it")
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
        raise HTTPException(422, f"{name} is no base64 (the file's bytes alone, without data:image/...)") from None


def _from_form(content_type: str, body: bytes, settings: Settings) -> list[Upload]:
    """The files of a form, in memory, where the body is already."""
    uploads, complete = list[Upload](), Event()

    def add(file: File) -> None:
        if len(uploads) == settings.max_images:
            raise _too_many(settings.max_images)
        file.file_object.seek(0)
        uploads.append(Upload((file.file_name or file.field_name or b"").decode("utf-8", "replace"), file.file_object.read()))

    def refuse(field: FormField) -> None:
        name = (field.field_name or b"").decode("utf-8", "replace")[:100]
        raise HTTPException(422, f"the field {name!r} is not a file; a form takes files only, options go in the address: ?top_k=3")

    kind, options = parse_options_header(content_type)
    config = {"MAX_MEMORY_FILE_SIZE": settings.max_bytes, "UPLOAD_ERROR_ON_BAD_CTE": True}
    try:
        parser = FormParser(kind.decode("latin-1"), refuse, add, complete.set, options.get(b"boundary", b""), config=config)
        parser.write(body)
        parser.finalize()
    except FormParserError as e:
        raise HTTPException(422, f"the form cannot be read: {e}") from None
    if not complete.is_set():
        raise HTTPException(422, "the form is cut off")
    return uploads


# --- pixels -----------------------------------------------------------------------------------------------------------


def decode_uploads(uploads: Sequence[Upload], classifier: Classifier, settings: Settings, deadline: float) -> list[Pixels]:
    """Each image as the network wants it. For a thread that decodes; `deadline` in time.monotonic().

    HTTPException: 415 for what is no JPEG, PNG or WebP by its first bytes, 413 for too many pixels by its header, 422 for a damaged one.
    """
    pixels = []
    for upload in uploads:
        if time.monotonic() > deadline:
            raise HTTPException(503, f"no answer within {settings.answer_s:g} s", RETRY)
        _check_header(upload, settings.max_pixels)
        try:
            pixels.append(classifier.array(upload.data))
        except ValueError as e:  # ImageError, and a size that the model's preprocessing cannot do
            raise HTTPException(422, f"{upload.name}: {e}") from None
    return pixels


def _check_header(upload: Upload, max_pixels: int) -> None:
    """By the first bytes and the header alone."""
    data = upload.data
    kind = format_of(data)
    if kind is None:
        raise HTTPException(415, f"{upload.name}: expected a JPEG, PNG or WebP file; it is {'empty' if not data else 'another kind'}")
    try:
        width, height = size_of(data, kind)
    except ImageError as e:
        raise HTTPException(422, f"{upload.name}: {e}") from None
    if width * height > max_pixels:
        raise HTTPException(413, f"{upload.name}: {width}x{height} px is more than the limit of {max_pixels:,} px")
    if kind == "JPEG" and data.count(b"\xff\xda") * width * height > MAX_SCANNED_PX:
        raise HTTPException(413, f"{upload.name}: too many scans for an image of {width}x{height} px")


def format_of(data: bytes) -> str | None:
    """JPEG, PNG or WEBP by the first bytes; None for all else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def size_of(data: bytes, kind: str) -> tuple[int, int]:
    """(width, height) by the header of a file of this kind; nothing is allocated for its pixels. ImageError when there is none."""
    try:
        if kind == "PNG":
            return struct.unpack(">II", data[16:24])
        if kind == "WEBP":
            return _webp_size(data)
        with JpegImageFile(BytesIO(data)) as image:  # its size stands behind segments of any length
            return image.width, image.height
    except Exception as e:  # Pillow raises nearly anything on damaged files
        raise ImageError(f"a damaged {kind} file: {e}") from e


def _webp_size(data: bytes) -> tuple[int, int]:
    """Pillow's reader allocates the canvas when it opens the file. RFC 9649, sections 2.5 to 2.7."""
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

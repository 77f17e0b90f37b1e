"""Request body -> images -> pixels at the model's size. Reads only the body: never a path or a URL from it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field as FormField
from python_multipart.multipart import File, FormParser, parse_options_header

from mlpmixer.data.images import ImageError, Pixels
from mlpmixer.inference.classifier import Classifier
from mlpmixer.serve.headers import NAMES, NotServed, read_header
from mlpmixer.serve.limits import FORM, JSON
from mlpmixer.serve.settings import Settings

MAX_NAME = 255  # characters of a file name, which answers repeat
EXPECTED = 'expected {"image": BASE64} or {"images": [BASE64, ...]}'


@dataclass(frozen=True)
class Upload:
    """An uploaded image file. `name` identifies it in the response."""

    name: str
    data: bytes


class Images(BaseModel):
    """One or several images in JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str | None = None
    images: list[str] | None = None


def parse_uploads(content_type: str, body: bytes, settings: Settings) -> list[Upload]:
    """The images in the body of a request.

    HTTPException: 413 for too many images, 422 for none and for a malformed body.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (FORM, JSON):
        return [Upload("image", body)]
    uploads = _from_json(body) if kind == JSON else _from_form(content_type, body, settings)
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
        known = bool(first["loc"]) and first["loc"][0] in Images.model_fields  # no answer repeats what was sent
        where = ".".join(map(str, first["loc"])) + ": " if known else ""
        raise HTTPException(422, f"{where}{first['msg']}; {EXPECTED}") from None
    if len(given.model_fields_set) != 1 or (given.image is None and given.images is None):
        raise HTTPException(422, EXPECTED)
    if given.image is not None:
        return [Upload("image", _from_base64("image", given.image))]
    return [Upload(f"images[{i}]", _from_base64(f"images[{i}]", text)) for i, text in enumerate(given.images or ())]


def _from_base64(name: str, text: str) -> bytes:
    """The bytes of base64 of either alphabet, with or without padding and line breaks, or of a data: URL (RFC 2397)."""
    if text[:5].lower() == "data:":
        kind, _, text = text.partition(",")
        if not kind.lower().endswith(";base64"):
            raise HTTPException(422, f"{name}: a data: URL that is not base64; {EXPECTED}")
    try:
        data = "".join(text.split()).rstrip("=")
        return base64.b64decode(data + "=" * (-len(data) % 4), b"-_", validate=True)
    except ValueError:
        raise HTTPException(422, f"{name}: not base64; {EXPECTED}") from None


def _from_form(content_type: str, body: bytes, settings: Settings) -> list[Upload]:
    """The files of a multipart form. They stay in memory, as the body is there already."""
    uploads, complete = list[Upload](), Event()

    def add(file: File) -> None:
        if len(uploads) == settings.max_images:
            raise _too_many(settings.max_images)
        file.file_object.seek(0)
        name = (file.file_name or file.field_name or b"").decode("utf-8", "replace")
        uploads.append(Upload(name[:MAX_NAME], file.file_object.read()))

    def refuse(_: FormField) -> None:
        raise HTTPException(
            422, "a field of the form is not a file; send only files, and options in the query string: ?top_k=3"
        )

    kind, options = parse_options_header(content_type)
    config = {"MAX_MEMORY_FILE_SIZE": settings.max_bytes, "UPLOAD_ERROR_ON_BAD_CTE": True}
    try:
        parser = FormParser(
            kind.decode("latin-1"), refuse, add, complete.set, options.get(b"boundary", b""), config=config
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:  # its message may repeat what was sent
        raise HTTPException(422, "malformed form: expected multipart/form-data with a boundary (RFC 7578)") from None
    if not complete.is_set():
        raise HTTPException(422, "the form is truncated")
    return uploads


def check_headers(uploads: Sequence[Upload], settings: Settings) -> list[int]:
    """Cost of decoding each image, in pixels; reads headers only, all of them before anything is decoded.

    HTTPException: 415 for files of another format, 413 for too many pixels or scans, 422 for damaged headers.
    """
    costs, pixels = list[int](), 0
    for upload in uploads:
        try:
            header = read_header(upload.data)
        except NotServed as e:
            raise HTTPException(415, f"{upload.name}: expected a {NAMES} file, got {e}") from None
        except ImageError as e:
            raise HTTPException(422, f"{upload.name}: {e}") from None
        size = f"{header.width}x{header.height} px"
        pixels += header.width * header.height
        if header.width * header.height > settings.max_pixels:
            raise HTTPException(413, f"{upload.name}: {size} exceeds the limit of {settings.max_pixels:,} px")
        if header.too_many_scans:
            raise HTTPException(413, f"{upload.name}: too many scans for an image of {size}")
        if pixels > settings.max_request_pixels:
            most = settings.max_request_pixels
            raise HTTPException(413, f"more than {most:,} px in one request: send fewer images at a time")
        costs.append(header.cost_px)
    return costs


def decode_upload(upload: Upload, classifier: Classifier) -> Pixels:
    """The decoded and preprocessed image. HTTPException: 422 for a damaged file."""
    try:
        return classifier.preprocess_image(upload.data)
    except ValueError as e:  # ImageError, or a size that the preprocessing cannot handle
        raise HTTPException(422, f"{upload.name}: {e}") from None

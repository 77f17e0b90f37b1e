"""Files from the network, downloaded once into a cache: resumed where they broke off, checked by size, or put there by
hand where there is no network.

Only the standard library; addresses on the Hugging Face Hub (hf:owner/name/file) go through huggingface-hub, an extra.
"""

import hashlib
import ipaddress
import os
import re
import shutil
import socket
import string
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from mlpmixer.config import Config
from mlpmixer.durable import write_text
from mlpmixer.hardware import cache_folder
from mlpmixer.registry import shortened, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
Report = Callable[[dict[str, Any]], None]
CHUNK_BYTES = 1 << 20
REPORT_EVERY_S = 0.1
WEB = ("http", "https")
RETRYABLE_STATUS = {408, 425, 429}  # timeout, too early, too many requests; beside these every 5xx
MAX_IMAGE_BYTES = 50 * 2**20
IMAGE_TYPES = re.compile(r"image/.*|(application|binary)/octet-stream|", re.IGNORECASE)  # or no type at all


class FetchError(ValueError):
    """A file that could not be downloaded; the message says why."""


class NetworkError(OSError):
    """A failure that another attempt may not meet."""


class Refused(NetworkError):
    """A failure that every attempt will meet."""


class PartMismatch(NetworkError):
    """The server's file does not continue the part that is here."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type when it has none."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


# ---- one connection


@dataclass(frozen=True, kw_only=True)
class Retry(Config):
    """When a connection counts as broken, and how often it is tried again."""

    timeout_s: float = 30.0
    """Seconds without a byte after which a connection counts as broken."""
    attempts: int = 3
    """Attempts in a row without progress before giving up."""
    backoff_s: float = 1.0
    """The wait before the second attempt; it doubles each time."""

    def wait(self, failures: int) -> None:
        """Sleep after this many failures without progress."""
        time.sleep(self.backoff_s * 2 ** max(failures - 1, 0))

    def run(self, work: Callable[[], T]) -> T:
        """The result of work(), called again after a NetworkError that is not Refused."""
        failures = 0
        while True:
            try:
                return work()
            except Refused:
                raise
            except NetworkError as e:
                failures += 1
                if failures >= self.attempts:
                    tried = f" (tried {failures} times)" if failures > 1 else ""
                    raise NetworkError(f"{e}{tried}") from e
                self.wait(failures)


IMAGE_RETRY = Retry(attempts=2)


class _Redirects(HTTPRedirectHandler):
    """Redirects stay on the web: from https to https, and from no public host to one that only this machine sees."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        here, there = urlsplit(req.full_url), urlsplit(newurl)
        fits = there.scheme in WEB and (there.scheme, here.scheme) != ("http", "https")
        local = there.hostname != here.hostname and _is_local(there.hostname) and not _is_local(here.hostname)
        if not fits or local:
            raise Refused(f"the server redirects to {shown(newurl)}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_local(host: str | None) -> bool:
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:  # unknown here, as behind a proxy
        return False
    return any(not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global for *_, address in found)


_OPENER = build_opener(_Redirects)


def _encoded(url: str) -> str:
    """The address as HTTP has it: spaces and other letters than those of ASCII in percent form, what is there kept."""
    return quote(url, safe=string.punctuation)


class Connection:
    """The bytes of a file on a web server from byte `start` on. Failures are NetworkErrors.

    `version` is what a later request names to continue the same file, "" when the server gives nothing reliable (a weak
    ETag is not). When it is given here and the file has another one, or when the server knows no Range requests,
    `position` is 0, not `start`. `size` is that of the whole file, 0 when the server does not say.
    """

    def __init__(self, url: str, timeout_s: float, start: int = 0, version: str = "") -> None:
        self.timeout_s = timeout_s
        headers = {"User-Agent": "mlpmixer"}
        if start:  # RFC 9110, 13.1.5
            headers |= {"Range": f"bytes={start}-"} | ({"If-Range": version} if version else {})
        try:
            if urlsplit(url).scheme not in WEB:
                raise Refused(f"expected an address of {' or '.join(WEB)}, got {shown(url)}")
            self._response: HTTPResponse = _OPENER.open(Request(_encoded(url), headers=headers), timeout=timeout_s)
        except NetworkError:
            raise
        except HTTPError as e:
            with e:
                if e.code == 416:
                    raise PartMismatch(f"the server's file is not longer than the {start:,} bytes that are here") from e
                kind = NetworkError if e.code >= 500 or e.code in RETRYABLE_STATUS else Refused
                raise kind(f"the server answers {e.code} {shortened(e.reason)}") from e
        except (OSError, HTTPException) as e:
            raise NetworkError(self._reason(e)) from e
        answer = self._response.headers
        etag = answer.get("ETag", "")
        self.content_type: str = answer.get("Content-Type", "").partition(";")[0].strip()
        self.version: str = etag if etag.startswith('"') else answer.get("Last-Modified", "")
        length = answer.get("Content-Length", "")
        self.position, self.size = 0, int(length) if re.fullmatch(r"[0-9]{1,18}", length) else 0
        if self._response.status == 206:
            part = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18})", answer.get("Content-Range", ""))
            if part is None or int(part[1]) != start or (version and self.version not in ("", version)):
                self.close()
                raise PartMismatch("the server sent another part of the file than was asked for")
            self.position, self.size = start, int(part[2])

    def read(self, most: int) -> bytes:
        """The next bytes, at least one and at most `most`; b"" at the end of the file."""
        try:
            content = self._response.read1(most)
        except (OSError, HTTPException) as e:
            raise NetworkError(self._reason(e)) from e
        self.position += len(content)
        if not content and self.position < self.size:
            raise NetworkError(f"the connection ended after {self.position:,} of {self.size:,} bytes")
        return content

    def close(self) -> None:
        self._response.close()

    def _reason(self, error: Exception) -> str:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, TimeoutError):
            return f"the server was silent for {self.timeout_s:g} s"
        return str(cause) or type(cause).__name__


def read_image(url: str, retry: Retry = IMAGE_RETRY) -> bytes:
    """The bytes of the image at an address, http:// or https://, kept nowhere.

    Errors: FetchError when it cannot be fetched within twice the timeout, is of another Content-Type, or has more than
    MAX_IMAGE_BYTES.
    """
    most_s = 2 * retry.timeout_s
    end = time.monotonic() + most_s

    def attempt() -> bytes:
        with closing(Connection(url, retry.timeout_s)) as connection:
            if not IMAGE_TYPES.fullmatch(connection.content_type):
                raise Refused(f"the server answers with {shown(connection.content_type)}, expected an image")
            content = bytearray()
            while max(connection.size, len(content)) <= MAX_IMAGE_BYTES:
                if time.monotonic() > end:
                    raise Refused(f"the server has not sent all of it within {most_s:g} s")
                if not (chunk := connection.read(CHUNK_BYTES)):
                    return bytes(content)
                content += chunk
            raise Refused(f"it has more than the limit of {MAX_IMAGE_BYTES:,} bytes")

    try:
        return retry.run(attempt)
    except NetworkError as e:
        raise FetchError(f"could not be fetched: {e}") from e


# ---- the cache


def cache_path(url: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where `fetch` keeps the file of `url`: ~/.cache/mlpmixer/HOST/PATH, for the Hub .../hf/OWNER/NAME/FILE.

    ValueError when `url` is neither https://HOST/FILE (or http) nor hf:OWNER/NAME/FILE.
    """
    root = Path(cache_dir) if cache_dir is not None else cache_folder()
    if url.startswith("hf:"):
        segments = ["hf", *url[3:].split("/")]
        ok = len(segments) >= 4 and all(re.fullmatch(r"[\w.-]+", s) for s in segments)
    else:
        parts = urlsplit(url)
        name = parts.path + (f"?{parts.query}" if parts.query else "")
        segments = [quote(s, safe="") for s in (parts.netloc, *name.removeprefix("/").split("/"))]
        ok = parts.scheme in ("http", "https")
    if not ok or {"", ".", ".."} & set(segments):
        raise ValueError(f"expected the address of a file, https://HOST/FILE or hf:OWNER/NAME/FILE, got {url!r}")
    return root.joinpath(*segments)


def fetch(
    url: str,
    *,
    num_bytes: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    report: Report | None = None,
    retry: Retry | None = None,
) -> Path:
    """The file of `url`, downloaded unless it is in the cache; returns its path, `cache_path(url, cache_dir)`.

    A file that is there already is used without any network, whoever put it there. A download that breaks off is kept
    and resumed, now or in the next call, as long as the file on the server is the same; only a complete file gets its
    name. When several processes ask at once, one downloads and the others wait. Each call compares the file's digest
    with that of the first one, which lies beside it.

    num_bytes: the exact size, checked; 0 when it is not known.
    report: receives {"kind": "fetch", "url", "done_bytes", "total_bytes"} as bytes arrive, at most ten times a second;
        total_bytes is 0 when it is not known. (Files of the Hub show huggingface-hub's own progress instead.)

    Raises ValueError, which says what to download and where to put it, when the download fails; ValueError when the
    file has another size than num_bytes, or has changed since the first call; OSError when it cannot be written.
    """
    path = cache_path(url, cache_dir)
    digest = path.with_name(f".{path.name}.sha256")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _file_lock(path):
                if not path.is_file():  # another process may have downloaded it meanwhile
                    digest.unlink(missing_ok=True)
                    if url.startswith("hf:"):
                        owner, name, file = url[3:].split("/", 2)
                        hub_file(f"{owner}/{name}", file, local_dir=path.parents[file.count("/")])
                    else:
                        _download(url, path, num_bytes, report or (lambda event: None), retry or Retry())
        except FetchError as e:
            size = f" ({num_bytes:,} bytes)" if num_bytes else ""
            raise ValueError(
                f"{url} could not be fetched: {e}. Without a network: download {_address(url)}{size} elsewhere and put "
                f"it at {path}"
            ) from e
    size_bytes = path.stat().st_size
    if num_bytes and size_bytes != num_bytes:
        raise ValueError(
            f"{path} has {size_bytes:,} bytes, but the file of {url} has {num_bytes:,}: remove it to download it "
            f"again, or put the right one there"
        )
    _require_unchanged(path, digest)
    return path


def _require_unchanged(path: Path, digest: Path) -> None:
    """ValueError when the file is not the one whose SHA-256 is in `digest`, which is written when it is not there."""
    with open(path, "rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    try:
        known = digest.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        with suppress(OSError):  # a cache that is only read
            write_text(digest, found)
        return
    if known != found:
        raise ValueError(
            f"{path} has changed since it was first used (SHA-256 differs): remove it to download it again, or remove "
            f"{digest.name} beside it if it is meant to be another"
        )


def import_hub(what: str, otherwise: str = "") -> Any:
    """The module huggingface_hub. FetchError says that `what` needs it."""
    try:
        import huggingface_hub
    except ImportError as e:
        raise FetchError(f'{what} needs huggingface-hub: pip install "mlpmixer[hf]"{otherwise}') from e
    return huggingface_hub


def hub_file(repo: str, file: str, *, local_dir: Path | None = None) -> Path:
    """A file of the model repository `repo` (owner/name) on the Hugging Face Hub, in `local_dir` or the Hub's cache.

    huggingface-hub resumes and checks it, and takes it from the cache when there is no network. Raises FetchError.
    """
    hub = import_hub("this")
    unreachable: Exception | None = None
    try:
        # One request first: without a network and without the file, hf_hub_download alone would try and print for half
        # a minute.
        hub.get_hf_file_metadata(hub.hf_hub_url(repo, file))
    except hub.errors.HfHubHTTPError:
        pass  # an answer: hf_hub_download decides what to make of it
    except Exception as e:  # no network, no answer, switched off: the Hub has many ways to say so
        unreachable = e
    try:
        return Path(hub.hf_hub_download(repo, file, local_dir=local_dir, local_files_only=unreachable is not None))
    except Exception as e:  # no such repository or file, refused, broken off
        cause = unreachable or e
        raise FetchError(first_line(cause)) from cause


def _address(url: str) -> str:
    """The address for a browser."""
    if not url.startswith("hf:"):
        return url
    owner, name, file = url[3:].split("/", 2)
    return f"https://huggingface.co/{owner}/{name}/resolve/main/{file}"


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """One process at a time; the others wait. (Where the system has no flock, nobody waits.)"""
    lock = path.with_name(f".{path.name}.lock")
    with open(lock, "w") as f:
        if fcntl is not None:
            fcntl.flock(f, fcntl.LOCK_EX)
        yield
        with suppress(OSError):
            lock.unlink()  # a process that still waits for it will find the file in place


def _download(url: str, path: Path, num_bytes: int, report: Report, retry: Retry) -> None:
    """`path` by way of a hidden .part beside it; the hidden .tag holds the version of the server's file."""
    part, version = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.tag")
    longest, failures_without_progress = _size(part), 0
    while True:
        try:
            _receive(url, part, version, num_bytes, report, retry.timeout_s)
            break
        except NetworkError as e:
            if isinstance(e, PartMismatch):
                part.unlink(missing_ok=True)
            failures_without_progress = 0 if _size(part) > longest else failures_without_progress + 1
            longest = max(longest, _size(part))
            if isinstance(e, Refused) or failures_without_progress >= retry.attempts:
                raise FetchError(str(e)) from e
            retry.wait(failures_without_progress)
    with open(part, "rb") as f:
        os.fsync(f.fileno())
    os.replace(part, path)
    version.unlink(missing_ok=True)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _receive(url: str, part: Path, version: Path, num_bytes: int, report: Report, timeout_s: float) -> None:
    """One attempt to fill `part`, from where it ends if the server still has the same file."""
    known = version.read_text(encoding="latin-1") if version.exists() else ""
    with closing(Connection(url, timeout_s, start=_size(part) if known else 0, version=known)) as connection:
        if num_bytes and connection.size not in (0, num_bytes):
            part.unlink(missing_ok=True)
            raise FetchError(f"the server has a file of {connection.size:,} bytes there, expected {num_bytes:,}")
        connection.size = connection.size or num_bytes
        left, free = connection.size - connection.position, shutil.disk_usage(part.parent).free
        if left > free:
            raise FetchError(f"{left:,} bytes are still to come, but the disk of {part.parent} has {free:,} free")
        event = {"kind": "fetch", "url": url, "total_bytes": connection.size}
        with open(part, "ab" if connection.position else "wb") as f:
            if not connection.position:
                version.write_text(connection.version, encoding="latin-1")
            report(event | {"done_bytes": connection.position})
            reported = time.monotonic()
            while chunk := connection.read(CHUNK_BYTES):
                f.write(chunk)
                if num_bytes and connection.position > num_bytes:
                    f.truncate(0)
                    raise FetchError(f"the server sends more than the {num_bytes:,} bytes that are expected")
                if time.monotonic() - reported >= REPORT_EVERY_S:
                    report(event | {"done_bytes": connection.position})
                    reported = time.monotonic()
            report(event | {"done_bytes": connection.position})

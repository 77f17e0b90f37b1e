"""Files from the network, once, into a cache: resumed where they broke off, checked by size, and placed by hand where
there is no network.

Only the standard library; addresses on the Hugging Face Hub (hf:owner/name/file) go through huggingface-hub, an extra.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from mlpmixer.hardware import cache_folder

if sys.platform != "win32":
    import fcntl

Report = Callable[[dict[str, Any]], None]
CHUNK_BYTES = 1 << 20
REPORT_EVERY_S = 0.1
TRY_AGAIN = {
    408,
    425,
    429,
}  # of the 4xx answers, those that another try may change: timeout, too early, too many (RFC 9110, 8470, 6585)


class FetchError(ValueError):
    """A file could not be had; the message says why."""


class _Broken(FetchError):
    """A failure that another try may mend."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type when it has none."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


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
    timeout_s: float = 30.0,
    attempts: int = 3,
    backoff_s: float = 1.0,
) -> Path:
    """The file of `url`, downloaded when it is not in the cache yet; gives its path, `cache_path(url, cache_dir)`.

    A file that lies there already is used without any network, whoever put it there. A download that breaks off is kept
    and goes on from there, now or in the next call, as long as the file on the server is still the same; only a whole
    file gets its name. Several processes may ask at once: one downloads, the others wait.

    num_bytes: the exact size, checked; 0 means that it is not known.
    report: receives {"kind": "fetch", "url", "done_bytes", "total_bytes"} as bytes come, ten times a second at most;
        total_bytes is 0 when nobody states it. (Files of the Hub show huggingface-hub's own progress instead.)
    timeout_s: seconds without a byte after which a connection counts as broken.
    attempts: tries in a row that bring nothing new before it is given up; the waits between them are backoff_s, then
    twice that, ...

    Raises ValueError, which says what to download and where to put it, when the file cannot be had; ValueError when it
    has another size than num_bytes; OSError when it cannot be written.
    """
    path = cache_path(url, cache_dir)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _alone(path):
                if not path.is_file():  # another process may have fetched it meanwhile
                    if url.startswith("hf:"):
                        owner, name, file = url[3:].split("/", 2)
                        hub_file(f"{owner}/{name}", file, local_dir=path.parents[file.count("/")])
                    else:
                        _download(_Source(url, num_bytes, timeout_s, report), path, attempts, backoff_s)
        except FetchError as e:
            size = f" ({num_bytes:,} bytes)" if num_bytes else ""
            raise ValueError(
                f"{url} could not be fetched: {e}. Without a network: download {_address(url)}{size} elsewhere and put "
                f"it at {path}"
            ) from e
    size_bytes = path.stat().st_size
    if num_bytes and size_bytes != num_bytes:
        raise ValueError(
            f"{path} has {size_bytes:,} bytes, but the file of {url} has {num_bytes:,}: remove it, and it will be "
            f"fetched again, "
            f"or put the right one there"
        )
    return path


def hub_file(repo: str, file: str, *, local_dir: Path | None = None) -> Path:
    """A file of the model repository `repo` (owner/name) on the Hugging Face Hub, in `local_dir` or in the Hub's own
    cache.

    huggingface-hub resumes and checks by itself, and takes what it has when there is no network. FetchError when it
    cannot be had.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as e:
        raise FetchError('this needs huggingface-hub: pip install "mlpmixer[hf]"') from e
    unreachable: Exception | None = None
    try:
        # One request first: without a network and without the file, hf_hub_download alone would try and print for half
        # a minute.
        hub.get_hf_file_metadata(hub.hf_hub_url(repo, file))
    except HfHubHTTPError:
        pass  # an answer: what to make of it is hf_hub_download's to decide
    except Exception as e:  # no network, no answer, switched off: the hub has many ways to say so
        unreachable = e
    try:
        return Path(hub.hf_hub_download(repo, file, local_dir=local_dir, local_files_only=unreachable is not None))
    except Exception as e:  # no such repository or file, refused, broken off
        cause = unreachable or e
        raise FetchError(first_line(cause)) from cause


def _address(url: str) -> str:
    """What a browser understands."""
    if not url.startswith("hf:"):
        return url
    owner, name, file = url[3:].split("/", 2)
    return f"https://huggingface.co/{owner}/{name}/resolve/main/{file}"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the others wait. (Where the system has no flock, nobody waits.)"""
    lock = path.with_name(f".{path.name}.lock")
    with open(lock, "w") as f:
        if sys.platform != "win32":
            fcntl.flock(f, fcntl.LOCK_EX)
        yield
        with suppress(OSError):
            lock.unlink()  # who still waits for it finds the file in place


@dataclass(frozen=True)
class _Source:
    """What is to come, and how to listen to it."""

    url: str
    num_bytes: int
    timeout_s: float
    report: Report | None

    def tell_of(self, done_bytes: int, total_bytes: int) -> None:
        if self.report:
            self.report({"kind": "fetch", "url": self.url, "done_bytes": done_bytes, "total_bytes": total_bytes})


def _download(source: _Source, path: Path, attempts: int, backoff_s: float) -> None:
    """`path` from the network, by way of a hidden .part beside it; .tag holds what the server calls the version of
    it."""
    part, tag = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.tag")
    longest, in_vain = _size(part), 0
    while True:
        try:
            _receive(source, part, tag)
            break
        except _Broken:
            in_vain = 0 if _size(part) > longest else in_vain + 1
            longest = max(longest, _size(part))
            if in_vain >= attempts:
                raise
            time.sleep(backoff_s * 2 ** max(in_vain - 1, 0))
    with open(part, "rb") as f:
        os.fsync(f.fileno())
    os.replace(part, path)
    tag.unlink(missing_ok=True)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _receive(source: _Source, part: Path, tag: Path) -> None:
    """One try: fill `part` up to its end, going on where it stops if the server agrees that it is of the same file (RFC
    9110, 13.1.5)."""
    version = tag.read_text(encoding="latin-1") if tag.exists() else ""
    have = _size(part) if version else 0
    headers = {"User-Agent": "mlpmixer"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    with _open(source, headers, part) as response:
        if response.status == 206:
            given = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if given is None or int(given[1]) != have or _version(response) not in ("", version):
                part.unlink(missing_ok=True)
                raise _Broken("the server sent another part of the file than was asked for")
            total = int(given[2])
        else:
            have, total = 0, int(response.headers.get("Content-Length", 0))
        if source.num_bytes and total and total != source.num_bytes:
            part.unlink(missing_ok=True)
            raise FetchError(f"the server has a file of {total:,} bytes there, expected {source.num_bytes:,}")
        total = total or source.num_bytes
        with open(part, "ab" if have else "wb") as f:
            if not have:
                tag.write_text(_version(response), encoding="latin-1")
            source.tell_of(have, total)
            told = time.monotonic()
            while chunk := _read(source, response):
                have += f.write(chunk)
                if source.num_bytes and have > source.num_bytes:
                    f.truncate(0)
                    raise FetchError(f"the server sends more than the {source.num_bytes:,} bytes that are expected")
                if time.monotonic() - told >= REPORT_EVERY_S:
                    source.tell_of(have, total)
                    told = time.monotonic()
            source.tell_of(have, total)
    if have < total:
        raise _Broken(f"the connection ended after {have:,} of {total:,} bytes")


def _version(response: HTTPResponse) -> str:
    """What a later Range request must name for the same file; "" when the server gives nothing that is sure (a weak
    ETag is not)."""
    etag: str = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _open(source: _Source, headers: dict[str, str], part: Path) -> HTTPResponse:
    try:
        response: HTTPResponse = urlopen(Request(source.url, headers=headers), timeout=source.timeout_s)
        return response
    except HTTPError as e:
        with e:
            if e.code == 416:  # there is nothing after what we have, so what we have is of no use
                part.unlink(missing_ok=True)
                raise _Broken("the server's file is not longer than what had come of it") from e
            kind = _Broken if e.code >= 500 or e.code in TRY_AGAIN else FetchError
            raise kind(f"the server answers {e.code} {e.reason}") from e
    except (OSError, HTTPException) as e:
        raise _Broken(_reason(source, e)) from e


def _read(source: _Source, response: HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK_BYTES)
    except (OSError, HTTPException) as e:
        raise _Broken(_reason(source, e)) from e


def _reason(source: _Source, error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return f"the server was silent for {source.timeout_s:g} s"
    return str(cause) or type(cause).__name__

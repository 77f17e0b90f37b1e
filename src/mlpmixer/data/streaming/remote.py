"""A file on a web server, read where it lies: what follows comes over one connection, a jump opens another there (HTTP
Range)."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from mlpmixer.config import Config
from mlpmixer.download import TRY_AGAIN

SHORT_JUMP_BYTES = 1 << 20  # up to here it is quicker to read on than to ask again


@dataclass(frozen=True, kw_only=True)
class Retry(Config):
    """How much trouble is put up with."""

    timeout_s: float = 30.0
    """Seconds without a byte after which a connection counts as broken."""
    attempts: int = 3
    """Tries in a row that bring nothing new before it is given up."""
    backoff_s: float = 1.0
    """The wait before the second try; then twice that, ..."""


class Refused(OSError):
    """An answer that another try will not change."""


class HubFile(io.RawIOBase):
    """A file of the Hugging Face Hub, OWNER/NAME... as HfFileSystem takes it. OSError says what went wrong."""

    def __init__(self, path: str) -> None:
        self._file = _of_the_hub(lambda: _hub_file_system().open(path, "rb"))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content: bytes = _of_the_hub(lambda: self._file.read(len(buffer)))
        buffer[: len(content)] = content
        return len(content)


def _hub_file_system() -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


def _of_the_hub(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except FileNotFoundError:
        raise
    except Exception as e:  # no network, refused, broken off: the hub has many ways to say so
        raise OSError(str(e).strip().partition("\n")[0] or type(e).__name__) from e


class RemoteFile(io.RawIOBase):
    """The bytes behind an http or https address; seekable, read-only. OSError says what went wrong, Refused that it
    will stay so."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url, self.timeout_s = url, timeout_s
        self.size = -1
        self._position = 0  # of the next byte to give
        self._next = 0  # of the next byte of the response
        self._response: HTTPResponse | None = None
        self._connect()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence], 0)
        return self._position

    def close(self) -> None:
        self._hang_up()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._position >= self.size or not len(buffer):
            return 0
        if self._response is not None and not 0 <= self._position - self._next <= SHORT_JUMP_BYTES:
            self._hang_up()
        if self._response is None:
            self._connect()
        while self._next < self._position:
            self._receive(self._position - self._next)
        content = self._receive(len(buffer))
        buffer[: len(content)] = content
        self._position = self._next
        return len(content)

    def _receive(self, most: int) -> bytes:
        assert self._response is not None
        try:
            content = self._response.read1(most)
        except (OSError, HTTPException) as e:
            self._hang_up()
            raise OSError(self._reason(e)) from e
        if not content:
            self._hang_up()
            raise OSError(f"the connection ended after {self._next:,} of {self.size:,} bytes")
        self._next += len(content)
        return content

    def _connect(self) -> None:
        headers = {"User-Agent": "mlpmixer"} | ({"Range": f"bytes={self._position}-"} if self._position else {})
        try:
            response: HTTPResponse = urlopen(Request(self.url, headers=headers), timeout=self.timeout_s)
        except HTTPError as e:
            with e:
                kind = OSError if e.code >= 500 or e.code in TRY_AGAIN else Refused
                raise kind(f"the server answers {e.code} {e.reason}") from e
        except (OSError, HTTPException) as e:
            raise OSError(self._reason(e)) from e
        self._response, self._next = response, self._position
        whole = re.search(r"/(\d+)$", response.headers.get("Content-Range", "")) if self._position else None
        size = int(whole[1] if whole else response.headers.get("Content-Length", -1))
        problem = ""
        if self._position and response.status != 206:
            problem = "the server knows no Range requests: asked for a part, it sends the whole file"
        elif size < 0:
            problem = "the server does not say how long the file is"
        elif self.size not in (-1, size):
            problem = f"the file had {self.size:,} bytes when it was opened and now has {size:,}"
        if problem:
            self._hang_up()
            raise Refused(problem)
        self.size = size

    def _hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def _reason(self, error: Exception) -> str:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, TimeoutError):
            return f"the server was silent for {self.timeout_s:g} s"
        return str(cause) or type(cause).__name__

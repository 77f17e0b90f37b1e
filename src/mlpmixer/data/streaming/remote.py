"""A file on a web server, read in place: forward over one connection, with another one after a jump (HTTP Range)."""

import io

from mlpmixer.download import Connection, NetworkError, Refused, Retry

MAX_SKIP_BYTES = 1 << 20  # up to here it is quicker to read on than to ask again


class RemoteFile(io.RawIOBase):
    """The bytes behind an http or https address; seekable, read-only. Failures are NetworkErrors.

    A connection that breaks is opened again where it stopped.
    """

    def __init__(self, url: str, retry: Retry) -> None:
        self.url, self.retry = url, retry
        self._position = 0  # of the next byte to return
        self._connection: Connection | None = retry.run(lambda: Connection(url, retry.timeout_s))
        self.size, self._version = self._connection.size, self._connection.version
        if not self.size:
            raise self._refused("the server does not say how long the file is")

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
        self._disconnect()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._position >= self.size or not len(buffer):
            return 0
        content = self.retry.run(lambda: self._read(len(buffer)))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _read(self, most: int) -> bytes:
        try:
            connection = self._connect()
            while connection.position < self._position:
                connection.read(self._position - connection.position)
            return connection.read(most)
        except NetworkError:
            self._disconnect()
            raise

    def _connect(self) -> Connection:
        """A connection at or shortly before the position: the present one, if possible."""
        if self._connection and 0 <= self._position - self._connection.position <= MAX_SKIP_BYTES:
            return self._connection
        self._disconnect()
        self._connection = connection = Connection(self.url, self.retry.timeout_s, self._position, self._version)
        if connection.size != self.size or connection.version not in ("", self._version):
            raise self._refused(f"the file has changed since it was opened; it had {self.size:,} bytes then")
        if connection.position != self._position:
            raise self._refused("the server does not support Range requests: asked for a part, it sends the whole file")
        return connection

    def _refused(self, reason: str) -> Refused:
        self._disconnect()
        return Refused(reason)

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

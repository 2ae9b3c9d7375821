"""A file that is written from front to back while the disk already works on what is written."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

_SYNC_EVERY = 64 * 2**20


def write_all(fd: int, content: bytes | memoryview) -> int:
    """Write all bytes: the kernel may take fewer than asked, most likely just before it reports a full disk."""
    rest = memoryview(content).cast("B")
    size = len(rest)
    while rest:
        rest = rest[os.write(fd, rest) :]
    return size


class StreamedFile:
    """A new file. Unbuffered, whole writes; synced in the background, so that not everything is left to the last sync.

    As a context manager it is closed when the block ends well, and only let go of when it does not.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        """``durable=False`` never syncs. Raises OSError, too, when the file exists."""
        self._file = path.open("xb", buffering=0)
        self._durable = durable
        self._synced = 0
        self._syncing: threading.Thread | None = None
        self._failure: OSError | None = None
        self.size = 0
        """Bytes written so far."""

    def __enter__(self) -> StreamedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._let_go()

    def write(self, content: memoryview | bytes) -> int:
        """Write all of ``content``.

        Raises:
            OSError: the disk does not take it, now or in the background.
        """
        if self._failure is not None:
            raise self._failure
        size = write_all(self._file.fileno(), content)
        self.size += size
        overdue = self._durable and self.size - self._synced >= _SYNC_EVERY
        if overdue and not (self._syncing and self._syncing.is_alive()):
            self._synced = self.size
            self._syncing = threading.Thread(target=self._sync, daemon=True)
            self._syncing.start()
        return size

    def _sync(self) -> None:
        try:
            os.fdatasync(self._file.fileno())
        except OSError as error:
            self._failure = error  # the kernel reports a write error once, so it is kept for the writer

    def close(self) -> None:
        """Wait until all of it is on the disk.

        Raises:
            OSError: it is not.
        """
        try:
            if self._syncing is not None:
                self._syncing.join()
            if self._failure is not None:
                raise self._failure
            if self._durable:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def _let_go(self) -> None:
        if self._syncing is not None:
            self._syncing.join()
        self._file.close()

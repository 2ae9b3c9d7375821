"""A file that is written from front to back while the disk already works on what is written."""

from __future__ import annotations

import os
import threading
from pathlib import Path

_SYNC_EVERY = 64 * 2**20


class StreamedFile:
    """Unbuffered, whole writes; synced in the background, so that not everything is left to the last sync."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._synced = 0
        self._syncing: threading.Thread | None = None
        self._failure: OSError | None = None
        self.size = 0
        """Bytes written so far."""

    def write(self, content: memoryview | bytes) -> int:
        """Write all of ``content``; the kernel may take less at a time, most likely just before the disk is full.

        Raises:
            OSError: the disk does not take it, now or in the background.
        """
        if self._failure is not None:
            raise self._failure
        rest = memoryview(content).cast("B")
        size = len(rest)
        while rest:
            rest = rest[self._file.write(rest) :]
        self.size += size
        if self.size - self._synced >= _SYNC_EVERY and not (self._syncing and self._syncing.is_alive()):
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
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

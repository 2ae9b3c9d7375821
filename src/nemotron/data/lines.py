"""Blocks of lines from JSONL files of any size, plain or compressed. A line belongs to the block of its first byte.

A line longer than ``max_row_bytes`` is counted and located but never held in memory.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from nemotron.data.content import packing, unreadable, zstandard
from nemotron.disk.documents import open_regular
from nemotron.errors import DataError

_READ = 1 << 20
_PACKED_BYTES = 1 << 12


@dataclass(slots=True)
class Block:
    """Consecutive lines of a file."""

    lines: list[bytes]
    """Without line ends. A line that is too long is represented by its first bytes."""
    too_long: dict[int, int] = field(default_factory=dict)
    """Index of a line that is too long -> its length in bytes."""
    first_line: int | None = None
    """1-based number of the first line; None where a block in the middle of a file was read alone."""
    size: int = 0
    """Bytes that were read."""
    fingerprint: str = ""
    """xxh3-128 of what was read."""
    not_finite: int = 0
    """Numbers that JSON does not have, which became null."""
    has_returns: bool = False
    """Whether there is a carriage return anywhere."""

    def of(self, content: bytes | memoryview) -> Block:
        """The block with what is known from its bytes."""
        # Only here: reading a compressed shard back needs no package at all.
        import xxhash

        self.size, self.fingerprint = len(content), xxhash.xxh3_128_hexdigest(content)
        return self


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_range(path: Path, start: int, end: int, max_row_bytes: int) -> Block:
    """The lines whose first byte is in ``[start, end)`` of a plain file.

    Raises:
        DataError: the file cannot be read, or became shorter than it was.
    """
    try:
        with open_regular(path) as file:
            file.seek(max(0, start - 1))
            data = _read_fully(file, end - max(0, start - 1))
            if len(data) < end - max(0, start - 1):
                raise DataError(
                    f"`{path}` became shorter while it was read", hint="let the writer finish, then run again"
                )
            known = Block([], has_returns=b"\r" in data).of(memoryview(data)[1 if start else 0 :])
            first = 0
            if start:
                first = data.find(b"\n") + 1
                if not first:
                    return known
            torn = len(data) > first and data[-1] != 10
            rest, length = _rest_of_line(file, max_row_bytes) if torn else (b"", 0)
    except OSError as error:
        raise unreadable(path, error) from error
    if start == 0:
        data = data.removeprefix(b"\xef\xbb\xbf")
    lines = data.split(b"\n")
    if first:
        # What stands before the first line end belongs to the block before.
        del lines[0]
    if lines[-1]:
        length += len(lines[-1])
        lines[-1] += rest
    else:
        lines.pop()
        length = 0
    known.lines = lines
    _mark_long(known, max_row_bytes, length)
    return known


def _mark_long(block: Block, max_row_bytes: int, last_length: int) -> None:
    lines = block.lines
    if last_length > max_row_bytes:
        block.too_long[len(lines) - 1] = last_length
        lines[-1] = lines[-1][:4096]
    if lines and max(map(len, lines)) > max_row_bytes:
        for index, line in enumerate(lines):
            if len(line) > max_row_bytes:
                block.too_long[index] = len(line)
                lines[index] = line[:4096]


def _read_fully(file: Any, size: int) -> bytes:
    data = file.read(size) or b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return bytes(data)


def _rest_of_line(file: Any, max_row_bytes: int) -> tuple[bytes, int]:
    """The bytes up to the next line end, without it, and their number; not kept once there are too many."""
    kept, length = [], 0
    while chunk := file.read(_READ):
        newline = chunk.find(b"\n")
        part = chunk if newline < 0 else chunk[:newline]
        length += len(part)
        if length <= max_row_bytes:
            kept.append(part)
        if newline >= 0:
            break
    return (b"".join(kept) if length <= max_row_bytes else b""), length


def read_stream(path: Path, block_bytes: int, max_row_bytes: int, *, fingerprint: bool = False) -> Iterator[Block]:
    """All lines of a compressed (or plain) file as blocks of about ``block_bytes`` after decompression.

    Raises:
        DataError: the file cannot be read, is damaged, or ends early.
    """
    number, rest, skipped, start = 1, b"", 0, True
    with closing(open_stream(path)) as source:
        while True:
            data = checked_read(path, source, block_bytes)
            if start:
                data, start = data.removeprefix(b"\xef\xbb\xbf"), False
            ended = not data
            cut = data.rfind(b"\n") + 1
            if not ended and cut == 0:
                skipped, rest = _carry(skipped, rest, data, max_row_bytes)
                continue
            head = rest + data[:cut]
            if head:
                lines = head.split(b"\n")
                if not lines[-1]:
                    lines.pop()
                block = Block(lines, first_line=number, size=len(head), has_returns=b"\r" in head)
                if fingerprint:
                    block.of(head)
                if skipped:
                    block.too_long[0] = skipped + len(lines[0]) - len(rest)
                    lines[0] = lines[0][:4096]
                _mark_long(block, max_row_bytes, 0)
                number += len(lines)
                yield block
            if ended:
                return
            skipped, rest = _carry(0, b"", data[cut:], max_row_bytes)


def _carry(skipped: int, rest: bytes, more: bytes, max_row_bytes: int) -> tuple[int, bytes]:
    """Length of a line that is too long so far (0: it is not) and the bytes of the unfinished line that are kept."""
    length = (skipped or len(rest)) + len(more)
    return (length, (rest + more)[:4096]) if length > max_row_bytes else (0, rest + more)


def checked_read(path: Path, source: _Source, size: int) -> bytes:
    """The next ``size`` bytes of a stream; fewer at its end alone.

    Raises:
        DataError: the file cannot be read, is damaged, or ends early.
    """
    try:
        return _read_fully(source, size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"`{path}` is damaged or ends early: {error}", hint="copy or compress it again") from error
    except OSError as error:
        raise unreadable(path, error) from error


def open_stream(path: Path) -> Any:
    """A reader of the decompressed bytes, chosen by the first ones.

    Raises:
        DataError: the file cannot be opened. NotAvailableError: `zstandard` is not installed.
    """
    kind = packing(path)
    library = zstandard() if kind == "zstd" else None
    try:
        file = open_regular(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if kind == "gzip":
        return _GzipReader(file)
    return file if library is None else _ZstdReader(file, library)


class _GzipReader(gzip.GzipFile):
    """Closes the file that it reads, too."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._opened = file

    def close(self) -> None:
        super().close()
        self._opened.close()


class _ZstdReader:
    """Decompress frames one by one and notice a file that ends inside one, which the library's own reader does not."""

    def __init__(self, file: BinaryIO, library: Any) -> None:
        self._file, self._library = file, library
        self._frame: Any = None
        self._ready, self._at = b"", 0

    def read(self, size: int) -> bytes:
        while self._at >= len(self._ready):
            # Four bytes can stand for 128 KiB, so little is unpacked at once.
            chunk = self._file.read(_PACKED_BYTES)
            if not chunk:
                if self._frame is not None:
                    raise EOFError("the last frame is not complete")
                return b""
            self._ready, self._at = self._decompress(chunk), 0
        data = self._ready[self._at : self._at + size]
        self._at += len(data)
        return data

    def _decompress(self, chunk: bytes) -> bytes:
        found = []
        while chunk:
            if self._frame is None:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            try:
                found.append(self._frame.decompress(chunk))
            except self._library.ZstdError as error:
                raise EOFError(str(error)) from error
            if not self._frame.eof:
                break
            chunk, self._frame = self._frame.unused_data, None
        return b"".join(found)

    def close(self) -> None:
        self._file.close()

"""JSON lines that grow while a run lives, and survive ``kill -9`` and a full disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import pydantic_core

from nemotron.disk.atomic import sync, write_lines
from nemotron.disk.documents import MalformedError, lines_of, open_regular, parse_json
from nemotron.disk.faults import output_errors, reason
from nemotron.disk.stream import write_all
from nemotron.errors import DataError, Origin

Row = dict[str, Any]
_BLOCK = 1 << 16
_LONGEST_LINE = 1 << 26


def to_json(value: Any, *, indent: int | None = None) -> bytes:
    """JSON that every reader accepts: NaN and infinities become ``null``; paths and dataclasses are understood."""
    return pydantic_core.to_json(value, inf_nan_mode="null", indent=indent)


class JsonLines:
    """One ``.jsonl`` file with one writer and any number of readers.

    Every ``append`` is one write that reaches the operating system before it returns, so a killed process loses at
    most the line it was writing. Such a torn last line is skipped by :meth:`read` and removed by the next write.

    Example: ``JsonLines(path).append([{"step": 1, "train/reward": 0.5}])``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tail_is_whole = False

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append all rows or, when the disk refuses, none of them.

        Raises:
            OutputError: the file cannot be written; it then ends where it ended before.
        """
        content = b"".join(to_json(dict(row)) + b"\n" for row in rows)
        with output_errors(self.path):
            if not self._tail_is_whole:
                self._drop_torn_tail()
                self._tail_is_whole = True
            with open(self.path, "ab", buffering=0) as file:
                end = os.fstat(file.fileno()).st_size
                try:
                    write_all(file.fileno(), content)
                except BaseException:
                    os.ftruncate(file.fileno(), end)
                    raise

    def read(self) -> Iterator[Row]:
        """Yield the rows in file order; a missing file has none.

        Raises:
            DataError: a line other than the last is not a JSON object.
        """
        for _, row in self._lines():
            yield row

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Drop every row that is not ``wanted``, and a torn last line. A missing file stays missing.

        One row at a time is in memory. Rows at the end are cut off where they are; only when wanted rows follow on
        unwanted ones is the file written anew, atomically.

        Raises:
            DataError: a line other than the last is not a JSON object.
            OutputError: the file cannot be written; it then is as it was.
        """
        if not self.path.exists():
            return
        end, cut, scattered = 0, None, False
        for line, row in self._lines():
            if not wanted(row):
                cut = end if cut is None else cut
            elif cut is not None:
                scattered = True
                break
            end += len(line)
        if scattered:
            write_lines(self.path, (line for line, row in self._lines() if wanted(row)))
        elif (cut if cut is not None else end) < self.path.stat().st_size:
            with output_errors(self.path), self.path.open("r+b") as file:
                file.truncate(cut if cut is not None else end)
                os.fsync(file.fileno())
        self._tail_is_whole = True

    def sync(self) -> None:
        """Make what was appended survive a power cut. Raises OutputError."""
        if self.path.exists():
            with output_errors(self.path):
                sync(self.path)

    def _lines(self) -> Iterator[tuple[bytes, Row]]:
        if not os.path.lexists(self.path):
            return
        with self._opened() as file:
            broken: DataError | None = None
            for number, line in enumerate(self._bounded(file), start=1):
                if broken is not None:
                    raise broken
                row = _parse(line)
                if row is None:
                    # Forgiven only if no line follows: then it is the one a killed process was writing.
                    broken = DataError(
                        "this line is not a JSON object",
                        hint="repair or delete the line; only the last line may be incomplete",
                        origin=Origin(str(self.path), line=number),
                    )
                    continue
                yield line, row

    def _opened(self) -> BufferedReader:
        try:
            return open_regular(self.path)
        except OSError as error:
            raise self._unreadable(error) from error

    def _bounded(self, file: BufferedReader) -> Iterator[bytes]:
        try:
            yield from lines_of(file, _LONGEST_LINE)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> DataError:
        return DataError(
            f"these rows cannot be read: {reason(error)}",
            hint="put the file back, or move it away",
            origin=Origin(str(self.path)),
        )

    def _drop_torn_tail(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end == 0:
                return
            file.seek(end - 1)
            if file.read() != b"\n":
                file.truncate(_last_line_end(file, end))


def _last_line_end(file: BinaryIO, end: int) -> int:
    """Where the last whole line of a file of ``end`` bytes ends, looked for from behind."""
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _parse(line: bytes) -> Row | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = parse_json(line)
    except MalformedError:
        return None
    return row if isinstance(row, dict) else None

"""Pieces: the checked rows of one block as a sorted run on disk, the unit of work and of restart.

Rows are sorted by (split, order key), where the order key is a seeded hash of the row's bytes. Merging all runs gives
the shuffled data set, whatever the order of files, blocks and processes was. A piece carries for each row its hashes,
its line and where its bytes end, and a table of where each *cell* (a range of order keys) starts, so that the merge
reads any range of keys from any piece with three small reads.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from nemotron.data.prep.normal import U64, sort_order
from nemotron.disk.atomic import replacing
from nemotron.errors import ArtifactError

MAGIC = b"NMPIECE1"
SPLIT_BITS = 4
KEY_BITS = 64 - SPLIT_BITS
_COLUMNS: tuple[tuple[str, str], ...] = (
    ("keys", "<u8"),
    ("checks", "<u8"),
    ("prompts", "<u8"),
    ("texts", "<u8"),
    ("ends", "<u8"),
    ("lines", "<u4"),
    ("cells", "<u4"),
)


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of all pieces of a run: each split's order keys in ``2**bits`` equal ranges."""

    splits: int
    bits: int

    @property
    def cells(self) -> int:
        """Cells of one split."""
        return int(1 << self.bits)

    def bounds(self) -> U64:
        """Smallest (split, order key) of every cell, splits one after another."""
        cells = np.arange(self.splits * self.cells, dtype=np.uint64)
        split, cell = cells >> np.uint64(self.bits), cells & np.uint64(self.cells - 1)
        return (split << np.uint64(KEY_BITS)) | (cell << np.uint64(KEY_BITS - self.bits))


@dataclass(slots=True)
class PieceRows:
    """The rows of a piece before they are sorted; arrays are parallel to ``lines``."""

    lines: Sequence[bytes]
    keys: U64
    """Split in the top four bits, order key below."""
    checks: U64
    prompts: U64
    texts: U64
    numbers: NDArray[np.uint32]
    """Line in the block, from 0."""


@dataclass(frozen=True, slots=True)
class PieceInfo:
    """The header of a piece."""

    source: int
    copy: int
    """0 is the rows as read; further copies come from a weight above 1."""
    part: int
    """Position in its source."""
    rows: int
    read: int
    lines: int
    """Lines of the block, blank ones included."""
    first_line: int | None
    content: str
    """xxh3-128 of what was read."""
    kinds: dict[str, int] = field(default_factory=dict)
    forms: list[tuple[str, str, str, int]] = field(default_factory=list)
    """What rows were taken for: split, kind and fields of the form, and how many."""
    not_finite: int = 0
    """Numbers that became null, because JSON has no NaN."""
    reasons: dict[str, int] = field(default_factory=dict)
    split_rows: list[int] = field(default_factory=list)


def write_piece(path: Path, info: PieceInfo, rows: PieceRows, grid: Grid, rejects: Sequence[dict[str, Any]]) -> None:
    """Sort and write a piece under a temporary name, then rename it.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    order = sort_order(rows.keys, rows.checks, rows.numbers)
    lines = rows.lines
    picked = [lines[i] for i in order.tolist()]
    ends = np.cumsum(np.fromiter(map(len, picked), dtype=np.uint64, count=len(picked)) + np.uint64(1), dtype=np.uint64)
    keys = rows.keys[order]
    cells = np.append(np.searchsorted(keys, grid.bounds()), len(picked))
    columns = {
        "keys": keys,
        "checks": rows.checks[order],
        "prompts": rows.prompts[order],
        "texts": rows.texts[order],
        "ends": ends,
        "lines": rows.numbers[order],
        "cells": cells,
    }
    blobs = [np.ascontiguousarray(columns[name], dtype=kind).tobytes() for name, kind in _COLUMNS]
    # The empty row at the end writes the last line end, without one more copy of everything.
    blobs += [orjson.dumps(list(rejects)), b"\n".join([*picked, b""])]
    check = xxhash.xxh3_64()
    for blob in blobs:
        check.update(blob)
    header = orjson.dumps({"info": info, "sizes": [len(blob) for blob in blobs], "check": check.hexdigest()})
    # Not synced: the check finds a piece that a power cut took, and its block is read again.
    with replacing(path, durable=False) as file:
        for blob in (MAGIC + len(header).to_bytes(8, "little") + header, *blobs):
            file.write(blob)


class Piece:
    """A piece on disk. Its file stays open; columns are read on demand and never kept."""

    def __init__(self, path: Path) -> None:
        """Open a piece.

        Raises:
            ArtifactError: not a whole piece.
        """
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            hint = "raise the limit of open files (`ulimit -n`)" if error.errno == errno.EMFILE else None
            raise ArtifactError(f"cannot read the work file `{path}`: {error.strerror}", hint=hint) from error
        start = os.pread(self._fd, 16, 0)
        size = int.from_bytes(start[8:], "little")
        if start[:8] != MAGIC or len(start) < 16 or size > 1 << 24:
            raise self._damaged()
        try:
            header = orjson.loads(os.pread(self._fd, size, 16))
        except orjson.JSONDecodeError as error:
            raise self._damaged() from error
        self.info = PieceInfo(**header["info"])
        sizes = header["sizes"]
        offsets = np.concatenate(([16 + size], 16 + size + np.cumsum(sizes))).tolist()
        if os.fstat(self._fd).st_size != offsets[-1]:
            raise self._damaged()
        self._sizes, self._check = sizes, header["check"]
        self._columns = {name: (offsets[i], kind) for i, (name, kind) in enumerate(_COLUMNS)}
        self._rejects, self._data = offsets[-3], offsets[-2]
        self.data_bytes: int = sizes[-1]

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def verify(self) -> bool:
        """Whether the content is what was written: a power cut may leave a file of the right size with holes."""
        check, at = xxhash.xxh3_64(), self._columns["keys"][0]
        end = at + sum(self._sizes)
        while at < end and (chunk := os.pread(self._fd, min(1 << 20, end - at), at)):
            check.update(chunk)
            at += len(chunk)
        return bool(check.hexdigest() == self._check)

    def column(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Values ``[first, last)`` of a column."""
        start, kind = self._columns[name]
        width = int(kind[-1])
        last = self.info.rows if last is None else last
        return np.frombuffer(self._read((last - first) * width, start + first * width), dtype=kind)

    def cell_starts(self, first: int, last: int) -> tuple[int, int]:
        """Rows ``[from, to)`` of the cells ``[first, last)``."""
        start, _ = self._columns["cells"]
        low = int.from_bytes(self._read(4, start + 4 * first), "little")
        return low, int.from_bytes(self._read(4, start + 4 * last), "little")

    def cell_counts(self, cells: int) -> NDArray[np.int64]:
        """Rows of every cell."""
        starts = self.column("cells", 0, cells + 1).astype(np.int64)
        counts: NDArray[np.int64] = starts[1:] - starts[:-1]
        return counts

    def data(self, first: int, last: int) -> list[bytes]:
        """The bytes of rows ``[first, last)``, without line ends."""
        if first == last:
            return []
        begin = int(self.column("ends", first - 1, first)[0]) if first else 0
        end = int(self.column("ends", last - 1, last)[0])
        rows = self._read(end - begin, self._data + begin).split(b"\n")
        rows.pop()
        return rows

    def rejects(self) -> list[dict[str, Any]]:
        """Rejected rows with their ``line`` in the block, from 0."""
        found: list[dict[str, Any]] = orjson.loads(self._read(self._data - self._rejects, self._rejects))
        return found

    def _read(self, size: int, offset: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise self._damaged()
        return data

    def _damaged(self) -> ArtifactError:
        return ArtifactError(f"the work file `{self.path}` is damaged", hint="run again with `force=true`")

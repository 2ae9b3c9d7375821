"""The second pass: the pieces are merged, one range of keys at a time, into shards that are whole or not there."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import orjson

from nemotron.data.manifest import file_sha256
from nemotron.data.prep.normal import sort_order
from nemotron.data.prep.selection import Counts, Selection, cell_groups
from nemotron.data.prep.workers import Step
from nemotron.disk.atomic import replacing, write_atomic
from nemotron.disk.documents import read_object
from nemotron.disk.stream import StreamedFile
from nemotron.errors import NotAvailableError
from nemotron.install import install_extra

# Rows merged at once. Each piece is read once for each group, so many pieces make larger groups, up to a bound.
_GROUP_BYTES, _LARGEST_GROUP = 4 << 20, 32 << 20
_PIECE_BYTES = 4 << 10
SUFFIX = {"none": ".jsonl", "gzip": ".jsonl.gz", "zstd": ".jsonl.zst"}


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard that is written."""

    path: str
    """Relative to the manifest."""
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Rows ``[first, last)`` of a split, in its order."""

    name: str
    split: int
    first: int
    last: int


@dataclass(frozen=True)
class Merge:
    """Writes shards of a selection."""

    selection: Selection
    splits: tuple[str, ...]
    folder: Path
    receipts: Path
    compression: str

    def tasks(self, shards_per_split: int) -> list[ShardTask]:
        """Every shard of every split; shards of a split differ by at most one row."""
        found = []
        for split, name in enumerate(self.splits):
            rows = int(self.selection.rows_of_split(split).sum())
            shards = min(shards_per_split, rows)
            for i in range(shards):
                path = f"{name}-{i:05d}-of-{shards:05d}{SUFFIX[self.compression]}"
                found.append(ShardTask(path, split, i * rows // shards, (i + 1) * rows // shards))
        return found

    def run(self, task: ShardTask, step: Step) -> None:
        """Write one shard and its receipt.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        counts = self.selection.rows_of_split(task.split)
        ends = np.cumsum(counts)
        first_cell = int(np.searchsorted(ends, task.first, side="right"))
        last_cell = int(np.searchsorted(ends, task.last - 1, side="right")) + 1
        position = int(ends[first_cell - 1]) if first_cell else 0
        path = self.folder / task.name
        with replacing(path) as file:
            output = _Output(file, self.compression)
            for low, high in cell_groups(counts[first_cell:last_cell], self._group_rows(counts)):
                lines = self._merged(task.split, first_cell + low, first_cell + high)
                here = lines[max(0, task.first - position) : task.last - position]
                position += len(lines)
                if here:
                    output.write(b"\n".join([*here, b""]))
                step(len(here), 0)
            shard = output.finish(task)
        write_atomic(self.receipts / f"{task.name}.json", orjson.dumps(asdict(shard)))

    def receipt(self, task: ShardTask) -> Shard | None:
        """The shard as it was written, if its file is there in that size."""
        path, receipt = self.folder / task.name, self.receipts / f"{task.name}.json"
        try:
            shard = Shard(**read_object(receipt))
            same = path.stat().st_size == shard.bytes
        except (OSError, ValueError, TypeError):
            return None
        return shard if same and shard.rows == task.last - task.first else None

    def finished(self, task: ShardTask) -> Shard | None:
        """The shard as an earlier attempt left it, if its content is still what was written."""
        shard = self.receipt(task)
        return shard if shard and file_sha256(self.folder / task.name) == shard.sha256 else None

    def _group_rows(self, counts: Counts) -> int:
        data = sum(piece.data_bytes for piece in self.selection.pieces)
        rows = sum(piece.info.rows for piece in self.selection.pieces)
        return max(1, group_bytes(len(self.selection.pieces)) * rows // max(1, data))

    def _merged(self, split: int, first: int, last: int) -> list[bytes]:
        """All taken rows of the cells ``[first, last)`` in order."""
        base = split * self.selection.grid.cells
        lines: list[bytes] = []
        keys, checks = [], []
        for part in self.selection.parts(base + first, base + last):
            mine = part.piece.data(part.first, part.last)
            if part.keep is None:
                lines += mine
                keys.append(part.keys)
                checks.append(part.checks)
            else:
                lines += [line for line, kept in zip(mine, part.keep.tolist(), strict=True) if kept]
                keys.append(part.keys[part.keep])
                checks.append(part.checks[part.keep])
        if not lines:
            return []
        order = sort_order(np.concatenate(keys), np.concatenate(checks))
        return [lines[i] for i in order.tolist()]


def group_bytes(pieces: int) -> int:
    """Bytes of rows to merge at once, from so many pieces."""
    return min(_LARGEST_GROUP, max(_GROUP_BYTES, pieces * _PIECE_BYTES))


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Output:
    """A file that is compressed, hashed and counted while it is written."""

    def __init__(self, file: StreamedFile, compression: str) -> None:
        self._compressor = _compressor(compression)
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._write(data if self._compressor is None else self._compressor.compress(data))

    def finish(self, task: ShardTask) -> Shard:
        if self._compressor is not None:
            self._write(self._compressor.flush())
        return Shard(task.name, task.last - task.first, self._file.size, self._hash.hexdigest())

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)


def _compressor(name: str) -> _Compressor | None:
    if name == "gzip":
        # No time and no file name in the header: same rows, same bytes.
        return zlib.compressobj(6, zlib.DEFLATED, 31)
    if name == "zstd":
        try:
            import zstandard
        except ImportError as error:
            hint = f"{install_extra('data')}, or set `compression=gzip`"
            raise NotAvailableError("`compression: zstd` needs the package `zstandard`", hint=hint) from error
        made: _Compressor = zstandard.ZstdCompressor(level=3).compressobj()
        return made
    return None

"""Parquet files as JSON lines, a few thousand rows at a time."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from nemotron.data.lines import Block
from nemotron.errors import DataError, NotAvailableError
from nemotron.install import install_extra

_BATCH_ROWS = 2048
_BATCH_BYTES = 8 << 20
"""Values of a batch above this are turned into lines row by row."""
_READ_BYTES = 1 << 20
_SHOWN = 4096


def read_parquet(path: Path, block_bytes: int, max_row_bytes: int) -> Iterator[Block]:
    """The rows of a Parquet file as blocks; the line of a row is its position, from 1. Bytes become base64 texts.

    JSON has no NaN and no infinity: they become null, and are counted.

    Raises:
        DataError: not a Parquet file, or damaged. NotAvailableError: `pyarrow` is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise NotAvailableError("Parquet files need the package `pyarrow`", hint=install_extra("data")) from error
    number, block, size = 1, Block([]), 0
    try:
        # Read in small pieces: a column of pictures is not held as a whole.
        with parquet.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_rows_at_once(file.metadata), use_threads=False):
                block.not_finite += sum(map(_not_finite, batch.columns))
                for line in _lines(batch):
                    if len(line) > max_row_bytes:
                        block.too_long[len(block.lines)] = len(line)
                        line = line[:_SHOWN]
                    block.lines.append(line)
                    size += len(line)
                    if size >= block_bytes:
                        yield _finished(block, number)
                        number, block, size = number + len(block.lines), Block([]), 0
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        # What Arrow finds damaged, and what it finds only when a value becomes Python's: a date, a text.
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"cannot read the Parquet file `{path}` after row {number + len(block.lines) - 1}: {why}"
        raise DataError(message, hint="copy it again, or write it anew") from error
    if block.lines:
        yield _finished(block, number)


def _finished(block: Block, number: int) -> Block:
    block.first_line = number
    return block.of(b"\n".join(block.lines))


def _rows_at_once(metadata: Any) -> int:
    """Few enough rows that the columns of a batch stay small whatever is in them."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, largest)))


def _lines(batch: Any) -> Iterator[bytes]:
    if batch.nbytes <= _BATCH_BYTES:
        yield from (orjson.dumps(row, default=_plain) for row in batch.to_pylist())
        return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        [value] = row.to_pylist()
        yield orjson.dumps(value, default=_plain)


def _not_finite(column: Any) -> int:
    """How many numbers of a column are NaN or infinite, those inside lists and structures included."""
    from pyarrow import compute, types

    kind = column.type
    if types.is_floating(kind):
        finite = compute.sum(compute.cast(compute.is_finite(column), "int64")).as_py() or 0
        return int(len(column) - column.null_count - finite)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _not_finite(column.flatten())
    if types.is_struct(kind):
        return sum(map(_not_finite, column.flatten()))
    return 0


def _plain(value: Any) -> Any:
    """JSON has no decimals, bytes or durations: their exact text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)

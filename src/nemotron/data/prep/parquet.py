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


def read_parquet(path: Path, block_bytes: int) -> Iterator[Block]:
    """The rows of a Parquet file as blocks; the line of a row is its position, from 1. Bytes become base64 texts.

    Raises:
        DataError: not a Parquet file, or damaged. NotAvailableError: `pyarrow` is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise NotAvailableError("Parquet files need the package `pyarrow`", hint=install_extra("data")) from error
    number, lines, size = 1, [], 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                new = [orjson.dumps(row, default=_plain) for row in batch.to_pylist()]
                lines += new
                size += sum(map(len, new))
                if size >= block_bytes:
                    yield Block(lines, first_line=number).of(b"\n".join(lines))
                    number, lines, size = number + len(lines), [], 0
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"cannot read the Parquet file `{path}`: {str(error).splitlines()[0]}") from error
    if lines:
        yield Block(lines, first_line=number).of(b"\n".join(lines))


def _plain(value: Any) -> Any:
    """JSON has no decimals, bytes or durations: their exact text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)

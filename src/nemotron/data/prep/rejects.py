"""Rejected rows: one line of ``rejects.jsonl`` each, with file, line and reason, and their counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from nemotron.data.prep.blend import SourceFile
from nemotron.data.prep.pieces import Piece
from nemotron.disk.atomic import write_lines
from nemotron.errors import DataError, Origin

HARMLESS = ("blank", "duplicate")
"""Reasons that are no fault of a row: they do not count for `on_reject` and `max_reject_share`."""


@dataclass
class SourceCounts:
    """What became of one file."""

    lines: int = 0
    read: int = 0
    kept: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    not_finite: int = 0
    """Numbers that became null."""
    blocks: list[str] = field(default_factory=list)
    """Hash of each block, in order."""

    @property
    def rejected(self) -> int:
        """Rows that were not kept, for whatever reason."""
        return sum(self.reasons.values())


def count_sources(
    sources: Sequence[SourceFile], pieces: Sequence[Piece], removed: dict[str, NDArray[np.int64]]
) -> list[SourceCounts]:
    """Counts per source from the first copies of its pieces (in order)."""
    found = [SourceCounts() for _ in sources]
    for piece in pieces:
        info, mine = piece.info, found[piece.info.source]
        if info.copy:
            continue
        gone = len(removed.get(piece.path.name, ()))
        mine.lines += info.lines
        mine.read += info.read
        mine.kept += info.rows - gone
        mine.blocks.append(info.content)
        mine.not_finite += info.not_finite
        for reason, count in info.reasons.items():
            mine.reasons[reason] = mine.reasons.get(reason, 0) + count
        if gone:
            mine.reasons["duplicate"] = mine.reasons.get("duplicate", 0) + gone
        for kind, count in info.kinds.items():
            mine.kinds[kind] = mine.kinds.get(kind, 0) + count
    return found


def reject_rows(
    sources: Sequence[SourceFile], pieces: Sequence[Piece], removed: dict[str, NDArray[np.int64]]
) -> Iterator[dict[str, Any]]:
    """All rejects in the order of sources and lines, with 1-based line numbers."""
    base: dict[int, int] = {}
    for piece in pieces:
        info = piece.info
        if info.copy:
            continue
        first = base.get(info.source, 1) if info.first_line is None else info.first_line
        base[info.source] = first + info.lines
        rows = piece.rejects() if info.reasons else []
        gone = removed.get(piece.path.name)
        if gone is not None:
            numbers = piece.column("lines")
            for row in gone.tolist():
                [text] = piece.data(row, row + 1)
                detail = "the same bytes were seen before"
                shown = {"reason": "duplicate", "detail": detail, "bytes": len(text), "row": text.decode()}
                rows.append({"line": int(numbers[row]), **shown})
            rows.sort(key=lambda row: row["line"])
        for row in rows:
            yield {"file": sources[info.source].label, "line": first + row.pop("line"), **row}


def write_rejects(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    """Write ``rejects.jsonl`` whole, or not at all; returns its number of lines.

    Raises:
        OutputError: it cannot be written.
    """
    return write_lines(path, (orjson.dumps(row) + b"\n" for row in rows))


def check_rejects(
    counts: Sequence[SourceCounts], first: dict[str, Any] | None, *, on_reject: str, most: float, path: Path
) -> None:
    """Stop when more rows were rejected than allowed.

    Raises:
        DataError: it names the first faulty row, the reasons with their numbers, and the file that lists all.
    """
    reasons: dict[str, int] = {}
    for mine in counts:
        for reason, count in mine.reasons.items():
            if reason not in HARMLESS:
                reasons[reason] = reasons.get(reason, 0) + count
    faulty, read = sum(reasons.values()), sum(mine.read - mine.reasons.get("blank", 0) for mine in counts)
    if not faulty or first is None:
        return
    listing = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    origin = Origin(first["file"], line=first["line"])
    hint = f"`{path}` lists them; first: {first['detail']}"
    if on_reject == "error":
        raise DataError(
            f"{faulty} of {read} rows are rejected ({listing}) and `on_reject` is `error`", hint=hint, origin=origin
        )
    if faulty > most * read:
        message = f"{faulty} of {read} rows are rejected ({listing}), more than `max_reject_share` of {most:g}"
        raise DataError(message, hint=hint, origin=origin)

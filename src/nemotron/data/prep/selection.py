"""Which rows of the pieces go into the output, exactly: duplicates out, weights and limits as counts of rows.

A subset of n rows is the n rows with the smallest order keys, so it is a uniform sample that no input order changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemotron.data.prep.normal import U64, mixed
from nemotron.data.prep.pieces import KEY_BITS, Grid, Piece, PieceInfo, PieceRows, write_piece
from nemotron.data.prep.reading import piece_name

Counts = NDArray[np.int64]
Group = tuple[int, int]
"""Number of a data set in the blend, and which copy of its rows."""
_SCAN_ROWS = 1 << 18
COPY_SALT = 1000


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows below (key, check) are taken, and ``ties`` of those that are equal to it."""

    key: int
    check: int
    ties: int


@dataclass(frozen=True, slots=True)
class Part:
    """Rows ``[first, last)`` of a piece; ``keep`` picks among them, None takes all."""

    piece: Piece
    first: int
    last: int
    keys: U64
    checks: U64
    keep: NDArray[np.bool_] | None


@dataclass
class Selection:
    """The pieces and what is taken from them."""

    pieces: list[Piece]
    grid: Grid
    groups: list[int]
    """Data set number of every source."""
    removed: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Piece name -> rows that are duplicates."""
    cuts: dict[tuple[Group | None, int], Cut] = field(default_factory=dict)
    """(group, split) -> its limit; group None is the limit of the whole split."""
    counts: dict[Group, Counts] = field(default_factory=dict)
    """Rows taken, by group and cell."""

    def group_of(self, piece: Piece) -> Group:
        """The data set and copy that a piece belongs to."""
        return self.groups[piece.info.source], piece.info.copy

    def count(self) -> None:
        """Count the rows of every cell from the pieces; duplicates that were removed are left out."""
        cells = self.grid.splits * self.grid.cells
        self.counts = {}
        for piece in self.pieces:
            counts = self.counts.setdefault(self.group_of(piece), np.zeros(cells, dtype=np.int64))
            counts += piece.cell_counts(cells)
            rows = self.removed.get(piece.path.name)
            if rows is not None:
                starts = piece.column("cells", 0, cells + 1)
                np.subtract.at(counts, np.searchsorted(starts, rows, side="right") - 1, 1)

    def of_split(self, group: Group, split: int) -> Counts:
        """A view of the counts of one group in one split."""
        return self.counts[group][split * self.grid.cells : (split + 1) * self.grid.cells]

    def rows_of_split(self, split: int) -> Counts:
        """Rows taken in every cell of a split."""
        total = np.zeros(self.grid.cells, dtype=np.int64)
        for group in self.counts:
            total += self.of_split(group, split)
        return total

    def limit(self, group: Group | None, split: int, rows: int) -> None:
        """Take only ``rows`` rows of a group (None: of all groups together) in a split."""
        counts = self.rows_of_split(split) if group is None else self.of_split(group, split).copy()
        total = np.cumsum(counts)
        if rows >= int(total[-1]):
            return
        cell = int(np.searchsorted(total, rows, side="left")) if rows else 0
        need = rows - (int(total[cell - 1]) if cell else 0)
        absolute = split * self.grid.cells + cell
        if need:
            parts = [p for p in self.parts(absolute, absolute + 1) if group is None or self.group_of(p.piece) == group]
            keys = np.concatenate([part.keys if part.keep is None else part.keys[part.keep] for part in parts])
            checks = np.concatenate([part.checks if part.keep is None else part.checks[part.keep] for part in parts])
            order = np.lexsort((checks, keys))
            last = order[need - 1]
            key, check = keys[last], checks[last]
            ties = int(((keys[order[:need]] == key) & (checks[order[:need]] == check)).sum())
            self.cuts[group, split] = Cut(int(key), int(check), ties)
        else:
            # Nothing of the split: a key that is below all of its first cell, which may hold no row itself.
            self.cuts[group, split] = Cut(int(self.grid.bounds()[absolute]), 0, 0)
        # Counts of every group follow, from the rows of the cell in which the cut is.
        for other in [group] if group is not None else list(self.counts):
            mine = self.of_split(other, split)
            mine[cell + 1 :] = 0
            mine[cell] = 0
        for part in self.parts(absolute, absolute + 1):
            owner = self.group_of(part.piece)
            if group is None or owner == group:
                taken = part.last - part.first if part.keep is None else int(part.keep.sum())
                self.of_split(owner, split)[cell] += taken

    def parts(self, first: int, last: int) -> list[Part]:
        """The taken rows of the cells ``[first, last)`` of one split, piece by piece, with their keys."""
        split = first // self.grid.cells
        ties = {key: cut.ties for key, cut in self.cuts.items()}
        found = []
        for piece in self.pieces:
            start, stop = piece.cell_starts(first, last)
            if start == stop:
                continue
            keys, checks = piece.column("keys", start, stop), piece.column("checks", start, stop)
            keep: NDArray[np.bool_] | None = None
            rows = self.removed.get(piece.path.name)
            if rows is not None:
                low, high = np.searchsorted(rows, (start, stop))
                if low < high:
                    keep = np.ones(stop - start, dtype=np.bool_)
                    keep[rows[low:high] - start] = False
            for name in (self.group_of(piece), None):
                cut = self.cuts.get((name, split))
                if cut is not None:
                    keep = _below(cut, keys, checks, keep, ties, (name, split))
            if keep is None or keep.any():
                found.append(Part(piece, start, stop, keys, checks, keep))
        return found


def _below(
    cut: Cut,
    keys: U64,
    checks: U64,
    keep: NDArray[np.bool_] | None,
    ties: dict[tuple[Group | None, int], int],
    name: tuple[Group | None, int],
) -> NDArray[np.bool_]:
    """Rows on the near side of a cut; what is left of its ties is counted down in ``ties``."""
    key, check = np.uint64(cut.key), np.uint64(cut.check)
    inside: NDArray[np.bool_] = (keys < key) | ((keys == key) & (checks < check))
    equal = (keys == key) & (checks == check)
    if keep is not None:
        inside &= keep
        equal &= keep
    places = np.flatnonzero(equal)[: ties[name]]
    ties[name] -= len(places)
    inside[places] = True
    return inside


def cell_groups(counts: Counts, most_rows: int) -> Iterator[tuple[int, int]]:
    """Consecutive cells ``[first, last)`` with about ``most_rows`` rows; each has at least one cell."""
    first, rows = 0, 0
    for cell, count in enumerate(counts.tolist()):
        if rows and rows + count > most_rows:
            yield first, cell
            first, rows = cell, 0
        rows += count
    if rows:
        yield first, len(counts)


def find_duplicates(selection: Selection) -> tuple[int, dict[str, NDArray[np.int64]]]:
    """Rows whose bytes were seen before in the same split: their number, and where they are.

    The one that stays is the first in the order of sources and lines.
    """
    found: dict[str, list[int]] = {}
    count = 0
    cells = selection.grid.cells
    for split in range(selection.grid.splits):
        for first, last in cell_groups(selection.rows_of_split(split), _SCAN_ROWS):
            parts = selection.parts(split * cells + first, split * cells + last)
            keys = np.concatenate([part.keys for part in parts])
            order = np.argsort(keys, kind="stable")
            sorted_keys = keys[order]
            if not (sorted_keys[1:] == sorted_keys[:-1]).any():
                continue
            checks = np.concatenate([part.checks for part in parts])
            where = np.concatenate([np.full(len(part.keys), i) for i, part in enumerate(parts)])
            rows = np.concatenate([np.arange(part.first, part.last) for part in parts])
            numbers = np.concatenate([part.piece.column("lines", part.first, part.last) for part in parts])
            order = np.lexsort((numbers, where, checks, keys))
            same = (keys[order][1:] == keys[order][:-1]) & (checks[order][1:] == checks[order][:-1])
            for place in order[1:][same].tolist():
                count += 1
                found.setdefault(parts[where[place]].piece.path.name, []).append(int(rows[place]))
    return count, {name: np.array(sorted(rows), dtype=np.int64) for name, rows in found.items()}


def likeness(pieces: Sequence[Piece], rows: int, *, splits_can_share: bool) -> dict[str, int]:
    """How many rows repeat a prompt or a text in normal form, and how many prompts are in several splits.

    Hashes are looked at one range at a time, so memory does not grow with the data. ``splits_can_share`` is False where
    the split follows from the prompt.
    """
    passes = max(1, -(-rows // (1 << 18)))
    bits = max(0, (passes - 1).bit_length())
    texts = prompts = shared = 0
    for part in range(1 << bits):
        near = np.sort(_in_range(pieces, "texts", part, bits))
        texts += int((near[1:] == near[:-1]).sum())
        values = _in_range(pieces, "prompts", part, bits)
        if not splits_can_share:
            values.sort()
            prompts += int((values[1:] == values[:-1]).sum())
            continue
        splits = _in_range(pieces, "prompts", part, bits, splits=True)
        order = np.lexsort((splits, values))
        values, splits = values[order], splits[order]
        same = values[1:] == values[:-1]
        prompts += int(same.sum())
        shared += len(np.unique(values[1:][same & (splits[1:] != splits[:-1])]))
    return {"near": texts, "prompts": prompts, "prompts_in_several_splits": shared}


def _in_range(pieces: Sequence[Piece], name: str, part: int, bits: int, *, splits: bool = False) -> NDArray[Any]:
    found = [np.zeros(0, dtype=np.uint64)]
    for piece in pieces:
        values = piece.column(name)
        chosen = (piece.column("keys") >> np.uint64(KEY_BITS)) if splits else values
        found.append(chosen if bits == 0 else chosen[(values >> np.uint64(64 - bits)) == part])
    return np.concatenate(found)


def copy_piece(
    piece: Piece, copy: int, removed: NDArray[np.int64] | None, *, seed: int, grid: Grid, folder: Path
) -> None:
    """Write one more copy of a piece's rows under order keys of its own, so that copies do not stand side by side."""
    keep = np.ones(piece.info.rows, dtype=np.bool_)
    if removed is not None:
        keep[removed] = False
    lines = piece.data(0, piece.info.rows)
    keys = piece.column("keys")[keep]
    low = np.uint64((1 << KEY_BITS) - 1)
    fresh = mixed(keys & low, seed, COPY_SALT + copy) >> np.uint64(64 - KEY_BITS)
    rows = PieceRows(
        [line for line, kept in zip(lines, keep.tolist(), strict=True) if kept],
        (keys & ~low) | fresh,
        *(piece.column(name)[keep] for name in ("checks", "prompts", "texts", "lines")),
    )
    source, part = piece.info.source, piece.info.part
    info = PieceInfo(source, copy, part, len(rows.lines), 0, 0, None, "")
    write_piece(folder / piece_name(source, part, copy), info, rows, grid, [])


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to ``weights`` that add up to ``total`` (largest remainders, then first come)."""
    whole = sum(weights)
    if whole <= 0:
        return [0 for _ in weights]
    exact = [total * weight / whole for weight in weights]
    found = [int(value) for value in exact]
    rest = sorted(range(len(exact)), key=lambda i: (found[i] - exact[i], i))
    for i in rest[: total - sum(found)]:
        found[i] += 1
    return found

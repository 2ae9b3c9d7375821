"""The first pass: sources are cut into blocks, and each block becomes a piece on disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nemotron.data.content import Layout, layout_of, packing, unreadable
from nemotron.data.lines import Block, read_range, read_stream
from nemotron.data.prep.blend import SourceFile
from nemotron.data.prep.normal import hashes, mixed
from nemotron.data.prep.pieces import KEY_BITS, Grid, Piece, PieceInfo, PieceRows, write_piece
from nemotron.data.prep.scan import SHOWN_BYTES, PlaceholdersFound, Reject, Resolve, Scanned, Scanner
from nemotron.data.prep.workers import Step
from nemotron.data.values import read_values
from nemotron.errors import DataError

if TYPE_CHECKING:
    from nemotron.data.prep.tokens import Encoder

ORDER_SALT, SPLIT_SALT, CHOSEN_SALT, REJECTED_SALT = 1, 2, 3, 4
WANTED = ".wanted"
"""Marks a source with placeholders that are not looked up yet."""


@dataclass(frozen=True, slots=True)
class Task:
    """A byte range of a plain file, or the whole of any other."""

    source: int
    part: int
    start: int
    end: int
    whole: bool = False


@dataclass(frozen=True)
class Pass:
    """Everything that the first pass needs to know."""

    sources: tuple[SourceFile, ...]
    folder: Path
    """Where pieces go."""
    grid: Grid
    seed: int
    splits: tuple[str, ...]
    """Names of the splits in the order of their numbers."""
    shares: dict[str, float] | None
    """Shares of the splits beside train when they are made by hash; None takes them as given."""
    block_bytes: int
    max_row_bytes: int
    cut_answers: bool = False
    """Leave out the answer at the end of a prompt."""
    resolve: Resolve | None = None
    """Fills placeholder rows; None leaves them to be rejected."""
    encoder: Encoder | None = None
    done: frozenset[str] = frozenset()
    """Names of pieces that an earlier attempt finished."""
    scanners: dict[int, Scanner] = field(default_factory=dict)

    def tasks(self, only: set[int] | None = None) -> list[Task]:
        """The tasks of all (or some) sources; ranges of plain files that are done already are left out."""
        found: list[Task] = []
        for index, source in enumerate(self.sources):
            if only is not None and index not in only:
                continue
            if not splittable(source):
                found.append(Task(index, 0, 0, size_of(source), whole=True))
                continue
            size = size_of(source)
            for part, start in enumerate(range(0, size, self.block_bytes)):
                if piece_name(index, part) not in self.done:
                    found.append(Task(index, part, start, min(size, start + self.block_bytes)))
        # Files that one process must read alone go first, so that no process waits for another at the end.
        return sorted(found, key=lambda task: (not task.whole, task.source, task.part))

    def run(self, task: Task, step: Step) -> None:
        """Do one task: write its piece or pieces. A source whose placeholders must be looked up first is marked.

        Raises:
            DataError: the source cannot be read. OutputError: the disk is full.
        """
        try:
            self._run(task, step)
        except PlaceholdersFound:
            (self.folder / f"{task.source:05d}{WANTED}").touch()

    def _run(self, task: Task, step: Step) -> None:
        source = self.sources[task.source]
        if not task.whole:
            block = read_range(source.path, task.start, task.end, self.max_row_bytes)
            step(self._write(task.source, task.part, block), task.end - task.start)
            return
        seen, part = 0, 0
        for part, block in enumerate(self._blocks(source)):
            if piece_name(task.source, part) not in self.done:
                rows = self._write(task.source, part, block)
                step(rows, max(0, min(block.size, task.end - seen)))
                seen += block.size

    def _blocks(self, source: SourceFile) -> Iterator[Block]:
        layout = layout_of(source.path)
        if layout != "lines":
            yield from whole_blocks(source.path, layout, self.block_bytes, self.max_row_bytes)
            return
        held: Block | None = None
        for block in read_stream(source.path, self.block_bytes, self.max_row_bytes, fingerprint=True):
            if source.dataset.kind != "aligner_pairs":
                yield block
                continue
            # A pair must not be torn: an odd line waits for the next block.
            if held is not None:
                block = joined(held, block)
            held = None
            if len(block.lines) % 2:
                block, held = split_last(block)
            if block.lines:
                yield block
        if held is not None:
            yield held

    def _scanner(self, index: int) -> Scanner:
        if index not in self.scanners:
            dataset = self.sources[index].dataset
            pairs = dataset.kind == "aligner_pairs"
            self.scanners[index] = Scanner(
                kind=dataset.row_kind,
                fields={theirs: ours for ours, theirs in dataset.fields.items()},
                aligner_pairs=pairs,
                resolve=self.resolve,
                keep_rows=self.encoder is not None,
                cut_answers=self.cut_answers,
            )
        return self.scanners[index]

    def _write(self, source: int, part: int, block: Block) -> int:
        lines = block.lines
        if block.has_returns:
            lines = [line.removesuffix(b"\r") for line in lines]
        found = self._scanner(source).scan(lines, block.too_long)
        self._drop_too_long(found)
        split = self._split_of(source, found)
        both = hashes(found.checks)
        checks, keys = both[0::2], both[1::2]
        keys = mixed(keys, self.seed, ORDER_SALT) >> np.uint64(64 - KEY_BITS)
        prompts = hashes(found.prompts)
        texts = prompts + mixed(hashes(found.chosen), self.seed, CHOSEN_SALT)
        texts += mixed(hashes(found.rejected), self.seed, REJECTED_SALT)
        if isinstance(split, int):
            numbers = np.full(len(found.lines), split, dtype=np.uint64)
        else:
            numbers = self._hashed_split(prompts)
        rows = PieceRows(
            found.lines,
            (numbers << np.uint64(KEY_BITS)) | keys,
            checks,
            prompts,
            texts,
            np.array(found.index, dtype=np.uint32),
        )
        info = PieceInfo(
            source=source,
            copy=0,
            part=part,
            rows=len(found.lines),
            read=found.read,
            lines=len(lines),
            first_line=block.first_line,
            content=block.fingerprint,
            kinds=dict(Counter(form.kind for form in found.forms)),
            forms=[
                (self.splits[number], form.kind, form.name, count)
                for (number, form), count in Counter(zip(numbers.tolist(), found.forms, strict=True)).items()
            ],
            not_finite=block.not_finite,
            reasons=_reasons(found.rejects),
            split_rows=np.bincount(numbers.astype(np.int64), minlength=len(self.splits)).tolist(),
        )
        rejects = [{"line": reject.index, **reject.to_json()} for reject in found.rejects]
        write_piece(self.folder / piece_name(source, part), info, rows, self.grid, rejects)
        return found.read

    def _drop_too_long(self, found: Scanned) -> None:
        """Turn rows with more tokens than allowed into rejects."""
        if self.encoder is None:
            return
        results = self.encoder.check(found.rows)
        kept = [i for i, result in enumerate(results) if result is None]
        if len(kept) == len(results):
            return
        for i, result in enumerate(results):
            if result is not None:
                line = found.lines[i]
                found.rejects.append(
                    Reject(found.index[i], result.reason, result.detail, line[:SHOWN_BYTES], len(line))
                )
        found.rejects.sort(key=lambda reject: reject.index)
        found.pick(kept)

    def _split_of(self, source: int, found: Scanned) -> int | None:
        if self.shares is not None:
            return None
        return self.splits.index(self.sources[source].split or "train")

    def _hashed_split(self, prompts: Any) -> Any:
        """The split of each prompt: its hash falls into the range that a split's share takes from the top."""
        assert self.shares is not None
        place = mixed(prompts, self.seed, SPLIT_SALT)
        numbers = np.zeros(len(prompts), dtype=np.uint64)
        used = 0.0
        for name, share in self.shares.items():
            low, high = int((1 - used - share) * 2**64), int((1 - used) * 2**64) - 1
            used += share
            if share > 0:
                inside = (place >= np.uint64(max(0, low))) & (place <= np.uint64(max(0, high)))
                numbers[inside] = self.splits.index(name)
        return numbers


def _reasons(rejects: list[Reject]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reject in rejects:
        counts[reject.reason] = counts.get(reject.reason, 0) + 1
    return counts


def joined(first: Block, second: Block) -> Block:
    """Two consecutive blocks as one."""
    shift = len(first.lines)
    too_long = {**first.too_long, **{index + shift: size for index, size in second.too_long.items()}}
    return Block(
        first.lines + second.lines,
        too_long,
        first.first_line,
        first.size + second.size,
        first.fingerprint + second.fingerprint,
        first.has_returns or second.has_returns,
    )


def split_last(block: Block) -> tuple[Block, Block]:
    """A block without its last line, and the last line alone."""
    last = len(block.lines) - 1
    tail = Block([block.lines[last]], first_line=None if block.first_line is None else block.first_line + last)
    tail.has_returns = block.has_returns
    if last in block.too_long:
        tail.too_long[0] = block.too_long[last]
    head = replace(block, lines=block.lines[:last], too_long={i: n for i, n in block.too_long.items() if i != last})
    return head, tail


def whole_blocks(path: Path, layout: Layout, block_bytes: int, max_row_bytes: int) -> Iterator[Block]:
    """The rows of a file that are not lines, as lines."""
    if layout == "parquet":
        from nemotron.data.prep.parquet import read_parquet

        return read_parquet(path, block_bytes, max_row_bytes)
    return read_values(path, block_bytes, max_row_bytes)


def splittable(source: SourceFile) -> bool:
    """Whether parts of a file can be read alone.

    Raises:
        DataError: it holds no rows at all.
    """
    plain = layout_of(source.path) == "lines" and packing(source.path) is None
    return plain and source.dataset.kind != "aligner_pairs"


def size_of(source: SourceFile) -> int:
    """Bytes of a source on disk.

    Raises:
        DataError: it is gone.
    """
    try:
        return os.stat(source.path).st_size
    except OSError as error:
        raise unreadable(source.path, error) from error


def piece_name(source: int, part: int, copy: int = 0) -> str:
    """File name of a piece; names sort like the rows they hold."""
    return f"{source:05d}-{part:06d}-{copy:03d}.piece"


def piece_copy(name: str) -> int:
    """Which copy of the rows a piece of this name holds."""
    return int(name.removesuffix(".piece").rpartition("-")[2])


def wanted_sources(folder: Path) -> set[int]:
    """Sources that were marked; the marks are taken away."""
    found = set()
    for path in folder.glob(f"*{WANTED}"):
        found.add(int(path.name.removesuffix(WANTED)))
        path.unlink()
    return found


def finished_pieces(folder: Path) -> frozenset[str]:
    """Pieces that an earlier attempt left whole; damaged ones are removed."""
    from nemotron.errors import ArtifactError

    found = []
    for path in sorted(folder.glob("*.piece")):
        try:
            piece = Piece(path)
        except ArtifactError:
            path.unlink()
            continue
        if piece.verify():
            found.append(path.name)
        else:
            path.unlink()
        piece.close()
    for draft in folder.glob("*.tmp"):
        draft.unlink()
    return frozenset(found)


def check_unchanged(sources: tuple[SourceFile, ...], before: list[list[int]]) -> None:
    """Compare size and time of every source with what they were at the start.

    Raises:
        DataError: a source was written to meanwhile.
    """
    for source, stamp in zip(sources, before, strict=True):
        if stamp != source_stamp(source):
            raise DataError(f"`{source.label}` changed while it was read", hint="let the writer finish, then run again")


def source_stamp(source: SourceFile) -> list[int]:
    """Size and time of last change."""
    try:
        stat = os.stat(source.path)
    except OSError as error:
        raise unreadable(source.path, error) from error
    return [stat.st_size, stat.st_mtime_ns]

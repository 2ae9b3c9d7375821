"""The whole preparation, read from top to bottom: sources, pieces, selection, shards, manifest.

Every stage leaves files that the next attempt finds: a run that was killed goes on and ends with the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import xxhash

from nemotron.config.schema.data_prep import DataPrepConfig
from nemotron.data.manifest import VERSION, file_sha256
from nemotron.data.prep.blend import SourceFile, expand, read_blend
from nemotron.data.prep.pieces import Grid, Piece
from nemotron.data.prep.reading import Pass, check_unchanged, finished_pieces, piece_copy, source_stamp, wanted_sources
from nemotron.data.prep.record import (
    config_hash,
    dataset_numbers,
    datasets,
    kinds_of,
    settings,
    source_entry,
    taken_for,
)
from nemotron.data.prep.rejects import HARMLESS, SourceCounts, check_rejects, count_sources, reject_rows, write_rejects
from nemotron.data.prep.scan import look_up_first
from nemotron.data.prep.selection import Selection, find_duplicates, likeness
from nemotron.data.prep.shards import Merge, Shard
from nemotron.data.prep.splits import split_names, split_shares
from nemotron.data.prep.weights import weigh
from nemotron.data.prep.workers import keep_memory, run_tasks
from nemotron.data.prep.workspace import Workspace, allow_files, locked
from nemotron.disk.home import expanded
from nemotron.errors import ConfigError, DataError, OutputError
from nemotron.processes.cores import usable_cores
from nemotron.suggest import listed

# Memory is a multiple of the block, of the cell and of the table of cells in each piece, so all three have a bound.
# Between the bounds blocks grow with the input, so that the merge has few pieces to open; above, there are more pieces.
SMALLEST_BLOCK, LARGEST_BLOCK = 4 << 20, 32 << 20
_CELL_BYTES = 2 << 20
_FEW_PIECES = 2048
_TABLE_SHARE = 16
"""A piece's table of cells may take one part in so many of its bytes."""

Stage = Callable[[str, int, int, int], None]
"""Progress: name of the stage, rows and bytes done so far, bytes in all (0 when unknown)."""


@dataclass(frozen=True)
class Result:
    """What was made."""

    manifest: dict[str, Any]
    path: Path
    fresh: bool
    """False when the output was there already, whole and from the same input and config."""
    warnings: tuple[str, ...]


def prepare(config: DataPrepConfig, *, progress: Stage = lambda *_: None, block_bytes: int = 0) -> Result:
    """Prepare a data set as ``config`` says. Files are read in blocks of ``block_bytes``; 0 chooses by their size.

    Raises:
        DataError: a source is missing or broken, or too many rows are rejected. OutputError: it cannot be written.
        ConfigError: sections that do not fit together. NotAvailableError: a package for this input is missing.
    """
    job = _Job(config, find_sources(config), block_bytes, progress)
    with locked(job.output):
        return job.run()


def check_output(config: DataPrepConfig) -> None:
    """Look whether the output folder is free for ``config``, or has its data already. Opens connections only for
    sources of the hub.

    Raises:
        OutputError: it holds another data set. NemotronError: as :func:`prepare`, of the sources.
    """
    if not config.force:
        _Job(config, find_sources(config), 0, lambda *_: None).begin()[-1].check()


def find_sources(config: DataPrepConfig) -> tuple[SourceFile, ...]:
    """Every file of the blend, in an order that does not depend on the order in the blend.

    Raises:
        DataError: the blend is broken, or a data set of it is not there.
    """
    blend = config.blend.model_dump() if config.blend is not None else config.blend_path
    if blend is None:
        raise ConfigError("no data is named", hint="set `blend_path=FILE`, a blend or a data file")
    found = [source for dataset in read_blend(blend) for source in expand(dataset)]
    return tuple(sorted(found, key=lambda source: source.sort_key))


def block_size(total: int) -> int:
    """Bytes that are read and sorted at once, for an input of ``total`` bytes."""
    return min(LARGEST_BLOCK, max(SMALLEST_BLOCK, total // _FEW_PIECES))


def grid_of(total: int, splits: int) -> Grid:
    """Cells of about ``_CELL_BYTES``; fewer, larger ones only where their tables would outgrow the pieces."""
    table = block_size(total) // _TABLE_SHARE // 4 // splits
    wanted = (total // _CELL_BYTES).bit_length()
    return Grid(splits, max(6, min(wanted, max(14, table.bit_length() - 1))))


def processes_of(config: DataPrepConfig) -> int:
    """Processes that work, this one included."""
    return min(usable_cores(), 2) if config.num_processes == "auto" else config.num_processes


@dataclass
class _Job:
    config: DataPrepConfig
    sources: tuple[SourceFile, ...]
    block_bytes: int
    progress: Stage

    def run(self) -> Result:
        stamps, total, grid, space = self.begin()
        ready = None if self.config.force else space.ready()
        if ready is not None:
            space.tidy()
            return Result(ready, space.manifest, fresh=False, warnings=())
        space.start(afresh=self.config.force)
        keep_memory()
        self._read(space, grid, total)
        check_unchanged(self.sources, stamps)
        paths = sorted(path for path in space.pieces.glob("*.piece") if not piece_copy(path.name))
        allow_files(4 * len(paths) + 256)
        selection = Selection([Piece(path) for path in paths], grid, dataset_numbers(self.sources))
        try:
            return self._finish(selection, space)
        finally:
            for piece in selection.pieces:
                piece.close()

    def begin(self) -> tuple[list[list[int]], int, Grid, Workspace]:
        """Stamps and bytes of the sources, and where the work on them goes; nothing is read or written."""
        stamps = [source_stamp(source) for source in self.sources]
        total = sum(size for size, _ in stamps)
        self.block_bytes = self.block_bytes or block_size(total)
        grid = grid_of(total, len(self.splits))
        return stamps, total, grid, Workspace(self.output, self._plan(stamps, grid))

    @property
    def output(self) -> Path:
        return expanded(self.config.output_dir)

    @cached_property
    def shares(self) -> dict[str, float] | None:
        return split_shares(self.config, self.sources)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        return split_names(self.shares, self.sources)

    def _plan(self, stamps: list[list[int]], grid: Grid) -> str:
        """What work files of an earlier attempt must agree in before they are used again."""
        files = [(source.label, os.fspath(source.path.absolute()), source.revision) for source in self.sources]
        given = [source.split for source in self.sources]
        text = [VERSION, config_hash(self.config, self.sources), files, given, stamps, grid, self.splits]
        return xxhash.xxh3_128_hexdigest(orjson.dumps([*text, self.block_bytes]))

    def _read(self, space: Workspace, grid: Grid, total: int) -> None:
        """The first pass; sources that turn out to have placeholders are read again once those are looked up."""
        config, pieces, processes = self.config, space.pieces, processes_of(self.config)
        encoder = None
        if config.tokenize is not None:
            from nemotron.data.prep.tokens import Encoder

            encoder = Encoder.load(config.tokenize)
        first = Pass(
            sources=self.sources,
            folder=pieces,
            grid=grid,
            seed=config.seed,
            splits=self.splits,
            shares=self.shares,
            block_bytes=self.block_bytes,
            max_row_bytes=config.max_row_bytes,
            cut_answers=config.on_answer == "cut",
            resolve=look_up_first if config.resolve_hf_placeholders else None,
            encoder=encoder,
            done=finished_pieces(pieces),
        )

        def progress(rows: int, size: int) -> None:
            self.progress("reading", rows, size, total)

        run_tasks(first.tasks(), first.run, processes=processes, progress=progress)
        wanted = wanted_sources(pieces)
        if wanted:
            from nemotron.data.prep.placeholders import build_resolver

            self.progress("resolving placeholders", 0, 0, 0)
            resolver = build_resolver(
                [self.sources[i] for i in sorted(wanted)], config.placeholder_sources, space.folder
            )
            again = replace(first, resolve=resolver.resolve, done=finished_pieces(pieces), scanners={})
            run_tasks(again.tasks(wanted), again.run, processes=processes, progress=progress)

    def _finish(self, selection: Selection, space: Workspace) -> Result:
        config, base = self.config, selection.pieces
        self.progress("selecting", 0, 0, 0)
        selection.count()
        rows = sum(piece.info.rows for piece in base)
        alike = likeness(base, rows, splits_can_share=self.shares is None)
        # Equal rows have equal texts: without near duplicates there are no exact ones.
        exact, duplicates = find_duplicates(selection) if alike["near"] else (0, {})
        alike["near"] -= exact
        if config.remove_duplicates:
            selection.removed = duplicates
            selection.count()
        counts = count_sources(self.sources, base, selection.removed)
        rejects = self._write_rejects(counts, base, selection)
        if not sum(mine.read for mine in counts):
            names = listed(source.label for source in self.sources[:4])
            hint = "look whether the export or download went well"
            raise DataError(f"nothing is in {names}: no line and no row", hint=hint)
        if not sum(mine.kept for mine in counts):
            raise DataError("no row of the blend can be used", hint=f"`{self.output / 'rejects.jsonl'}` says why")
        revisions = _placeholder_revisions(space.folder)
        warnings = self._warnings(alike, counts, revisions)
        taken = taken_for(base)
        weigh(config, selection, datasets(self.sources), folder=space.pieces, processes=processes_of(config))
        written = self._write(selection, space)
        extra = self._extras(written)
        manifest = {
            "version": VERSION,
            "kind": kinds_of(counts),
            "seed": config.seed,
            "config_hash": config_hash(config, self.sources),
            "splits": {
                split: {
                    "rows": sum(shard.rows for shard in shards),
                    "shards": shards,
                    "taken_for": taken.get(split, []),
                    **extra[split],
                }
                for split, shards in written.items()
            },
            "sources": [source_entry(source, mine) for source, mine in zip(self.sources, counts, strict=True)],
            "placeholders": revisions,
            "rejects": rejects,
            "duplicates": {"exact": exact, "removed": exact if config.remove_duplicates else 0, **alike},
            "config": settings(config, self.sources),
        }
        value = space.finish(manifest)
        self.progress("done", sum(mine.read for mine in counts), 0, 0)
        return Result(value, space.manifest, fresh=True, warnings=tuple(warnings))

    def _write(self, selection: Selection, space: Workspace) -> dict[str, list[Shard]]:
        """The second pass; shards that an earlier attempt finished stay."""
        merge = Merge(selection, self.splits, self.output, space.receipts, self.config.compression)
        tasks = merge.tasks(self.config.num_shards_per_split)
        run_tasks(
            [task for task in tasks if merge.finished(task) is None],
            merge.run,
            processes=processes_of(self.config),
            progress=lambda rows, size: self.progress("writing", rows, size, 0),
        )
        found: dict[str, list[Shard]] = {split: [] for split in self.splits}
        for task in tasks:
            shard = merge.receipt(task)
            if shard is None:
                hint = "run again"
                raise OutputError(f"the shard `{task.name}` vanished while the data was prepared", hint=hint)
            found[self.splits[task.split]].append(shard)
        return found

    def _write_rejects(self, counts: list[SourceCounts], base: list[Piece], selection: Selection) -> dict[str, Any]:
        path = self.output / "rejects.jsonl"
        first: dict[str, Any] | None = None

        def rows() -> Iterator[dict[str, Any]]:
            nonlocal first
            for row in reject_rows(self.sources, base, selection.removed):
                if first is None and row["reason"] not in HARMLESS:
                    first = dict(row)
                yield row

        total = write_rejects(path, rows())
        check_rejects(counts, first, on_reject=self.config.on_reject, most=self.config.max_reject_share, path=path)
        reasons: dict[str, int] = {}
        for mine in counts:
            for reason, count in sorted(mine.reasons.items()):
                reasons[reason] = reasons.get(reason, 0) + count
        return {
            "total": total,
            "by_reason": dict(sorted(reasons.items())),
            "path": path.name,
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }

    def _warnings(self, alike: dict[str, int], counts: list[SourceCounts], revisions: dict[str, str]) -> list[str]:
        found = [
            f"placeholders of `{key}` were filled from revision {revision}, the newest now: row numbers may mean other "
            f"rows later; set `placeholder_sources.{key}.revision={revision}`"
            for key, revision in revisions.items()
            if self.config.placeholder_sources[key].is_unpinned
        ]
        found += [
            f"`{source.label}`: {mine.not_finite:,} numbers are NaN or infinite; JSON has none, so they are null"
            for source, mine in zip(self.sources, counts, strict=True)
            if mine.not_finite
        ]
        shared = alike["prompts_in_several_splits"]
        if shared and self.shares is None:
            message = f"{shared} prompts are in more than one of the given splits {', '.join(self.splits)}"
            hint = "set `split.mode=hash` to make splits that share none, or `split.on_overlap=warn`"
            if self.config.split.on_overlap == "error":
                raise DataError(message, hint=hint)
            found.append(message)
        kinds = sorted({kind for mine in counts for kind in mine.kinds})
        if len(kinds) > 1:
            found.append(f"the blend mixes row kinds: {', '.join(kinds)}; declare `kind` where one is not meant")
        return found

    def _extras(self, written: dict[str, list[Shard]]) -> dict[str, dict[str, Any]]:
        """Token shards and NeMo-Aligner's files, by split."""
        config = self.config
        found: dict[str, dict[str, Any]] = {split: {} for split in written}
        aligner = config.compat == "nemo_aligner"
        if config.tokenize is not None:
            from nemotron.data.prep.tokens import write_token_shards

            for split, mine in write_token_shards(config.tokenize, self.output, written, dense=aligner).items():
                found[split].update(mine)
        if aligner:
            from nemotron.data.prep.nemo_aligner import write_aligner_files

            for split, files in write_aligner_files(self.output, written).items():
                found[split]["nemo_aligner"] = files
        return found


def _placeholder_revisions(folder: Path) -> dict[str, str]:
    """Data set of placeholders -> the revision that they were filled from."""
    from nemotron.data.prep.placeholders import looked_up

    saved = looked_up(folder)
    return dict(sorted(saved["revisions"].items())) if saved is not None else {}

"""The whole preparation, read from top to bottom: sources, pieces, selection, shards, manifest.

Every stage leaves files that the next attempt finds: a run that was killed goes on and ends with the same bytes.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import xxhash

from nemotron.config.schema.data_prep import DataPrepConfig
from nemotron.data.blend import Dataset, SourceFile, expand, read_blend
from nemotron.data.manifest import VERSION, file_sha256, read_manifest, resolve_manifest
from nemotron.data.pieces import SPLIT_BITS, Grid, Piece
from nemotron.data.reading import Pass, check_unchanged, finished_pieces, size_of, source_stamp, wanted_sources
from nemotron.data.rejects import SourceCounts, check_rejects, count_sources, reject_rows, write_rejects
from nemotron.data.scan import look_up_first
from nemotron.data.selection import Selection, apportion, copy_piece, find_duplicates, likeness
from nemotron.data.shards import Merge, Shard, sync
from nemotron.data.workers import cores, keep_memory, run_tasks
from nemotron.errors import ConfigError, DataError, OutputError
from nemotron.runs.atomic import output_errors, write_atomic

_BLOCK_BYTES = 4 << 20
_CELL_BYTES = 2 << 20
_MOST_PIECES = 2048
WORK = ".rl_prep"
LOCK_PATIENCE_S = 20.0

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
    output = Path(config.output_dir).expanduser()
    sources = find_sources(config)
    job = _Job(config, output, sources, block_bytes, progress)
    with output_errors(output):
        (output / WORK).mkdir(parents=True, exist_ok=True)
    with _locked(output / WORK / "lock"):
        return job.run()


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


def processes_of(config: DataPrepConfig) -> int:
    """Processes that work, this one included."""
    return min(cores(), 2) if config.num_processes == "auto" else config.num_processes


@dataclass
class _Job:
    config: DataPrepConfig
    output: Path
    sources: tuple[SourceFile, ...]
    block_bytes: int
    progress: Stage
    placeholder_revisions: dict[str, str] = field(default_factory=dict)

    def run(self) -> Result:
        config, began = self.config, time.monotonic()
        stamps = [source_stamp(source) for source in self.sources]
        total = sum(stamp[0] for stamp in stamps)
        shares = split_shares(config, self.sources)
        splits = split_names(shares, self.sources)
        if not self.block_bytes:
            self.block_bytes = max(_BLOCK_BYTES, total // _MOST_PIECES)
        keep_memory()
        grid = Grid(len(splits), min(14, max(6, (total // _CELL_BYTES).bit_length())))
        plan = self._plan_hash(stamps, grid, splits)
        ready = self._ready(plan)
        if ready is not None:
            return Result(ready, self.output / "manifest.json", fresh=False, warnings=())
        work = self._start(plan)
        processes = processes_of(config)
        self._read(work, grid, splits, shares, total, processes)
        check_unchanged(self.sources, stamps)
        selection = self._open(work / "pieces", grid)
        try:
            return self._finish(selection, work, splits, shares, processes, plan, began)
        finally:
            for piece in selection.pieces:
                piece.close()

    def _finish(
        self,
        selection: Selection,
        work: Path,
        splits: tuple[str, ...],
        shares: dict[str, float] | None,
        processes: int,
        plan: str,
        began: float,
    ) -> Result:
        config = self.config
        self.progress("selecting", 0, 0, 0)
        base = [piece for piece in selection.pieces if not piece.info.copy]
        selection.pieces = base
        selection.count()
        alike = likeness(base, sum(piece.info.rows for piece in base), splits_can_share=shares is None)
        # Equal rows have equal texts: without near duplicates there are no exact ones.
        exact, duplicates = find_duplicates(selection) if alike["near"] else (0, {})
        alike["near"] -= exact
        if config.remove_duplicates:
            selection.removed = duplicates
            selection.count()
        counts = count_sources(self.sources, base, selection.removed)
        rejects = self._write_rejects(counts, base, selection)
        if not sum(mine.kept for mine in counts):
            raise DataError("no row of the blend can be used", hint=f"`{self.output / 'rejects.jsonl'}` says why")
        warnings = self._warnings(alike, counts, shares, splits)
        self._weigh(selection, work, splits, processes)
        merge = Merge(selection, splits, self.output, work / "shards", config.compression)
        tasks = merge.tasks(config.num_shards_per_split)
        run_tasks(
            [task for task in tasks if merge.finished(task) is None],
            merge.run,
            processes=processes,
            progress=lambda rows, size: self.progress("writing", rows, size, 0),
        )
        shards = {task.name: merge.finished(task) for task in tasks}
        names = {split: [t.name for t in tasks if t.split == i] for i, split in enumerate(splits)}
        written = {split: [_whole(shards[name], self.output / name) for name in mine] for split, mine in names.items()}
        extra = self._extras(written)
        manifest = {
            "version": VERSION,
            "kind": _kinds(counts),
            "seed": config.seed,
            "config_hash": config_hash(config, self.sources),
            "splits": {
                split: {"rows": sum(shard.rows for shard in mine), "shards": mine, **extra.get(split, {})}
                for split, mine in written.items()
            },
            "sources": [_source(source, mine) for source, mine in zip(self.sources, counts, strict=True)],
            "placeholders": dict(sorted(self.placeholder_revisions.items())),
            "rejects": rejects,
            "duplicates": {"exact": exact, "removed": exact if config.remove_duplicates else 0, **alike},
            "config": {**config.identity(), "blend": [_dataset(d) for d in _datasets(self.sources)]},
        }
        sync(self.output)
        write_atomic(self.output / "manifest.json", orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n")
        write_atomic(self.output / WORK / "state.json", orjson.dumps({"plan": plan}))
        shutil.rmtree(work, ignore_errors=True)
        self.progress("done", sum(mine.read for mine in counts), 0, 0)
        value = orjson.loads((self.output / "manifest.json").read_bytes())
        return Result(value, self.output / "manifest.json", fresh=True, warnings=tuple(warnings))

    def _plan_hash(self, stamps: list[list[int]], grid: Grid, splits: tuple[str, ...]) -> str:
        """What work files of an earlier attempt must agree in before they are used again."""
        labels = [
            (source.label, os.fspath(source.path.absolute()), source.revision, source.split) for source in self.sources
        ]
        text = [VERSION, config_hash(self.config, self.sources), labels, stamps, grid.bits, splits, self.block_bytes]
        return xxhash.xxh3_128_hexdigest(orjson.dumps(text))

    def _ready(self, plan: str) -> dict[str, Any] | None:
        """The manifest, when exactly this output is there already.

        Raises:
            OutputError: the folder holds another data set.
        """
        path = self.output / "manifest.json"
        if self.config.force or not path.exists():
            return None
        try:
            same = orjson.loads((self.output / WORK / "state.json").read_bytes())["plan"] == plan
        except (OSError, ValueError, KeyError):
            same = False
        if same:
            try:
                resolve_manifest(path)
            except DataError:
                # A shard is missing or was changed: it is made again.
                return None
            return read_manifest(path)
        raise OutputError(
            f"`{self.output}` holds another data set, or one of other input or config",
            hint="set `force=true` to replace it, or choose another `output_dir`",
        )

    def _start(self, plan: str) -> Path:
        """The work folder of this plan; what other plans left, and an old manifest with its shards, goes."""
        work = self.output / WORK / plan
        with output_errors(self.output):
            path = self.output / "manifest.json"
            if path.exists():
                old = _listed_files(path)
                # The manifest goes first: it must never name shards that are not there.
                path.unlink()
                for name in old:
                    (self.output / name).unlink(missing_ok=True)
            for folder in (self.output / WORK).iterdir():
                if folder.is_dir() and (folder != work or self.config.force):
                    shutil.rmtree(folder)
            for draft in self.output.glob(".*.tmp"):
                draft.unlink()
            (work / "pieces").mkdir(parents=True, exist_ok=True)
            (work / "shards").mkdir(exist_ok=True)
        return work

    def _open(self, folder: Path, grid: Grid) -> Selection:
        paths = sorted(folder.glob("*.piece"))
        _allow_files(len(paths) + 256)
        order = {dataset: i for i, dataset in enumerate(_datasets(self.sources, keys=True))}
        groups = [order[_dataset_key(source.dataset)] for source in self.sources]
        return Selection([Piece(path) for path in paths], grid, groups)

    def _write_rejects(self, counts: list[SourceCounts], base: list[Piece], selection: Selection) -> dict[str, Any]:
        path = self.output / "rejects.jsonl"
        first: dict[str, Any] | None = None

        def rows() -> Iterator[dict[str, Any]]:
            nonlocal first
            for row in reject_rows(self.sources, base, selection.removed):
                if first is None and row["reason"] not in ("blank", "duplicate"):
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

    def _warnings(
        self,
        alike: dict[str, int],
        counts: list[SourceCounts],
        shares: dict[str, float] | None,
        splits: tuple[str, ...],
    ) -> list[str]:
        found = []
        shared = alike["prompts_in_several_splits"]
        if shared and shares is None:
            message = f"{shared} prompts are in more than one of the given splits {', '.join(splits)}"
            hint = "set `split.mode=hash` to make splits that share none, or `split.on_overlap=warn`"
            if self.config.split.on_overlap == "error":
                raise DataError(message, hint=hint)
            found.append(message)
        kinds = sorted({kind for mine in counts for kind in mine.kinds})
        if len(kinds) > 1:
            found.append(f"the blend mixes row kinds: {', '.join(kinds)}; declare `kind` where one is not meant")
        return found

    def _weigh(self, selection: Selection, work: Path, splits: tuple[str, ...], processes: int) -> None:
        """Bring every data set to its number of rows in every split, then the whole to `max_rows`."""
        config, names = self.config, _datasets(self.sources)
        wanted = config.rows_wanted
        groups = sorted(selection.counts)
        have = {g: [int(selection.of_split(g, s).sum()) for s in range(len(splits))] for g in groups}
        if config.weights == "shares":
            if wanted is None:
                raise ConfigError("`weights: shares` needs a number of rows to share out", hint="set `max_rows`")
            quotas = apportion(wanted, [names[g[0]].weight for g in groups])
            targets = {g: apportion(quota, have[g]) for g, quota in zip(groups, quotas, strict=True)}
        else:
            targets = {g: [int(names[g[0]].weight * rows + 0.5) for rows in have[g]] for g in groups}
        copies = {
            g: max(-(-t // n) for t, n in zip(targets[g], have[g], strict=True) if n) for g in groups if sum(have[g])
        }
        tasks = [
            (piece, copy) for piece in selection.pieces for copy in range(1, copies.get(selection.group_of(piece), 1))
        ]
        if tasks:
            grid, folder = selection.grid, work / "pieces"
            run_tasks(
                tasks,
                lambda task, _: copy_piece(
                    task[0],
                    task[1],
                    selection.removed.get(task[0].path.name),
                    seed=config.seed,
                    grid=grid,
                    folder=folder,
                ),
                processes=processes,
                progress=lambda *_: None,
            )
            base, made = selection.pieces, {path.name for path in folder.glob("*.piece")}
            more = sorted(made - {piece.path.name for piece in base})
            selection.pieces = sorted([*base, *(Piece(folder / name) for name in more)], key=lambda p: p.path.name)
            selection.count()
        for group in sorted(selection.counts):
            number, copy = group
            for split, rows in enumerate(have[number, 0]):
                taken = min(max(targets[number, 0][split] - copy * rows, 0), rows)
                if rows:
                    selection.limit(group, split, taken)
        if wanted is not None and config.weights == "copies":
            rows_of = [int(selection.rows_of_split(split).sum()) for split in range(len(splits))]
            for split, rows in enumerate(apportion(wanted, rows_of) if sum(rows_of) > wanted else rows_of):
                if rows_of[split]:
                    selection.limit(None, split, rows)

    def _read(
        self,
        work: Path,
        grid: Grid,
        splits: tuple[str, ...],
        shares: dict[str, float] | None,
        total: int,
        processes: int,
    ) -> None:
        """The first pass; sources that turn out to have placeholders are read again once those are looked up."""
        config, pieces = self.config, work / "pieces"
        encoder = None
        if config.tokenize is not None:
            from nemotron.data.tokens import Encoder

            encoder = Encoder.load(config.tokenize)
        first = Pass(
            sources=self.sources,
            folder=pieces,
            grid=grid,
            seed=config.seed,
            splits=splits,
            shares=shares,
            block_bytes=self.block_bytes,
            max_row_bytes=config.max_row_bytes,
            resolve=look_up_first if config.resolve_hf_placeholders else None,
            encoder=encoder,
            done=finished_pieces(pieces),
        )

        def progress(rows: int, size: int) -> None:
            self.progress("reading", rows, size, total)

        run_tasks(first.tasks(), first.run, processes=processes, progress=progress)
        wanted = wanted_sources(pieces)
        if wanted:
            from nemotron.data.placeholders import build_resolver

            self.progress("resolving placeholders", 0, 0, 0)
            resolver = build_resolver([self.sources[i] for i in sorted(wanted)], config.placeholder_sources, work)
            self.placeholder_revisions = dict(resolver.revisions)
            again = replace(first, resolve=resolver.resolve, done=finished_pieces(pieces), scanners={})
            run_tasks(again.tasks(wanted), again.run, processes=processes, progress=progress)

    def _extras(self, written: dict[str, list[Shard]]) -> dict[str, dict[str, Any]]:
        """Token shards and NeMo-Aligner's files, by split."""
        config = self.config
        found: dict[str, dict[str, Any]] = {split: {} for split in written}
        aligner = config.compat == "nemo_aligner"
        if config.tokenize is not None:
            from nemotron.data.tokens import write_token_shards

            for split, mine in write_token_shards(config.tokenize, self.output, written, dense=aligner).items():
                found[split].update(mine)
        if aligner:
            from nemotron.data.nemo_aligner import write_aligner_files

            for split, files in write_aligner_files(self.output, written).items():
                found[split]["nemo_aligner"] = files
        return found


def split_shares(config: DataPrepConfig, sources: Sequence[SourceFile]) -> dict[str, float] | None:
    """The shares to split by, or None where the splits of the sources are taken.

    Raises:
        ConfigError: the shares leave nothing for train.
    """
    mode, shares = config.split.mode, dict(sorted(config.split.shares.items()))
    if mode == "auto":
        named = {source.split for source in sources if source.split}
        mode = "given" if len(named) > 1 or any(source.dataset.split for source in sources) else "hash"
    if mode == "given":
        return None
    if sum(shares.values()) >= 1 or "train" in shares:
        raise ConfigError("`split.shares` must leave a part for `train`", hint="for example `{validation: 0.01}`")
    return shares


def split_names(shares: dict[str, float] | None, sources: Sequence[SourceFile]) -> tuple[str, ...]:
    """Names of the splits, the well-known first.

    Raises:
        DataError: more splits than a piece can tell apart.
    """
    names = set(shares) if shares is not None else {source.split or "train" for source in sources}
    known = ["train", "validation", "test"]
    found = ["train", *(n for n in known[1:] if n in names), *sorted(names - set(known))]
    if len(found) > 1 << SPLIT_BITS:
        raise DataError(f"{len(found)} splits are too many", hint=f"at most {1 << SPLIT_BITS} are possible")
    return tuple(found)


def config_hash(config: DataPrepConfig, sources: Sequence[SourceFile]) -> str:
    """Hash of all settings that decide the output, the blend included in an order of its own."""
    value = {**config.identity(), "blend": [_dataset(dataset) for dataset in _datasets(sources)]}
    return xxhash.xxh3_128_hexdigest(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def _dataset_key(dataset: Dataset) -> str:
    return dataset.model_dump_json()


def _datasets(sources: Sequence[SourceFile], *, keys: bool = False) -> list[Any]:
    found = {_dataset_key(source.dataset): source.dataset for source in sources}
    return list(found) if keys else list(found.values())


def _dataset(dataset: Dataset) -> dict[str, Any]:
    return dataset.model_dump(mode="json")


def _source(source: SourceFile, counts: SourceCounts) -> dict[str, Any]:
    blocks = xxhash.xxh3_128_hexdigest("".join(counts.blocks).encode())
    return {
        "path": source.label,
        "dataset": source.dataset.name,
        "revision": source.revision or f"xxh3-blocks:{blocks}",
        "split": source.split,
        "bytes": size_of(source),
        "rows_read": counts.read,
        "rows_kept": counts.kept,
        "rows_rejected": counts.rejected,
        "rejected": dict(sorted(counts.reasons.items())),
        "kinds": dict(sorted(counts.kinds.items())),
    }


def _kinds(counts: Sequence[SourceCounts]) -> str:
    kinds = sorted({kind for mine in counts for kind in mine.kinds})
    return kinds[0] if len(kinds) == 1 else "mixed"


def _whole(shard: Shard | None, path: Path) -> Shard:
    if shard is None:
        raise OutputError(f"the shard `{path}` was changed while the data was prepared", hint="run again")
    return shard


def _listed_files(manifest: Path) -> list[str]:
    """Files that a manifest names, as long as they are plain names beside it."""
    try:
        value = read_manifest(manifest)
    except DataError:
        return []
    names = [value.get("rejects", {}).get("path", "")]
    for split in value["splits"].values():
        for entry in split.values():
            if isinstance(entry, list):
                names += [item.get("path", "") for item in entry if isinstance(item, dict)]
    return [name for name in names if name and "/" not in name]


def _allow_files(wanted: int) -> None:
    """Every piece stays open while the pieces are merged."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; helpers of a run that was killed may need a moment to notice.

    Raises:
        OutputError: another run writes to this folder.
    """
    with output_errors(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    message = f"another run prepares data in `{path.parent.parent}`"
                    raise OutputError(message, hint="wait for it, or choose another `output_dir`") from error
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)

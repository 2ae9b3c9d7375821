"""Weights and limits as exact numbers of rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemotron.config.schema.data_prep import DataPrepConfig
from nemotron.data.prep.blend import Dataset
from nemotron.data.prep.pieces import Piece
from nemotron.data.prep.selection import Group, Selection, apportion, copy_piece
from nemotron.data.prep.workers import run_tasks
from nemotron.errors import ConfigError


def weigh(
    config: DataPrepConfig, selection: Selection, datasets: Sequence[Dataset], *, folder: Path, processes: int
) -> None:
    """Bring every data set to its number of rows in every split, then the whole to `max_rows`.

    Rows that are taken more than once become further pieces in ``folder``.

    Raises:
        ConfigError: shares without a number of rows. OutputError: a piece cannot be written.
    """
    splits = range(selection.grid.splits)
    have = {g: [int(selection.of_split(g, s).sum()) for s in splits] for g in sorted(selection.counts)}
    targets = _targets(config, have, datasets)
    copies = {g: max((-(-t // n) for t, n in zip(targets[g], have[g], strict=True) if n), default=0) for g in have}
    _copy(config, selection, copies, folder=folder, processes=processes)
    for group in sorted(selection.counts):
        base, copy = (group[0], 0), group[1]
        for split, rows in enumerate(have[base]):
            if rows:
                selection.limit(group, split, min(max(targets[base][split] - copy * rows, 0), rows))
    wanted = config.rows_wanted
    if wanted is not None and config.weights == "copies":
        rows_of = [int(selection.rows_of_split(split).sum()) for split in splits]
        if sum(rows_of) > wanted:
            for split, rows in enumerate(apportion(wanted, rows_of)):
                if rows_of[split]:
                    selection.limit(None, split, rows)


def _targets(
    config: DataPrepConfig, have: dict[Group, list[int]], datasets: Sequence[Dataset]
) -> dict[Group, list[int]]:
    """Rows of every data set in every split."""
    weights = [datasets[number].weight for number, _ in have]
    if config.weights == "copies":
        return {g: [int(w * rows + 0.5) for rows in have[g]] for g, w in zip(have, weights, strict=True)}
    if config.rows_wanted is None:
        raise ConfigError("`weights: shares` needs a number of rows to share out", hint="set `max_rows`")
    quotas = apportion(config.rows_wanted, weights)
    return {g: apportion(quota, have[g]) for g, quota in zip(have, quotas, strict=True)}


def _copy(
    config: DataPrepConfig, selection: Selection, copies: dict[Group, int], *, folder: Path, processes: int
) -> None:
    base = selection.pieces
    tasks = [(piece, copy) for piece in base for copy in range(1, copies[selection.group_of(piece)])]
    if not tasks:
        return

    def work(task: tuple[Piece, int], _: object) -> None:
        piece, copy = task
        removed = selection.removed.get(piece.path.name)
        copy_piece(piece, copy, removed, seed=config.seed, grid=selection.grid, folder=folder)

    run_tasks(tasks, work, processes=processes, progress=lambda *_: None)
    made = {path.name for path in folder.glob("*.piece")} - {piece.path.name for piece in base}
    more = [Piece(folder / name) for name in made]
    selection.pieces = sorted([*base, *more], key=lambda piece: piece.path.name)
    selection.count()

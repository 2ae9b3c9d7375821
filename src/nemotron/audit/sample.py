"""Which pairs are audited: a seeded draw that does not depend on the order or number of the other rows."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from nemotron.audit.records import Pair, digest
from nemotron.config.schema.reward_audit import LabelledPairs
from nemotron.data.manifest import split_paths
from nemotron.data.rows import PAIR_KEYS, PairKeys, PairRow, read_pairs
from nemotron.disk.home import expanded
from nemotron.errors import DataError


@dataclass(frozen=True, slots=True)
class Sample:
    """The pairs of an audit."""

    pairs: list[Pair]
    rows: int
    """Pairs in the file."""


def draw(data: LabelledPairs, count: int | None, seed: int) -> Sample:
    """The ``count`` pairs whose hash with the seed is smallest, in order of that hash; memory is that of the sample.

    Raises:
        DataError: the file cannot be read, has no rows, or a row is no pair.
    """
    keys = keys_of(data)
    rows = _Counted(chain.from_iterable(read_pairs(path, keys) for path in paths_of(data, verify=True)))
    ranked = ((_rank(row, seed), row) for row in rows)
    chosen = sorted(ranked, key=_first) if count is None else heapq.nsmallest(count, ranked, key=_first)
    if not chosen:
        raise DataError(f"`{data.manifest_path or data.data_path}` has no pairs", hint="check the section `data`")
    return Sample([_pair(index, row) for index, (_, row) in enumerate(chosen)], rows.count)


def paths_of(data: LabelledPairs, *, verify: bool = False) -> list[Path]:
    """The file, or the shards of the manifest's split; with ``verify`` these are hashed.

    Raises:
        DataError: the manifest has no such split, or a shard of it is missing or was changed.
    """
    if data.manifest_path is None:
        return [expanded(data.data_path)]
    return split_paths(expanded(data.manifest_path), data.split, verify=verify)


def keys_of(data: LabelledPairs) -> PairKeys:
    """The fields that hold a pair; prepared pairs have ours."""
    if data.manifest_path is not None:
        return PAIR_KEYS
    return PairKeys(
        data.prompt_key or PAIR_KEYS.prompt,
        data.chosen_key or PAIR_KEYS.chosen,
        data.rejected_key or PAIR_KEYS.rejected,
    )


class _Counted:
    """Rows on their way, counted."""

    def __init__(self, rows: Iterable[PairRow]) -> None:
        self._rows = rows
        self.count = 0

    def __iter__(self) -> Iterator[PairRow]:
        for row in self._rows:
            self.count += 1
            yield row


def _first(ranked: tuple[tuple[str, str], PairRow]) -> tuple[str, str]:
    return ranked[0]


def _rank(row: PairRow, seed: int) -> tuple[str, str]:
    content = digest([row.messages, row.chosen, row.rejected])
    return hashlib.sha256(f"{seed}/{content}".encode()).hexdigest(), row.id


def _pair(index: int, row: PairRow) -> Pair:
    principle = row.fields.get("principle")
    return Pair(
        index=index,
        row_id=row.id,
        messages=[{"role": m["role"], "content": m["content"]} for m in row.messages],
        chosen=row.chosen,
        rejected=row.rejected,
        principle=principle if isinstance(principle, str) and principle.strip() else None,
    )

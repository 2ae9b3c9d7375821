"""What the manifest says about sources and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson
import xxhash

from nemotron.config.schema.data_prep import DataPrepConfig
from nemotron.data.prep.blend import Dataset, SourceFile
from nemotron.data.prep.pieces import Piece
from nemotron.data.prep.reading import size_of
from nemotron.data.prep.rejects import SourceCounts


def datasets(sources: Sequence[SourceFile]) -> list[Dataset]:
    """The data sets of the sources, in their order."""
    return list({source.dataset.model_dump_json(): source.dataset for source in sources}.values())


def dataset_numbers(sources: Sequence[SourceFile]) -> list[int]:
    """For every source the position of its data set."""
    order = {dataset.model_dump_json(): i for i, dataset in enumerate(datasets(sources))}
    return [order[source.dataset.model_dump_json()] for source in sources]


def settings(config: DataPrepConfig, sources: Sequence[SourceFile]) -> dict[str, Any]:
    """All settings that decide the output, the blend included in an order of its own."""
    return {**config.identity(), "blend": [dataset.model_dump(mode="json") for dataset in datasets(sources)]}


def config_hash(config: DataPrepConfig, sources: Sequence[SourceFile]) -> str:
    """Hash of :func:`settings`."""
    return xxhash.xxh3_128_hexdigest(orjson.dumps(settings(config, sources), option=orjson.OPT_SORT_KEYS))


def source_entry(source: SourceFile, counts: SourceCounts) -> dict[str, Any]:
    """One entry of `sources`. A local file has no revision, so a hash of its blocks stands there."""
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
        "not_finite": counts.not_finite,
        "kinds": dict(sorted(counts.kinds.items())),
    }


def kinds_of(counts: Sequence[SourceCounts]) -> str:
    """The kind of all rows, or `mixed`."""
    kinds = sorted({kind for mine in counts for kind in mine.kinds})
    return kinds[0] if len(kinds) == 1 else "mixed"


def taken_for(pieces: Sequence[Piece]) -> dict[str, list[dict[str, Any]]]:
    """What the rows of each split were taken for, the commonest first: kind, the fields that say so, and how many."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for piece in pieces:
        for split, kind, fields, count in piece.info.forms:
            counts[split, kind, fields] += count
    found: dict[str, list[dict[str, Any]]] = {}
    for (split, kind, fields), count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        found.setdefault(split, []).append({"kind": kind, "fields": fields, "rows": count})
    return found

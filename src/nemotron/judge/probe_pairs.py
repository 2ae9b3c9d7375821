"""The pairs of a probe; read without the judge's client."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from nemotron.config.schema.judge import JudgeProbeConfig
from nemotron.data.rows import PairRow, read_pairs
from nemotron.disk.home import expanded

SHIPPED = Path(__file__).with_name("probe_pairs.jsonl")


def probe_pairs(config: JudgeProbeConfig) -> list[PairRow]:
    """The first pairs of the file. Raises DataError when it cannot be read, has none, or a row is no pair."""
    path = SHIPPED if config.data_path is None else expanded(config.data_path)
    return list(islice(read_pairs(path), config.pairs))

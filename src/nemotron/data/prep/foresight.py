"""What can be said of prepared data before they are prepared: the splits, and the kind of the first rows."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron.config.schema.data_prep import DataPrepConfig
from nemotron.data.content import layout_of
from nemotron.data.prep.blend import SourceFile
from nemotron.data.prep.kinds import form_of
from nemotron.data.prep.splits import split_shares
from nemotron.data.rows import parse_row, read_lines
from nemotron.data.turns import UnusableRow
from nemotron.errors import ConfigError, DataError, NotAvailableError

LOOK_AT = 50
"""Rows of a source that are tried until one can be used."""


def splits_of(config: DataPrepConfig, sources: Sequence[SourceFile]) -> tuple[str, ...] | None:
    """The splits that will have rows; None where the config cannot tell."""
    try:
        shares = split_shares(config, sources)
    except ConfigError:
        return None  # the rules say so
    named = {source.split or "train" for source in sources} if shares is None else {"train", *shares}
    return tuple(sorted(named))


def kind_of(sources: Sequence[SourceFile]) -> str | None:
    """The kind that the manifest will name, as far as the first row of every source tells; None where one does not."""
    kinds = {_kind(source) for source in sources}
    return None if None in kinds else next(iter(kinds)) if len(kinds) == 1 else "mixed"


def _kind(source: SourceFile) -> str | None:
    declared = source.dataset.kind
    if declared != "auto":
        return "preference" if declared == "aligner_pairs" else declared
    try:
        if source.dataset.fields or layout_of(source.path) != "lines":
            return None
        for number, line in read_lines(source.path):
            if number > LOOK_AT:
                return None
            if line.strip():
                try:
                    row = parse_row(source.path, number, line)
                    return form_of(row, list(row), None).kind
                except (DataError, UnusableRow):
                    continue  # it will be rejected, with its reason
    except (DataError, NotAvailableError):
        return None  # the rules say so
    return None

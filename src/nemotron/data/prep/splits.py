"""Which splits there are, and whether the sources or a hash of the prompt decide what is in them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nemotron.config.schema.data_prep import DataPrepConfig
from nemotron.data.prep.blend import SourceFile
from nemotron.errors import ConfigError, DataError

_NAME = re.compile(r"\w[\w.-]*")
MOST_SPLITS = 16
"""What the order keys of pieces can tell apart."""


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
        DataError: more splits than a piece can tell apart, or a name that cannot stand in a file's name.
    """
    names = set(shares) if shares is not None else {source.split or "train" for source in sources}
    if strange := sorted(name for name in names if not _NAME.fullmatch(name)):
        raise DataError(
            f"`{strange[0]}` is no name for a split: its files are called after it",
            hint="take letters, digits, `_`, `-` and `.`, for example `validation`",
        )
    known = ["train", "validation", "test"]
    found = ["train", *(n for n in known[1:] if n in names), *sorted(names - set(known))]
    if len(found) > MOST_SPLITS:
        raise DataError(f"{len(found)} splits are too many", hint=f"at most {MOST_SPLITS} are possible")
    return tuple(found)

"""Reading metric rows: one column at a time, gaps included."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import fmean

from nemotron.runs.jsonl import Row

Column = list[float | None]


def number(value: object) -> float | None:
    """A finite number, or None for anything else (missing, null, NaN, infinite, text)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def by_step(rows: Sequence[Row]) -> list[Row]:
    """One row per step, in step order; rows of the same step are merged, the later value wins."""
    merged: dict[int, Row] = {}
    for row in rows:
        step = number(row.get("step"))
        if step is not None:
            merged.setdefault(int(step), {}).update(row)
    return [merged[step] for step in sorted(merged)]


def column(rows: Sequence[Row], name: str) -> Column:
    """The values of one metric, None where a row has no finite one."""
    return [number(row.get(name)) for row in rows]


def matching(rows: Sequence[Row], pattern: str) -> dict[str, str]:
    """Metrics that fit a name in which `*` stands for any text, and that text (empty for a plain name)."""
    if "*" not in pattern:
        return {pattern: ""}
    expression = re.compile(re.escape(pattern).replace(r"\*", "(.+)"))
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: match[1] for name in names if (match := expression.fullmatch(name))}


def known(values: Column) -> list[float]:
    """The values without the gaps."""
    return [value for value in values if value is not None]


def first(values: Column) -> float | None:
    """The first known value."""
    return next(iter(known(values)), None)


def last(values: Column) -> float | None:
    """The last known value."""
    return next(reversed(known(values)), None)


def largest(values: Column) -> float | None:
    """The largest known value."""
    return max(known(values), default=None)


def mean(values: Column) -> float | None:
    """The mean of the known values."""
    found = known(values)
    return fmean(found) if found else None

"""Numbers over scored responses that every source of checked rewards reports."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

_LONGEST_REASON = 48


def mean(values: Sequence[float]) -> float:
    """0 for no values."""
    return sum(values) / max(len(values), 1)


def missing_counts(reasons: Iterable[tuple[str, str]]) -> dict[str, float]:
    """How often each ``(label, reason)`` left a reward missing: ``reward/missing/<label>/<reason>`` -> count."""
    counts = Counter(f"reward/missing/{label}/{_slug(reason)}" for label, reason in reasons)
    return {name: float(count) for name, count in sorted(counts.items())}


def _slug(reason: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", reason.lower()).strip("_")[:_LONGEST_REASON] or "unknown"

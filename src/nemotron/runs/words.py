"""Numbers as a person reads them."""

from __future__ import annotations

from pathlib import Path

UNKNOWN = "–"


def fixed(value: float | None, digits: int) -> str:
    """A number with that many decimals; a dash if unknown."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """A share as a percentage; a dash if unknown."""
    return UNKNOWN if share is None else f"{100 * share:.1f}%"


def change(before: float | None, after: float | None, digits: int) -> str:
    """``before → after``, a dash for what is unknown."""
    return f"{fixed(before, digits)} → {fixed(after, digits)}"


def points(before: float | None, after: float | None) -> str:
    """Two shares and their difference: ``25.0% → 75.0% (+50.0 points)``."""
    text = f"{percent(before)} → {percent(after)}"
    return text if before is None or after is None else f"{text} ({100 * (after - before):+.1f} points)"


def duration(seconds: float | None) -> str:
    """``38.2 s``, ``4 min 05 s`` or ``3 h 12 min``."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def label(name: str) -> str:
    """``fully_right`` as ``fully right``."""
    return name.replace("_", " ")


def relative(path: str) -> str:
    """The path relative to the working directory when it lies below it, and that is there still."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (ValueError, FileNotFoundError):
        return path

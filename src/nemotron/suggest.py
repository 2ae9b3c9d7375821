"""Did-you-mean: one place, so that every message guesses alike. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable


def closest(word: str, candidates: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The candidate that ``word`` most likely meant, or None when none is near.

    Example: ``closest("rlhff", ["rlhf", "dpo"])`` gives ``"rlhf"``.
    """
    import difflib  # kept out of the start-up of commands that need no guess

    found = difflib.get_close_matches(word, list(candidates), n=1, cutoff=cutoff)
    return found[0] if found else None


def listed(names: Iterable[str]) -> str:
    """Names in backticks, comma-separated: ``listed(["a", "b"])`` gives ```a`, `b```."""
    return ", ".join(f"`{name}`" for name in names)

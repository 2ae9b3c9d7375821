"""What a reward function is, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class VerifierError(Exception):
    """A function has no value for this answer: it raised, timed out, or the row is unfit. *Missing*, never 0.

    The message is one clause that is shown and counted; it names no row, so that equal causes count together.
    """


def need(problem: str | None) -> None:
    """Raise `VerifierError` when a row cannot be used."""
    if problem:
        raise VerifierError(problem)


class RewardFunction(Protocol):
    """Scores one response to one row.

    ``row`` is the row as read (`PromptRow.fields`), ``response`` the text of the answer without special tokens,
    ``ended`` says whether the model stopped by itself (false: cut off at the token limit). Returns a value in [0, 1].

    Raises `VerifierError` when there is no value.
    """

    def __call__(self, row: Mapping[str, Any], response: str, *, ended: bool) -> float: ...


@dataclass(frozen=True, slots=True)
class Score:
    """All functions on one answer.

    Example: ``Score(reward=1.5, components={"math": 1.0, "format": 0.5}, missing={})``.
    """

    reward: float | None
    """Weighted sum of the components; None when one is missing that is not optional, or all are."""
    components: Mapping[str, float | None]
    """Value of each function by label, unweighted; None where missing."""
    missing: Mapping[str, str]
    """Why, for each component that is None."""

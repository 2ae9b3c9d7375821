"""Where the rewards of a rollout come from: a judge, verifiers, servers of NeMo-Gym. No torch here.

A source takes each group as soon as it is complete and works in the background while other groups are still sampled.
A response that a source cannot score is *missing* (``None``): masked, counted, and never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from nemotron.contracts.samples import Completion
from nemotron.data.rows import PromptRow
from nemotron.errors import NemotronError

LARGEST_REWARD = 1e15
"""Rewards are trained on in float32: of numbers up to this, a million squares still have a sum there."""


def summable(number: float) -> bool:
    """Whether a number that came from outside can be a reward, or part of one: neither NaN nor too large to add up."""
    return -LARGEST_REWARD <= number <= LARGEST_REWARD


@dataclass(frozen=True, slots=True)
class GroupRewards:
    """Rewards of one group, in the order of its responses."""

    rewards: Sequence[float | None]
    """None: missing."""
    details: Sequence[Mapping[str, Any]]
    """What ``samples.jsonl`` keeps of each response beside its reward; plain JSON values."""
    asked: int
    """Questions to the source: comparisons of a judge, responses of a verifier."""
    missing: int
    """Questions that stayed without answer after all retries."""
    failure: str | None = None
    """Why the first of them did."""
    raw: Any = field(default=None, repr=False)
    """What the source itself needs for the metrics of a step."""


class RewardSource(Protocol):
    """Anything that turns a complete group into rewards in the background."""

    def submit(
        self, source: PromptRow, texts: Sequence[str], completions: Sequence[Completion], *, seed: int
    ) -> Future[GroupRewards]:
        """Start scoring the responses ``texts`` [G] (decoded ``completions``) to ``source``.

        Equal arguments give equal rewards, whatever else is being scored: bitwise resume rests on that. The future
        raises NemotronError when the source is down for good; one response that cannot be scored is missing instead.
        """
        ...

    def metrics(self, results: Sequence[GroupRewards]) -> dict[str, float]:
        """Metrics of a step under their full names (``judge/missing_share``)."""
        ...

    def too_many_missing(self, results: Sequence[GroupRewards], step: int, limit: float) -> NemotronError:
        """The error that ends the run when more than ``limit`` of a step's questions are missing."""
        ...


def missing_share(results: Sequence[GroupRewards]) -> float:
    """Missing questions over all questions, 0..1."""
    return sum(result.missing for result in results) / max(sum(result.asked for result in results), 1)


def first_failure(results: Sequence[GroupRewards]) -> str:
    """Why the first missing question is missing."""
    return next((result.failure for result in results if result.failure), "no answer")

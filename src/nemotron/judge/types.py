"""Values that travel between the loop and the judge."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

RANKING_MIDPOINT = 3.5
"""Rankings run from 1 (first much better) to 6 (second much better)."""


class Message(TypedDict):
    """One turn of a chat, as OpenAI's chat API wants it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class JudgedResponse:
    """What the policy said. The judge sees the answer only; the reasoning counts for length terms."""

    reasoning: str
    answer: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge said about one ordered pair of responses.

    Scores are meant to be 1 to 5 (higher is better), the ranking 1 (first much better) to 6 (second much better).
    Nothing is clamped: NeMo-Gym takes the numbers as they come.
    """

    score_1: float
    score_2: float
    ranking: float

    @property
    def preference(self) -> float:
        """For the first: score difference, or ``3.5 - ranking`` of equal scores, as the aggregation takes it."""
        return self.score_1 - self.score_2 if self.score_1 != self.score_2 else RANKING_MIDPOINT - self.ranking

    def the_other_way_round(self) -> Verdict:
        """The same verdict about the pair in the other order."""
        return Verdict(self.score_2, self.score_1, 2 * RANKING_MIDPOINT - self.ranking)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One question to the judge and what became of it."""

    first: int
    """Index of the response that ``score_1`` is about; shown as ``response_1`` unless ``swapped``."""
    second: int
    """Index of the response that ``score_2`` is about."""
    judge: int
    """0-based index of the judge (``num_judges_per_comparison``)."""
    verdict: Verdict | None
    """None: missing. A missing verdict is never replaced by a score."""
    requests: int
    """HTTP requests sent, re-asks and retries included."""
    unparseable: int = 0
    """Answers that held no verdict."""
    failure: str | None = None
    """Why the verdict is missing."""
    out_of_scale: int = 0
    """Answers whose verdict lies outside of the scale, taken or not."""
    swapped: bool = False
    """The judge was shown ``second`` as ``response_1``; the verdict is about the pair as it stands here."""
    tokens_read: int = 0
    """Tokens of the questions, as the endpoint counts them; 0 where it does not say."""
    tokens_written: int = 0
    """Tokens of the answers."""

    @property
    def shown_first(self) -> int:
        """Index of the response that the judge was shown as ``response_1``."""
        return self.second if self.swapped else self.first


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """A prompt and all responses to it, ready to be compared."""

    conversation: Sequence[Message]
    """The turns before the responses."""
    responses: Sequence[JudgedResponse]
    """At least two."""
    principle: str | None = None
    """What the judge should look for. Used when the compare config says ``use_principle``."""


@dataclass(frozen=True, slots=True)
class GroupResult:
    """Rewards of one group, in the order of its responses."""

    rewards: list[float | None]
    """None: every comparison of this response is missing, so it has no reward and must be masked."""
    comparisons: list[Comparison]
    metrics: dict[str, float] = field(default_factory=dict)
    """NeMo-Gym's aggregation metrics plus counts for the run's ``judge/*`` metrics, see ``pool.summarise``."""
    retries: int = 0
    """Requests beyond the first one of each comparison."""
    missing: int = 0
    """Comparisons without a verdict."""


def derive_seed(*parts: int) -> int:
    """A 31-bit seed from any integers: equal parts give equal seeds on every machine and Python version.

    Example: ``derive_seed(run_seed, step, group)``.
    """
    digest = hashlib.sha256(",".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1

"""Which responses meet, and how verdicts become rewards (NeMo-Gym's genrm_compare, ``simple_tiebreaker``)."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nemotron.judge.style import RewardTerms, apply_terms
from nemotron.judge.types import RANKING_MIDPOINT, JudgedResponse, Verdict

STRATEGIES = ("all_pairs", "circular")
AGGREGATORS = ("simple_tiebreaker",)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Rewards of a group and how they came about, in the order of the responses."""

    rewards: list[float | None]
    base_scores: list[float | None]
    bonuses: list[float]
    metrics: dict[str, float]
    """``mean_individual_score``, ``std_individual_score`` (population), ``tiebreak_usage_rate``; or {}."""


def comparison_pairs(strategy: str, responses: int) -> list[tuple[int, int]]:
    """Ordered pairs of response indices: each with its successor (``circular``), or every ``i < j`` (``all_pairs``).

    Raises ValueError for another strategy or fewer than two responses.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"Unknown comparison strategy: {strategy!r}. Supported: {list(STRATEGIES)}")
    if responses < 2:
        raise ValueError(f"Need at least 2 responses for comparison, got {responses}")
    if strategy == "all_pairs":
        return list(itertools.combinations(range(responses), 2))
    return [(k, (k + 1) % responses) for k in range(responses)]


def aggregate(
    verdicts: Sequence[Verdict],
    pairs: Sequence[tuple[int, int]],
    responses: Sequence[JudgedResponse],
    terms: RewardTerms,
    *,
    method: str = "simple_tiebreaker",
    default_score: float | None = None,
) -> Aggregate:
    """Mean score of each response over its verdicts, plus bonuses, length and style terms. Nothing is clipped.

    ``pairs[k]`` are the responses that ``verdicts[k]`` is about. Equal scores are parted by the ranking:
    ``d = 3.5 - ranking`` goes to the first and is taken from the second.

    A response without any verdict has reward None and takes no part in the group terms. With ``default_score`` it
    gets that score instead, which is what NeMo-Gym does and this project's loop does not.

    Raises ValueError for an unknown ``method``.
    """
    if method not in AGGREGATORS:
        raise ValueError(f"Unsupported aggregator_method: {method!r}. Supported: {list(AGGREGATORS)}")
    collected: list[list[float]] = [[] for _ in responses]
    for verdict, (first, second) in zip(verdicts, pairs, strict=True):
        shift = RANKING_MIDPOINT - verdict.ranking if verdict.score_1 == verdict.score_2 else 0.0
        collected[first].append(verdict.score_1 + shift)
        collected[second].append(verdict.score_2 - shift)
    base = [sum(scores) / len(scores) if scores else default_score for scores in collected]

    scored = [(k, score) for k, score in enumerate(base) if score is not None]
    totals, added = apply_terms([score for _, score in scored], [responses[k] for k, _ in scored], terms)
    rewards: list[float | None] = [None] * len(base)
    bonuses = [0.0] * len(base)
    for (k, _), total, bonus in zip(scored, totals, added, strict=True):
        rewards[k] = total
        bonuses[k] = bonus
    return Aggregate(rewards, base, bonuses, _metrics(verdicts))


def _metrics(verdicts: Sequence[Verdict]) -> dict[str, float]:
    if not verdicts:
        return {}
    scores = [score for verdict in verdicts for score in (verdict.score_1, verdict.score_2)]
    ties = sum(verdict.score_1 == verdict.score_2 for verdict in verdicts)
    return {
        "mean_individual_score": statistics.fmean(scores),
        "std_individual_score": statistics.pstdev(scores),
        "tiebreak_usage_rate": ties / len(verdicts),
    }

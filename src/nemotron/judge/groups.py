"""Judges one group: asks for every comparison, asks again where no verdict came, and turns verdicts into rewards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from nemotron.config.schema.env import EnvConfig
from nemotron.config.schema.judge import GenrmCompareConfig, JudgeConfig
from nemotron.contracts.rewards import summable
from nemotron.judge.client import EXCERPT_CHARS, JudgeClient, Sampling
from nemotron.judge.compare import aggregate, comparison_pairs
from nemotron.judge.messages import judge_messages
from nemotron.judge.parsing import parse_verdict
from nemotron.judge.responses import shown_answer
from nemotron.judge.style import RewardTerms
from nemotron.judge.types import Comparison, GroupRequest, GroupResult, Verdict, derive_seed

REASK_TEMPERATURE = 0.6
"""A greedy judge repeats itself word for word, so asking it again only makes sense with some temperature."""

SCORES, RANKINGS = (1.0, 5.0), (1.0, 6.0)
"""The scale that the judge is asked for."""


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """Everything about judging that is not the endpoint."""

    compare: GenrmCompareConfig
    requests: JudgeConfig
    supports_principle_role: bool = True

    @classmethod
    def of(cls, env: EnvConfig, requests: JudgeConfig) -> JudgeSettings:
        """The settings of a config; NeMo-Gym's defaults where it has no block for the comparison.

        Raises:
            ConfigError: no judge is named.
        """
        return cls(env.comparison or GenrmCompareConfig(), requests, env.required_judge().supports_principle_role)


async def judge_group(client: JudgeClient, request: GroupRequest, settings: JudgeSettings, *, seed: int) -> GroupResult:
    """Rewards of a group. Equal requests, settings and seed ask the judge exactly the same questions.

    Raises JudgeError when the endpoint refuses or does not answer, ValueError for a group of fewer than two responses.
    """
    config = settings.compare
    pairs = comparison_pairs(config.comparison_strategy, len(request.responses))
    comparisons = await asyncio.gather(
        *(
            _compare(client, request, settings, pair, judge, seed)
            for judge in range(config.num_judges_per_comparison)
            for pair in pairs
        )
    )
    done = [(c.verdict, (c.first, c.second)) for c in comparisons if c.verdict is not None]
    result = aggregate(
        [verdict for verdict, _ in done],
        [pair for _, pair in done],
        request.responses,
        _terms(config),
        method=config.aggregator_method,
    )
    return GroupResult(
        rewards=result.rewards,
        comparisons=comparisons,
        metrics=result.metrics,
        retries=sum(max(c.requests - 1, 0) for c in comparisons),
        missing=len(comparisons) - len(done),
    )


def summarise(results: Sequence[GroupResult]) -> dict[str, float]:
    """The run's ``judge/*`` metrics over groups.

    ``comparisons``, ``retries``, ``unparseable`` and ``out_of_scale`` (verdicts, taken or not) are counts,
    ``missing_share`` is of comparisons, ``tie_share`` of
    verdicts (equal scores), ``first_position_share`` of decided verdicts (they prefer ``response_1``: 0.5 for a judge
    without position bias).
    """
    comparisons = [comparison for result in results for comparison in result.comparisons]
    verdicts = [comparison.verdict for comparison in comparisons if comparison.verdict is not None]
    # As in the aggregation: the scores decide, and only equal scores ask the ranking (1..6, below 3.5 means the first).
    preference = [v.score_1 - v.score_2 if v.score_1 != v.score_2 else 3.5 - v.ranking for v in verdicts]
    decided = [value for value in preference if value != 0]
    return {
        "comparisons": float(len(comparisons)),
        "retries": float(sum(result.retries for result in results)),
        "unparseable": float(sum(comparison.unparseable for comparison in comparisons)),
        "out_of_scale": float(sum(comparison.out_of_scale for comparison in comparisons)),
        "missing_share": (len(comparisons) - len(verdicts)) / max(len(comparisons), 1),
        "tie_share": sum(v.score_1 == v.score_2 for v in verdicts) / max(len(verdicts), 1),
        "first_position_share": sum(value > 0 for value in decided) / len(decided) if decided else 0.5,
    }


async def _compare(
    client: JudgeClient,
    request: GroupRequest,
    settings: JudgeSettings,
    pair: tuple[int, int],
    judge: int,
    seed: int,
) -> Comparison:
    config = settings.compare
    first, second = pair
    principle = (request.principle or config.default_principle) if config.use_principle else None
    messages = judge_messages(
        request.conversation,
        shown_answer(request.responses[first]),
        shown_answer(request.responses[second]),
        principle=principle,
        supports_principle_role=settings.supports_principle_role,
    )
    requests, failure, unparseable, outside = 0, None, 0, 0
    for attempt in range(config.genrm_parse_retries + 1):
        if attempt:
            await asyncio.sleep(config.genrm_parse_retry_sleep_s)
        question_seed = derive_seed(seed, first, second, judge, attempt)
        answer = await client.ask(messages, _sampling(config, attempt), seed=question_seed)
        requests += answer.requests
        if answer.text is None:
            # The client has already tried as often as it may.
            return Comparison(first, second, judge, None, requests, unparseable, answer.failure, outside)
        verdict = parse_verdict(answer.text, default_score=config.default_score, default_ranking=config.default_ranking)
        if verdict is None:
            unparseable += 1
            failure = f"no verdict in {answer.text[:EXCERPT_CHARS]!r}"
            continue
        bounds = settings.requests.score_range
        scale = (bounds[0], bounds[1]) if bounds else None
        outside += not _within(verdict, scale or SCORES, RANKINGS)
        failure = _refusal(verdict, scale)
        if failure is None:
            return Comparison(first, second, judge, verdict, requests, unparseable, out_of_scale=outside)
    return Comparison(first, second, judge, None, requests, unparseable, failure, outside)


def _within(verdict: Verdict, scores: tuple[float, float], rankings: tuple[float, float]) -> bool:
    low, high = scores
    in_range = all(low <= score <= high for score in (verdict.score_1, verdict.score_2))
    return in_range and rankings[0] <= verdict.ranking <= rankings[1]


def _refusal(verdict: Verdict, scale: tuple[float, float] | None) -> str | None:
    """Why a verdict is not taken; None when it is."""
    if not all(map(summable, (verdict.score_1, verdict.score_2, verdict.ranking))):
        return "a verdict with numbers that float32 cannot add up"
    if scale is not None and not _within(verdict, scale, RANKINGS):
        return f"scores {verdict.score_1:g} and {verdict.score_2:g}, ranking {verdict.ranking:g} outside of the scale"
    return None


def _sampling(config: GenrmCompareConfig, attempt: int) -> Sampling:
    params = config.genrm_responses_create_params
    temperature = params.temperature or (REASK_TEMPERATURE if attempt else 0.0)
    return Sampling(params.max_output_tokens, temperature, params.top_p)


def _terms(config: GenrmCompareConfig) -> RewardTerms:
    return RewardTerms(
        reasoning_bonus=config.reasoning_bonus,
        answer_bonus=config.answer_bonus,
        top_percentile=config.top_percentile,
        group_reasoning_length_penalty_coeff=config.group_reasoning_length_penalty_coeff,
        group_answer_length_penalty_coeff=config.group_answer_length_penalty_coeff,
        group_style_penalty_coeff=config.group_style_penalty_coeff,
    )

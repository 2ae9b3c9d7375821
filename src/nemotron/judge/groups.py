"""Judges one group: asks for every comparison, asks again where no verdict came, and turns verdicts into rewards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from nemotron.config.schema.env import EnvConfig
from nemotron.config.schema.judge import GenrmCompareConfig, JudgeConfig
from nemotron.contracts.rewards import summable
from nemotron.judge.client import JudgeClient
from nemotron.judge.compare import aggregate, comparison_pairs
from nemotron.judge.form import Form, form_of
from nemotron.judge.questions import Asking, Read, Shown
from nemotron.judge.responses import shown_answer
from nemotron.judge.style import RewardTerms
from nemotron.judge.types import Comparison, GroupRequest, GroupResult, Verdict, derive_seed

RANKINGS = (1.0, 6.0)
"""The scale of rankings that the judge is asked for."""
_ORDER = 7_919
"""Of the seed that draws which answer is shown first: no attempt has such a number."""


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """Everything about judging that is not the endpoint."""

    compare: GenrmCompareConfig
    requests: JudgeConfig
    supports_principle_role: bool = True
    form: Form = Form()  # noqa: RUF009  frozen

    @classmethod
    def of(cls, env: EnvConfig, requests: JudgeConfig) -> JudgeSettings:
        """The settings of a config; NeMo-Gym's defaults where it has no block for the comparison.

        Raises:
            ConfigError: no judge is named, or it cannot be asked as the config says.
        """
        model = env.required_judge()
        compare = env.comparison or GenrmCompareConfig()
        return cls(compare, requests, model.supports_principle_role, form_of(model, requests))

    def asking(self, *, holds_digits: bool = True) -> Asking:
        """How one question is asked."""
        return Asking(self.form, self.compare, self.requests, self.supports_principle_role, holds_digits)


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
        retries=sum(max(c.requests - (2 if settings.form.verdict == "logits" else 1), 0) for c in comparisons),
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
    # Of what was shown first, which with swapped pairs is not the first of the pair.
    preference = [c.verdict.preference * (-1 if c.swapped else 1) for c in comparisons if c.verdict is not None]
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
    config, (first, second) = settings.compare, pair
    principle = (request.principle or config.default_principle) if config.use_principle else None
    swapped = _swapped(settings.form, seed, pair, judge)
    answers = [shown_answer(request.responses[index]) for index in (pair[::-1] if swapped else pair)]
    shown = Shown(request.conversation, answers[0], answers[1], principle)
    asking = settings.asking(holds_digits=client.holds_digits)
    bounds = settings.requests.score_range
    scale = (bounds[0], bounds[1]) if bounds else None
    tried: list[tuple[Read, str | None]] = []
    for attempt in range(config.genrm_parse_retries + 1):
        if attempt:
            await asyncio.sleep(config.genrm_parse_retry_sleep_s)
        read = await asking.ask(client, shown, seed=derive_seed(seed, first, second, judge, attempt), attempt=attempt)
        tried.append((read, read.failure if read.verdict is None else _refusal(read.verdict, scale)))
        if read.final or (read.verdict is not None and tried[-1][1] is None):
            break
    last, failure = tried[-1]
    verdict = last.verdict if failure is None else None
    answers_seen = [answer for read, _ in tried for answer in read.answers]
    return Comparison(
        first,
        second,
        judge,
        verdict.the_other_way_round() if verdict is not None and swapped else verdict,
        requests=sum(answer.requests for answer in answers_seen),
        unparseable=sum(
            read.verdict is None and all(answer.text is not None for answer in read.answers) for read, _ in tried
        ),
        failure=failure,
        out_of_scale=sum(
            read.verdict is not None and not _within(read.verdict, settings.requests.scale, RANKINGS)
            for read, _ in tried
        ),
        swapped=swapped,
        tokens_read=sum(answer.tokens_read for answer in answers_seen),
        tokens_written=sum(answer.tokens_written for answer in answers_seen),
    )


def _swapped(form: Form, seed: int, pair: tuple[int, int], judge: int) -> bool:
    """Whether the second answer is shown first: half of the pairs, and of several judges every other one.

    A GenRM is never shown a pair the other way round, as NeMo-Gym does not do it either.
    """
    if form.prompt == "genrm" or not form.swaps:
        return False
    return (derive_seed(seed, *pair, _ORDER) + judge) % 2 == 1


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


def _terms(config: GenrmCompareConfig) -> RewardTerms:
    return RewardTerms(
        reasoning_bonus=config.reasoning_bonus,
        answer_bonus=config.answer_bonus,
        top_percentile=config.top_percentile,
        group_reasoning_length_penalty_coeff=config.group_reasoning_length_penalty_coeff,
        group_answer_length_penalty_coeff=config.group_answer_length_penalty_coeff,
        group_style_penalty_coeff=config.group_style_penalty_coeff,
    )

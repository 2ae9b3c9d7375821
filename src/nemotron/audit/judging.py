"""Asks the judge about labelled pairs with the code that judges rollouts, and hands over each pair as it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from nemotron.audit.records import Audited, Judgement, Pair, Purpose, digest
from nemotron.config.schema.reward_audit import AuditSettings
from nemotron.errors import ConfigError
from nemotron.judge.client import JudgeClient
from nemotron.judge.endpoint import Endpoint, Keeper
from nemotron.judge.form import VerdictForm, problem
from nemotron.judge.groups import JudgeSettings, judge_group
from nemotron.judge.source import group_request
from nemotron.judge.support import wait_until_asked
from nemotron.judge.types import Comparison, derive_seed

Done = Callable[[Audited], None]


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked about every pair."""

    settings: JudgeSettings
    audit: AuditSettings
    model: str
    """Name of the judge, which the answers depend on."""

    def key(self, pair: Pair) -> str:
        """Says what is asked about a pair: rows of a run with the same key need not be asked again."""
        form = self.settings.form
        return digest(
            {
                "pair": pair.content,
                "model": self.model,
                "compare": self.settings.compare.model_dump(mode="json"),
                "principle_role": self.settings.supports_principle_role,
                "form": [form.prompt, form.verdict, form.template],
                "seed": self.audit.seed,
                "both_orders": self.audit.both_orders,
                "repeats": self.repeats(pair),
                "repeat_temperature": self.audit.repeat_temperature,
            }
        )

    def answered_as(self, verdict: VerdictForm) -> Questions:
        """The same questions with another form of answer, each asked once.

        Raises ConfigError when this judge cannot answer so.
        """
        form = self.settings.form.answering(verdict)
        if (found := problem(form, self.settings.requests)) is not None:
            raise ConfigError(f"`audit.compare_verdicts`: {found[1]}", hint=f"leave `{verdict}` out, or {found[2]}")
        audit = self.audit.model_copy(update={"repeats": 0})
        return replace(self, settings=replace(self.settings, form=form), audit=audit)

    def repeats(self, pair: Pair) -> int:
        """How often the judge is asked the same again about this pair."""
        return self.audit.repeats if pair.index < self.audit.repeat_pairs else 0

    def as_trained(self) -> JudgeSettings:
        """The comparison of training, between two answers."""
        orders = "circular" if self.audit.both_orders else "all_pairs"
        change = {"comparison_strategy": orders, "num_rollouts_per_prompt": 2}
        compare = self.settings.compare.model_copy(update=change)
        # The audit draws the order of answers itself, and has to know it.
        return replace(self.settings, compare=compare, form=self.settings.form.without_swaps())

    def again(self, repeats: int) -> JudgeSettings:
        """The same, asked ``repeats`` times, at the temperature of repeats."""
        once = self.as_trained()
        params = once.compare.genrm_responses_create_params
        if self.audit.repeat_temperature is not None:
            params = params.model_copy(update={"temperature": self.audit.repeat_temperature})
        change = {"num_judges_per_comparison": repeats, "genrm_responses_create_params": params}
        return replace(once, compare=once.compare.model_copy(update=change))

    def count(self, pairs: Sequence[Pair]) -> int:
        """Comparisons that the pairs take, re-asks left out."""
        orders = 2 if self.audit.both_orders else 1
        judges = self.settings.compare.num_judges_per_comparison
        return sum(orders * (judges + self.repeats(pair)) for pair in pairs)


def judge_pairs(judge: Keeper, endpoint: Endpoint, questions: Questions, pairs: Sequence[Pair], done: Done) -> None:
    """Ask about all pairs, as many at once as ``judge.max_concurrent_requests`` allows; ``done`` gets each pair.

    Raises:
        JudgeError: the judge refuses or does not answer. What was done before has been handed over.
    """
    asyncio.run(_judge_pairs(judge, endpoint, questions, pairs, done))


async def _judge_pairs(
    judge: Keeper, endpoint: Endpoint, questions: Questions, pairs: Sequence[Pair], done: Done
) -> None:
    requests = questions.settings.requests
    async with JudgeClient(endpoint, requests, keeper=judge) as client:
        await wait_until_asked(client, questions.settings)
        waiting = iter(pairs)
        workers = [
            asyncio.create_task(_work(client, questions, waiting, done))
            for _ in range(min(requests.max_concurrent_requests, len(pairs)))
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _work(client: JudgeClient, questions: Questions, waiting: Iterator[Pair], done: Done) -> None:
    for pair in waiting:
        done(await _judge(client, questions, pair))


async def _judge(client: JudgeClient, questions: Questions, pair: Pair) -> Audited:
    # From the pair's content, so that neither its place in the sample nor the order of answers changes a question.
    seed = derive_seed(questions.audit.seed, int(digest(pair.content)[:12], 16))
    swapped = not questions.audit.both_orders and seed % 2 == 1
    texts = (pair.rejected, pair.chosen) if swapped else (pair.chosen, pair.rejected)
    request = group_request(pair.messages, texts, pair.principle)
    result = await judge_group(client, request, questions.as_trained(), seed=seed)
    judgements = [_judgement(comparison, "reward", swapped) for comparison in result.comparisons]
    repeats = questions.repeats(pair)
    if repeats:
        again = await judge_group(client, request, questions.again(repeats), seed=derive_seed(seed, 1))
        judgements += [_judgement(comparison, "repeat", swapped) for comparison in again.comparisons]
    chosen, rejected = reversed(result.rewards) if swapped else result.rewards
    return Audited(pair, chosen, rejected, tuple(judgements))


def _judgement(comparison: Comparison, purpose: Purpose, swapped: bool) -> Judgement:
    return Judgement(
        chosen_first=(comparison.first == 0) is not swapped,
        purpose=purpose,
        round=comparison.judge,
        verdict=comparison.verdict,
        requests=comparison.requests,
        unparseable=comparison.unparseable,
        failure=comparison.failure,
        tokens_read=comparison.tokens_read,
        tokens_written=comparison.tokens_written,
    )

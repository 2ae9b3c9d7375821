"""The judge as a source of rewards for rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Protocol

from nemotron.contracts.answers import split_reply
from nemotron.contracts.rewards import GroupRewards, first_failure, missing_share
from nemotron.contracts.samples import Completion
from nemotron.data.rows import Message, PromptRow
from nemotron.errors import JudgeError
from nemotron.judge.groups import summarise
from nemotron.judge.types import GroupRequest, GroupResult, JudgedResponse
from nemotron.processes.futures import then


class Judge(Protocol):
    """Anything that compares the responses of a group in the background (``judge.pool.JudgePool``)."""

    def submit(self, request: GroupRequest, *, seed: int) -> Future[GroupResult]:
        """Start judging."""
        ...


@dataclass(frozen=True)
class JudgeSource:
    """A ``RewardSource`` that asks a judge."""

    judge: Judge

    def submit(
        self, source: PromptRow, texts: Sequence[str], completions: Sequence[Completion], *, seed: int
    ) -> Future[GroupRewards]:
        """Have a group compared; the judge sees answers only, not what a reasoning model thinks before them."""
        request = group_request(source.messages, texts, source.principle)
        return then(self.judge.submit(request, seed=seed), group_rewards)

    def metrics(self, results: Sequence[GroupRewards]) -> dict[str, float]:
        """``judge/*``, see ``judge.groups.summarise``."""
        return {f"judge/{name}": value for name, value in summarise([result.raw for result in results]).items()}

    def too_many_missing(self, results: Sequence[GroupRewards], step: int, limit: float) -> JudgeError:
        """The error of a judge whose verdicts do not come."""
        return JudgeError(
            f"{missing_share(results):.0%} of the judge's verdicts in step {step} are missing, the limit is "
            f"{limit:.0%}: {first_failure(results)}",
            hint="`samples.jsonl` of the run has what failed; `limits.max_missing_share` is the limit",
        )


def group_request(conversation: Sequence[Message], texts: Sequence[str], principle: str | None) -> GroupRequest:
    """What a judge is asked about answers to a conversation, of which it sees roles and contents alone."""
    return GroupRequest(
        conversation=[{"role": m["role"], "content": m["content"]} for m in conversation],
        responses=[judged_response(text) for text in texts],
        principle=principle,
    )


def judged_response(text: str) -> JudgedResponse:
    """Split off what a reasoning model thinks before it answers."""
    reply = split_reply(text)
    return JudgedResponse(
        reasoning=reply.reasoning, answer=reply.answer if reply.answer == text else reply.answer.strip()
    )


def group_rewards(result: GroupResult) -> GroupRewards:
    """The judge's result as the loop wants it; a response keeps the comparisons in which it stood first."""
    missing = [c for c in result.comparisons if c.verdict is None]
    return GroupRewards(
        rewards=result.rewards,
        details=[
            {"verdicts": [asdict(comparison) for comparison in result.comparisons if comparison.first == index]}
            for index in range(len(result.rewards))
        ],
        asked=len(result.comparisons),
        missing=len(missing),
        failure=next((c.failure for c in missing if c.failure), None),
        raw=result,
    )

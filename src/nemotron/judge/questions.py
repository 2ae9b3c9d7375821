"""One question to the judge, and the verdict that its answer holds: the three forms of `judge.verdict`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron.config.schema.judge import GenrmCompareConfig, JudgeConfig
from nemotron.judge.client import JudgeClient
from nemotron.judge.completions import EXCERPT_CHARS
from nemotron.judge.endpoint import Answer, Sampling
from nemotron.judge.form import Form
from nemotron.judge.instruct import instruct_messages
from nemotron.judge.messages import judge_messages
from nemotron.judge.parsing import parse_verdict
from nemotron.judge.types import RANKING_MIDPOINT, Message, Verdict

REASK_TEMPERATURE = 0.6
"""A greedy judge repeats itself word for word, so asking it again only makes sense with some temperature."""
TOP_LOGPROBS = 20
"""The most that OpenAI's API gives."""
_LONGEST_DOCUMENT = 96
"""Tokens that a verdict and nothing else can have, whatever the tokenizer; more would only be taken from the prompt."""
_DIGITS = 6
"""Decimals of an expected score: what comes after them is rounding of the arithmetic."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A pair of answers as the judge is shown it."""

    conversation: Sequence[Message]
    response_1: str
    response_2: str
    principle: str | None


@dataclass(frozen=True, slots=True)
class Read:
    """What one try gave."""

    verdict: Verdict | None
    answers: Sequence[Answer]
    failure: str | None = None
    final: bool = False
    """Asking again would get the same."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How one judge is asked."""

    form: Form
    compare: GenrmCompareConfig
    requests: JudgeConfig
    supports_principle_role: bool = True
    holds_digits: bool = True
    """Whether the endpoint takes a schema for a single score; one that gives probabilities need not."""

    def messages(self, shown: Shown, about: int | None = None) -> list[Message]:
        """The chat that the judge is sent."""
        if self.form.prompt == "instruct":
            return instruct_messages(
                shown.conversation,
                shown.response_1,
                shown.response_2,
                principle=shown.principle,
                verdict=self.form.verdict,
                scale=self.requests.scale,
                about=about,
                template=self.form.template,
            )
        return judge_messages(
            shown.conversation,
            shown.response_1,
            shown.response_2,
            principle=shown.principle,
            supports_principle_role=self.supports_principle_role,
        )

    async def ask(self, client: JudgeClient, shown: Shown, *, seed: int, attempt: int) -> Read:
        """Ask once. Raises JudgeError when the judge refuses or does not answer."""
        if self.form.verdict == "logits":
            return await self._expected(client, shown, seed)
        answer = await client.ask(self.messages(shown), self.sampling(attempt), seed=seed)
        if answer.text is None:
            return Read(None, [answer], answer.failure, final=True)
        verdict = parse_verdict(
            answer.text, default_score=self.compare.default_score, default_ranking=self.compare.default_ranking
        )
        failure = f"no verdict in {answer.text[:EXCERPT_CHARS]!r}" if verdict is None else None
        return Read(verdict, [answer], failure)

    def sampling(self, attempt: int) -> Sampling:
        """How the judge writes a verdict."""
        params = self.compare.genrm_responses_create_params
        temperature = params.temperature or (REASK_TEMPERATURE if attempt else 0.0)
        if self.form.verdict == "text":
            return Sampling(params.max_output_tokens, temperature, params.top_p)
        longest = min(params.max_output_tokens, _LONGEST_DOCUMENT)
        return Sampling(longest, temperature, params.top_p, verdict_schema(self.requests.scale))

    def reading(self) -> Sampling:
        """How a single score is asked for."""
        schema = {"type": "integer", "enum": list(scores(self.requests.scale))} if self.holds_digits else None
        return Sampling(1, 0.0, 1.0, schema, TOP_LOGPROBS)

    async def _expected(self, client: JudgeClient, shown: Shown, seed: int) -> Read:
        """The expectation of each score over the probabilities of the scores' tokens."""
        asked = (client.ask(self.messages(shown, about), self.reading(), seed=seed) for about in (1, 2))
        answers = await asyncio.gather(*asked)
        found = []
        for answer in answers:
            if answer.text is None:
                return Read(None, answers, answer.failure, final=True)
            expected = expectation(answer.first_token, self.requests.scale)
            if expected is None:
                likely = ", ".join(repr(text) for text in list(answer.first_token or {})[:5]) or "nothing"
                return Read(None, answers, f"no score among the likely first tokens ({likely})", final=True)
            found.append(expected)
        return Read(Verdict(found[0], found[1], RANKING_MIDPOINT), answers)


def scores(scale: tuple[float, float]) -> range:
    """The whole numbers of a scale."""
    return range(int(scale[0]), int(scale[1]) + 1)


def verdict_schema(scale: tuple[float, float]) -> dict[str, Any]:
    """The JSON schema of a verdict, in the order in which a judge is told to write it."""
    score = {"type": "integer", "minimum": int(scale[0]), "maximum": int(scale[1])}
    properties = {"score_1": score, "score_2": score, "ranking": {"type": "integer", "minimum": 1, "maximum": 6}}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def expectation(first_token: Mapping[str, float] | None, scale: tuple[float, float]) -> float | None:
    """Mean of the scores, each weighed by the probability of its digit; None when none of them is likely.

    Example: ``expectation({"4": log(0.3), " 5": log(0.1), "The": log(0.6)}, (1, 5))`` is 4.25.
    """
    weights = {score: 0.0 for score in scores(scale)}
    for text, logprob in (first_token or {}).items():
        digit = text.strip()
        if digit.isdecimal() and digit.isascii() and len(digit) == 1 and int(digit) in weights:
            weights[int(digit)] += math.exp(logprob)
    total = sum(weights.values())
    if not (total > 0 and math.isfinite(total)):
        return None
    return round(sum(score * weight for score, weight in weights.items()) / total, _DIGITS)

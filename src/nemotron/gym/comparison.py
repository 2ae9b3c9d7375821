"""Our comparison as a resources server: NeMo-Gym's genrm_compare to its agents, our judging behind it.

``POST /verify`` waits for the other answers of a group, ``POST /compare`` has them all. Nothing is lost when answers
arrive apart, and a verdict that does not come is missing: NeMo-RL v0.7.0 reads nothing but a number, so an answer
without a verdict gets the mean of its group, which is an advantage of 0, and says ``mask_sample``, which the metrics of
its agent count. A judge that is gone, or a group that is never whole, is status 503.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from nemotron.errors import JudgeError
from nemotron.gym.gathering import Gathering, Place
from nemotron.gym.protocol import MISSING, Json
from nemotron.gym.serving import Unfit, answering, routes
from nemotron.judge.client import JudgeClient
from nemotron.judge.endpoint import Endpoint
from nemotron.judge.groups import JudgeSettings, judge_group
from nemotron.judge.responses import prompt_key, read_conversation, read_response
from nemotron.judge.support import wait_until_asked
from nemotron.judge.types import GroupRequest, GroupResult, JudgedResponse, Message, derive_seed


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a group, with what it answers."""

    conversation: tuple[Message, ...]
    principle: str | None
    response: JudgedResponse


class ComparisonServer:
    """An aiohttp application that compares the answers of groups.

    Example: ``web.run_app(ComparisonServer(endpoint, settings, patience_s=3600).application(), port=12002)``
    """

    def __init__(self, endpoint: Endpoint, settings: JudgeSettings, *, patience_s: float) -> None:
        """``patience_s``: how long the first answer of a group waits for the last.

        Raises:
            JudgeError: a group has fewer than two answers.
        """
        size = settings.compare.num_rollouts_per_prompt
        if size < 2:
            raise JudgeError(
                f"a group of {size} answer has nothing to compare",
                hint="set `num_rollouts_per_prompt` of the comparison to `${grpo.num_generations_per_prompt}`",
            )
        self._endpoint = endpoint
        self._settings = settings
        self._client: JudgeClient | None = None
        self._gathering: Gathering[Answer, GroupResult] = Gathering(size, self._judge, patience_s=patience_s)

    def application(self) -> web.Application:
        """The routes of genrm_compare."""
        app = routes(self._verify)
        app.router.add_post("/compare", answering(self._compare))
        app.cleanup_ctx.append(self._running)
        return app

    async def _running(self, app: web.Application) -> AsyncIterator[None]:
        async with JudgeClient(self._endpoint, self._settings.requests) as client:
            await wait_until_asked(client, self._settings)
            self._client = client
            yield
            self._gathering.close()

    async def _judge(self, answers: Sequence[Answer]) -> GroupResult:
        if self._client is None:
            raise RuntimeError("the server compares before it has started")
        first = answers[0]
        request = GroupRequest(first.conversation, [answer.response for answer in answers], first.principle)
        return await judge_group(self._client, request, self._settings, seed=_seed(request))

    async def _verify(self, body: Json) -> Json:
        params, response = body.get("responses_create_params"), body.get("response")
        if not isinstance(params, dict):
            raise Unfit("`responses_create_params` is missing")
        if not isinstance(response, dict) or not isinstance(response.get("output"), list):
            raise Unfit("`response` is no Responses-API object")
        principle = _principle(body)
        messages = _messages(params.get("input"))
        answer = Answer(tuple(read_conversation(messages)), principle, read_response(response))
        try:
            position, result = await self._gathering.join(_place(body, messages, principle), answer)
        except ValueError as error:
            raise Unfit(str(error)) from error
        return {"responses_create_params": params, "response": response, **_told(result, position)}

    async def _compare(self, body: Json) -> Json:
        responses, history = body.get("response_objs"), body.get("conversation_history")
        if not isinstance(responses, list) or not all(isinstance(one, dict) for one in responses):
            raise Unfit("`response_objs` is no list of Responses-API objects")
        if len(responses) < 2:
            raise Unfit(f"a group of {len(responses)} has nothing to compare")
        conversation = tuple(read_conversation(_messages(history)))
        principle = _principle(body)
        result = await self._judge([Answer(conversation, principle, read_response(one)) for one in responses])
        verdicts = [
            {
                "response_i": one.first,
                "response_j": one.second,
                "judge_idx": one.judge,
                "score_1": one.verdict.score_1,
                "score_2": one.verdict.score_2,
                "ranking": one.verdict.ranking,
            }
            for one in result.comparisons
            if one.verdict is not None
        ]
        return {"rewards": result.rewards, "comparison_results": verdicts, "metrics": result.metrics or None}


def _told(result: GroupResult, position: int) -> Json:
    """What an agent is told of one answer. Every answer has the same keys: NeMo-RL makes metrics of the first one's."""
    reward = result.rewards[position]
    present = [found for found in result.rewards if found is not None]
    failure = next((one.failure for one in result.comparisons if one.verdict is None and one.failure), None)
    asked = len(result.comparisons)
    return {
        "reward": sum(present) / len(present) if reward is None and present else reward or 0.0,
        "mask_sample": reward is None,
        "failure_kind": None if reward is not None else "judge",
        "failure_reason": None if reward is not None else failure,
        MISSING: result.missing / asked if asked else 0.0,
        "judge_retries": float(result.retries),
    }


def _place(body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], principle: str | None) -> Place:
    """Which group an answer belongs to: the one that the row names, else all with the same prompt."""
    number = body.get("_ng_rollout_index")
    number = number if isinstance(number, int) and not isinstance(number, bool) else None
    group = body.get("_ng_group_id")
    if isinstance(group, str) and number is not None:
        return Place(("group", group, body.get("_ng_group_attempt")), number, named=True)
    key = ("prompt", str(body.get("_ng_task_index")), str(body.get("prompt_id")), prompt_key(messages, principle))
    return Place(key, number)


def _seed(request: GroupRequest) -> int:
    """Equal groups ask equal questions."""
    shown = [list(request.conversation), request.principle, [_shown(one) for one in request.responses]]
    digest = hashlib.sha256(json.dumps(shown).encode()).digest()
    return derive_seed(int.from_bytes(digest[:8], "big"))


def _shown(response: JudgedResponse) -> Json:
    # `asdict` copies what it finds, which for a group costs as much as an exchange with the judge.
    return {"reasoning": response.reasoning, "answer": response.answer}


def _messages(given: Any) -> list[Mapping[str, Any]]:
    """An ``input`` or history of messages; a text is a user's turn."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise Unfit("the prompt is neither a text nor a list of messages")
    # What an agent has called and what came back are no turns.
    return [one for one in given if one.get("type", "message") == "message"]


def _principle(body: Mapping[str, Any]) -> str | None:
    principle = body.get("principle")
    if principle is not None and not isinstance(principle, str):
        raise Unfit("`principle` is no text")
    return principle

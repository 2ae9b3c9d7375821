"""Whatever a judge or a reward server replies is scored, missing, or an error of code 7; soon, and in little memory."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemotron.config.schema.gym import GymConfig
from nemotron.config.schema.judge import GenrmCompareConfig, JudgeConfig
from nemotron.contracts.rewards import summable
from nemotron.contracts.samples import Completion
from nemotron.data.rows import PromptRow
from nemotron.errors import RewardError
from nemotron.gym.source import GymSource
from nemotron.judge.client import JudgeClient
from nemotron.judge.endpoint import Endpoint
from nemotron.judge.form import Form
from nemotron.judge.groups import JudgeSettings, judge_group, summarise
from nemotron.judge.support import wait_until_asked
from nemotron.judge.types import GroupRequest, JudgedResponse
from nemotron.runs.jsonl import to_json
from tests.hostile_server import REPEATED, Hostile, Reply, answer, as_json, bodies, replies

LONGEST_S = 20.0
SECRET = "the-token-of-the-judge"
VERDICT = '{"score_1": 4, "score_2": 2, "ranking": 2}'
MODELS = {"object": "list", "data": [{"id": "judge"}]}
LOGPROBS = {
    "content": [{"token": "4", "top_logprobs": [{"token": "4", "logprob": -0.1}, {"token": "4", "logprob": -3}]}]
}
CHAT = {
    "choices": [{"message": {"role": "assistant", "content": VERDICT}, "logprobs": LOGPROBS}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 5},
}
OUTPUT = {"output": [{"type": "message", "content": [{"type": "output_text", "text": VERDICT}]}]}
ECHO = {"error": f"no `Authorization: Bearer {SECRET}`"}
GROUP = GroupRequest(
    [{"role": "user", "content": "q"}], [JudgedResponse("", "one"), JudgedResponse("", "another")], None
)
ROW = PromptRow(
    "rows:1", [{"role": "user", "content": "2 + 2?"}], None, {"agent_ref": {"name": "sums"}, "expected_answer": "4"}
)
CHECKED = {"reward": 1.0, "extracted": "4", "library": {"x": 1}, "mask_sample": False, "failure_kind": None}
FAILED = {"failure_kind": "cohort_timeout", "failure_reason": "3 of 8", "mask_sample": True}
SPACES = b" " * 100


@pytest.fixture(scope="module")
def server() -> Iterator[Hostile]:
    with Hostile(lambda path, body: Reply(b"")) as hostile:
        yield hostile


def judged(server: Hostile, reply: Reply, api: Any, verdict: Any, probed: bool) -> None:
    """Have a group judged: what comes of it is numbers, missing, or an error of code 7."""

    def play(path: str, body: bytes) -> Reply:
        return Reply(answer(as_json(MODELS)), "keep") if path.endswith("/models") and not probed else reply

    async def ask() -> Any:
        requests = JudgeConfig(request_timeout_s=0.3, max_retries=0, ready_timeout_s=0.1)
        compare = GenrmCompareConfig(genrm_parse_retries=1, genrm_parse_retry_sleep_s=0, num_judges_per_comparison=2)
        forms = JudgeSettings(compare, requests, form=Form(verdict=verdict))
        async with JudgeClient(Endpoint(f"{server.url}/v1", "judge", SECRET, api), requests) as client:
            if probed:
                await wait_until_asked(client, forms)
            return await judge_group(client, GROUP, forms, seed=1)

    server.play = play
    started = time.monotonic()
    try:
        result = asyncio.run(ask())
    except RewardError as error:
        assert SECRET not in f"{error.message} {error.hint}"  # noqa: PT017 - most replies are no error
    else:
        assert all(reward is None or summable(reward) for reward in result.rewards)
        assert all(one.verdict is not None or one.failure for one in result.comparisons)
        assert all(math.isfinite(number) for number in (*summarise([result]).values(), *result.metrics.values()))
        assert all(0 <= one.tokens_read + one.tokens_written < 1e12 for one in result.comparisons)
        assert SECRET not in str(result)
    assert time.monotonic() - started < LONGEST_S


judge_replies = replies(bodies(CHAT, OUTPUT, MODELS, ECHO))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.full)], ids=["some", "many"])
def test_any_reply_of_a_judge(server: Hostile, many: bool) -> None:
    @settings(max_examples=(1000 if "EVERY_BYTE" in os.environ else 300) if many else 15, deadline=None)
    @given(
        reply=judge_replies,
        api=st.sampled_from(["chat", "chat", "responses"]),
        verdict=st.sampled_from(["text", "schema", "logits"]),
        probed=st.booleans(),
    )
    @example(reply=said(logprob=1000), api="chat", verdict="logits", probed=False)
    @example(reply=said(logprob=10**399), api="chat", verdict="logits", probed=False)
    @example(reply=said(prompt_tokens=10**399), api="chat", verdict="text", probed=False)
    @example(
        reply=Reply(answer(as_json(CHAT), "200 OK", "Set-Cookie: a=c; Max-Age=" + "9" * 400)),
        api="chat",
        verdict="text",
        probed=True,
    )
    @example(reply=Reply(answer(b"", "307 T", "Location: http://[")), api="chat", verdict="text", probed=True)
    @example(reply=Reply(answer(b"", "307 T", "Location: /v1/models")), api="chat", verdict="text", probed=False)
    @example(reply=Reply(answer(as_json(CHAT), "200 OK", REPEATED[:-2])), api="chat", verdict="text", probed=False)
    def holds(reply: Reply, api: str, verdict: str, probed: bool) -> None:
        judged(server, reply, api, verdict, probed)

    holds()


def said(**changes: Any) -> Reply:
    """A verdict with another number at these names."""
    text = json.dumps(CHAT)
    for name, value in changes.items():
        before = {"logprob": -0.1, "prompt_tokens": 7}[name]
        text = text.replace(f'"{name}": {before}', f'"{name}": {value}')
    return Reply(answer(text.encode()), "keep")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.full)], ids=["some", "many"])
def test_any_reply_of_a_reward_server(server: Hostile, many: bool) -> None:
    @settings(max_examples=(1000 if "EVERY_BYTE" in os.environ else 300) if many else 15, deadline=None)
    @given(reply=replies(bodies(CHECKED, FAILED)), session=st.booleans(), probed=st.booleans())
    @example(reply=Reply(answer(b"{}", "200 OK", "Set-Cookie: \x01=\x02; x")), session=True, probed=False)
    @example(reply=Reply(answer(b"{}", "200 OK", "Set-Cookie: a b[=c")), session=True, probed=False)
    @example(reply=Reply(answer(b'{"reward": 1, "x": NaN}')), session=False, probed=False)
    def holds(reply: Reply, session: bool, probed: bool) -> None:
        scored(server, reply, session, probed)

    holds()


def scored(server: Hostile, reply: Reply, session: bool, probed: bool) -> None:
    """Have a group verified: what comes of it is numbers, missing, or an error of code 7."""

    def play(path: str, body: bytes) -> Reply:
        return Reply(answer(b"{}"), "keep") if path == "/" and not probed else reply

    server.play = play
    started = time.monotonic()
    of = {"base_url": server.url, "agents": ["sums"], "seed_session": session}
    config = {"servers": {"sums": of}, "max_retries": 0, "request_timeout_s": 0.3, "ready_timeout_s": 0.1}
    try:
        with GymSource(GymConfig.model_validate(config)) as source:
            result = source.submit(ROW, ["4", "5"], [Completion([1], [0.0], truncated=False)] * 2, seed=3).result(20)
            metrics = source.metrics([result])
    except RewardError as error:
        assert error.message  # noqa: PT017 - most replies are no error
    else:
        assert all(reward is None or summable(reward) for reward in result.rewards)
        assert result.missing == sum(reward is None for reward in result.rewards)
        assert all(math.isfinite(number) for number in metrics.values())
        # It stands in a row of samples.jsonl, which has a bound too.
        assert len(to_json(result.details)) < 1 << 20
    assert time.monotonic() - started < LONGEST_S

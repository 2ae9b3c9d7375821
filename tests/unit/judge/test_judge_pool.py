"""Groups through the background pool, against an endpoint that plays a script."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from pydantic import ValidationError

from nemotron.config.schema.judge import GenrmCompareConfig, GenrmResponsesCreateParams, JudgeConfig
from nemotron.contracts.rewards import LARGEST_REWARD
from nemotron.errors import JudgeError
from nemotron.judge.endpoint import Endpoint
from nemotron.judge.groups import JudgeSettings, summarise
from nemotron.judge.pool import JudgePool
from nemotron.judge.questions import REASK_TEMPERATURE
from nemotron.judge.types import GroupRequest, GroupResult, JudgedResponse, Verdict
from tests.unit.judge.scripted_judge import Scripted, says, verdict

QUICK = JudgeConfig(request_timeout_s=5, max_retries=1, ready_timeout_s=2)


def settings(**compare: Any) -> JudgeSettings:
    return JudgeSettings(GenrmCompareConfig(genrm_parse_retry_sleep_s=0, **compare), QUICK)


def group(*answers: str, principle: str | None = None) -> GroupRequest:
    return GroupRequest(
        [{"role": "user", "content": "q"}], [JudgedResponse("", answer) for answer in answers], principle
    )


def shown(body: dict[str, Any], role: str) -> str:
    (text,) = (message["content"] for message in body["messages"] if message["role"] == role)
    return str(text)


def by_length(body: dict[str, Any]) -> web.Response:
    """The longer answer is better."""
    first, second = len(shown(body, "response_1")), len(shown(body, "response_2"))
    return verdict(first, second, 3.5)


def judged(judge: Scripted, request: GroupRequest, how: JudgeSettings, *, seed: int = 7) -> GroupResult:
    with JudgePool(Endpoint(judge.base_url, "judge"), how) as pool:
        return pool.submit(request, seed=seed).result(20)


async def prefer_long(number: int, body: dict[str, Any]) -> web.Response:
    return by_length(body)


def test_rewards_come_back_in_order() -> None:
    with Scripted(prefer_long) as judge, JudgePool(Endpoint(judge.base_url, "judge"), settings()) as pool:
        futures = [pool.submit(group("a" * n, "aa", "aaa"), seed=n) for n in range(1, 9)]
        rewards = [future.result(20).rewards for future in futures]
    assert rewards == [[float(n), 2.0, 3.0] for n in range(1, 9)]


def test_the_judge_is_shown_principle_roles_and_none_for_empty() -> None:
    with Scripted(prefer_long) as judge:
        sampling = GenrmResponsesCreateParams(max_output_tokens=1024, temperature=0.6, top_p=0.95)
        how = settings(use_principle=True, genrm_responses_create_params=sampling)
        judged(judge, group(" \n", "b", principle="be brief"), how)
    assert {"max_tokens": 1024, "temperature": 0.6, "top_p": 0.95}.items() <= judge.bodies[0].items()
    assert judge.bodies[0]["messages"] == [
        {"role": "user", "content": "q"},
        {"role": "principle", "content": "be brief"},
        {"role": "response_1", "content": "None"},
        {"role": "response_2", "content": "b"},
    ]


@pytest.mark.parametrize(
    ("compare", "principle", "expected"),
    [
        ({"use_principle": False, "default_principle": "d"}, "row", None),
        ({"use_principle": True, "default_principle": "d"}, None, "d"),
        ({"use_principle": True, "default_principle": "d"}, "row", "row"),
    ],
)
def test_which_principle_is_sent(compare: dict[str, Any], principle: str | None, expected: str | None) -> None:
    with Scripted(prefer_long) as judge:
        judged(judge, group("a", "b", principle=principle), settings(**compare))
    sent = {
        message["content"] for body in judge.bodies for message in body["messages"] if message["role"] == "principle"
    }
    assert sent == ({expected} if expected else set())


def test_garbage_is_asked_again_with_another_seed_and_some_temperature() -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        return says("I like both") if number == 0 else verdict(4, 2)

    with Scripted(play) as judge:
        result = judged(judge, group("a", "b"), settings(comparison_strategy="all_pairs"))
    assert result.rewards == [4.0, 2.0]
    assert (result.retries, result.missing, result.comparisons[0].unparseable) == (1, 0, 1)
    first, again = judge.bodies
    assert first["seed"] != again["seed"]
    assert (first["temperature"], again["temperature"]) == (0.0, REASK_TEMPERATURE)
    assert first["messages"] == again["messages"]


def test_a_judge_that_answers_garbage_gives_no_rewards() -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        return says(None if number % 2 else "lorem ipsum")

    with Scripted(play) as judge:
        result = judged(judge, group("a", "b", "c"), settings(genrm_parse_retries=2))
    assert result.rewards == [None, None, None]
    assert len(judge.bodies) == 9
    assert result.missing == 3
    assert summarise([result])["missing_share"] == 1.0
    assert summarise([result])["unparseable"] == 9.0


def test_a_failed_comparison_is_missing_and_the_others_count() -> None:
    """The circle (0,1), (1,2), (2,0): only (1,2) fails, and 1 and 2 keep the verdicts with 0."""

    async def play(number: int, body: dict[str, Any]) -> web.Response:
        if (shown(body, "response_1"), shown(body, "response_2")) == ("bb", "ccc"):
            return web.Response(status=500)
        return by_length(body)

    with Scripted(play) as judge:
        result = judged(judge, group("a", "bb", "ccc"), settings())
    assert result.rewards == [1.0, 2.0, 3.0]
    assert result.missing == 1
    assert [c.verdict for c in result.comparisons] == [Verdict(1, 2, 3.5), None, Verdict(3, 1, 3.5)]
    assert result.comparisons[1].failure == "status 500: nothing"


def test_several_judges_are_averaged() -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        return verdict(1, 5) if number == 0 else verdict(4, 2)

    with Scripted(play) as judge:
        result = judged(judge, group("a", "b"), settings(comparison_strategy="all_pairs", num_judges_per_comparison=3))
    assert result.rewards == [3.0, 3.0]
    assert len({body["seed"] for body in judge.bodies}) == 3


def questions(seed: int) -> set[str]:
    with Scripted(prefer_long) as judge:
        judged(judge, group("a", "bb", "ccc", "dddd"), settings(), seed=seed)
    return {json.dumps(body, sort_keys=True) for body in judge.bodies}


def test_the_same_seed_asks_the_same_questions() -> None:
    assert questions(1) == questions(1)
    assert questions(1) != questions(2)


def test_metrics_of_a_step() -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        return verdict(3, 3, 2) if shown(body, "response_1") == "a" else verdict(2, 4, 5)

    with Scripted(play) as judge:
        result = judged(judge, group("a", "b", "c", "d"), settings())
    assert summarise([result, result]) == {
        "comparisons": 8.0,
        "retries": 0.0,
        "unparseable": 0.0,
        "out_of_scale": 0.0,
        "missing_share": 0.0,
        "tie_share": 0.25,
        "first_position_share": 0.25,
    }


def test_errors_reach_the_caller() -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        return web.Response(status=403, text="not you")

    with Scripted(play) as judge, pytest.raises(JudgeError, match="status 403"):
        judged(judge, group("a", "b"), settings())


def test_a_group_of_one_is_an_error() -> None:
    with Scripted(prefer_long) as judge, pytest.raises(ValueError, match="at least 2"):
        judged(judge, group("a"), settings())


@dataclass
class Mortal:
    """Who runs a judge that will not come back."""

    starts: int = 1
    died: str = ""

    def again(self, since: int) -> bool | None:
        if self.died:
            raise JudgeError(self.died)
        return False


def test_a_judge_known_to_be_dead_is_not_asked_again() -> None:
    keeper = Mortal()
    with contextlib.ExitStack() as life:
        judge = life.enter_context(Scripted(prefer_long))
        patient = JudgeSettings(GenrmCompareConfig(), JudgeConfig(max_retries=100))
        endpoint = Endpoint(judge.base_url, "judge")
        with JudgePool(endpoint, patient, keeper=keeper) as pool:
            life.close()
            keeper.died = "it died with exit code -9"
            with pytest.raises(JudgeError, match="it died with exit code -9"):
                pool.submit(group("a", "b"), seed=1).result(10)


def elapsed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def test_closing_does_not_wait_for_the_judge() -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(30)
        return verdict(1, 2)

    with Scripted(play) as judge:
        pool = JudgePool(Endpoint(judge.base_url, "judge"), settings())
        with pool:
            futures = [pool.submit(group("a", "b"), seed=k) for k in range(8)]
            while judge.in_flight < 8:
                time.sleep(0.01)
            took = elapsed(pool.close)
    assert took < 20, "the judge needs 30 s"
    assert all(future.cancelled() for future in futures)
    assert "judge-client" not in {thread.name for thread in threading.enumerate()}


def test_a_pool_that_cannot_open_leaves_nothing_behind() -> None:
    with Scripted(prefer_long, models=("other",)) as judge:
        pool = JudgePool(Endpoint(judge.base_url, "judge"), settings())
        with pytest.raises(JudgeError, match="does not serve"):
            pool.__enter__()
    assert "judge-client" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("number", [1e308, 3.5e38, 1e39, 1e38, 1e16, -1e38])
@pytest.mark.parametrize("key", ["score_1", "score_2", "ranking"])
def test_numbers_that_float32_cannot_add_up_are_missing(number: float, key: str) -> None:
    async def play(k: int, body: dict[str, Any]) -> web.Response:
        return says(json.dumps({"score_1": 3, "score_2": 4, "ranking": 2, key: number}))

    with Scripted(play) as judge:
        result = judged(judge, group("a", "b"), settings(genrm_parse_retries=1))
    assert result.rewards == [None, None]
    assert {comparison.failure for comparison in result.comparisons} == {
        "a verdict with numbers that float32 cannot add up"
    }
    assert len(judge.bodies) == 4
    assert summarise([result])["out_of_scale"] == 4.0


def test_the_largest_numbers_that_count_sum_up_in_float32() -> None:
    largest = np.full(1_000_000, LARGEST_REWARD, dtype=np.float32)
    assert np.isfinite((largest * largest).sum(dtype=np.float32))


def test_verdicts_outside_of_the_scale_are_counted_and_may_be_refused() -> None:
    async def play(k: int, body: dict[str, Any]) -> web.Response:
        return verdict(9, 2, 3)

    how = settings(genrm_parse_retries=0)
    with Scripted(play) as judge:
        taken = judged(judge, group("a", "b"), how)
        refused = judged(
            judge, group("a", "b"), replace(how, requests=QUICK.model_copy(update={"score_range": (1, 5)}))
        )
        wide = judged(judge, group("a", "b"), replace(how, requests=QUICK.model_copy(update={"score_range": (0, 10)})))
    assert (taken.rewards, taken.missing, summarise([taken])["out_of_scale"]) == ([5.5, 5.5], 0, 2.0)
    assert (refused.rewards, refused.missing, summarise([refused])["out_of_scale"]) == ([None, None], 2, 2.0)
    assert refused.comparisons[0].failure == "scores 9 and 2, ranking 3 outside of the scale"
    assert (wide.rewards, wide.missing, summarise([wide])["out_of_scale"]) == ([5.5, 5.5], 0, 0.0)


@pytest.mark.parametrize("bounds", [[5, 1], [1, 1], [1], [1, float("inf")], "1-5"])
def test_a_scale_is_two_ascending_numbers(bounds: Any) -> None:
    assert JudgeConfig.model_validate({"score_range": [1, 5]}).score_range == [1, 5]
    with pytest.raises(ValidationError):
        JudgeConfig.model_validate({"score_range": bounds})

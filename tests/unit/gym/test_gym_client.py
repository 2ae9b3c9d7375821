"""What the client makes of servers that are slow, busy, wrong, or gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from aiohttp import web

from nemotron.config.schema.gym import GymConfig
from nemotron.errors import RewardError
from nemotron.gym.client import GymClient
from tests.unit.judge.scripted_gym import ScriptedGym

ROW = {"responses_create_params": {"input": "Hi"}, "expected_answer": "4"}


def config(**changes: Any) -> GymConfig:
    servers = {"math": {"base_url": "http://127.0.0.1:9", "agents": ["math_agent"]}}
    return GymConfig.model_validate({"servers": servers, "max_retries": 2, "ready_timeout_s": 2, **changes})


def ask(
    gym: ScriptedGym, work: Callable[[GymClient], Coroutine[Any, Any, Any]], settings: GymConfig | None = None
) -> Any:
    async def inside() -> Any:
        async with GymClient(settings or config(), {"math": gym.url}) as client:
            await client.wait_ready()
            return await work(client)

    return asyncio.run(inside())


def verify(client: GymClient) -> Coroutine[Any, Any, Any]:
    return client.verify("math", {**ROW, "response": {}}, seed_session=True)


def test_a_session_is_seeded_and_its_cookie_comes_back() -> None:
    async def right(k: int, request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response({**body, "reward": 1.0, "extracted_answer": "4"})

    with ScriptedGym(right) as gym:
        asked = ask(gym, verify)
    assert (asked.verified.reward, asked.requests) == (1.0, 2)
    (path, seeded, none), (_, sent, cookies) = gym.requests
    assert (path, seeded, none) == ("/seed_session", ROW, {})
    assert sent == {**ROW, "response": {}}
    assert cookies == {"Server___math": "session-1"}


def test_busy_servers_are_asked_again() -> None:
    async def busy(k: int, request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response({"reward": 1.0}) if k == 2 else web.Response(status=(429, 503)[k])

    with ScriptedGym(busy) as gym:
        asked = ask(gym, verify)
    assert (asked.verified.reward, asked.requests) == (1.0, 4)


@pytest.mark.parametrize(
    ("answer", "failure", "requests"),
    [
        (web.Response(status=422, text="{}"), "status 422", 2),
        (web.Response(status=409), "status 409", 2),
        (web.Response(text="nonsense"), "not JSON", 2),
        (web.Response(text="[1]"), "not a JSON object", 2),
        (web.Response(text='{"reward": NaN}'), "no finite", 2),
        (web.Response(status=500), "status 500", 4),
    ],
)
def test_what_cannot_be_scored_is_missing(answer: web.Response, failure: str, requests: int) -> None:
    async def scripted(k: int, request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.Response(status=answer.status, text=answer.text)

    with ScriptedGym(scripted) as gym:
        asked = ask(gym, verify)
    assert asked.verified.reward is None
    assert failure in asked.verified.failure
    assert asked.requests == requests


def test_a_server_that_says_why_is_not_asked_again() -> None:
    """NeMo-Gym 0.7.0 after a deadline of its own."""

    async def late(k: int, request: web.Request, body: dict[str, Any]) -> web.Response:
        said = {"failure_kind": "cohort_timeout", "failure_reason": "3 of 8 came"}
        return web.json_response(said, status=503)

    with ScriptedGym(late) as gym:
        asked = ask(gym, verify)
    assert (asked.verified.reward, asked.requests) == (None, 2)
    assert asked.verified.failure == "cohort_timeout (status 503): 3 of 8 came"


def test_a_server_that_waits_for_a_group_is_given_its_time_and_no_slot() -> None:
    """With one slot, three answers that wait for each other would wait for ever."""
    waiting = asyncio.Event()
    came = 0

    async def whole(k: int, request: web.Request, body: dict[str, Any]) -> web.Response:
        nonlocal came
        came += 1
        if came == 3:
            waiting.set()
        await waiting.wait()
        await asyncio.sleep(0.6)
        return web.json_response({"reward": 1.0})

    async def together(client: GymClient) -> Any:
        return await asyncio.gather(*(client.verify("math", ROW, seed_session=False) for _ in range(3)))

    server = {"base_url": "http://127.0.0.1:9", "agents": ["a"], "group_timeout_s": 20}
    settings = config(servers={"math": server}, max_concurrent_requests=1, request_timeout_s=0.3, max_retries=0)
    with ScriptedGym(whole) as gym:
        asked = ask(gym, together, settings)
    assert [one.verified.reward for one in asked] == [1.0] * 3


def test_a_wrong_address_ends_the_run() -> None:
    async def nothing(k: int, request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.Response(status=404, text="Not Found")

    with ScriptedGym(nothing) as gym, pytest.raises(RewardError, match=r"/verify with status 404"):
        ask(gym, verify)


def test_a_server_that_never_answers_is_gone() -> None:
    async def silent(k: int, request: web.Request, body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    settings = config(request_timeout_s=0.2, max_retries=1)

    async def without_session(client: GymClient) -> Any:
        return await client.verify("math", ROW, seed_session=False)

    with ScriptedGym(silent) as gym, pytest.raises(RewardError, match="does not answer"):
        ask(gym, without_session, settings)


def test_a_server_that_is_not_there_is_named() -> None:
    async def inside() -> None:
        async with GymClient(config(ready_timeout_s=0.3), {"math": "http://127.0.0.1:9"}) as client:
            await client.wait_ready()

    with pytest.raises(RewardError, match=r"server `math` at `http://127\.0\.0\.1:9` did not answer") as caught:
        asyncio.run(inside())
    assert "gym.servers.math.base_url" in str(caught.value.hint)


def test_an_agent_runs_a_row() -> None:
    async def rollout(k: int, request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response({**body, "response": {"output": []}, "reward": 0.5})

    async def run(client: GymClient) -> Any:
        return await client.run("math", ROW)

    with ScriptedGym(rollout) as gym:
        asked, answer = ask(gym, run)
    assert asked.verified.reward == 0.5
    assert answer["response"] == {"output": []}
    assert gym.requests[0][0] == "/run"

"""Agents that run a row: their model's answer is the response that was sampled, and only that is scored."""

from __future__ import annotations

import socket
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import ValidationError

from nemotron.config.schema.gym import GymConfig
from nemotron.contracts.rewards import GroupRewards
from nemotron.contracts.samples import Completion
from nemotron.data.rows import PromptRow
from nemotron.errors import RewardError
from nemotron.gym.protocol import output_text
from nemotron.gym.source import GymSource
from tests.unit.gym.serving import free_port
from tests.unit.judge.scripted_gym import ScriptedGym

ROW = PromptRow(
    "rows:1",
    [{"role": "user", "content": "2 + 2?"}],
    None,
    {
        "responses_create_params": {"input": [{"role": "user", "content": "2 + 2?"}], "metadata": {"own": "kept"}},
        "agent_ref": {"name": "sums"},
        "expected_answer": "4",
    },
)


class Agent:
    """A simple agent: asks the policy ``turns`` times, then scores the last answer."""

    def __init__(self, port: int, *, turns: int = 1, reply: str | None = None) -> None:
        self.port, self.turns, self.reply = port, turns, reply
        self.refusals: list[str] = []

    async def __call__(self, k: int, request: web.Request, body: dict[str, Any]) -> web.Response:
        params = body["responses_create_params"]
        assert params["metadata"]["own"] == "kept"
        async with aiohttp.ClientSession() as session:
            for turn in range(self.turns):
                asked = {**params, "input": params["input"] + [{"role": "user", "content": "go on"}] * turn}
                async with session.post(f"http://127.0.0.1:{self.port}/v1/responses", json=asked) as answer:
                    response = await answer.json()
                    if answer.status != 200:
                        self.refusals.append(response["error"]["message"])
                        return web.Response(status=500)
        if self.reply is not None:
            response["output"][-1]["content"][0]["text"] = self.reply
        return web.json_response({**body, "response": response, "reward": float(output_text(response) == "4")})


def score(agent: Agent, texts: list[str]) -> GroupRewards:
    with ScriptedGym(agent) as gym:
        server = {"base_url": gym.url, "agents": ["sums"], "protocol": "run"}
        settings = {"servers": {"sums": server}, "policy_endpoint": {"port": agent.port}, "max_retries": 1}
        with GymSource(GymConfig.model_validate(settings)) as source:
            completions = [Completion([1], [0.0], truncated=False)] * len(texts)
            return source.submit(ROW, texts, completions, seed=3).result(30)


def test_every_response_gets_its_own_reward() -> None:
    found = score(Agent(free_port()), ["4", "5", "<think>two and two</think>4", "5"])
    assert (list(found.rewards), found.missing) == ([1.0, 0.0, 1.0, 0.0], 0)


def test_an_agent_that_asks_again_is_told_why_not() -> None:
    agent = Agent(free_port(), turns=2)
    found = score(agent, ["4"])
    assert (list(found.rewards), found.failure) == ([None], "status 500")
    assert set(agent.refusals) == {"the embedded engine samples one turn; agents that ask again need NeMo-RL"}


def test_another_text_earns_nothing() -> None:
    found = score(Agent(free_port(), reply="4"), ["5", "4"])
    assert list(found.rewards) == [None, 1.0]
    assert found.failure == "the agent answers with another text"


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RewardError, match="cannot listen on 127") as caught:
            score(Agent(taken.getsockname()[1]), ["4"])
    assert "gym.policy_endpoint.port" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({"base_url": "http://localhost:1", "protocol": "run"}, "finds no policy"),
        ({"kind": "math", "protocol": "run"}, "needs the `base_url` of an agent"),
    ],
)
def test_what_an_agent_needs(server: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        GymConfig.model_validate({"servers": {"sums": {"agents": ["sums"], **server}}})

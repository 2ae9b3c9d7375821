"""Our own servers, asked over HTTP as NeMo-Gym's are, and the source of rewards on top of them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from nemotron.config.schema.gym import GymConfig
from nemotron.config.schema.rewards import RewardConfig
from nemotron.contracts.samples import Completion
from nemotron.data.rows import PromptRow
from nemotron.errors import RewardError
from nemotron.gym import servers
from nemotron.gym.protocol import response_object
from nemotron.gym.servers import OwnServers
from nemotron.gym.source import GymSource
from nemotron.rewards import Scorer, build_rewards
from tests.unit.judge.scripted_gym import ScriptedGym

CONFIG: dict[str, Any] = {
    "servers": {
        "math": {"kind": "math", "agents": ["math_agent"]},
        "mcqa": {"kind": "mcqa", "agents": ["mcqa_agent"]},
    },
    "max_retries": 1,
    "ready_timeout_s": 10,
}
PARAMS = {"input": [{"role": "user", "content": "What is 2 + 2?"}]}
SUM = {"responses_create_params": PARAMS, "question": "What is 2 + 2?", "expected_answer": "4"}
CHOICE = {"responses_create_params": PARAMS, "options": [{"A": "3"}, {"B": "4"}], "expected_answer": "B"}
DONE = Completion([1], [0.0], truncated=False)


def post(url: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def said(text: str) -> dict[str, Any]:
    return {"response": response_object(text, ended=True, response_id="1")}


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    with OwnServers(GymConfig.model_validate(CONFIG)) as own:
        yield own.addresses


@pytest.mark.parametrize(
    ("server", "row", "text", "reward"),
    [
        ("math", SUM, r"so \boxed{4}", 1.0),
        ("math", SUM, "8/2", 1.0),
        ("math", SUM, "5", 0.0),
        ("mcqa", CHOICE, r"\boxed{B}", 1.0),
        ("mcqa", CHOICE, r"\boxed{A}", 0.0),
        ("mcqa", CHOICE, "B", 0.0),
    ],
)
def test_rewards(addresses: dict[str, str], server: str, row: dict[str, Any], text: str, reward: float) -> None:
    status, answer = post(f"{addresses[server]}/verify", {**row, **said(text)})
    assert (status, answer["reward"]) == (200, reward)
    assert answer["responses_create_params"] == PARAMS


def test_sessions_and_health(addresses: dict[str, str]) -> None:
    for address in addresses.values():
        assert post(f"{address}/seed_session", SUM) == (200, {})
        with urllib.request.urlopen(address, timeout=10) as response:
            assert json.load(response) == {"status": "ok"}


@pytest.mark.parametrize(
    ("server", "body", "detail"),
    [
        ("math", b"{", "not JSON"),
        ("math", [1], "not a JSON object"),
        ("math", said("4"), "responses_create_params"),
        ("math", SUM, "no Responses-API object"),
        ("math", {**SUM, "response": {"output": 3}}, "no Responses-API object"),
        ("math", {**SUM, **said("4"), "expected_answer": 4}, "`expected_answer` is missing"),
        ("mcqa", {**CHOICE, **said("B"), "grading_mode": "guess"}, "grading_mode"),
    ],
)
def test_unfit_requests_are_refused(addresses: dict[str, str], server: str, body: Any, detail: str) -> None:
    status, answer = post(f"{addresses[server]}/verify", body)
    assert status == 422
    assert detail in answer["detail"]


def row(agent: str, **fields: Any) -> PromptRow:
    return PromptRow("rows:1", [{"role": "user", "content": "?"}], None, {"agent_ref": {"name": agent}, **fields})


def test_rows_go_to_the_server_of_their_agent() -> None:
    with GymSource(GymConfig.model_validate(CONFIG)) as source:
        sums = source.submit(row("math_agent", **SUM), ["4", "5"], [DONE, DONE], seed=1)
        letters = source.submit(row("mcqa_agent", **CHOICE), [r"\boxed{B}", "A"], [DONE, DONE], seed=2)
        results = [sums.result(30), letters.result(30)]
        assert [list(result.rewards) for result in results] == [[1.0, 0.0], [1.0, 0.0]]
        assert results[1].details[0]["verified"]["extracted_answer"] == "B"
        metrics = source.metrics(results)
    assert metrics == {
        "reward/math/mean": 0.5,
        "reward/mcqa/mean": 0.5,
        "train/pass_rate": 0.5,
        "reward/requests": 8.0,
    }


def test_rows_that_a_server_refuses_are_missing_and_counted() -> None:
    with GymSource(GymConfig.model_validate(CONFIG)) as source:
        unfit = {"responses_create_params": PARAMS, "question": "What?"}
        result = source.submit(row("math_agent", **unfit), ["4", "5"], [DONE, DONE], seed=1).result(30)
        assert (list(result.rewards), result.asked, result.missing) == ([None, None], 2, 2)
        assert source.metrics([result])["reward/missing/math/request_status_422"] == 2.0
        error = source.too_many_missing([result], 3, 0.5)
    assert "100% of the rewards" in error.message
    assert error.exit_code == 7


def test_newer_rows_name_a_server_and_no_agent() -> None:
    with GymSource(GymConfig.model_validate(CONFIG)) as source:
        fields = {**SUM, "task_source": "math"}
        newer = PromptRow("rows:1", [{"role": "user", "content": "?"}], None, fields)
        assert list(source.submit(newer, ["4"], [DONE], seed=1).result(30).rewards) == [1.0]


def test_every_attempt_at_a_run_has_groups_of_its_own() -> None:
    """A server that outlives a run takes another answer in one of its groups for a conflict."""

    async def right(k: int, request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response({"reward": 1.0})

    with ScriptedGym(right) as gym:
        settings = {"base_url": gym.url, "agents": ["math_agent"], "seed_session": False}
        config = GymConfig.model_validate({**CONFIG, "servers": {"remote": settings}})
        for run in ("r1/1", "r1/2", "r2/1"):
            with GymSource(config, run=run) as source:
                source.submit(row("math_agent", **SUM), ["4", "5"], [DONE, DONE], seed=5).result(30)
    groups = [body["_ng_group_id"] for _, body, _ in gym.requests]
    assert sorted(groups) == [one for run in ("r1/1", "r1/2", "r2/1") for one in [f"{run}/5"] * 2]


def test_a_row_of_an_unknown_agent_ends_the_run() -> None:
    with (
        GymSource(GymConfig.model_validate(CONFIG)) as source,
        pytest.raises(RewardError, match="names the agent `other`"),
    ):
        source.submit(row("other"), ["4"], [DONE], seed=1).result(30)


def test_equal_submissions_send_equal_bytes() -> None:
    """A resumed run asks what the killed one asked."""

    async def right(k: int, request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response({"reward": 1.0})

    with ScriptedGym(right) as gym:
        settings = {"base_url": gym.url, "agents": ["math_agent"], "seed_session": False}
        config = GymConfig.model_validate({**CONFIG, "servers": {"remote": settings}})
        with GymSource(config) as source:
            for _ in range(2):
                source.submit(row("math_agent", **SUM), ["4"], [DONE], seed=5).result(30)
    assert gym.requests[0][1] == gym.requests[1][1]


def test_a_rows_pattern_that_never_ends_masks_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    def soon(config: RewardConfig) -> Scorer:
        return build_rewards(config.model_copy(update={"timeout_s": 0.5}))

    monkeypatch.setattr(servers, "build_rewards", soon)
    row = {**CHOICE, "template_metadata": {"output_regex": "(B|B)+$"}}
    with OwnServers(GymConfig.model_validate({**CONFIG, "servers": {"mcqa": CONFIG["servers"]["mcqa"]}})) as own:
        address = own.addresses["mcqa"]
        status, body = post(f"{address}/verify", {**row, **said("B" * 60 + "!")})
        assert (status, body["mask_sample"]) == (200, True)
        assert post(f"{address}/verify", {**CHOICE, **said(r"\boxed{B}")})[1]["reward"] == 1.0

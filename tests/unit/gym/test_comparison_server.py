"""Our comparison asked as NeMo-Gym's agents ask theirs, with a real HTTP endpoint for the judge."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from nemotron.config.schema.judge import GenrmCompareConfig, JudgeConfig
from nemotron.errors import JudgeError
from nemotron.gym.comparison import ComparisonServer
from nemotron.gym.protocol import response_object
from nemotron.judge.endpoint import Endpoint
from nemotron.judge.groups import JudgeSettings
from tests.unit.gym.serving import Post, serving
from tests.unit.judge.scripted_judge import Scripted, says, verdict

REQUESTS = JudgeConfig(max_retries=0, ready_timeout_s=5)
PROMPT = [{"role": "user", "content": [{"type": "input_text", "text": "Which?"}], "type": "message"}]


def row(text: str, prompt: Any = None, **more: Any) -> dict[str, Any]:
    response = response_object(text, ended=True, response_id="1")
    return {"responses_create_params": {"input": prompt or PROMPT}, "response": response, **more}


async def by_number(k: int, body: dict[str, Any]) -> web.Response:
    """A judge that scores an answer by the number in it; answers that arrive early are judged late."""
    roles = {message["role"]: message["content"] for message in body["messages"]}
    one, two = float(roles["response_1"]), float(roles["response_2"])
    await asyncio.sleep(0.02 * one)
    return verdict(one, two, 3.5)


def run(
    play: Callable[[int, dict[str, Any]], Awaitable[web.Response]],
    test: Callable[[Post, Scripted], Awaitable[None]],
    *,
    patience_s: float = 30.0,
    requests: JudgeConfig = REQUESTS,
    **compare: Any,
) -> None:
    with Scripted(play) as judge:
        settings = JudgeSettings(
            GenrmCompareConfig(**{"num_rollouts_per_prompt": 4, "genrm_parse_retries": 0, **compare}), requests
        )
        server = ComparisonServer(Endpoint(judge.base_url, "judge"), settings, patience_s=patience_s)

        async def main() -> None:
            async with serving(server.application()) as post:
                await asyncio.wait_for(test(post, judge), 30)

        asyncio.run(main())


def test_answers_that_arrive_while_the_judge_works_keep_their_comparisons() -> None:
    async def test(post: Post, judge: Scripted) -> None:
        async def later(number: int) -> tuple[int, Any]:
            await asyncio.sleep(0.03 * number)
            return await post("/verify", row(str(5 - number)))

        found = await asyncio.gather(*map(later, range(4)))
        assert [(status, said["reward"]) for status, said in found] == [(200, 5.0), (200, 4.0), (200, 3.0), (200, 2.0)]
        assert not any(said["mask_sample"] for _, said in found)
        assert {said["missing_share"] for _, said in found} == {0.0}
        assert len(judge.bodies) == 4
        # The prompt's own text, which NeMo-Gym 0.4.0 loses when it comes in parts, then the roles of a judge.
        assert judge.bodies[0]["messages"][0] == {"role": "user", "content": "Which?"}
        assert [message["role"] for message in judge.bodies[0]["messages"][1:]] == ["response_1", "response_2"]
        # What NeMo-RL trains on travels through.
        assert found[0][1]["response"]["output"][0]["content"][0]["text"] == "5"

    run(by_number, test)


def test_a_verdict_that_does_not_come_is_no_score() -> None:
    """Nothing of answer 3 can be read: it has the mean of the others, which is no advantage, and says so."""

    async def play(k: int, body: dict[str, Any]) -> web.Response:
        shown = [m["content"] for m in body["messages"] if m["role"].startswith("response")]
        return says("hm") if "3" in shown else verdict(float(shown[0]), float(shown[1]), 3.5)

    async def test(post: Post, judge: Scripted) -> None:
        found = await asyncio.gather(*(post("/verify", row(text)) for text in ("1", "2", "3", "5")))
        said = [answer for _, answer in found]
        assert [(one["reward"], one["mask_sample"]) for one in said] == [
            *((1.0, False), (2.0, False)),
            *((pytest.approx(8 / 3), True), (5.0, False)),
        ]
        assert said[2]["failure_kind"] == "judge"
        assert "no verdict in 'hm'" in said[2]["failure_reason"]
        assert {one["missing_share"] for one in said} == {0.5}
        assert len({tuple(sorted(one)) for one in said}) == 1, "NeMo-RL makes metrics of the first answer's keys"
        status, compared = await post(
            "/compare", {"conversation_history": PROMPT, "response_objs": [row(t)["response"] for t in "1235"]}
        )
        assert (status, compared["rewards"]) == (200, [1.0, 2.0, None, 5.0])
        assert [(one["response_i"], one["response_j"]) for one in compared["comparison_results"]] == [(0, 1), (3, 0)]

    run(play, test)


def test_a_judge_that_is_gone_and_a_group_that_is_never_whole_are_503() -> None:
    async def refuses(k: int, body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {"message": "no"}}, status=403)

    async def test(post: Post, judge: Scripted) -> None:
        found = await asyncio.gather(*(post("/verify", row(text)) for text in "1234"))
        assert {(status, said["failure_kind"]) for status, said in found} == {(503, "reward")}
        assert "refused the request with status 403" in found[0][1]["failure_reason"]
        status, said = await post("/verify", row("1"))
        assert (status, said["failure_kind"]) == (503, "incomplete_group")

    run(refuses, test, patience_s=2.0)


def test_places_in_a_group_are_kept_when_rows_name_them() -> None:
    async def test(post: Post, judge: Scripted) -> None:
        def named(number: int, text: str) -> Any:
            return post("/verify", row(text, _ng_group_id="run-1/0/3/9", _ng_rollout_index=number))

        found = await asyncio.gather(named(1, "2"), named(0, "1"), named(3, "4"), named(2, "3"))
        assert [said["reward"] for _, said in found] == [2.0, 1.0, 4.0, 3.0]
        assert (await named(0, "1"))[1]["reward"] == 1.0, "asked again, answered again"
        assert (await named(0, "5"))[0] == 409
        assert (await named(4, "5"))[0] == 422
        assert len(judge.bodies) == 4

    run(by_number, test)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/verify", {}, "`responses_create_params` is missing"),
        ("/verify", {"responses_create_params": {"input": "?"}}, "no Responses-API object"),
        ("/verify", row("1", [7]), "neither a text nor a list"),
        ("/verify", row("1", principle=7), "`principle` is no text"),
        ("/compare", {"response_objs": [{}]}, "has nothing to compare"),
        ("/compare", {"response_objs": "ab"}, "no list"),
        ("/aggregate_metrics", {}, "`verify_responses` is no list"),
    ],
)
def test_what_is_no_request_is_refused_with_its_reason(path: str, body: Any, words: str) -> None:
    async def test(post: Post, judge: Scripted) -> None:
        status, said = await post(path, body)
        assert status == 422
        assert words in said["detail"]

    run(by_number, test)


def test_the_other_endpoints_of_a_resources_server() -> None:
    async def test(post: Post, judge: Scripted) -> None:
        assert await post("/seed_session", {"x": 1}) == (200, {})
        status, said = await post("/aggregate_metrics", {"verify_responses": [{"reward": 1.0}, {"reward": 2.0}]})
        assert (status, said["agent_metrics"]) == (200, {"mean/reward": 1.5})

    run(by_number, test)


def test_the_principle_of_a_row_reaches_the_judge() -> None:
    async def test(post: Post, judge: Scripted) -> None:
        await asyncio.gather(*(post("/verify", row(text, principle="be brief")) for text in "1234"))
        roles = {message["role"]: message["content"] for message in judge.bodies[0]["messages"]}
        assert roles["principle"] == "be brief"

    run(by_number, test, use_principle=True)


def test_a_group_of_one_is_refused_at_the_start() -> None:
    settings = JudgeSettings(GenrmCompareConfig(), REQUESTS)
    with pytest.raises(JudgeError, match="a group of 1 answer has nothing to compare"):
        ComparisonServer(Endpoint("http://h/v1", "judge"), settings, patience_s=1)


def test_a_judge_model_of_nemo_gym_gets_the_answers_in_metadata() -> None:
    bodies: list[dict[str, Any]] = []

    async def respond(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        metadata = bodies[-1]["metadata"]
        said = {"score_1": float(metadata["response_1"]), "score_2": float(metadata["response_2"]), "ranking": 3.5}
        return web.json_response(response_object(f"<think>9</think>{json.dumps(said)}", ended=True, response_id="j"))

    async def main() -> None:
        model = web.Application()
        model.router.add_post("/v1/responses", respond)
        runner = web.AppRunner(model)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        endpoint = Endpoint(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "judge", None, "responses")
        settings = JudgeSettings(GenrmCompareConfig(num_rollouts_per_prompt=2, use_principle=True), REQUESTS)
        async with serving(ComparisonServer(endpoint, settings, patience_s=5).application()) as post:
            found = await asyncio.gather(*(post("/verify", row(text)) for text in "14"))
        await runner.cleanup()
        assert [said["reward"] for _, said in found] == [1.0, 4.0]

    asyncio.run(main())
    assert bodies[0]["input"] == [{"role": "user", "content": "Which?", "type": "message"}]
    assert set(bodies[0]["metadata"]) == {"principle", "response_1", "response_2", "extra_body"}
    assert bodies[0]["max_output_tokens"] == 1024

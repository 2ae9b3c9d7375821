"""The client against a real HTTP server that misbehaves on cue."""

from __future__ import annotations

import asyncio
import email.utils
import json
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from aiohttp import web
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemotron.config.schema.judge import JudgeConfig
from nemotron.errors import JudgeError
from nemotron.judge.client import JudgeClient
from nemotron.judge.endpoint import Answer, Endpoint, Sampling
from nemotron.judge.transport import Reply, Transport
from tests.unit.judge.scripted_judge import Scripted, says, verdict

SAMPLING = Sampling(max_tokens=16, temperature=0.0, top_p=1.0)
QUICK = JudgeConfig(request_timeout_s=5, max_retries=3, ready_timeout_s=1)
SECRET = "s3cret-token-value"


def with_client(
    base_url: str, use: Callable[[JudgeClient], Any], config: JudgeConfig = QUICK, model: str = "judge"
) -> Any:
    async def main() -> Any:
        async with JudgeClient(Endpoint(base_url, model, SECRET), config) as client:
            return await use(client)

    return asyncio.run(main())


def ask(base_url: str, config: JudgeConfig = QUICK, *, count: int = 1) -> list[Answer]:
    async def use(client: JudgeClient) -> list[Answer]:
        questions = (client.ask([{"role": "user", "content": "q"}], SAMPLING, seed=k) for k in range(count))
        return await asyncio.gather(*questions)

    answers: list[Answer] = with_client(base_url, use, config)
    return answers


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_sends_what_openai_expects() -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        return says("hello")

    with Scripted(play) as judge:
        assert ask(judge.base_url) == [Answer("hello", 1)]
    assert judge.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert judge.bodies == [
        {
            "model": "judge",
            "messages": [{"role": "user", "content": "q"}],
            "max_tokens": 16,
            "temperature": 0.0,
            "top_p": 1.0,
            "seed": 0,
        }
    ]


@pytest.mark.parametrize("status", [500, 502, 503, 529, 408])
def test_server_errors_are_tried_again(status: int) -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        return says("fine") if number == 2 else web.Response(status=status, text="boom")

    with Scripted(play) as judge:
        assert ask(judge.base_url) == [Answer("fine", 3)]


def test_a_server_that_always_fails_is_a_missing_answer_not_the_end() -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        return web.Response(status=500, text="boom")

    with Scripted(play) as judge:
        (answer,) = ask(judge.base_url, JudgeConfig(max_retries=1))
    assert answer == Answer(None, 2, "status 500: `boom`")


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form: str) -> None:
    times = []

    async def play(number: int, body: dict[str, Any]) -> web.Response:
        times.append(time.time())
        if number == 0:
            # A date has whole seconds, so it has to lie further ahead to be at least one away.
            after = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
            return web.Response(status=429, headers={"Retry-After": after})
        return says("fine")

    with Scripted(play) as judge:
        assert ask(judge.base_url) == [Answer("fine", 2)]
    assert times[1] - times[0] >= 0.9


@pytest.mark.parametrize("after", ["nan", "-inf", "-5", "Mon, 99 Foo 99999", "x" * 5000])
def test_a_retry_after_that_is_none_is_passed_over(after: str) -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": after}) if number == 0 else says("fine")

    with Scripted(play) as judge:
        assert ask(judge.base_url) == [Answer("fine", 2)]


def test_a_charset_that_nobody_knows_is_read_as_utf_8() -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        raw = json.dumps({"choices": [{"message": {"content": "fine"}}]}).encode()
        return web.Response(body=raw, headers={"Content-Type": "application/json; charset=no-such-code"})

    with Scripted(play) as judge:
        assert ask(judge.base_url) == [Answer("fine", 1)]


@pytest.mark.parametrize(
    "raw",
    [
        "[" * 100_000,
        '{"choices": [{"message": {"content": "\\ud800"}}]}',
        "",
        "<html>no</html>",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": [{"message": {"content": 5}}]}',
    ],
)
def test_an_answer_that_is_no_completion_is_missing(raw: str) -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        return web.Response(text=raw)

    with Scripted(play) as judge:
        (answer,) = ask(judge.base_url, JudgeConfig(max_retries=1))
    assert answer.text is None
    assert answer.failure is not None
    assert answer.failure.startswith("not a chat completion")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_stops_at_once_and_never_shows_the_token(status: int) -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        return web.Response(status=status, text=f"no: Bearer {SECRET} is not welcome")

    with Scripted(play) as judge, pytest.raises(JudgeError) as caught:
        ask(judge.base_url)
    assert len(judge.bodies) == 1
    message = caught.value.message
    assert judge.base_url in message
    assert str(status) in message
    assert "is not welcome" in message
    assert SECRET not in message
    assert SECRET not in repr(Endpoint("x", "y", SECRET))


@given(st.lists(st.sampled_from([200, 400, 413, 422, "slow"]), min_size=1, max_size=6))
@example([400, "slow"])
@example([422, 413])
@settings(max_examples=15, deadline=None)
def test_a_refused_item_ends_the_run_only_where_nothing_is_answered(statuses: list[Any]) -> None:
    """In whatever order answers come: one request is refused and missing, or the endpoint refuses all."""

    async def play(number: int, body: dict[str, Any]) -> web.Response:
        status = statuses[body["seed"]]
        if status == "slow":
            await asyncio.sleep(0.05)
        good = status in (200, "slow")
        return says("fine") if good else web.Response(status=status, text=f"content filter of {SECRET}")

    with Scripted(play) as judge:
        if not {200, "slow"} & set(statuses):
            with pytest.raises(JudgeError):
                ask(judge.base_url, count=len(statuses))
            return
        answers = ask(judge.base_url, count=len(statuses))
    for status, answer in zip(statuses, answers, strict=True):
        assert answer == (
            Answer("fine", 1)
            if status in (200, "slow")
            else Answer(None, 1, f"status {status}: `content filter of [token]`")
        )


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_everybody_is_fatal_at_any_time(status: int) -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        return says("fine") if body["seed"] == 0 else web.Response(status=status, text="no")

    async def use(client: JudgeClient) -> None:
        for seed in range(2):
            await client.ask([{"role": "user", "content": "q"}], SAMPLING, seed=seed)

    with Scripted(play) as judge, pytest.raises(JudgeError, match=str(status)):
        with_client(judge.base_url, use)


def test_a_question_too_long_for_the_judge_is_missing_the_others_are_not() -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        if body["seed"] == 1:
            error = {"error": {"message": "too long", "code": "context_length_exceeded"}}
            return web.json_response(error, status=400)
        return says("fine")

    with Scripted(play) as judge:
        answers = ask(judge.base_url, count=3)
    assert [answer.text for answer in answers] == ["fine", None, "fine"]
    assert answers[1].failure == "does not fit the judge's context"


def test_slow_answers_time_out_and_are_tried_again() -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        if number == 0:
            await asyncio.sleep(30)
        return says("fine")

    with Scripted(play) as judge:
        assert ask(judge.base_url, JudgeConfig(request_timeout_s=1.0, max_retries=2)) == [Answer("fine", 2)]


def test_a_dead_endpoint_stops_the_run_after_few_tries() -> None:
    started = time.monotonic()
    with pytest.raises(JudgeError, match="does not answer"):
        ask(f"http://127.0.0.1:{closed_port()}/v1", JudgeConfig(max_retries=2), count=40)
    assert time.monotonic() - started < 30


def test_an_endpoint_that_hangs_for_everybody_stops_the_run() -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(30)
        return says("late")

    with Scripted(play) as judge, pytest.raises(JudgeError, match=r"does not answer \(no answer within 0.2 s\)"):
        ask(judge.base_url, JudgeConfig(request_timeout_s=0.2, max_retries=1), count=4)


def test_one_unlucky_request_does_not_stop_the_run() -> None:
    """Its connection is always dropped while others are answered: it is missing, the endpoint is alive."""

    async def play(number: int, body: dict[str, Any]) -> web.Response:
        if body["seed"] == 0:
            await asyncio.sleep(30)
        await asyncio.sleep(0.1)
        return says("fine")

    with Scripted(play) as judge:
        config = JudgeConfig(request_timeout_s=1.0, max_retries=1, max_concurrent_requests=2)
        answers = ask(judge.base_url, config, count=12)
    assert [answer.text for answer in answers] == [None] + ["fine"] * 11


def test_concurrency_is_bounded() -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(0.02)
        return verdict(1, 2)

    with Scripted(play) as judge:
        ask(judge.base_url, JudgeConfig(max_concurrent_requests=5), count=40)
    assert judge.most_in_flight == 5


async def never(number: int, body: dict[str, Any]) -> web.Response:
    raise AssertionError("a probe must not ask for a completion")


def wait_ready(base_url: str, model: str = "judge", config: JudgeConfig = QUICK) -> None:
    with_client(base_url, lambda client: client.wait_ready(), config, model)


def test_probe_names_what_is_served() -> None:
    with Scripted(never, models=("alpha", "beta")) as judge:
        wait_ready(judge.base_url, "beta")
        with pytest.raises(JudgeError, match="does not serve `judge`") as caught:
            wait_ready(judge.base_url)
    assert caught.value.hint is not None
    assert "`alpha`, `beta`" in caught.value.hint


def test_probe_with_a_wrong_token() -> None:
    with Scripted(never, token="another") as judge, pytest.raises(JudgeError, match="status 401") as caught:
        wait_ready(judge.base_url)
    assert caught.value.hint is not None
    assert "api_key" in caught.value.hint


def test_probe_of_a_base_url_without_v1() -> None:
    with Scripted(never) as judge, pytest.raises(JudgeError, match="status 404") as caught:
        wait_ready(judge.base_url.removesuffix("/v1"))
    assert caught.value.hint is not None
    assert "/v1" in caught.value.hint


@pytest.mark.parametrize("base_url", ["localhost", "ftp://host/v1", "http://", "not a url at all"])
def test_probe_of_something_that_is_no_url(base_url: str) -> None:
    with pytest.raises(JudgeError):
        wait_ready(base_url, config=JudgeConfig(ready_timeout_s=0.2))


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel"])
def test_a_token_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(JudgeError, match="cannot be sent") as caught:
        JudgeClient(Endpoint("http://host/v1", "judge", key), QUICK)
    assert key not in caught.value.message


def test_probe_waits_for_a_late_endpoint_and_gives_up_in_time() -> None:
    started = time.monotonic()
    with pytest.raises(JudgeError, match=r"is not ready after 0\.5 s"):
        wait_ready(f"http://127.0.0.1:{closed_port()}/v1", config=JudgeConfig(ready_timeout_s=0.5))
    assert 0.5 <= time.monotonic() - started < 30


def test_a_judge_that_echoes_the_token_is_not_believed() -> None:
    """Whatever of it is kept: the text of an answer, in all the ways that JSON writes a text, and every refusal."""
    escaped = "".join(f"\\u{ord(char):04x}" for char in SECRET)
    plays = [
        lambda: says(f"Authorization: Bearer {SECRET}"),
        lambda: web.Response(text=f'{{"choices": [{{"message": {{"content": "Bearer {escaped}"}}}}]}}'),
        lambda: web.Response(text=f"no JSON but {SECRET}"),
        lambda: web.Response(status=503, text=f"later, {SECRET}"),
        lambda: web.Response(status=422, text="x" * 280 + SECRET),
    ]

    async def play(number: int, body: dict[str, Any]) -> web.Response:
        return plays[body["seed"]]()

    with Scripted(play) as judge:
        answers = ask(judge.base_url, JudgeConfig(request_timeout_s=5, max_retries=0), count=len(plays))
    assert [answer.text for answer in answers[:2]] == ["Authorization: Bearer [token]", "Bearer [token]"]
    assert all(answer.failure for answer in answers[2:])
    for length in range(6, len(SECRET) + 1):
        assert not any(SECRET[:length] in str(answer) for answer in answers)


def test_a_word_that_stands_for_no_token_is_left_in_verdicts() -> None:
    async def play(number: int, body: dict[str, Any]) -> web.Response:
        return says("an EMPTY answer")

    async def use(endpoint: Endpoint) -> Answer:
        async with JudgeClient(endpoint, QUICK) as client:
            return await client.ask([{"role": "user", "content": "q"}], SAMPLING, seed=0)

    with Scripted(play) as judge:
        assert asyncio.run(use(Endpoint(judge.base_url, "judge", "EMPTY"))).text == "an EMPTY answer"


def test_a_question_that_is_answered_at_once_costs_few_calls_beside_the_exchange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What counts tries and pauses is made when something fails: before, it was half of a question's CPU time."""
    said = Reply(200, json.dumps({"choices": [{"message": {"content": "fine"}}]}), {})

    async def exchange(transport: Transport, method: str, path: str, body: object = None) -> Reply:
        return said

    monkeypatch.setattr(Transport, "exchange", exchange)
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    async def use(client: JudgeClient) -> list[Answer]:
        await client.ask([], SAMPLING, seed=0)
        sys.setprofile(count)
        try:
            return [await client.ask([], SAMPLING, seed=0) for _ in range(10)]
        finally:
            sys.setprofile(None)

    assert with_client("http://127.0.0.1:1/v1", use) == [Answer("fine", 1)] * 10
    assert calls < 1000

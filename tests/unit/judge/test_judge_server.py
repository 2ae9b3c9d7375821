"""Our own server over HTTP, with a tiny random model behind it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemotron.errors import ArtifactError
from nemotron.judge.server.app import MAX_BODY_BYTES, ChatServer
from nemotron.judge.server.model import Dtype, JudgeModel

TOKEN = "the-token"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
CHAT = "/v1/chat/completions"
Http = TestClient[Any, Any]


@pytest.fixture(scope="module")
def model(tiny_judge: Path) -> JudgeModel:
    return JudgeModel.load(str(tiny_judge), dtype="auto", device="cpu", threads=1)


def with_server(model: JudgeModel, use: Callable[[Http], Awaitable[Any]], *, max_batch_size: int = 64) -> Any:
    async def main() -> Any:
        server = ChatServer(model, "tiny", max_batch_size=max_batch_size, token=TOKEN)
        async with TestClient(TestServer(server.application())) as http:
            return await use(http)

    return asyncio.run(main())


def body(text: str = "hi", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}, {"role": "response_1", "content": "a"}]
    return {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0, **fields}


async def post(http: Http, payload: object, **how: Any) -> tuple[int, dict[str, Any]]:
    async with http.post(CHAT, data=json.dumps(payload), headers=AUTH, **how) as response:
        return response.status, await response.json()


def asked(model: JudgeModel, payload: object) -> tuple[int, dict[str, Any]]:
    answer: tuple[int, dict[str, Any]] = with_server(model, lambda http: post(http, payload))
    return answer


def test_a_completion_has_openai_s_shape(model: JudgeModel) -> None:
    status, answer = asked(model, body(logprobs=True))
    assert status == 200
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tiny"
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert isinstance(choice["message"]["content"], str)
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(model.encode(body()["messages"]))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    stopped = choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["content"]) == usage["completion_tokens"] - stopped
    assert all(entry["logprob"] <= 0 for entry in choice["logprobs"]["content"])


def test_greedy_equals_the_model_s_own_argmax(model: JudgeModel, tiny_judge: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(tiny_judge, dtype=torch.float64)
    messages = body()["messages"]
    ids = torch.tensor([model.encode(messages)])
    for _ in range(8):
        token = reference(ids).logits[0, -1].argmax()
        ids = torch.cat([ids, token.view(1, 1)], 1)
        if token == reference.config.eos_token_id:
            break
    expected = model.decode(ids[0, len(model.encode(messages)) :].tolist())
    assert asked(model, body())[1]["choices"][0]["message"]["content"] == expected


@pytest.mark.parametrize(
    ("asked_for", "kinds"),
    [
        ("auto", {torch.float64}),
        ("float32", {torch.float32}),
        ("bfloat16", {torch.float32, torch.bfloat16}),
    ],
)
def test_a_judge_is_frozen_and_holds_what_it_computes_in(
    tiny_judge: Path, asked_for: Dtype, kinds: set[torch.dtype]
) -> None:
    """In half precision norms and embeddings stay in float32."""
    judge = JudgeModel.load(str(tiny_judge), dtype=asked_for, device="cpu", threads=1)
    parameters = list(judge._policy.model.parameters())
    assert {one.dtype for one in parameters} == kinds
    assert not any(one.requires_grad for one in parameters)
    assert asked(judge, body())[0] == 200


def test_models_and_health(model: JudgeModel) -> None:
    async def use(http: Http) -> tuple[Any, Any]:
        async with http.get("/health") as health, http.get("/v1/models", headers=AUTH) as models:
            return await health.json(), await models.json()

    health, models = with_server(model, use)
    assert health == {"status": "ok"}
    assert [entry["id"] for entry in models["data"]] == ["tiny"]


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", TOKEN, f"bearer {TOKEN}", "Bearer é\udcff"])
def test_the_token_is_needed(model: JudgeModel, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode(errors="surrogateescape").decode("latin-1")}

    async def use(http: Http) -> tuple[int, Any]:
        async with http.post(CHAT, json=body(), headers=headers) as response:
            return response.status, await response.json()

    status, answer = with_server(model, use)
    assert status == 401
    assert answer["error"]["code"] == "invalid_api_key"
    assert TOKEN not in json.dumps(answer)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": True}, "stream"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"temprature": 1}, "temprature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "8"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "messages"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(model: JudgeModel, fields: dict[str, Any], param: str) -> None:
    status, answer = asked(model, body(**fields))
    assert status == 400
    assert answer["error"]["param"] == param
    assert answer["error"]["type"] == "invalid_request_error"


def test_fields_that_mean_off_or_change_nothing_are_accepted(model: JudgeModel) -> None:
    harmless: dict[str, Any] = {
        "stream": False,
        "tools": [],
        "user": "me",
        "frequency_penalty": 0,
        "n": None,
        "response_format": None,
    }
    assert asked(model, body(**harmless))[0] == 200


def test_wrong_model_wrong_path_wrong_method(model: JudgeModel) -> None:
    async def use(http: Http) -> list[tuple[int, Any]]:
        wrong_model = await post(http, body(model="gpt"))
        async with http.get("/v2", headers=AUTH) as lost, http.get(CHAT, headers=AUTH) as get:
            return [wrong_model, (lost.status, await lost.json()), (get.status, await get.json())]

    answers = with_server(model, use)
    assert [status for status, _ in answers] == [404, 404, 405]
    assert answers[0][1]["error"]["code"] == "model_not_found"
    assert all(answer["error"]["message"] for _, answer in answers)


@pytest.mark.parametrize(("words", "limit"), [(600, 8), (10, 510)])
def test_longer_than_the_context(model: JudgeModel, words: int, limit: int) -> None:
    status, answer = asked(model, body("x " * words, max_tokens=limit))
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"
    assert "512" in answer["error"]["message"]


def test_oversized_body(model: JudgeModel) -> None:
    status, answer = asked(model, body("x" * MAX_BODY_BYTES))
    assert status == 413
    assert answer["error"]["message"]


def test_stop_texts_and_the_default_limit(model: JudgeModel) -> None:
    whole = asked(model, body(max_tokens=32))[1]["choices"][0]["message"]["content"]
    mark = whole[3:5]
    cut = asked(model, body(max_tokens=32, stop=[mark, ""]))[1]["choices"][0]
    assert cut["message"]["content"] == whole[: whole.index(mark)]
    assert cut["finish_reason"] == "stop"
    free = asked(model, body(max_tokens=None))[1]
    assert free["usage"]["total_tokens"] <= 512
    assert free["choices"][0]["message"]["content"].startswith(whole[:5])


def test_several_choices_differ_and_repeat_with_the_seed(model: JudgeModel) -> None:
    def texts(seed: int | None) -> list[str]:
        answer = asked(model, body(n=3, temperature=1.0, seed=seed))[1]
        return [choice["message"]["content"] for choice in answer["choices"]]

    assert len(set(texts(1))) == 3
    assert texts(1) == texts(1)
    assert texts(1) != texts(2)
    assert texts(-5) == texts(-5)
    assert texts(None) != texts(None)


def questions(count: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    limits = (4, 9, 24)
    return [
        body("word " * draw.randint(1, 60), seed=k, max_tokens=limits[k % 3], temperature=(0, 0, 0.9)[k % 3])
        for k in range(count)
    ]


def test_an_answer_does_not_depend_on_its_batch(model: JudgeModel) -> None:
    """One by one, all at once, and all at once in another order and with other batch sizes: the same texts."""
    payloads = questions(18)

    async def one_by_one(http: Http) -> list[str]:
        return [content(await post(http, payload)) for payload in payloads]

    def together(order: list[int], max_batch_size: int) -> list[str]:
        async def use(http: Http) -> list[str]:
            answers = await asyncio.gather(*(post(http, payloads[k]) for k in order))
            by_number = dict(zip(order, map(content, answers), strict=True))
            return [by_number[k] for k in range(len(payloads))]

        texts: list[str] = with_server(model, use, max_batch_size=max_batch_size)
        return texts

    expected = with_server(model, one_by_one)
    shuffled = random.Random(1).sample(range(len(payloads)), len(payloads))
    assert together(list(range(len(payloads))), 64) == expected
    assert together(shuffled, 64) == expected
    assert together(shuffled, 5) == expected


def content(answer: tuple[int, dict[str, Any]]) -> str:
    status, value = answer
    assert status == 200, value
    return str(value["choices"][0]["message"]["content"])


def test_a_client_that_leaves_does_not_disturb_the_others(model: JudgeModel) -> None:
    async def use(http: Http) -> list[tuple[int, Any]]:
        tasks = [asyncio.create_task(post(http, body(f"q{k}"))) for k in range(12)]
        await asyncio.sleep(0.005)
        for task in tasks[::2]:
            task.cancel()
        return await asyncio.gather(*tasks[1::2])

    assert [status for status, _ in with_server(model, use)] == [200] * 6


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "response_1", "narrator"]) | JSON, "content": JSON}),
    max_size=3,
)
FIELDS = ("max_tokens", "temperature", "top_p", "seed", "n", "stop", "stream", "logprobs", "top_logprobs", "tools", "x")
BODIES = st.binary(max_size=60) | JSON | st.builds(
    lambda messages, fields: {**body(max_tokens=2), "messages": messages, **fields},
    MESSAGES | st.just(body()["messages"]),
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=2),
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(BODIES, min_size=8, max_size=16))
def test_no_body_makes_the_server_fail(model: JudgeModel, batch: list[Any]) -> None:
    async def send(http: Http, payload: Any) -> tuple[int, Any]:
        data = payload if isinstance(payload, bytes) else json.dumps(payload)
        async with http.post(CHAT, data=data, headers=AUTH) as response:
            return response.status, await response.json()

    async def use(http: Http) -> list[tuple[int, Any]]:
        return await asyncio.gather(*(send(http, payload) for payload in batch))

    for status, answer in with_server(model, use):
        assert status in (200, 400), answer
        assert "choices" in answer or answer["error"]["message"]


@pytest.mark.parametrize("name", ["no/such-model", "../no/such/folder/at/all"])
def test_a_model_that_is_nowhere(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ArtifactError, match="neither a folder nor in the local hub cache"):
        JudgeModel.load(name, dtype="auto", device="cpu", threads=1)


@pytest.mark.parametrize(
    "broken", ["no config", "no template", "no tokenizer", "truncated weights", "larger tokenizer"]
)
def test_a_broken_model_folder_is_named(tiny_judge: Path, tmp_path: Path, broken: str) -> None:
    import shutil

    folder = shutil.copytree(tiny_judge, tmp_path / "copy")
    if broken == "no config":
        (folder / "config.json").unlink()
    elif broken == "no template":
        (folder / "chat_template.jinja").unlink()
    elif broken == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif broken == "larger tokenizer":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([f"<extra{k}>" for k in range(3)])
        tokenizer.save_pretrained(folder)
    else:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="copy"):
        JudgeModel.load(str(folder), dtype="auto", device="cpu", threads=1)

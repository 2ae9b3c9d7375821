"""What is handed over to a vLLM that samples, and what is made of its answers; itself is in tests/integration."""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from aiohttp import web
from safetensors import safe_open
from transformers import GemmaConfig, GemmaForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from nemotron.checkpoints import hf
from nemotron.contracts.samples import Completion, SamplingParams
from nemotron.errors import DataError, EngineError, OutputError
from nemotron.processes.loop_thread import LoopThread
from nemotron.processes.vanishing import vanishing_folder
from nemotron.rl.vllm_sampler import HEAD, VllmSampler, hand_over
from nemotron.vllm.server import VllmServer
from tests.unit.rl.tiny_policy import tiny_policy

PARAMS = SamplingParams(4, (0,))
SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_a_head_that_is_the_embedding_is_written_out(tmp_path: Path) -> None:
    """vLLM renews the embedding alone when it takes over weights; see ``hand_over``."""
    policy = tiny_policy()
    for scale in (1.0, 2.0):
        with torch.no_grad():
            policy.model.model.embed_tokens.weight.mul_(scale)
        hand_over(policy.model, tmp_path)
        with safe_open(tmp_path / "model-head.safetensors", framework="pt") as file:
            assert torch.equal(file.get_tensor(HEAD), policy.model.model.embed_tokens.weight)
        assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    # The model itself is as it was.
    assert policy.model.config.tie_word_embeddings is True
    assert not list((tmp_path / "fresh").iterdir())


def test_in_several_files_the_index_names_it(tmp_path: Path) -> None:
    class Sharded:
        def save_pretrained(self, folder: Path) -> None:
            tiny_policy().model.save_pretrained(folder, max_shard_size="20KB")

    hand_over(Sharded(), tmp_path)
    listed = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(listed.values())) > 2
    with safe_open(tmp_path / listed[HEAD], framework="pt") as file:
        assert list(file.keys()) == [HEAD]


def test_other_heads_are_left_as_they_are(tmp_path: Path) -> None:
    models: dict[str, Any] = {
        "own": LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
        "gemma": GemmaForCausalLM(GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=8)),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2)),
    }
    for name, model in models.items():
        folder = tmp_path / name
        folder.mkdir()
        hand_over(model, folder)
        tied = json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", True)
        assert tied is (name != "own")
        assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]


def test_who_reads_while_weights_are_handed_over_reads_on(tmp_path: Path) -> None:
    policy = tiny_policy()
    hand_over(policy.model, tmp_path)
    before = policy.model.model.norm.weight.detach().clone()
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        with torch.no_grad():
            policy.model.model.norm.weight.add_(1)
        hand_over(policy.model, tmp_path)
        assert torch.equal(file.get_tensor("model.norm.weight"), before)
    assert torch.equal(hf.HfWeights(tmp_path)["model.norm.weight"], before + 1)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "fresh").touch()
    with pytest.raises(OutputError, match="cannot write"):
        hand_over(tiny_policy().model, tmp_path)


class Server:
    """Stands for the process: it is there, and has never been started again."""

    url, token, starts = "http://localhost", "the-token", 1

    def wait(self, tell: Callable[[str], None], note: Callable[[str], None] | None = None) -> None: ...

    def again(self, since: int) -> bool | None:
        return False


Answer = Callable[[str, Any], tuple[int, Any]]


@contextmanager
def asked(answer: Answer, longest: int = 64) -> Iterator[tuple[VllmSampler, list[tuple[str, Any]]]]:
    """A sampler before a server that answers as ``answer`` says, and what it was asked."""
    seen: list[tuple[str, Any]] = []

    async def handle(request: web.Request) -> web.Response:
        assert request.headers["authorization"] == "Bearer the-token"
        text = await request.text()
        seen.append((request.path, json.loads(text) if text and text != "null" else None))
        status, said = answer(*seen[-1])
        return web.json_response(said, status=status)

    async def start(at: Path) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/{path:.*}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(at)).start()
        return runner

    background = LoopThread("server")
    background.start()
    with vanishing_folder() as folder:
        runner = background.run(start(folder / "socket")).result()
        policy = tiny_policy()
        sampler = VllmSampler(
            policy,
            policy.model,
            cast(VllmServer, Server()),
            **{"folder": folder, "at": folder / "socket", "longest": longest, "timeout_s": 20, "note": print},
        )
        try:
            with sampler:
                yield sampler, seen
        finally:
            background.close(cast(Callable[[], Awaitable[None]], runner.cleanup))


def completion(tokens: list[int], logprobs: list[float]) -> dict[str, Any]:
    return {"choices": [{"token_ids": tokens, "logprobs": {"token_logprobs": logprobs}}]}


def test_answers_become_groups_in_order() -> None:
    def answer(path: str, body: Any) -> tuple[int, Any]:
        return 200, completion(
            [body["prompt"][0], 5, 0] if body["seed"] % 2 else [7] * 4,
            [-1.0, -2.0, -0.5, -1][: 3 + (body["seed"] + 1) % 2],
        )

    told: list[int] = []
    params = SamplingParams(4, (0,), temperature=0.7, top_p=0.9, top_k=None)
    with asked(answer) as (sampler, seen):
        here = threading.get_ident()
        groups = sampler.generate(
            [[3, 4], [9]],
            2,
            params,
            [[1, 2], [3, 2**63 + 4]],
            on_group=lambda index, group: told.append(index + 10 * (threading.get_ident() != here)),
        )
    assert [group.prompt_ids for group in groups] == [[3, 4], [9]]
    assert groups[1].completions == [
        Completion([9, 5, 0], [-1.0, -2.0, -0.5], truncated=False),
        Completion([7] * 4, [-1.0, -2.0, -0.5, -1.0], truncated=True),
    ]
    # Groups are told of on the calling thread.
    assert sorted(told) == [0, 1]
    bodies = [body for _, body in seen]
    assert {body["seed"] for body in bodies} == {1, 2, 3, 4}
    assert {(body["temperature"], body["top_p"], body["top_k"]) for body in bodies} == {(0.7, 0.9, -1)}
    assert all(body["stop_token_ids"] == [0] and body["ignore_eos"] for body in bodies)


def test_weights_are_taken_over_and_the_cache_is_forgotten() -> None:
    busy = iter([False, False, True])

    def answer(path: str, body: Any) -> tuple[int, Any]:
        return 200, {"success": next(busy)} if path == "/reset_prefix_cache" else {"results": [None]}

    with asked(answer) as (sampler, seen):
        sampler.refresh()
    paths = [path for path, _ in seen]
    # While a block is held it is asked again.
    assert paths == ["/collective_rpc", *["/reset_prefix_cache"] * 3]
    assert seen[0][1]["method"] == "reload_weights"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda path, body: (400, {"error": "no such thing"}), "refuses `/v1/completions` with status 400"),
        (lambda path, body: (500, {"error": "out of luck"}), "fails: status 500"),
        (lambda path, body: (200, {"choices": []}), "gave no token ids"),
        (lambda path, body: (200, completion([1, 2], [-1.0])), "2 tokens with 1 log-probabilities"),
        (lambda path, body: (200, completion([], [])), "0 tokens"),
    ],
)
def test_what_is_no_answer_ends_the_run(answer: Answer, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemotron.rl.vllm_sampler._PAUSE_S", 0.01)
    with asked(answer) as (sampler, seen), pytest.raises(EngineError, match=said):
        sampler.generate([[3]], 1, PARAMS, [[1]])
    assert len(seen) == (3 if "500" in said else 1)


def test_a_cache_that_stays_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemotron.rl.vllm_sampler._PAUSE_S", 0.01)
    with (
        asked(lambda path, body: (200, {"success": False})) as (sampler, _),
        pytest.raises(EngineError, match="holds a part"),
    ):
        sampler.refresh()


def test_a_prompt_that_is_too_long_is_said_by_its_number() -> None:
    with (
        asked(lambda path, body: (200, {}), longest=6) as (sampler, seen),
        pytest.raises(DataError, match="prompt 1 has 3 tokens"),
    ):
        sampler.generate([[3], [3, 4, 5]], 1, PARAMS, [[1], [2]])
    assert not seen

"""Sampling: exact log-probs, seeds, ragged prompts, rows that leave, greedy decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from nemotron.contracts.samples import Group, SamplingParams
from nemotron.errors import DataError
from nemotron.rl.logprobs import filter_logits
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import draw, generate

VOCAB = 61
SIZES: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES, **HEADS),
    "qwen3": Qwen3Config(**SIZES, **HEADS, head_dim=8),
    "mistral-sliding": MistralConfig(**SIZES, **HEADS, sliding_window=4),
    "gemma3": Gemma3TextConfig(
        **SIZES,
        **HEADS,
        head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        final_logit_softcapping=3.0,
    ),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}
PROMPTS = [[5, 9, 2], [7], [11, 3, 8, 4, 1], [6, 6, 6]]


def make_policy(name: str = "llama", precision: Any = "float32") -> Policy:
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Policy(model.float(), precision=precision)


def seeds_for(prompts: int, n: int, base: int = 100) -> list[list[int]]:
    return [[base + 10 * p + i for i in range(n)] for p in range(prompts)]


def tokens_of(groups: list[Group]) -> list[list[list[int]]]:
    return [[c.token_ids for c in g.completions] for g in groups]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6, "top_k": 20, "top_p": 0.9}])
def test_logprobs_are_those_of_the_model(name: str, settings: dict[str, Any]) -> None:
    policy = make_policy(name)
    params = SamplingParams(max_new_tokens=10, stop_token_ids=(3, 4, 5, 6, 7), **settings)
    groups = generate(policy, PROMPTS, 6, params, seeds_for(4, 6))
    with torch.no_grad():
        again = policy.response_logprobs(groups, **settings)
    sampled = torch.zeros_like(again)
    for row, completion in enumerate(c for g in groups for c in g.completions):
        sampled[row, : len(completion.logprobs)] = torch.tensor(completion.logprobs)
    torch.testing.assert_close(again, sampled, atol=2e-5, rtol=1e-5)
    assert {len(c.token_ids) for g in groups for c in g.completions} > {10}


@pytest.mark.parametrize(("name", "temperature"), [*((name, 0.0) for name in CONFIGS), (next(iter(CONFIGS)), 1e-40)])
def test_greedy_equals_full_forward(name: str, temperature: float) -> None:
    policy = make_policy(name)
    params = SamplingParams(max_new_tokens=7, stop_token_ids=(), temperature=temperature)
    groups = generate(policy, PROMPTS, 1, params, seeds_for(4, 1))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        ids = list(prompt)
        for _ in range(7):
            ids.append(int(policy.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert group.completions[0].token_ids == ids[len(prompt) :]
        assert group.completions[0].truncated


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_call_same_bits(precision: str) -> None:
    policy = make_policy(precision=precision)
    params = SamplingParams(max_new_tokens=12, stop_token_ids=(2, 3, 4))
    first = generate(policy, PROMPTS, 5, params, seeds_for(4, 5))
    assert generate(policy, PROMPTS, 5, params, seeds_for(4, 5)) == first
    assert generate(policy, PROMPTS, 5, params, seeds_for(4, 5, base=900)) != first


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_a_row_does_not_depend_on_the_others(name: str) -> None:
    policy = make_policy(name)
    params = SamplingParams(max_new_tokens=12, stop_token_ids=(2, 3, 4))
    seeds = seeds_for(4, 5)
    together = generate(policy, PROMPTS, 5, params, seeds)
    alone = [generate(policy, [PROMPTS[p]], 5, params, [seeds[p]])[0] for p in range(4)]
    assert tokens_of(alone) == tokens_of(together)
    single = generate(policy, [PROMPTS[2]], 1, params, [[seeds[2][3]]])
    assert single[0].completions[0].token_ids == together[2].completions[3].token_ids


def test_stop_and_truncation() -> None:
    policy = make_policy()
    params = SamplingParams(max_new_tokens=9, stop_token_ids=(2, 3, 4, 5, 6, 7, 8, 9))
    groups = generate(policy, PROMPTS, 16, params, seeds_for(4, 16))
    completions = [c for g in groups for c in g.completions]
    for c in completions:
        assert len(c.token_ids) == len(c.logprobs) >= 1
        assert all(t not in params.stop_token_ids for t in c.token_ids[:-1])
        assert c.truncated == (c.token_ids[-1] not in params.stop_token_ids)
        assert not c.truncated or len(c.token_ids) == 9
    assert len({len(c.token_ids) for c in completions}) > 4


def test_stop_token_as_the_last_one_allowed_is_no_truncation() -> None:
    policy = make_policy()
    every = tuple(range(VOCAB))
    (group,) = generate(policy, [[1, 2]], 2, SamplingParams(1, every), [[1, 2]])
    assert [c.truncated for c in group.completions] == [False, False]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_groups_are_reported_once_and_early(name: str) -> None:
    policy = make_policy(name)
    params = SamplingParams(max_new_tokens=20, stop_token_ids=tuple(range(12)))
    reported: dict[int, Group] = {}
    order: list[int] = []

    def note(index: int, group: Group) -> None:
        assert index not in reported
        reported[index] = group
        order.append(index)

    groups = generate(policy, PROMPTS, 4, params, seeds_for(4, 4), on_group=note)
    assert [reported[i] for i in range(4)] == groups
    longest = [max(len(c.token_ids) for c in g.completions) for g in groups]
    assert [longest[i] for i in order] == sorted(longest)


def test_draw_follows_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).expand(40000, 4)
    uniform = torch.rand(40000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(1, (), temperature=0.8, top_k=3)
    tokens, logprobs = draw(logits, uniform, params)
    expected = torch.softmax(torch.tensor([0.0, 1.0, float("-inf"), 2.0]) / 0.8, -1)
    share = torch.bincount(tokens, minlength=4) / 40000
    torch.testing.assert_close(share, expected, atol=0.01, rtol=0)
    assert share[2] == 0
    torch.testing.assert_close(logprobs, expected.log()[tokens])


def test_draw_at_the_ends_of_the_interval() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]] * 2)
    edge = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    tokens, logprobs = draw(logits, edge, SamplingParams(1, ()))
    assert tokens.tolist() == [1, 2]
    assert torch.isfinite(logprobs).all()


@pytest.mark.parametrize("width", [8192, 49_171, 151_936])
@pytest.mark.parametrize("kind", ["flat", "peaked", "few words"])
def test_a_large_vocabulary_is_drawn_from_as_a_small_one(width: int, kind: str) -> None:
    random = torch.Generator().manual_seed(width)
    logits = torch.randn(64, width, generator=random) * (8 if kind == "peaked" else 1)
    if kind == "few words":
        logits = filter_logits(logits, top_k=5)
    uniform = torch.rand(64, dtype=torch.float64, generator=random)
    uniform[:2] = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    tokens, logprobs = draw(logits, uniform, SamplingParams(1, ()))
    probs = logits.softmax(-1)
    # The number lies where the running sum over all words passes the token, but for the rounding of the softmax.
    after = probs.double().cumsum(-1).gather(1, tokens[:, None]).squeeze(1)
    before = after - probs.gather(1, tokens[:, None]).squeeze(1)
    assert bool(((before - 1e-6 < uniform) & (uniform < after + 1e-6)).all())
    assert tokens[0] == int((probs[0] > 0).nonzero()[0])
    torch.testing.assert_close(logprobs, probs.gather(1, tokens[:, None]).squeeze(1).log())
    assert torch.isfinite(logprobs).all()


@pytest.mark.parametrize(
    ("prompts", "message"), [([[1], []], "prompt 1 has no tokens"), ([[1] * 60], "exceed the model")]
)
def test_prompts_that_cannot_be_continued(prompts: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate(make_policy(), prompts, 1, SamplingParams(5, ()), seeds_for(len(prompts), 1))


def test_no_prompts() -> None:
    assert generate(make_policy(), [], 4, SamplingParams(5, ()), []) == []

"""Training on what sampling computed, beside a forward pass of its own: values, gradients, and when it is done."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nemotron.contracts.samples import Group, SamplingParams
from nemotron.rl import kept_pass, llama_decoder, llama_logprobs, packed
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import PolicySampler, generate
from tests.unit.rl.test_llama_adapters import adapted, assert_equal_gradients
from tests.unit.rl.test_policy import REARRANGED, make_policy

PROMPTS = [[5, 6, 7, 8, 21, 30], [9, 3], [11, 12, 13], [9, 3]]
STOPS = tuple(range(0, 97, 12))
"""So many words that responses end at any length, the first included."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models do it, too; columns in several parts, batches of few tokens."""
    monkeypatch.setattr(kept_pass, "LARGE", 1)
    monkeypatch.setattr(kept_pass, "_STEPS", 4)
    monkeypatch.setitem(llama_logprobs._BATCH_TOKENS, "cpu", 60)


def drawn(policy: Policy, params: SamplingParams, n: int = 5) -> tuple[PolicySampler, list[Group]]:
    sampler = PolicySampler(policy)
    seeds = [[100 * i + j for j in range(n)] for i in range(len(PROMPTS))]
    return sampler, sampler.generate(PROMPTS, n, params, seeds, keep=True)


@pytest.mark.parametrize("stops", [(), STOPS], ids=["even", "ragged"])
@pytest.mark.parametrize("name", REARRANGED)
def test_values_and_gradients_are_those_of_a_pass_of_its_own(name: str, stops: tuple[int, ...]) -> None:
    policy, params = make_policy(name), SamplingParams(14, stops, temperature=0.8)
    sampler, groups = drawn(policy, params)
    lengths = {len(c.token_ids) for group in groups for c in group.completions}
    assert len(lengths) > 4 if stops else lengths == {14}
    taken = sampler.take_pass()
    assert taken is not None
    found = taken()
    assert sampler.take_pass() is None
    # Exactly what the sampler said.
    said = [torch.tensor(c.logprobs) for group in groups for c in group.completions]
    assert torch.equal(found.detach(), torch.nn.utils.rnn.pad_sequence(said, batch_first=True))
    expected = policy.response_logprobs(groups, temperature=0.8)
    assert_equal_gradients(found, expected, list(policy.parameters()), 2e-5)


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("make", [make_policy, adapted])
@pytest.mark.parametrize("name", ["llama-tied-gqa", "qwen2", "gemma3-capped-scaled"])
def test_packed_matrices_and_adapters(
    name: str, make: Callable[[str], Policy], packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if packs:
        monkeypatch.setattr(packed, "LARGE", 1)
        monkeypatch.setattr(llama_decoder, "_SETTLED", 2)
        monkeypatch.setattr(llama_decoder, "_WORTH", 1)
    policy = make(name)
    sampler, groups = drawn(policy, SamplingParams(14, STOPS))
    taken = sampler.take_pass()
    assert taken is not None
    assert_equal_gradients(taken(), policy.response_logprobs(groups), list(policy.parameters()), 2e-5)


def test_the_same_answers_with_and_without() -> None:
    policy, params = make_policy("llama-tied-gqa"), SamplingParams(14, STOPS)
    _, kept = drawn(policy, params)
    seeds = [[100 * i + j for j in range(5)] for i in range(len(PROMPTS))]
    plain = generate(policy, PROMPTS, 5, params, seeds)
    assert [[c.token_ids for c in group.completions] for group in kept] == [
        [c.token_ids for c in group.completions] for group in plain
    ]


def test_answers_of_one_token() -> None:
    policy = make_policy("llama-tied-gqa")
    sampler, groups = drawn(policy, SamplingParams(1, ()))
    taken = sampler.take_pass()
    assert taken is not None
    assert_equal_gradients(taken(), policy.response_logprobs(groups), list(policy.parameters()), 2e-5)


def test_weights_that_have_changed_since_are_noticed() -> None:
    policy = make_policy("llama-tied-gqa")
    sampler, _ = drawn(policy, SamplingParams(6, ()))
    taken = sampler.take_pass()
    assert taken is not None
    found = taken()
    with torch.no_grad():
        next(policy.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


@pytest.mark.parametrize(
    ("precision", "params", "recompute"),
    [
        ("bfloat16", SamplingParams(6, ()), False),
        ("float32", SamplingParams(6, (), temperature=0.0), False),
        ("float32", SamplingParams(6, (), top_k=5), False),
        ("float32", SamplingParams(6, (), top_p=0.5), False),
        ("float32", SamplingParams(1020, (*range(97),)), False),
        ("float32", SamplingParams(6, ()), True),
    ],
    ids=["half", "greedy", "top-k", "top-p", "long", "anew"],
)
def test_when_nothing_is_kept(precision: str, params: SamplingParams, recompute: bool) -> None:
    policy = make_policy("llama-tied-gqa", precision=precision)
    policy.recompute = recompute
    policy.model.config.max_position_embeddings = 4096
    assert drawn(policy, params)[0].take_pass() is None


def test_small_models_other_families_and_frozen_ones_keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(6, ())
    assert drawn(make_policy("gpt2"), params)[0].take_pass() is None
    assert drawn(make_policy("llama-tied-gqa").freeze(), params)[0].take_pass() is None
    monkeypatch.setattr(kept_pass, "LARGE", 2**24)
    assert drawn(make_policy("llama-tied-gqa"), params)[0].take_pass() is None

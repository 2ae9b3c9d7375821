"""The same gradients, to the bit, however many threads there are and whichever of them comes first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from nemotron.contracts.samples import Completion, Group
from nemotron.rl.policy import Policy
from nemotron.rl.threads import apply_threads

WORDS = 50_000
"""As real vocabularies have: below some thousands torch takes one thread for all that is looked at here."""
ANSWERS = [Group([3, 4, 5], [Completion([100 + i] * (1 + i % 3), [], False) for i in range(16)])]


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    apply_threads(4)
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])


def by_hand() -> Policy:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Policy(LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, num_key_value_heads=1, **sizes)))


def by_its_own_forward() -> Policy:
    return Policy(GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=8, n_layer=1, n_head=2, n_positions=64)))


@pytest.mark.parametrize("make", [by_hand, by_its_own_forward])
def test_gradients_repeat_to_the_bit(make: type[Policy]) -> None:
    torch.manual_seed(0)
    policy = make()
    seen = set()
    for _ in range(10):
        loss = policy.response_logprobs(ANSWERS).sum()
        found = torch.autograd.grad(loss, list(policy.parameters()))
        seen.add(b"".join(grad.numpy().tobytes() for grad in found))
    assert len(seen) == 1


def test_indexing_with_repeated_places_repeats_to_the_bit() -> None:
    """What models of other families do in their own forward is covered, too."""
    rows, places = torch.randn(1, WORDS), torch.zeros(64, dtype=torch.int64)
    weights = torch.randn(64, WORDS)
    seen = set()
    for _ in range(10):
        leaf = rows.clone().requires_grad_()
        (grad,) = torch.autograd.grad((leaf[places] * weights).sum(), leaf)
        seen.add(grad.numpy().tobytes())
    assert len(seen) == 1

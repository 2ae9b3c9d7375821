"""A real language model: SmolLM2-135M-Instruct, as tests/integration/smollm2/install.sh makes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemotron.contracts.samples import Completion, Group, SamplingParams
from nemotron.rl.chat import Chat
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import PolicySampler

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def policy(smollm2: Path) -> Policy:
    return Policy.load(smollm2, device="cpu")


@pytest.fixture(scope="module")
def chat(smollm2: Path) -> Chat:
    return Chat.load(str(smollm2), "default", None)


def test_it_speaks(policy: Policy, chat: Chat) -> None:
    """Weights, tokenizer and template belong together: a model that lost one of them says nothing of the kind."""
    prompt = chat.encode([{"role": "user", "content": "What is the capital of France? Answer in one word."}])
    params = SamplingParams(max_new_tokens=16, stop_token_ids=chat.ends, temperature=0.0)
    [group] = PolicySampler(policy).generate([prompt], 1, params, [[1]])
    assert "Paris" in chat.reply(prompt, group.completions[0].token_ids)


def test_our_log_probabilities_are_those_of_transformers(policy: Policy, chat: Chat) -> None:
    prompt = chat.encode([{"role": "user", "content": "Count to ten."}])
    answers = [chat.tokenizer.encode(text) for text in ("1, 2, 3, 4, 5", "I would rather not.")]
    with torch.no_grad():
        ours = policy.response_logprobs([Group(prompt, [Completion(ids, [0.0] * len(ids), False) for ids in answers])])
        for row, ids in zip(ours, answers, strict=True):
            logits = policy.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            theirs = logits.log_softmax(-1)[range(len(ids)), ids]
            assert torch.allclose(row[: len(ids)], theirs, atol=1e-4)

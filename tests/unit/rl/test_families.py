"""Random tiny models of many families, as transformers makes them: log-probs, gradients, sampling, and that they learn.

Those that are computed by hand have their cases in ``test_policy.py``; here is everything else.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf

from nemotron.compile.probes.fast_path import STATEFUL, slow_path
from nemotron.contracts.samples import SamplingParams
from nemotron.rl import generic, pieces
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import generate
from nemotron.rl.saving import Progress
from nemotron.rl.scalar_model import ScalarModel
from tests.unit.rl import test_dpo_loop as dpo
from tests.unit.rl import test_grpo_loop as grpo
from tests.unit.rl import test_policy
from tests.unit.rl.test_policy import RAGGED, VOCAB, make_groups, reference_logprobs
from tests.unit.rl.test_scalar_model import plain_scores, plain_values

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE: dict[str, Any] = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64}
GQA: dict[str, Any] = {**WIDE, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT: dict[str, Any] = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}

USUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT),
    "gpt-neox": ("GPTNeoX", WIDE),
    "opt": ("OPT", {**SIZES, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32}),
    "phi3": ("Phi3", GQA),
    "falcon-alibi": ("Falcon", {**SIZES, "alibi": True, "new_decoder_architecture": False}),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "stablelm": ("StableLm", GQA),
    "olmo2": ("Olmo2", GQA),
    "granite": ("Granite", {**GQA, "logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}),
    "qwen2-moe": ("Qwen2Moe", {**GQA, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 24}),
    "gemma2": ("Gemma2", {**GQA, "head_dim": 8, "sliding_window": 5}),
    # States that are no keys and values.
    "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2}),
    "lfm2": ("Lfm2", {**GQA, "layer_types": ["conv", "full_attention"]}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi": ("Phi", WIDE),
    "falcon": ("Falcon", {**SIZES, "alibi": False, "max_position_embeddings": 64}),
    "mixtral": ("Mixtral", {**GQA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": ("Qwen3Moe", {**GQA, **EXPERTS, "num_experts": 4, "head_dim": 8}),
    "gpt-oss": (
        "GptOss",
        {**GQA, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 5},
    ),
    "gemma": ("Gemma", {**GQA, "head_dim": 8}),
    "cohere": ("Cohere", GQA),
    "starcoder2": ("Starcoder2", GQA),
    "gpt-j": ("GPTJ", {**GPT, "rotary_dim": 4}),
    "gpt-bigcode": ("GPTBigCode", GPT),
    "smollm3": ("SmolLM3", GQA),
    "glm4": ("Glm4", {**GQA, "head_dim": 8}),
    "nemotron": ("Nemotron", GQA),
    "olmo": ("Olmo", GQA),
    "ministral": ("Ministral", {**GQA, "head_dim": 8, "sliding_window": 5}),
    "exaone4": ("Exaone4", {**GQA, "sliding_window": 5, "sliding_window_pattern": 2}),
    "mpt": ("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "openai-gpt": ("OpenAIGPT", GPT),
    "mamba2": (
        "Mamba2",
        {**SIZES, "head_dim": 8, "num_heads": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8},
    ),
}


def always(some: Collection[str], of: Iterable[str]) -> list[Any]:
    """Names for `make test`; those that are not among ``some`` are for `make full`."""
    return [name if name in some else pytest.param(name, marks=pytest.mark.full) for name in of]


FAMILIES = always(USUAL, (*USUAL, *OTHERS))
# One of each kind: with experts, with a state instead of a cache, with windows, with convolutions, with none of it.
ONE_EACH = always(("qwen2-moe", "mamba", "gemma2", "lfm2", "gpt-neox"), (*USUAL, *OTHERS))


def make_policy(name: str, *, vocabulary: int = VOCAB, std: float = 0.2) -> Policy:
    kind, sizes = {**USUAL, **OTHERS}[name]
    torch.manual_seed(3)
    config = getattr(hf, f"{kind}Config")(vocab_size=vocabulary, **sizes)
    model = hf.AutoModelForCausalLM.from_config(config)
    if std:  # the library's initial values are too small and too regular to tell layers apart
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=std)
    return Policy(model.float())


@pytest.mark.parametrize("name", FAMILIES)
def test_values_and_gradients_equal_the_plain_forward(name: str) -> None:
    policy, groups = make_policy(name), make_groups(RAGGED)
    parameters = list(policy.parameters())
    expected = reference_logprobs(policy, groups, temperature=0.7)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    got = policy.response_logprobs(groups, temperature=0.7)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    # Some families carry weights that no token of these reaches, as an expert that nobody chose.
    wanted = torch.autograd.grad((expected * weights).sum(), parameters, allow_unused=True)
    found = torch.autograd.grad((got * weights).sum(), parameters, allow_unused=True)
    assert sum(grad is not None for grad in wanted) > len(parameters) / 2
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            scale = float(b.abs().max().clamp_min(1.0))
            torch.testing.assert_close(a / scale, b / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ONE_EACH)
def test_little_memory_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits in pieces of two tokens, activations computed anew in the backward pass, batches of few tokens."""
    policy, groups = make_policy(name), make_groups(RAGGED)
    parameters = list(policy.parameters())
    expected = policy.response_logprobs(groups, temperature=0.7)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad((expected * weights).sum(), parameters, allow_unused=True)
    monkeypatch.setitem(pieces.LOGITS, "cpu", 2 * VOCAB)
    monkeypatch.setitem(generic._RECOMPUTED_TOKENS, "cpu", 16)
    for recompute in (False, True):
        policy.recompute = recompute
        got = policy.response_logprobs(groups, temperature=0.7)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        found = torch.autograd.grad((got * weights).sum(), parameters, allow_unused=True)
        for a, b in zip(found, wanted, strict=True):
            if b is not None:
                assert a is not None
                scale = float(b.abs().max().clamp_min(1.0))
                torch.testing.assert_close(a / scale, b / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_have_the_probabilities_of_the_model(name: str) -> None:
    """Ragged prompts, rows that leave: what the sampler's cache says is what a forward of the whole row says."""
    policy = make_policy(name)
    prompts = [[5, 9, 2], [7], [11, 3, 8, 4, 1], [6, 6, 6]]
    seeds = [[100 + 10 * p + i for i in range(6)] for p in range(4)]
    groups = generate(policy, prompts, 6, SamplingParams(10, (3, 4, 5, 6, 7)), seeds)
    with torch.no_grad():
        expected = reference_logprobs(policy, groups)
    sampled = torch.zeros_like(expected)
    for row, completion in enumerate(c for g in groups for c in g.completions):
        sampled[row, : len(completion.logprobs)] = torch.tensor(completion.logprobs)
    torch.testing.assert_close(sampled, expected, atol=2e-5, rtol=1e-5)
    assert len({len(c.token_ids) for g in groups for c in g.completions}) > 3


@pytest.mark.parametrize("name", ["gpt-neox", "qwen2-moe", "lfm2"])
def test_scores_and_values_equal_the_plain_forward(name: str) -> None:
    groups = make_groups(RAGGED)
    if name == "lfm2":  # transformers has no classifier of it: the body of one that has, told to compute rows whole
        model = ScalarModel.from_policy(make_policy("gpt-neox"), seed=4)
        model.shares_prompts = False
    else:
        model = ScalarModel.from_policy(make_policy(name), seed=4)
    torch.testing.assert_close(model.sequence_scores(groups), plain_scores(model, groups), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.token_values(groups), plain_values(model, groups), atol=1e-5, rtol=1e-5)


def files(policy: Policy) -> Any:
    """What the plan knows of a model: its `config.json`."""
    return SimpleNamespace(config=json.loads(policy.model.config.to_json_string()))


@pytest.mark.parametrize("name", [*USUAL, *OTHERS])
def test_the_plan_knows_what_is_slow(name: str) -> None:
    policy = make_policy(name)
    assert policy.fused is None
    assert slow_path(files(policy)) is not None
    assert policy.shares_prompts == (policy.model.config.model_type not in STATEFUL)


@pytest.mark.parametrize("name", test_policy.REARRANGED)
def test_the_plan_knows_what_is_fast(name: str) -> None:
    assert slow_path(files(test_policy.make_policy(name))) is None


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"rope_parameters": DYNAMIC}], ids=["gate", "rope"])
def test_what_falls_off_the_fast_path_is_known_to_both(change: dict[str, Any]) -> None:
    config = hf.LlamaConfig(vocab_size=VOCAB, **{**GQA, **change})
    policy = Policy(hf.AutoModelForCausalLM.from_config(config).float())
    assert policy.fused is None
    assert slow_path(files(policy)) is not None


def learner(name: str) -> Policy:
    return make_policy(name, vocabulary=len(dpo.tiny_chat().tokenizer), std=0.1)


@pytest.mark.parametrize("name", always(("gpt-neox", "mamba"), USUAL))
def test_preferences_are_learned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = learner(name)
    monkeypatch.setattr(dpo, "tiny_policy", lambda **kwargs: policy.frozen_copy())  # the reference
    work = dpo.job(tmp_path, policy=policy, lr=0.02, max_num_steps=15, reference_policy_kl_penalty=0.5)
    dpo.train(work, Progress())
    first, *_, last = [row for row in dpo.log_of(work).rows if "train/loss" in row]
    assert first["train/loss"] == pytest.approx(0.6931, abs=1e-3)
    assert last["train/loss"] < 0.35
    assert last["train/accuracy"] == 1.0


@pytest.mark.parametrize("name", always(("gpt-neox",), USUAL))
def test_rewards_rise(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = learner(name)
    monkeypatch.setattr(grpo, "tiny_policy", lambda **kwargs: policy)
    letters = grpo.LetterJudge(letters="stuvwxyz")
    work = grpo.job(tmp_path, judge=letters, max_num_steps=18, num_generations_per_prompt=8, lr=0.05)
    grpo.train(work, Progress())
    rewards = [row["train/reward"] for row in grpo.log_of(work).rows]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1

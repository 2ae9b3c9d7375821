"""response_logprobs against the plain full-sequence forward of transformers: values and gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from nemotron.contracts.samples import Completion, Group
from nemotron.errors import ArtifactError, NotAvailableError
from nemotron.rl import llama_head, llama_logprobs, pieces
from nemotron.rl.policy import Policy

VOCAB = 97
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "max_position_embeddings": 64}

GEMMA: dict[str, Any] = {
    **SIZES,
    **HEADS,
    "head_dim": 16,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama-tied-gqa": LlamaConfig(**SIZES, **HEADS, num_key_value_heads=2, tie_word_embeddings=True),
    "llama-untied": LlamaConfig(**SIZES, **HEADS, num_key_value_heads=4, tie_word_embeddings=False),
    "llama-wide-heads-bias": LlamaConfig(
        **SIZES, **HEADS, num_key_value_heads=1, head_dim=16, attention_bias=True, mlp_bias=True
    ),
    "llama-rope-scaled": LlamaConfig(
        **SIZES,
        **HEADS,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "mistral": MistralConfig(**SIZES, **HEADS, num_key_value_heads=2, sliding_window=None),
    "mistral-sliding": MistralConfig(**SIZES, **HEADS, num_key_value_heads=2, sliding_window=5),
    "qwen2": Qwen2Config(**SIZES, **HEADS, num_key_value_heads=2),
    "qwen2-sliding": Qwen2Config(
        **SIZES, **HEADS, num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**SIZES, **HEADS, num_key_value_heads=2, head_dim=8),
    "qwen3-bias-sliding": Qwen3Config(
        **SIZES,
        **HEADS,
        num_key_value_heads=1,
        head_dim=16,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=1,
    ),
    "gemma3": Gemma3TextConfig(**GEMMA, num_key_value_heads=1),
    "gemma3-capped-scaled": Gemma3TextConfig(
        **GEMMA,
        num_key_value_heads=2,
        attention_bias=True,
        final_logit_softcapping=2.0,
        query_pre_attn_scalar=24,
        tie_word_embeddings=False,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    ),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}
REARRANGED = [name for name in CONFIGS if name != "gpt2"]


def make_policy(name: str, **kwargs: str) -> Policy:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    for (
        parameter
    ) in model.parameters():  # the library's initial values are too small and too regular to tell layers apart
        torch.nn.init.normal_(parameter, std=0.2)
    return Policy(model.float(), **kwargs)  # type: ignore[arg-type]


def make_groups(lengths: list[tuple[int, list[int]]], seed: int = 0) -> list[Group]:
    """Groups of random tokens: (prompt length, response lengths)."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(1, VOCAB, (count,), generator=generator).tolist()

    return [Group(ids(p), [Completion(ids(r), [0.0] * r, False) for r in responses]) for p, responses in lengths]


RAGGED = [(7, [3, 9, 1]), (2, [5]), (7, [12, 12, 4, 8]), (1, [1, 6]), (11, [1])]
EVEN = [(6, [5, 5, 5]), (6, [5, 5, 5])]


def reference_logprobs(policy: Policy, groups: list[Group], temperature: float = 1.0) -> torch.Tensor:
    """Row by row: the whole sequence through the model of transformers, no cache, no sharing."""
    rows = [(g.prompt_ids, c.token_ids) for g in groups for c in g.completions]
    width = max(len(response) for _, response in rows)
    out = []
    for prompt, response in rows:
        logits = policy.model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
        logprobs = (logits.float() / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
        picked = logprobs.gather(-1, torch.tensor(response)[:, None]).squeeze(-1)
        out.append(torch.nn.functional.pad(picked, (0, width - len(response))))
    return torch.stack(out)


@pytest.mark.parametrize("shape", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize("name", CONFIGS)
def test_values_and_gradients_equal_the_plain_forward(name: str, shape: list[tuple[int, list[int]]]) -> None:
    policy, groups = make_policy(name), make_groups(shape)
    expected = reference_logprobs(policy, groups, temperature=0.7)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    expected_grads = torch.autograd.grad((expected * weights).sum(), list(policy.parameters()))
    got = policy.response_logprobs(groups, temperature=0.7)
    got_grads = torch.autograd.grad((got * weights).sum(), list(policy.parameters()))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert got.dtype == torch.float32
    for (key, _), a, b in zip(policy.model.named_parameters(), got_grads, expected_grads, strict=True):
        scale = float(b.abs().max().clamp_min(1.0))
        torch.testing.assert_close(a / scale, b / scale, atol=1e-5, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    with torch.no_grad():
        torch.testing.assert_close(
            policy.response_logprobs(groups, temperature=0.7), got.detach(), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("name", REARRANGED)
def test_these_families_are_computed_by_hand(name: str) -> None:
    """The tests above would pass on the slow path too."""
    assert make_policy(name).fused is not None


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama-tied-gqa", "qwen3", "gemma3", "gpt2"])
def test_half_precision_stays_near_float32(name: str, precision: str) -> None:
    policy, groups = make_policy(name, precision=precision), make_groups(RAGGED)
    got = policy.response_logprobs(groups)
    expected = reference_logprobs(policy, groups)
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() < (0.25 if precision == "bfloat16" else 0.05)
    (got.sum() / 50).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in policy.parameters())
    grads = torch.cat([p.grad.flatten() for p in policy.parameters()])
    exact = torch.autograd.grad(expected.sum() / 50, list(policy.parameters()))
    assert torch.cosine_similarity(grads, torch.cat([g.flatten() for g in exact]), dim=0) > 0.99


def test_long_sequences_take_the_other_path(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, groups = make_policy("llama-tied-gqa"), make_groups(RAGGED)
    short = policy.response_logprobs(groups)
    monkeypatch.setattr("nemotron.rl.policy.LONGEST_WRITTEN_OUT", 10)
    monkeypatch.setattr("nemotron.rl.policy.llama_logprobs", None)  # a call would fail
    torch.testing.assert_close(policy.response_logprobs(groups), short, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("budget", [1, 7, 40])
@pytest.mark.parametrize("name", ["llama-tied-gqa", "gemma3"])
def test_the_cut_into_batches_changes_nothing(monkeypatch: pytest.MonkeyPatch, name: str, budget: int) -> None:
    policy, groups = make_policy(name), make_groups([*RAGGED, (5, [40, 39, 2, 2, 2]), (1, [30])])
    expected = reference_logprobs(policy, groups)
    expected_grads = torch.autograd.grad(expected.sum(), list(policy.parameters()))
    monkeypatch.setitem(llama_logprobs._BATCH_TOKENS, "cpu", budget)
    got = policy.response_logprobs(groups)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for a, b in zip(torch.autograd.grad(got.sum(), list(policy.parameters())), expected_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max().clamp_min(1.0)), rtol=1e-4)


def gradients(
    policy: Policy, groups: list[Group], weights: torch.Tensor, top_k: int | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    got = policy.response_logprobs(groups, temperature=0.7, top_k=top_k)
    got = got.masked_fill(got.isneginf(), 0.0)
    return got.detach(), list(torch.autograd.grad((got * weights).sum(), list(policy.parameters())))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama-tied-gqa", "gemma3-capped-scaled"])
def test_activations_computed_anew_are_the_same_bits(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(llama_logprobs._BATCH_TOKENS, "cpu", 20)
    policy, groups = make_policy(name, precision=precision), make_groups(RAGGED)
    weights = torch.randn(11, 12, generator=torch.Generator().manual_seed(1))
    kept = gradients(policy, groups, weights)
    alive = 0
    forward = llama_logprobs.LlamaPass.hidden

    def counted(run: llama_logprobs.LlamaPass, *call: Any, **kwargs: Any) -> Any:
        nonlocal alive
        alive = max(alive, len(run.traces))
        return forward(run, *call, **kwargs)

    monkeypatch.setattr(llama_logprobs.LlamaPass, "hidden", counted)
    policy.recompute = True
    anew = gradients(policy, groups, weights)
    assert alive == 0  # of no batch anything was kept while another ran
    assert torch.equal(kept[0], anew[0])
    assert all(torch.equal(a, b) for a, b in zip(kept[1], anew[1], strict=True))


@pytest.mark.parametrize("top_k", [None, 60], ids=["all", "filtered"])
@pytest.mark.parametrize("shape", [RAGGED, EVEN, [(5, [4] * 6)]], ids=["ragged", "even", "one prompt"])
@pytest.mark.parametrize("name", ["llama-tied-gqa", "gemma3-capped-scaled"])
def test_logits_in_pieces_change_nothing(
    name: str, shape: list[tuple[int, list[int]]], top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, groups = make_policy(name), make_groups(shape)
    rows = sum(len(responses) for _, responses in shape)
    weights = torch.randn(rows, max(max(r) for _, r in shape), generator=torch.Generator().manual_seed(1))
    whole = gradients(policy, groups, weights, top_k)
    largest: dict[str, int] = {"rows": 0, "logits": 0}
    read, blocks = llama_head.token_logprobs, llama_head._blocks

    def measured(logits: torch.Tensor, *more: Any, **kwargs: Any) -> torch.Tensor:
        largest["rows"] = max(largest["rows"], len(logits))
        return read(logits, *more, **kwargs)

    def measured_blocks(*call: Any) -> Any:
        for words, block in blocks(*call):
            largest["logits"] = max(largest["logits"], block.shape[1])
            yield words, block

    monkeypatch.setattr(llama_head, "token_logprobs", measured)
    monkeypatch.setattr(llama_head, "_blocks", measured_blocks)
    monkeypatch.setitem(pieces.LOGITS, "cpu", 3 * VOCAB)
    monkeypatch.setattr(llama_head, "_NARROWEST", 8)
    monkeypatch.setitem(llama_head._BLOCK, "cpu", 1)
    cut = gradients(policy, groups, weights, top_k)
    assert largest == ({"rows": 0, "logits": 8} if top_k is None else {"rows": 3, "logits": 0})
    torch.testing.assert_close(cut[0], whole[0], atol=1e-5, rtol=1e-5)
    for a, b in zip(cut[1], whole[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max().clamp_min(1.0)), rtol=1e-4)


@pytest.mark.parametrize("name", ["llama-untied", "llama-tied-gqa", "gemma3", "gpt2", "llama-long"])
def test_frozen_matrices_are_kept_as_they_are_multiplied(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "llama-long":
        monkeypatch.setattr("nemotron.rl.policy.LONGEST_WRITTEN_OUT", 10)
    policy = make_policy(name.replace("-long", "-untied"), precision="bfloat16")
    groups = make_groups(RAGGED)
    frozen = policy.frozen_copy()
    with torch.no_grad():
        assert torch.equal(frozen.response_logprobs(groups), policy.response_logprobs(groups))

    def size(model: torch.nn.Module) -> int:
        return sum(p.numel() * p.element_size() for p in model.parameters())

    halved = {type(m) for m in frozen.model.modules() for p in m.parameters(recurse=False) if p.dtype != torch.float32}
    if name != "gpt2":  # its layers are no `Linear`
        assert halved == {torch.nn.Linear}
        assert size(frozen.model) < 0.8 * size(policy.model)
    assert all(p.dtype == torch.float32 for p in policy.model.parameters())


def test_a_prompt_that_occurs_twice_is_computed_once() -> None:
    policy, (first, second) = make_policy("llama-untied"), make_groups([(4, [3, 2]), (4, [5])])
    again = Group(first.prompt_ids, second.completions)
    got = policy.response_logprobs([first, second, again])
    torch.testing.assert_close(got, reference_logprobs(policy, [first, second, again]), atol=1e-5, rtol=1e-5)
    assert len(llama_logprobs.make_plan([first, second, again], torch.device("cpu")).prompt_lengths) == 2


def test_filters_match_the_full_distribution() -> None:
    policy, groups = make_policy("llama-tied-gqa"), make_groups(EVEN)
    got = policy.response_logprobs(groups, temperature=0.5, top_k=30, top_p=0.9)
    with torch.no_grad():
        plain = policy.response_logprobs(groups, temperature=0.5)
    kept = torch.isfinite(got)
    assert kept.any()
    assert not kept.all()
    assert (got[kept] > plain[kept]).all()
    got[kept].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)


@pytest.mark.parametrize("kwargs", [{}, {"foreach": True}, {"fused": True}])
def test_an_optimizer_step_renews_the_rearranged_weights(kwargs: dict[str, bool]) -> None:
    policy, groups = make_policy("llama-tied-gqa"), make_groups(EVEN)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.05, **kwargs)
    policy.response_logprobs(groups).sum().backward()
    optimizer.step()
    with torch.no_grad():
        expected = reference_logprobs(policy, groups)
        torch.testing.assert_close(policy.response_logprobs(groups), expected, atol=1e-5, rtol=1e-5)


def test_weights_changed_between_the_passes_are_noticed() -> None:
    policy, groups = make_policy("llama-tied-gqa"), make_groups(EVEN)
    got = policy.response_logprobs(groups)
    with torch.no_grad():
        policy.model.model.norm.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        got.sum().backward()


def test_padding_is_zero() -> None:
    groups = make_groups(RAGGED)
    got = make_policy("llama-untied").response_logprobs(groups)
    lengths = torch.tensor([len(c.token_ids) for g in groups for c in g.completions])
    assert (got[torch.arange(got.shape[1]) >= lengths[:, None]] == 0).all()
    assert (got[torch.arange(got.shape[1]) < lengths[:, None]] < 0).all()


def test_prompt_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, groups = make_policy("gpt2"), make_groups([(20, [4] * 8)])
    seen = []
    policy.model.transformer.register_forward_hook(lambda *call: seen.append(call[2].last_hidden_state[..., 0].numel()))
    policy.response_logprobs(groups)
    assert sum(seen) == 20 + 8 * 3  # the last response token is never fed: nothing is asked after it


def test_frozen_copy_does_not_follow(tmp_path: Path) -> None:
    policy, groups = make_policy("llama-tied-gqa"), make_groups(EVEN)
    reference = policy.frozen_copy()
    before = reference.response_logprobs(groups)
    assert not before.requires_grad
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    policy.response_logprobs(groups).sum().backward()
    optimizer.step()
    torch.testing.assert_close(reference.response_logprobs(groups), before, atol=0, rtol=0)
    with torch.no_grad():
        after = policy.response_logprobs(groups)
        torch.testing.assert_close(after, reference_logprobs(policy, groups), atol=1e-5, rtol=1e-5)
    assert (after - before).abs().max() > 1e-3


def test_load_round_trip(tmp_path: Path) -> None:
    policy, groups = make_policy("llama-untied"), make_groups(EVEN)
    policy.model.save_pretrained(tmp_path / "m")
    loaded = Policy.load(tmp_path / "m", precision="float32", device="cpu")
    torch.testing.assert_close(loaded.response_logprobs(groups), policy.response_logprobs(groups), atol=0, rtol=0)
    assert loaded.max_length == 64


def test_load_errors(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="neither a folder nor a model"):
        Policy.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"has no `config.json`"):
        Policy.load(tmp_path / "empty")
    policy = make_policy("llama-untied")
    policy.model.save_pretrained(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match="cannot be read"):
        Policy.load(tmp_path / "m")
    weights.write_bytes(data)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ArtifactError, match="lacks weights"):
        Policy.load(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "model_type": "no_such_type"}))
    with pytest.raises(ArtifactError, match="cannot be read"):
        Policy.load(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        Policy.load(tmp_path / "m")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_in_vain(tmp_path: Path) -> None:
    make_policy("gpt2").model.save_pretrained(tmp_path / "m")
    with pytest.raises(NotAvailableError, match="no CUDA device"):
        Policy.load(tmp_path / "m", device="cuda")


def test_rows_that_fit_may_share_a_batch_that_does_not() -> None:
    """Longest prompt plus longest answer runs past the table of positions; each row by itself does not."""
    policy = make_policy("llama-tied-gqa")
    assert policy.max_length is not None
    full = policy.max_length
    early, late = full - 4, 3
    groups = [
        Group([2 + i % 20 for i in range(early)], [Completion([3] * (full - early), [], False)]),
        Group([4] * late, [Completion([2 + i % 20 for i in range(full - late)], [], False)]),
    ]
    together = policy.response_logprobs(groups, temperature=1.0)
    for row, group in zip(together, groups, strict=True):
        length = len(group.completions[0].token_ids)
        (alone,) = policy.response_logprobs([group], temperature=1.0)
        torch.testing.assert_close(row[:length], alone[:length], atol=1e-5, rtol=1e-5)
        assert not row[length:].any()

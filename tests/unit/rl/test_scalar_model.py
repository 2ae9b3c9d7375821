"""Scores and values against the plain forward of transformers on unpadded rows: values and gradients."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from nemotron.contracts.samples import Completion, Group
from nemotron.errors import ArtifactError, ConfigError
from nemotron.rl.policy import Policy
from nemotron.rl.scalar_model import ScalarModel, padding_token
from tests.unit.rl.test_policy import CONFIGS, EVEN, RAGGED, make_groups, make_policy

TINY = Path("src/nemotron/assets/tiny_world/policy")


def make_model(name: str, **kwargs: str) -> ScalarModel:
    model = ScalarModel.from_policy(make_policy(name, **kwargs), seed=4)
    torch.nn.init.normal_(model.model.score.weight, std=0.5, generator=torch.Generator().manual_seed(5))
    return model


def plain_scores(model: ScalarModel, groups: list[Group]) -> torch.Tensor:
    """Row by row, the classifier's own forward."""
    rows = [torch.tensor([g.prompt_ids + c.token_ids]) for g in groups for c in g.completions]
    return torch.stack([model.model(input_ids=row).logits[0, 0] for row in rows])


def plain_values(model: ScalarModel, groups: list[Group]) -> torch.Tensor:
    rows = [(g.prompt_ids, c.token_ids) for g in groups for c in g.completions]
    width = max(len(response) for _, response in rows)
    out = []
    for prompt, response in rows:
        hidden = model.model.base_model(input_ids=torch.tensor([prompt + response]), use_cache=False)[0]
        values = model.model.score(hidden)[0, len(prompt) - 1 : -1, 0]
        out.append(torch.nn.functional.pad(values, (0, width - len(response))))
    return torch.stack(out)


@pytest.mark.parametrize("shape", [RAGGED, pytest.param(EVEN, marks=pytest.mark.full)], ids=["ragged", "even"])
@pytest.mark.parametrize("what", ["scores", "values"])
@pytest.mark.parametrize("name", CONFIGS)
def test_results_and_gradients_equal_the_plain_forward(
    name: str, what: str, shape: list[tuple[int, list[int]]]
) -> None:
    model, groups = make_model(name), make_groups(shape)
    expected = plain_scores(model, groups) if what == "scores" else plain_values(model, groups)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    parameters = list(model.parameters())
    wanted = torch.autograd.grad((expected * weights).sum(), parameters)
    compute = model.sequence_scores if what == "scores" else model.token_values
    got = compute(groups)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert got.dtype == torch.float32
    for a, b in zip(torch.autograd.grad((got * weights).sum(), parameters), wanted, strict=True):
        scale = float(b.abs().max().clamp_min(1.0))
        torch.testing.assert_close(a / scale, b / scale, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(compute(groups), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama-tied-gqa", "gpt2"])
def test_half_precision_stays_near_float32(name: str) -> None:
    model, groups = make_model(name, precision="bfloat16"), make_groups(RAGGED)
    scores = model.sequence_scores(groups)
    assert scores.dtype == torch.float32
    assert (scores - plain_scores(model, groups)).abs().max() < 0.25
    scores.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_long_rows_take_the_other_path(monkeypatch: pytest.MonkeyPatch) -> None:
    model, groups = make_model("llama-untied"), make_groups(RAGGED)
    scores, values = model.sequence_scores(groups), model.token_values(groups)
    monkeypatch.setattr("nemotron.rl.scalar_model.LONGEST_WRITTEN_OUT", 4)
    monkeypatch.setattr("nemotron.rl.scalar_model.llama_scores", None)
    torch.testing.assert_close(model.sequence_scores(groups), scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.token_values(groups), values, atol=1e-5, rtol=1e-5)


def test_a_training_step_is_seen_by_the_next_call() -> None:
    model, groups = make_model("llama-tied-gqa"), make_groups(EVEN)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    model.sequence_scores(groups).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model.sequence_scores(groups), plain_scores(model, groups), atol=1e-5, rtol=1e-5)


def test_the_head_depends_on_the_seed_alone_and_the_policy_stays_its_own() -> None:
    policy = make_policy("llama-tied-gqa")
    torch.manual_seed(0)
    one = ScalarModel.from_policy(policy, seed=1)
    torch.manual_seed(9)
    state = torch.get_rng_state()
    same, other = ScalarModel.from_policy(policy, seed=1), ScalarModel.from_policy(policy, seed=2)
    assert torch.equal(one.model.score.weight, same.model.score.weight)
    assert not torch.equal(one.model.score.weight, other.model.score.weight)
    assert torch.equal(torch.get_rng_state(), state)
    before = policy.model.model.norm.weight.clone()
    with torch.no_grad():
        one.model.model.norm.weight.zero_()
    assert torch.equal(policy.model.model.norm.weight, before)


def test_what_is_saved_loads_in_transformers_and_scores_padded_rows_alike(tmp_path: Path) -> None:
    model = ScalarModel.from_policy(TINY, seed=7)
    model.set_reward_statistics(0.25, 1.5)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.pad_token = padding_token(tokenizer)
    model.save(tmp_path / "rm", tokenizer)
    groups = [Group([30, 31, 32], [c for g in make_groups([(3, [4, 9])]) for c in g.completions])]
    rows = [[*g.prompt_ids, *c.token_ids, tokenizer.eos_token_id] for g in groups for c in g.completions]
    padded = AutoTokenizer.from_pretrained(tmp_path / "rm").pad({"input_ids": rows}, return_tensors="pt")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm", dtype=torch.float32).eval()
    ended = [Group([30, 31, 32], [Completion(row[3:], [], False) for row in rows])]
    torch.testing.assert_close(loaded(**padded).logits[:, 0], model.sequence_scores(ended), atol=1e-5, rtol=1e-5)
    again = ScalarModel.load(tmp_path / "rm", device="cpu")
    assert (again.reward_mean, again.reward_std) == (0.25, 1.5)
    assert torch.equal(again.sequence_scores(ended), model.sequence_scores(ended))
    assert json.loads((tmp_path / "rm" / "config.json").read_text())["architectures"] == [
        "LlamaForSequenceClassification"
    ]
    assert AutoTokenizer.from_pretrained(tmp_path / "rm").chat_template == tokenizer.chat_template
    assert ScalarModel.from_policy(TINY, seed=7).reward_mean is None


def test_a_model_without_a_reward_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="without a reward head"):
        ScalarModel.load(TINY, device="cpu")
    config = CONFIGS["llama-untied"].__class__(**{**CONFIGS["llama-untied"].to_dict(), "num_labels": 3})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "three")
    with pytest.raises(ArtifactError, match="3 outputs"):
        ScalarModel.load(tmp_path / "three", device="cpu")
    with pytest.raises(ArtifactError, match="neither a folder nor a model"):
        ScalarModel.load(tmp_path / "nothing", device="cpu")


def test_a_family_without_a_classifier_is_refused() -> None:
    from transformers import CodeGenConfig

    config = CodeGenConfig(vocab_size=97, n_embd=32, n_layer=1, n_head=4, n_positions=64, rotary_dim=4)
    with pytest.raises(ArtifactError, match="no sequence classifier"):
        ScalarModel.from_policy(Policy(AutoModelForCausalLM.from_config(config).float()), seed=1)


def test_a_family_whose_classifier_is_no_decoder_with_a_head_is_refused() -> None:
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    config = BertConfig(vocab_size=97, is_decoder=True, **sizes)
    with pytest.raises(ArtifactError, match="not a decoder with a linear head"):
        ScalarModel.from_policy(Policy(AutoModelForCausalLM.from_config(config).float()), seed=1)


def test_the_end_of_sequence_token_never_pads() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert padding_token(tokenizer) == tokenizer.pad_token
    tokenizer.pad_token = tokenizer.eos_token
    assert padding_token(tokenizer) not in (tokenizer.eos_token, tokenizer.bos_token)
    bare = SimpleNamespace(
        added_tokens_encoder={"</s>": 1, "<s>": 0}, pad_token="</s>", eos_token="</s>", bos_token="<s>", unk_token=None
    )
    with pytest.raises(ConfigError, match="no padding token"):
        padding_token(bare)


@pytest.mark.parametrize("name", ["llama-untied", "gemma3"])
def test_a_frozen_model_keeps_its_matrices_as_they_are_multiplied_and_its_head_exact(name: str) -> None:
    model, groups = make_model(name, precision="bfloat16"), make_groups(RAGGED)
    frozen = model.frozen_copy()
    with torch.no_grad():
        assert torch.equal(frozen.sequence_scores(groups), model.sequence_scores(groups))
        assert torch.equal(frozen.token_values(groups), model.token_values(groups))
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())
    assert frozen.model.score.weight.dtype == torch.float32
    assert torch.bfloat16 in {parameter.dtype for parameter in frozen.model.parameters()}

"""Adapters beside rearranged matrices: values and gradients against peft's own layers in transformers' forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemotron.config.schema.dtensor import LoraConfig
from nemotron.contracts.samples import SamplingParams
from nemotron.rl.lora import Reference, add_adapters, add_scalar_adapters
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import PolicySampler
from tests.unit.rl.test_lora import LORA
from tests.unit.rl.test_policy import RAGGED, REARRANGED, make_groups, make_policy, reference_logprobs
from tests.unit.rl.test_scalar_model import make_model, plain_scores, plain_values

TARGETS = {
    "all": (),
    "queries": ("q_proj",),
    "values-down": ("v_proj", "down_proj"),
    "keys-up-out": ("k_proj", "up_proj", "o_proj"),
}


def adapted(name: str, targets: tuple[str, ...] = (), **kwargs: str) -> Policy:
    """With second matrices that are not 0."""
    config = LoraConfig.model_validate({**LORA, "target_modules": list(targets), "match_all_linear": not targets})
    return stirred(add_adapters(make_policy(name, **kwargs), config, seed=1))


def stirred(model: Any) -> Any:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.1, generator=generator))
    return model


def assert_equal_gradients(got: torch.Tensor, expected: torch.Tensor, parameters: list[Any], tolerance: float) -> None:
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    mine, theirs = (torch.autograd.grad((one * weights).sum(), parameters) for one in (got, expected))
    for a, b in zip(mine, theirs, strict=True):
        scale = float(b.abs().max().clamp_min(1.0))
        torch.testing.assert_close(a / scale, b / scale, atol=tolerance, rtol=tolerance)


# Every family with adapters on everything, and every choice of them on one family; `make full` crosses the two.
CROSSED = [
    pytest.param(
        name, chosen, id=f"{name}-{label}", marks=[] if label == "all" or name == "qwen3" else pytest.mark.full
    )
    for name in REARRANGED
    for label, chosen in TARGETS.items()
]


@pytest.mark.parametrize(("name", "targets"), CROSSED)
def test_values_and_gradients_equal_the_plain_forward(name: str, targets: tuple[str, ...]) -> None:
    policy, groups = adapted(name, targets), make_groups(RAGGED)
    assert policy.fused is not None
    expected = reference_logprobs(policy, groups)
    assert_equal_gradients(policy.response_logprobs(groups), expected, list(policy.parameters()), 1e-5)
    policy.recompute = True
    assert_equal_gradients(
        policy.response_logprobs(groups), reference_logprobs(policy, groups), list(policy.parameters()), 1e-5
    )


@pytest.mark.parametrize("what", ["scores", "values"])
@pytest.mark.parametrize("name", ["llama-tied-gqa", "qwen3", "gemma3"])
def test_a_scalar_model_trains_its_adapters_and_its_head(name: str, what: str) -> None:
    model = stirred(add_scalar_adapters(make_model(name), LoraConfig.model_validate(LORA), seed=1))
    groups = make_groups(RAGGED)
    assert model.fused is not None
    assert any(parameter is model.model.score.weight for parameter in model.parameters())
    compute, plain = (model.sequence_scores, plain_scores) if what == "scores" else (model.token_values, plain_values)
    assert_equal_gradients(compute(groups), plain(model, groups), list(model.parameters()), 1e-5)


def test_updates_are_seen_and_the_reference_stays_what_the_policy_was() -> None:
    """Bit for bit: the frozen matrices are those of the policy without adapters, rearranged in the same way."""
    plain, groups = make_policy("qwen3"), make_groups(RAGGED)
    policy = add_adapters(make_policy("qwen3"), LoraConfig.model_validate(LORA), seed=1)
    reference = Reference(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    seen = []
    for _ in range(3):
        logprobs = policy.response_logprobs(groups)
        seen.append(logprobs.detach())
        logprobs.sum().neg().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            assert torch.equal(reference.response_logprobs(groups), plain.response_logprobs(groups))
    assert seen[0].sum() < seen[1].sum() < seen[2].sum()
    torch.testing.assert_close(policy.response_logprobs(groups), reference_logprobs(policy, groups))


def test_the_base_is_rearranged_once_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, groups = adapted("llama-tied-gqa"), make_groups(RAGGED)
    reference = Reference(policy)
    assert policy.fused is not None
    assert reference.fused is not None
    monkeypatch.setattr(type(policy.fused), "_layer", lambda *call: pytest.fail("rearranged again"))
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.01)
    policy.response_logprobs(groups).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    policy.response_logprobs(groups)
    reference.response_logprobs(groups)
    mine, theirs = (one.weights(torch.float32, 8).layers[0].qkv for one in (policy.fused, reference.fused))
    assert mine.weight is theirs.weight
    assert mine.low is not None
    assert theirs.low is None


def test_samples_have_the_probabilities_of_the_adapted_model() -> None:
    policy = adapted("llama-tied-gqa")
    prompts = [group.prompt_ids for group in make_groups(RAGGED)]
    groups = PolicySampler(policy).generate(prompts, 3, SamplingParams(6, ()), [[1, 2, 3]] * len(prompts))
    with torch.no_grad():
        expected = reference_logprobs(policy, groups)
    sampled = torch.tensor([c.logprobs for group in groups for c in group.completions])
    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_near_float32() -> None:
    groups = make_groups(RAGGED)
    exact, rough = (adapted("llama-untied", precision=one) for one in ("float32", "bfloat16"))
    got, expected = rough.response_logprobs(groups), exact.response_logprobs(groups)
    torch.testing.assert_close(got, expected, atol=0.15, rtol=0.05)
    mine, theirs = (
        torch.cat([grad.flatten() for grad in torch.autograd.grad(one.sum(), list(policy.parameters()))])
        for one, policy in ((got, rough), (expected, exact))
    )
    assert torch.nn.functional.cosine_similarity(mine, theirs, dim=0) > 0.999


@pytest.mark.parametrize("targets", [("lm_head", "q_proj"), ("embed_tokens", "q_proj")], ids=["head", "embedding"])
def test_adapters_elsewhere_go_the_long_way_and_are_right(targets: tuple[str, ...]) -> None:
    policy, groups = adapted("llama-untied", targets), make_groups(RAGGED)
    assert policy.fused is None
    expected = reference_logprobs(policy, groups)
    assert_equal_gradients(policy.response_logprobs(groups), expected, list(policy.parameters()), 1e-5)


def test_a_head_of_bfloat16_values_is_trained_in_float32() -> None:
    model = make_model("llama-untied", precision="bfloat16")
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    found = add_scalar_adapters(model, LoraConfig.model_validate(LORA), seed=1)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert torch.bfloat16 in {parameter.dtype for parameter in found.model.parameters()}

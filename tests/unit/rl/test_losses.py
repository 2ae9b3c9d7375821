"""The clipped policy-gradient loss: closed forms of every variant, and what holds for all of them."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nemotron.config.schema.grpo import LossFnConfig
from nemotron.rl.losses import (
    LossBatch,
    clip_fraction,
    clipped_pg_loss,
    masked_mean,
    merge_metrics,
    prepend_column,
    valid_counts,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "asymmetric": {"ratio_clip_max": 0.28},
    "dual clip": {"ratio_clip_c": 1.5},
    "cispo": {"use_cispo": True},
    "gspo": {"sequence_level_importance_ratios": True, "token_level_loss": False},
    "sequence level": {"token_level_loss": False},
    "reinforce": {"disable_ppo_ratio": True},
    "on policy": {"force_on_policy_ratio": True},
    "on-policy KL": {"use_on_policy_kl_approximation": True, "reference_policy_kl_penalty": 0.1},
    "KL k1": {"reference_policy_kl_type": "k1", "reference_policy_kl_penalty": 0.1},
    "KL in reward": {"use_kl_in_reward": True},
    "IS": {"use_importance_sampling_correction": True},
    "tis": {
        "use_importance_sampling_correction": True,
        "truncated_importance_sampling_type": "tis",
        "truncated_importance_sampling_ratio": 1.1,
    },
    "icepop": {
        "use_importance_sampling_correction": True,
        "truncated_importance_sampling_type": "icepop",
        "truncated_importance_sampling_ratio": 1.2,
        "truncated_importance_sampling_ratio_min": 0.8,
    },
    "seq-mask-tis": {
        "use_importance_sampling_correction": True,
        "truncated_importance_sampling_type": "seq-mask-tis",
        "truncated_importance_sampling_ratio": 1.05,
        "truncated_importance_sampling_ratio_min": 0.95,
    },
}
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def _token(
    ratio: float, advantage: float, *, generation: float = -1.0, reference: float = -1.0, **config: Any
) -> tuple:
    """Loss, gradient by log-prob and metrics of one token whose previous log-prob is -1."""
    logprobs = torch.tensor([[-1.0 + math.log(ratio)]], requires_grad=True)
    batch = LossBatch(
        token_mask=torch.tensor([[0, 1]]),
        sample_mask=torch.ones(1),
        advantages=torch.full((1, 2), advantage),
        generation_logprobs=torch.tensor([[0.0, generation]]),
        prev_logprobs=torch.tensor([[0.0, -1.0]]),
        reference_policy_logprobs=torch.tensor([[0.0, reference]]),
        rewards=torch.tensor([advantage]),
    )
    settings = LossFnConfig.model_validate({"reference_policy_kl_penalty": 0.0, **config})
    loss, metrics = clipped_pg_loss(logprobs, batch, settings, global_valid_seqs=1.0, global_valid_toks=1.0)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.item(), gradient.item(), metrics


@pytest.mark.parametrize(
    ("config", "ratio", "advantage", "loss", "gradient"),
    [
        ({}, 1.0, 2.0, -2.0, -2.0),
        ({}, 1.1, 2.0, -2.2, -2.2),
        ({}, 1.5, 2.0, -2.4, 0.0),  # clipped: the gradient is gone
        ({}, 1.5, -2.0, 3.0, 3.0),  # a bad token that became likelier is pushed down in full
        ({}, 0.5, -2.0, 1.6, 0.0),
        ({"ratio_clip_max": 0.6}, 1.5, 2.0, -3.0, -3.0),
        ({"ratio_clip_min": 0.6}, 0.5, -2.0, 1.0, 1.0),
        ({"ratio_clip_c": 3.0}, 5.0, -2.0, 6.0, 0.0),
        ({"ratio_clip_c": 3.0}, 5.0, 2.0, -2.4, 0.0),
        ({"use_cispo": True}, 1.1, 2.0, -2.2 * (-1 + math.log(1.1)), -2.2),  # the ratio is a constant weight
        ({"use_cispo": True}, 1.5, 2.0, -2.4 * (-1 + math.log(1.5)), -2.4),
        ({"disable_ppo_ratio": True}, 1.5, 2.0, -2.0 * (-1 + math.log(1.5)), -2.0),
        ({"force_on_policy_ratio": True}, 1.5, 2.0, -2.0, -2.0),
        ({"sequence_level_importance_ratios": True, "token_level_loss": False}, 1.1, 2.0, -2.2, -2.2),
    ],
)
def test_one_token(config: dict[str, Any], ratio: float, advantage: float, loss: float, gradient: float) -> None:
    got_loss, got_gradient, _ = _token(ratio, advantage, **config)
    assert got_loss == pytest.approx(loss, abs=1e-6)
    assert got_gradient == pytest.approx(gradient, abs=1e-6)


def test_reference_kl_has_the_gradient_of_the_expectation() -> None:
    _, gradient, metrics = _token(1.0, 0.0, reference=-0.5, reference_policy_kl_penalty=0.1)
    k3 = math.exp(0.5) - 1.5
    assert metrics["kl_penalty"] == pytest.approx(k3, rel=1e-5)
    assert metrics["loss"] == pytest.approx(0.1 * k3, rel=1e-5)
    assert gradient == pytest.approx(0.1 * (k3 + 1 - math.exp(0.5)), rel=1e-4)


def test_on_policy_kl_weighs_by_the_probability_under_the_sampler() -> None:
    config = {"reference_policy_kl_penalty": 0.1, "use_on_policy_kl_approximation": True}
    _, gradient, metrics = _token(1.0, 0.0, generation=-1.0 - math.log(2), reference=-0.5, **config)
    k3 = math.exp(0.5) - 1.5
    assert metrics["kl_penalty"] == pytest.approx(2 * k3, rel=1e-5)
    assert gradient == pytest.approx(0.1 * 2 * (k3 + 1 - math.exp(0.5)), rel=1e-4)


def test_kl_in_reward_is_not_in_the_loss() -> None:
    loss, gradient, metrics = _token(1.0, 0.0, reference=-0.5, reference_policy_kl_penalty=0.1, use_kl_in_reward=True)
    assert (abs(loss), abs(gradient), metrics["kl_penalty"]) == (0, 0, 0)


@pytest.mark.parametrize(("reward", "expected"), [(1.0, 0.5), (-1.0, 0.0)])
def test_positive_nll_counts_good_responses_only(reward: float, expected: float) -> None:
    base, _, _ = _token(1.0, reward)
    loss, _, metrics = _token(1.0, reward, positive_example_nll_weight=0.5)
    assert loss - base == pytest.approx(expected)
    assert metrics["positive_nll_loss"] == pytest.approx(2 * expected)


@pytest.mark.parametrize(
    ("truncation", "weight", "outside"),
    [
        ({}, 2.0, None),
        ({"type": "tis", "ratio": 1.5}, 1.5, 1.0),
        ({"type": "tis", "ratio": 5.0, "ratio_min": 3.0}, 3.0, 1.0),
        ({"type": "icepop", "ratio": 1.5, "ratio_min": 0.5}, 0.0, 1.0),
        ({"type": "icepop", "ratio": 3.0, "ratio_min": 0.5}, 2.0, 0.0),
        ({"type": "seq-mask-tis", "ratio": 1.5, "ratio_min": 0.5}, 0.0, 1.0),
        ({"type": "seq-mask-tis", "ratio": 3.0, "ratio_min": 0.5}, 2.0, 0.0),
    ],
)
def test_importance_weight_of_a_token_twice_as_likely_in_the_trainer(
    truncation: dict[str, Any], weight: float, outside: float | None
) -> None:
    config = {f"truncated_importance_sampling_{name}": value for name, value in truncation.items()}
    loss, _, metrics = _token(
        1.0, 1.0, generation=-1.0 - math.log(2), use_importance_sampling_correction=True, **config
    )
    assert loss == pytest.approx(-weight, abs=1e-6)
    assert metrics["sampling_importance_ratio"] == pytest.approx(weight, abs=1e-6)
    assert metrics.get("is_oob_ratio") == (None if outside is None else pytest.approx(outside))


def test_truncation_without_its_bound_is_an_error() -> None:
    with pytest.raises(ValueError, match="truncated_importance_sampling_ratio"):
        _token(1.0, 1.0, truncated_importance_sampling_type="tis")


def _random(seed: int, rows: int = 6, columns: int = 9) -> tuple[Tensor, LossBatch]:
    """Log-probs and a batch with padding, a masked response and everything a variant can ask for."""
    generator = torch.Generator().manual_seed(seed)

    def logprobs() -> Tensor:
        return -torch.rand(rows, columns, generator=generator) * 2

    prev = logprobs()
    token_mask = (torch.rand(rows, columns, generator=generator) < 0.7).float()
    sample_mask = torch.ones(rows)
    sample_mask[seed % rows] = 0
    curr = (prev + 0.4 * torch.randn(rows, columns, generator=generator)).clamp(max=-1e-3)
    return curr[:, 1:].clone().requires_grad_(), LossBatch(
        token_mask=token_mask,
        sample_mask=sample_mask,
        advantages=torch.randn(rows, 1, generator=generator).expand(rows, columns),
        generation_logprobs=prev + 0.1 * torch.randn(rows, columns, generator=generator),
        prev_logprobs=prev,
        reference_policy_logprobs=logprobs(),
        rewards=torch.randn(rows, generator=generator),
    )


def _rows(batch: LossBatch, start: int, stop: int) -> LossBatch:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return LossBatch(**{name: None if v is None else v[start:stop] for name, v in values.items()})


def _run(logprobs: Tensor, batch: LossBatch, config: LossFnConfig, counts: tuple[float, float]) -> Any:
    return clipped_pg_loss(logprobs, batch, config, global_valid_seqs=counts[0], global_valid_toks=counts[1])


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 1000), name=st.sampled_from(sorted(VARIANTS)), cut=st.integers(1, 5))
def test_micro_batches_add_up(seed: int, name: str, cut: int) -> None:
    logprobs, batch = _random(seed)
    config = LossFnConfig.model_validate(VARIANTS[name])
    counts = valid_counts(batch.token_mask, batch.sample_mask)
    whole, metrics = _run(logprobs, batch, config, counts)
    (gradient,) = torch.autograd.grad(whole, logprobs)
    parts = [_run(logprobs[a:b], _rows(batch, a, b), config, counts) for a, b in ((0, cut), (cut, 6))]
    total = parts[0][0] + parts[1][0]
    (summed,) = torch.autograd.grad(total, logprobs)
    assert total.item() == pytest.approx(whole.item(), abs=1e-6)
    assert torch.allclose(summed, gradient, atol=1e-7)
    merged = merge_metrics([part[1] for part in parts])
    if name == "gspo":  # this metric is multiplied by the rows of its micro-batch, as in NeMo-RL
        del merged["sampling_importance_ratio"], metrics["sampling_importance_ratio"]
    assert merged == pytest.approx(metrics, abs=2e-6)


@every_variant
def test_masked_tokens_have_no_gradient_and_no_influence(variant: dict[str, Any]) -> None:
    logprobs, batch = _random(7)
    config = LossFnConfig.model_validate({**variant, "positive_example_nll_weight": 0.1})
    counts = valid_counts(batch.token_mask, batch.sample_mask)
    loss, metrics = _run(logprobs, batch, config, counts)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    masked = (batch.token_mask[:, 1:] * batch.sample_mask[:, None]) == 0
    assert masked.any()
    assert not gradient[masked].any()
    assert gradient[~masked].any()
    changed = torch.where(masked, logprobs.detach() - 0.5, logprobs.detach())
    again, metrics_again = _run(changed, batch, config, counts)
    assert again.item() == pytest.approx(loss.item(), abs=1e-7)
    assert metrics_again == pytest.approx(metrics, abs=1e-6)


@every_variant
def test_a_masked_row_may_be_any_distance_from_its_sampler(variant: dict[str, Any]) -> None:
    """Such rows are masked because they are: a ratio that overflows would be NaN in the loss of all others."""
    logprobs, batch = _random(7)
    config = LossFnConfig.model_validate(variant)
    counts = valid_counts(batch.token_mask, batch.sample_mask)
    loss, metrics = _run(logprobs, batch, config, counts)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    masked, prev = batch.sample_mask == 0, batch.prev_logprobs
    assert masked.any()
    assert prev is not None
    far = [torch.where(masked[:, None], one - gap, one) for one, gap in ((prev, 200), (batch.generation_logprobs, 300))]
    changed = replace(batch, prev_logprobs=far[0], generation_logprobs=far[1])
    again, metrics_again = _run(logprobs, changed, config, counts)
    (gradient_again,) = torch.autograd.grad(again, logprobs)
    assert torch.equal(gradient, gradient_again)
    assert (again.item(), metrics_again) == (loss.item(), metrics)


@every_variant
def test_fully_masked_batch_has_zero_loss_and_gradient(variant: dict[str, Any]) -> None:
    logprobs, batch = _random(3)
    batch = replace(batch, sample_mask=torch.zeros(6))
    loss, metrics = _run(logprobs, batch, LossFnConfig.model_validate(variant), (0.0, 0.0))
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert loss.item() == 0
    assert not gradient.any()
    assert metrics["num_valid_samples"] == 0


@every_variant
def test_response_only_rows_give_the_same_loss_as_whole_rows(variant: dict[str, Any]) -> None:
    logprobs, batch = _random(11)
    prompt = 4  # columns of the prompt; the response is what follows
    token_mask = batch.token_mask.clone()
    token_mask[:, :prompt] = 0
    batch = replace(batch, token_mask=token_mask)
    counts = valid_counts(batch.token_mask, batch.sample_mask)
    config = LossFnConfig.model_validate(variant)
    whole, whole_metrics = _run(logprobs, batch, config, counts)
    columns = {f.name: getattr(batch, f.name) for f in fields(batch)}
    short = {name: prepend_column(v[:, prompt:]) for name, v in columns.items() if v is not None and v.ndim == 2}
    loss, metrics = _run(logprobs[:, prompt - 1 :], replace(batch, **short), config, counts)
    assert loss.item() == pytest.approx(whole.item(), abs=1e-7)
    assert metrics == pytest.approx(whole_metrics, abs=1e-6)


def test_kl_reads_unfiltered_logprobs_when_there_are_any() -> None:
    logprobs, batch = _random(5)
    config = LossFnConfig(reference_policy_kl_penalty=0.1)
    counts = valid_counts(batch.token_mask, batch.sample_mask)
    reference = batch.reference_policy_logprobs
    assert reference is not None
    _, metrics = _run(logprobs, replace(batch, curr_logprobs_unfiltered=reference[:, 1:]), config, counts)
    assert metrics["kl_penalty"] == 0
    assert _run(logprobs, batch, config, counts)[1]["kl_penalty"] > 0


@pytest.mark.parametrize(
    ("missing", "config"),
    [
        ("prev_logprobs", {}),
        ("reference_policy_logprobs", {}),
        ("rewards", {"positive_example_nll_weight": 1.0}),
    ],
)
def test_missing_tensor_is_named(missing: str, config: dict[str, Any]) -> None:
    logprobs, batch = _random(1)
    with pytest.raises(ValueError, match=missing):
        _run(logprobs, replace(batch, **{missing: None}), LossFnConfig.model_validate(config), (5.0, 30.0))


def test_tensors_that_a_variant_does_not_read_may_be_missing() -> None:
    logprobs, batch = _random(1)
    bare = replace(batch, prev_logprobs=None, reference_policy_logprobs=None, rewards=None)
    config = LossFnConfig(force_on_policy_ratio=True, reference_policy_kl_penalty=0.0)
    _, metrics = _run(logprobs, bare, config, (5.0, 30.0))
    assert metrics["probs_ratio_max"] == 1


def test_clip_fraction_counts_tokens_pushed_beyond_the_clip() -> None:
    ratios, advantages = [1.5, 1.5, 0.5, 0.5, 1.1], [1.0, -1.0, 1.0, -1.0, 1.0]
    logprobs = (torch.tensor([ratios]).log() - 1).requires_grad_()
    batch = LossBatch(
        token_mask=torch.tensor([[0, 1, 1, 1, 1, 1]]),
        sample_mask=torch.ones(1),
        advantages=prepend_column(torch.tensor([advantages])),
        generation_logprobs=torch.full((1, 6), -1.0),
        prev_logprobs=torch.full((1, 6), -1.0),
    )
    config = LossFnConfig(reference_policy_kl_penalty=0.0)
    assert clip_fraction(logprobs, batch, config, global_valid_toks=5.0) == pytest.approx(2 / 5)
    loss, _ = _run(logprobs, batch, config, (1.0, 5.0))
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert (gradient == 0).tolist() == [[True, False, False, True, False]]
    off = config.model_copy(update={"disable_ppo_ratio": True})
    assert clip_fraction(logprobs, batch, off, global_valid_toks=5.0) == 0


def test_merge_metrics_sums_but_takes_the_extremes() -> None:
    parts = [{"loss": 1.0, "r_min": 0.5, "r_max": 2.0}, {"loss": 2.0, "r_min": 0.7, "r_max": 3.0}]
    assert merge_metrics(parts) == {"loss": 3.0, "r_min": 0.5, "r_max": 3.0}


def test_masked_mean() -> None:
    values, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert masked_mean(values, mask).item() == pytest.approx(2)
    assert masked_mean(values, mask, dim=-1).tolist() == pytest.approx([1.5, 3])
    assert masked_mean(values, mask, 6.0).item() == pytest.approx(1)

"""One optimizer call: micro-batches change memory, not the result."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nemotron.config.schema.grpo import LossFnConfig
from nemotron.contracts.samples import SamplingParams
from nemotron.errors import EngineError
from nemotron.rl.batch import response_tensors
from nemotron.rl.optim import Optimization
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import generate
from nemotron.rl.update import TrainBatch, update
from tests.unit.rl.tiny_policy import tiny_policy

PARAMS = SamplingParams(max_new_tokens=9, stop_token_ids=(0, 3, 4, 5, 6))
SGD = {"name": "torch.optim.SGD", "kwargs": {"lr": 0.5}}


def batch_of(policy: Policy, reference: Policy) -> TrainBatch:
    seeds = [[10 * p + g for g in range(4)] for p in range(3)]
    groups = generate(policy, [[2, 3], [4, 5, 6], [7]], 4, PARAMS, seeds)
    tensors = response_tensors(groups)
    width = tensors.token_mask.shape[1]
    with torch.no_grad():
        logprobs = torch.nn.functional.pad(reference.response_logprobs(groups), (1, 0))[:, :width]
    rewards = torch.arange(12.0)
    return TrainBatch(
        groups=groups,
        token_mask=tensors.token_mask,
        sample_mask=torch.tensor([1.0] * 11 + [0.0]),
        advantages=(rewards - rewards.mean())[:, None].expand(12, width).contiguous(),
        generation_logprobs=tensors.generation_logprobs,
        prev_logprobs=None,
        reference_logprobs=logprobs,
        rewards=rewards,
    )


def weights_after(micro_batch_size: int, global_batch_size: int = 12, **config: object) -> tuple[torch.Tensor, dict]:
    policy = tiny_policy(scale=3.0)
    batch = batch_of(policy, tiny_policy(seed=5, scale=3.0))
    optimization = Optimization.build(policy.parameters(), optimizer=SGD)
    metrics = update(
        policy,
        optimization,
        batch,
        LossFnConfig(reference_policy_kl_penalty=0.1, **config),
        PARAMS,
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
    )
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]), metrics


@pytest.mark.parametrize("config", [{}, {"token_level_loss": False}, {"use_cispo": True}])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 5, 8])
def test_micro_batches_add_up_to_the_whole_batch(micro_batch_size: int, config: dict[str, object]) -> None:
    whole, whole_metrics = weights_after(12, **config)
    split, split_metrics = weights_after(micro_batch_size, **config)
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-6)
    for name in ("loss", "kl_penalty", "grad_norm", "approx_entropy", "global_valid_toks", "clip_fraction"):
        assert split_metrics[name] == pytest.approx(whole_metrics[name], rel=1e-4, abs=1e-6), name


def test_on_policy_ratio_is_one_and_nothing_is_clipped() -> None:
    _, metrics = weights_after(12)
    assert metrics["probs_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["clip_fraction"] == 0.0
    assert metrics["token_mult_prob_error"] == pytest.approx(1.0, abs=1e-4)


def test_an_optimizer_step_per_global_batch() -> None:
    policy = tiny_policy(scale=3.0)
    batch = replace(batch_of(policy, policy), reference_logprobs=None)
    batch = replace(batch, prev_logprobs=batch.generation_logprobs)
    optimization = Optimization.build(policy.parameters(), optimizer=SGD)
    config = LossFnConfig(reference_policy_kl_penalty=0.0)
    metrics = update(policy, optimization, batch, config, PARAMS, global_batch_size=4, micro_batch_size=4)
    # The second and third global batch are off-policy by then.
    assert abs(metrics["probs_ratio"] - 1.0) > 1e-4


def test_a_masked_row_has_no_influence() -> None:
    results = []
    for reward in (0.0, 1e3):
        policy = tiny_policy(scale=3.0)
        batch = batch_of(policy, tiny_policy(seed=5, scale=3.0))
        batch.advantages[11] = reward
        optimization = Optimization.build(policy.parameters(), optimizer=SGD)
        update(policy, optimization, batch, LossFnConfig(), PARAMS, global_batch_size=12, micro_batch_size=12)
        results.append(torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]))
    assert torch.equal(*results)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    policy = tiny_policy()
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    batch = batch_of(policy, policy)
    batch.advantages[0] = math.nan
    optimization = Optimization.build(policy.parameters(), optimizer=SGD)
    with pytest.raises(EngineError, match="not finite"):
        update(policy, optimization, batch, LossFnConfig(), PARAMS, global_batch_size=12, micro_batch_size=12)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))

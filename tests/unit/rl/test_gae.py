"""GAE against NeMo-Aligner's worked example, holes in the mask, and the leave-one-out estimator."""

from __future__ import annotations

import pytest
import torch

from nemotron.config.schema.ppo import PpoEstimatorConfig, ValueLossConfig
from nemotron.rl.gae import estimate, gae, leave_one_out, token_kl, token_rewards, whiten
from nemotron.rl.value_loss import ValueBatch, explained_variance, value_loss

# NeMo-Aligner, gamma 1, lambda 0.95, beta 0.1; columns are next-token positions, so mask starts one before the answer.
LOGPROBS = torch.tensor([[-1, -0.5, -0.7, -0.2, -9, -9, -9], [-0.3, -0.4, -0.6, -0.8, -0.1, -0.9, -9]])
REFERENCE = torch.tensor([[-1, -0.6, -0.5, -0.2, -8, -8, -8], [-0.3, -0.4, -0.9, -0.7, -0.3, -0.9, -8]])
VALUES = torch.tensor([[0.9, 0.1, 0.2, 0.3, 0.7, 0.7, 0.7], [0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.9]])
MASK = torch.tensor([[0.0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0]])
REWARDS = torch.tensor([1.5, -0.5])


@pytest.mark.parametrize(
    ("absolute", "first", "second"),
    [
        (True, [1.249, 1.22, 1.2], [-0.857225, -0.7655, -0.69, -0.6]),
        (False, [1.287, 1.26, 1.2], [-0.838225, -0.7455, -0.69, -0.6]),
    ],
)
def test_the_worked_example_of_nemo_aligner(absolute: bool, first: list[float], second: list[float]) -> None:
    kl = token_kl(LOGPROBS, REFERENCE, kl_type="k1", absolute=absolute)
    per_token = token_rewards(REWARDS, MASK, kl, 0.1)
    advantages = gae(per_token, VALUES, MASK, gamma=1.0, lam=0.95)
    assert advantages[0, 1:4].tolist() == pytest.approx(first, rel=1e-5)
    assert advantages[1, 2:6].tolist() == pytest.approx(second, rel=1e-5)


def test_the_reward_stands_on_the_last_valid_token_only() -> None:
    mask = torch.tensor([[0.0, 1, 1, 0], [0, 0, 0, 0]])
    found = token_rewards(torch.tensor([2.0, 5.0]), mask, None, 0.1)
    assert found.tolist() == [[0, 0, 2, 0], [0, 0, 0, 0]]


def test_a_hole_in_the_mask_changes_nothing_around_it() -> None:
    """Tokens of a tool inside a response: as if they were not there."""
    values, mask = torch.tensor([[0.3, 0.9, 0.9, -0.2, 0.1]]), torch.tensor([[1.0, 0, 0, 1, 1]])
    rewards = torch.tensor([[0.5, 0, 0, 0.1, 1.0]])
    dense = gae(rewards[:, [0, 3, 4]], values[:, [0, 3, 4]], torch.ones(1, 3), gamma=0.9, lam=0.8)
    assert torch.equal(gae(rewards, values, mask, gamma=0.9, lam=0.8)[:, [0, 3, 4]], dense)


def test_whitening_sees_valid_tokens_only() -> None:
    values = torch.tensor([[1.0, 2.0, 100.0], [3.0, 6.0, -100.0]])
    mask = torch.tensor([[1.0, 1, 0], [1, 1, 0]])
    white = whiten(values, mask)
    assert white[:, 2].tolist() == [0, 0]
    assert float(white[:, :2].mean()) == pytest.approx(0, abs=1e-6)
    assert float(white[:, :2].std()) == pytest.approx(1, rel=1e-5)
    assert whiten(values, torch.zeros_like(mask)).abs().sum() == 0


def test_leave_one_out_leaves_masked_and_lonely_responses_out() -> None:
    """Rewards 1, 2, 4 and 3, 5; the third and the last do not count: baselines 2, 1, -; and one is alone."""
    mask = torch.tensor([[1.0, 1], [1, 0], [0, 0], [1, 1], [0, 0]])
    per_token = token_rewards(torch.tensor([1.0, 2, 4, 3, 5]), mask, None, 0.0)
    found = leave_one_out(torch.tensor([0, 0, 0, 1, 1]), per_token, mask, normalize=False)
    assert found.advantages.tolist() == [[-1, -1], [1, 0], [0, 0], [0, 0], [0, 0]]
    assert found.returns is None


def test_lambda_one_gives_returns_that_do_not_depend_on_the_values() -> None:
    config = PpoEstimatorConfig(name="gae", gae_lambda=1.0, normalize_advantages=False)
    per_token = token_rewards(REWARDS, MASK, None, 0.0)
    returns = estimate(per_token, VALUES, MASK, config).returns
    assert returns is not None
    assert (returns * MASK)[0, 1:4].tolist() == pytest.approx([1.5] * 3)


def test_explained_variance_from_the_sums_of_micro_batches() -> None:
    values, returns = torch.tensor([[0.1, 0.4], [0.9, 1.0]]), torch.tensor([[0.0, 0.5], [1.0, 1.2]])
    batch = ValueBatch(returns, values, torch.ones(2, 2))
    _, metrics = value_loss(values, batch, ValueLossConfig(), global_valid_toks=4.0)
    gap = returns - values
    expected = 1 - float(gap.var(unbiased=False) / returns.var(unbiased=False))
    assert explained_variance(metrics) == pytest.approx(expected, rel=1e-4)

"""What a PPO step reports about its rollout: rewards, KL, values and advantages over the valid tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemotron.rl.loops.metrics import correlation
from nemotron.rl.losses import masked_mean

if TYPE_CHECKING:
    from nemotron.rl.loops.ppo import Rollout


def step_metrics(rollout: Rollout, kl_coefficient: float) -> dict[str, float]:
    """Metrics under NeMo-RL's names, and the sums that average reward alone does not show."""
    rows = rollout.mask.sum(1) > 0
    rewards = rollout.rewards[rows] if bool(rows.any()) else torch.zeros(1)
    lengths = rollout.tensors.lengths[rows].float() if bool(rows.any()) else torch.zeros(1)
    advantages = _valid(rollout.estimate.advantages, rollout.mask)
    metrics = {
        "train/reward": float(rewards.mean()),
        "train/reward_std": float(rewards.std(unbiased=False)),
        "train/reward_length_correlation": correlation(rewards, lengths),
        "train/truncation_rate": float(rollout.tensors.truncated.float().mean()),
        "train/trained_share": float(rollout.trained.mean()),
        "train/advantages/mean": float(advantages.mean()),
        "train/advantages/max": float(advantages.max()),
        "train/advantages/min": float(advantages.min()),
        **_kl(rollout, kl_coefficient),
    }
    if rollout.estimate.returns is not None:
        returns, values = _valid(rollout.estimate.returns, rollout.mask), _valid(rollout.values, rollout.mask)
        gap = (returns - values).var(unbiased=False)
        # Before the update on these very returns; NeMo-RL's critic/explained_var is measured while it learns them.
        before = 1 - float(gap / returns.var(unbiased=False).clamp(min=1e-8))
        metrics |= {"critic/explained_var_before": before, "train/values_mean": float(values.mean())}
    return metrics


def _kl(rollout: Rollout, coefficient: float) -> dict[str, float]:
    """KL per token in nats, summed over a response, and the reward after paying for it."""
    if rollout.kl is None:
        return {"train/kl_penalty": 0.0, "train/kl_sum_per_response": 0.0}
    sums = (rollout.kl * rollout.mask).sum(1)
    rows = (rollout.mask.sum(1) > 0).float()
    return {
        "train/kl_penalty": float(masked_mean(rollout.kl, rollout.mask)),
        "train/kl_sum_per_response": float(masked_mean(sums, rows)),
        "train/reward_minus_kl": float(masked_mean(rollout.rewards - coefficient * sums, rows)),
    }


def _valid(values: Tensor, mask: Tensor) -> Tensor:
    """The values of valid tokens, [M]; one 0 when there are none."""
    found = values[mask > 0]
    return found if found.numel() else torch.zeros(1)

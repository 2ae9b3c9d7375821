"""Advantages from rewards and values: token rewards with a KL penalty, GAE, whitening, leave-one-out REINFORCE.

Formulas of NeMo-RL v0.7.0's ``GeneralizedAdvantageEstimator`` (tests/golden); the leave-one-out estimator and the
absolute KL are NeMo-Aligner's. Legend: N responses, S columns; column t of values, masks and rewards belongs to the
token in column t, and ``values[:, t]`` is the critic's estimate *before* that token is emitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron.config.schema.ppo import PpoEstimatorConfig
from nemotron.rl.advantages import baseline_and_std
from nemotron.rl.kl import KlType, calculate_kl

WHITEN_EPSILON = 1e-8


def token_kl(logprobs: Tensor, reference: Tensor, *, kl_type: KlType, absolute: bool = False) -> Tensor:
    """KL of each token for the reward, [N,S] in nats, with the default clamps (20 in, 10 out).

    ``absolute``: ``|log-ratio|`` (NeMo-Aligner's ``use_absolute_kl``) in place of the estimator.
    """
    kl = calculate_kl(logprobs, reference, kl_type="k1" if absolute else kl_type)
    return kl.abs() if absolute else kl


def token_rewards(rewards: Tensor, mask: Tensor, kl: Tensor | None, coefficient: float) -> Tensor:
    """Reward of each token [N,S]: minus ``coefficient * kl``, plus the response's reward [N] on its last valid token.

    A row without valid token gets nothing.
    """
    per_token = torch.zeros_like(mask) if kl is None or coefficient <= 0 else -coefficient * kl
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask > 0, columns, -1).amax(1)
    return (per_token + (columns == last[:, None]) * rewards[:, None]) * mask


def gae(per_token: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float | Tensor) -> Tensor:
    """Generalised advantages [N,S] (arXiv:1506.02438); ``lam`` is one number or [N].

    Backwards over the columns: ``delta = r + gamma * next value - value``, ``A = delta + gamma * lam * next A``.
    Masked columns are jumped over: they hand on what stands behind them, so a tool's result inside a response breaks
    no chain. The value behind the last token is 0, for truncated responses too. Masked columns of the result repeat
    the advantage behind them.
    """
    behind = torch.zeros_like(values[:, 0])
    last = torch.zeros_like(behind)
    columns: list[Tensor] = []
    for t in reversed(range(values.shape[1])):
        valid = mask[:, t] > 0
        delta = per_token[:, t] + gamma * behind - values[:, t]
        last = torch.where(valid, delta + gamma * lam * last, last)
        behind = torch.where(valid, values[:, t], behind)
        columns.append(last)
    return torch.stack(columns[::-1], 1)


def whiten(advantages: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit (unbiased) variance over the valid tokens of the batch; 0 elsewhere."""
    count = mask.sum()
    mean = (advantages * mask).sum() / count.clamp(min=1)
    variance = ((advantages - mean).square() * mask).sum() / count.clamp(min=1)
    unbiased = variance * count / (count - 1).clamp(min=1)
    return (advantages - mean) * (unbiased + WHITEN_EPSILON).rsqrt() * mask


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an estimator gives; all [N,S]."""

    advantages: Tensor
    """0 where the mask is 0."""
    returns: Tensor | None
    """What the critic should have said; ``None`` from an estimator without critic."""


def estimate(per_token: Tensor, values: Tensor, mask: Tensor, config: PpoEstimatorConfig) -> Estimate:
    """GAE with its options. Returns are advantages (before whitening) plus values.

    VAPO (arXiv:2504.05118): the critic may learn with a lambda of its own (`gae_lambda_value`), and the policy's may
    grow with the response: ``clamp(1 - 1 / max(alpha * length, 1), 0, 1)``.
    """
    value_lambda = config.gae_lambda if config.gae_lambda_value is None else config.gae_lambda_value
    policy_lambda: float | Tensor = config.gae_lambda if config.gae_lambda_policy is None else config.gae_lambda_policy
    if config.length_adaptive_alpha > 0:
        lengths = mask.sum(1)
        policy_lambda = (1 - 1 / (config.length_adaptive_alpha * lengths).clamp(min=1)).clamp(0, 1)
    for_value = gae(per_token, values, mask, gamma=config.gae_gamma, lam=value_lambda)
    advantages = for_value
    if not (isinstance(policy_lambda, float) and policy_lambda == value_lambda):
        advantages = gae(per_token, values, mask, gamma=config.gae_gamma, lam=policy_lambda)
    returns = for_value + values
    return Estimate(whiten(advantages, mask) if config.normalize_advantages else advantages * mask, returns)


def leave_one_out(groups: Tensor, per_token: Tensor, mask: Tensor, *, normalize: bool) -> Estimate:
    """REINFORCE with a leave-one-out baseline (arXiv:2402.14740): the advantage of a response, on each of its tokens.

    Its reward is the sum of its token rewards (so R - beta * KL of the response), the baseline the mean over the other
    responses of its group ([N] numbers in ``groups``) that have a valid token. A response without company has
    advantage 0.
    """
    valid = (mask.sum(1) > 0).float()
    totals = per_token.sum(1)
    baseline, _ = baseline_and_std(groups, totals, leave_one_out=True, valid=valid)
    advantages = (totals.double() - baseline).float()[:, None] * mask
    return Estimate(whiten(advantages, mask) if normalize else advantages, None)

"""From rewards to advantages: prompt groups, baselines, the estimators of `grpo.adv_estimator.name`.

Legend: N responses, S columns; rewards [N]; masks and per-token values [N,S]. Advantages are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron.config.schema.grpo import AdvEstimatorConfig, LossFnConfig
from nemotron.rl.kl import calculate_kl

STD_EPSILON = 1e-6
MIN_VARIANCE = 1e-8


def prompt_groups(prompts: Sequence[Sequence[int]], lengths: Sequence[int] | None = None) -> Tensor:
    """Number the groups: responses with the same prompt tokens share a number. Returns [N] int64.

    ``lengths`` cuts every row to its original prompt first: in a multi-turn rollout the row goes on with tool results,
    which differ between responses to one prompt. The same prompt twice in a batch is one group, as in NeMo-RL.
    """
    numbers: dict[tuple[int, ...], int] = {}
    keys = [tuple(row) if lengths is None else tuple(row[: lengths[i]]) for i, row in enumerate(prompts)]
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], dtype=torch.int64)


def baseline_and_std(
    groups: Tensor,
    rewards: Tensor,
    *,
    leave_one_out: bool,
    valid: Tensor | None = None,
    std_rewards: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of the group of each response: two [N] float64 tensors.

    ``leave_one_out`` leaves the response itself out of both. Responses with ``valid`` 0 count for nobody. A group with
    at most one valid response has its own rewards as baseline and std 0; so has a std over a single reward.
    ``std_rewards`` replaces the rewards in the std (NeMo-RL v0.7.0 takes unshaped rewards there).

    Better than NeMo-RL v0.7.0 in one point: its float32 sums give some groups of equal rewards a tiny positive std,
    which normalisation turns into advantages up to 0.06. Here sums are float64 of differences to one of the rewards,
    so equal rewards have std exactly 0 and nearly equal ones their true std.
    """
    present = torch.ones_like(rewards, dtype=torch.float64) if valid is None else valid.double()
    same = (groups[:, None] == groups[None, :]).double()
    counts = same @ present
    weights = same * present
    if leave_one_out:
        weights = weights * (1 - torch.eye(len(groups), dtype=torch.float64, device=weights.device))
        counts = counts - 1
    alone = (same @ present) <= 1
    mean, variance = _weighted_moments(weights, counts, rewards.double())
    if std_rewards is not None:
        _, variance = _weighted_moments(weights, counts, std_rewards.double())
    baseline = torch.where(alone, rewards.double(), mean)
    std = torch.where(alone | (counts <= 1), 0.0, variance.clamp(min=0).sqrt())
    return baseline, std


def _weighted_moments(weights: Tensor, counts: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Per row: sum(w r) / count, and the variance by that count with Bessel's correction.

    The count is NeMo-RL's: under leave-one-out an invalid row divides by one less than the rewards it sums. Such a row
    is masked out of the loss; ``excess`` only keeps its numbers comparable. Elsewhere excess is 0.
    """
    # Differences to one of the rewards that count: exact for float32 rewards, and all 0 when those rewards are equal.
    origin = rewards[weights.argmax(dim=1)]
    n = counts.clamp(min=1)
    differences = rewards[None, :] - origin[:, None]
    shift = (weights * differences).sum(1) / n
    square = (weights * differences.square()).sum(1) / n
    total = weights.sum(1) / n
    excess = 1 - total
    variance = square - shift.square() + excess * (2 * origin * shift + origin.square() * total)
    return shift + origin * total, variance * n / (n - 1).clamp(min=1)


def grpo_advantages(rewards: Tensor, baseline: Tensor, std: Tensor, *, normalize: bool) -> Tensor:
    """``r - b``, divided by ``std + 1e-6`` where ``normalize`` and the std is positive. All [N]; float32 out.

    The difference is taken in float64: in a nearly constant group the last bit of a float32 baseline is 6% of it.
    """
    advantages = rewards.double() - baseline
    if normalize:
        advantages = torch.where(std > 0, advantages / (std + STD_EPSILON), advantages)
    return advantages.float()


def reinforce_plus_plus_advantages(
    groups: Tensor,
    rewards: Tensor,
    mask: Tensor,
    *,
    minus_baseline: bool,
    valid: Tensor | None = None,
    kl_penalty: Tensor | None = None,
) -> Tensor:
    """REINFORCE++: rewards (less the group mean), less ``kl_penalty`` per token, normalised over all valid tokens.

    ``kl_penalty`` [N,S] is coefficient times KL, for `loss_fn.use_kl_in_reward`. Returns [N,S].
    """
    if minus_baseline:
        mean, _ = baseline_and_std(groups, rewards, leave_one_out=False, valid=valid)
        rewards = rewards.double() - mean
    advantages = rewards.float()[:, None].expand(mask.shape)
    if kl_penalty is not None:
        advantages = advantages - kl_penalty
    return _whiten(advantages, mask.float())


def gdpo_advantages(
    groups: Tensor, components: Tensor, *, normalize: bool, leave_one_out: bool, valid: Tensor | None = None
) -> Tensor:
    """GDPO: the GRPO advantages of each reward component, summed, then standardised over the batch.

    ``components`` is [K,N] with K >= 2, else ``ValueError``. When all sums are equal they are only centred.
    """
    if components.shape[0] < 2:
        raise ValueError(f"gdpo needs at least two reward components, got {components.shape[0]}")
    total = torch.zeros_like(components[0], dtype=torch.float32)
    for rewards in components:
        baseline, std = baseline_and_std(groups, rewards, leave_one_out=leave_one_out, valid=valid)
        total = total + grpo_advantages(rewards, baseline, std, normalize=normalize)
    counted = total if valid is None else total[valid.bool()]
    centred = total - counted.mean()
    spread = counted.std()
    return centred / spread if spread > 0 else centred


def raw_reward_advantages(rewards: Tensor, mask: Tensor, *, normalize: bool) -> Tensor:
    """The reward itself on every token, whitened over the valid tokens when ``normalize``. Returns [N,S]."""
    advantages = rewards.float()[:, None].expand(mask.shape)
    return _whiten(advantages, mask.float()) if normalize else advantages.clone()


def _whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Zero mean, unit (biased) variance over the positions of the mask; other positions get the same transform."""
    count = mask.sum().clamp(min=1)
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / count
    return (values - mean) * variance.clamp(min=MIN_VARIANCE).rsqrt()


def clip_advantages(advantages: Tensor, low: float | None, high: float | None) -> Tensor:
    """Clamp to [low, high]; ``None`` leaves a side open."""
    return advantages if low is None and high is None else advantages.clamp(min=low, max=high)


@dataclass(frozen=True, slots=True)
class AdvantageInputs:
    """What the estimators read. ``valid`` marks responses that have a reward at all."""

    groups: Tensor
    """[N] int64, from ``prompt_groups``."""
    rewards: Tensor
    """[N], scaled and shaped; any finite value where ``valid`` is 0."""
    mask: Tensor
    """[N,S] token mask times sample mask."""
    valid: Tensor | None = None
    """[N] 0/1; ``None`` = all valid."""
    components: Tensor | None = None
    """[K,N] reward components, for gdpo."""
    prev_logprobs: Tensor | None = None
    """[N,S], for KL in the reward."""
    reference_policy_logprobs: Tensor | None = None
    """[N,S], for KL in the reward."""


def estimate_advantages(inputs: AdvantageInputs, config: AdvEstimatorConfig, loss: LossFnConfig) -> Tensor:
    """Advantages [N,S] by the configured estimator; one value per response stands in every column.

    Raises ``ValueError`` when an input that the estimator needs is missing, or for an estimator that has no place here
    (`opd` needs teacher log-probs).
    """
    groups, rewards, mask = inputs.groups, inputs.rewards, inputs.mask
    match config.name:
        case "grpo":
            baseline, std = baseline_and_std(
                groups, rewards, leave_one_out=config.use_leave_one_out_baseline, valid=inputs.valid
            )
            per_response = grpo_advantages(rewards, baseline, std, normalize=config.normalize_rewards)
        case "gdpo":
            if inputs.components is None:
                raise ValueError("gdpo needs reward components")
            per_response = gdpo_advantages(
                groups,
                inputs.components,
                normalize=config.normalize_rewards,
                leave_one_out=config.use_leave_one_out_baseline,
                valid=inputs.valid,
            )
        case "reinforce_plus_plus":
            return reinforce_plus_plus_advantages(
                groups,
                rewards,
                mask,
                minus_baseline=config.minus_baseline,
                valid=inputs.valid,
                kl_penalty=_kl_in_reward(inputs, loss) if loss.use_kl_in_reward else None,
            )
        case "raw_reward":
            return raw_reward_advantages(rewards, mask, normalize=config.normalize_rewards)
        case _:
            raise ValueError(f"estimator {config.name!r} is not available here")
    return per_response[:, None].expand(mask.shape).contiguous()


def _kl_in_reward(inputs: AdvantageInputs, loss: LossFnConfig) -> Tensor:
    """Coefficient times KL per token, with the default clamps (NeMo-RL does not use the configured ones here)."""
    if inputs.prev_logprobs is None or inputs.reference_policy_logprobs is None:
        raise ValueError("KL in the reward needs prev_logprobs and reference_policy_logprobs")
    kl = calculate_kl(inputs.prev_logprobs, inputs.reference_policy_logprobs, kl_type=loss.reference_policy_kl_type)
    return loss.reference_policy_kl_penalty * kl

"""Between the judge and the advantages: scaling and shaping of rewards [N], filtering of responses."""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron.config.schema.grpo import RewardScalingConfig, RewardShapingConfig


def scale_rewards(rewards: Tensor, config: RewardScalingConfig) -> Tensor:
    """Clamp rewards to the source range and map that range linearly onto the target range.

    Raises ``ValueError`` for an empty source range.
    """
    if not config.enabled:
        return rewards
    if config.source_min >= config.source_max:
        raise ValueError(f"source range [{config.source_min}, {config.source_max}] is empty")
    share = (rewards.clamp(config.source_min, config.source_max) - config.source_min) / (
        config.source_max - config.source_min
    )
    return config.target_min + share * (config.target_max - config.target_min)


def share_outside_source(rewards: Tensor, config: RewardScalingConfig) -> float:
    """Share of the rewards that scaling clamps; worth a warning when it is not 0."""
    if not config.enabled or rewards.numel() == 0:
        return 0.0
    return float(((rewards < config.source_min) | (rewards > config.source_max)).float().mean())


def shape_rewards(rewards: Tensor, response_lengths: Tensor, truncated: Tensor, config: RewardShapingConfig) -> Tensor:
    """Penalise truncated or overlong responses; lengths in tokens [N], ``truncated`` bool [N].

    With ``stop_properly_penalty_coef`` the reward of a truncated response is multiplied by it, and nothing else
    happens. Otherwise DAPO's soft penalty: from ``max_response_length - overlong_buffer_length`` tokens on it grows
    linearly and is ``overlong_buffer_penalty`` at ``max_response_length``. As in NeMo-RL, and unlike the DAPO paper,
    it keeps growing beyond. Raises ``ValueError`` when a key of the penalty is missing.
    """
    if not config.enabled:
        return rewards
    if config.stop_properly_penalty_coef is not None:
        return torch.where(truncated.bool(), rewards * config.stop_properly_penalty_coef, rewards)
    buffer, penalty, longest = (
        config.overlong_buffer_length,
        config.overlong_buffer_penalty,
        config.max_response_length,
    )
    if buffer is None or penalty is None or longest is None:
        raise ValueError("overlong_buffer_length, overlong_buffer_penalty and max_response_length must all be set")
    excess = response_lengths.to(rewards.dtype) - (longest - buffer)
    return rewards + (-excess / buffer * penalty).clamp(max=0.0)


def filter_overlong(sample_mask: Tensor, truncated: Tensor) -> Tensor:
    """Take truncated responses out of the loss (`grpo.overlong_filtering`); masks are [N]."""
    return sample_mask.float() * (~truncated.bool()).float()

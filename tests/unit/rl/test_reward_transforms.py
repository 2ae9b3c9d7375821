"""Scaling, shaping and filtering of rewards."""

from __future__ import annotations

import pytest
import torch

from nemotron.config.schema.grpo import RewardScalingConfig, RewardShapingConfig
from nemotron.rl.reward_transforms import filter_overlong, scale_rewards, shape_rewards, share_outside_source

DAPO = RewardShapingConfig(enabled=True, overlong_buffer_length=10, overlong_buffer_penalty=2.0, max_response_length=50)


def test_scaling_maps_the_source_range_to_the_target_range() -> None:
    config = RewardScalingConfig(enabled=True, source_min=1, source_max=5, target_min=-1, target_max=1)
    rewards = torch.tensor([0.0, 1.0, 3.0, 5.0, 9.0])
    assert scale_rewards(rewards, config).tolist() == [-1, -1, 0, 1, 1]
    assert share_outside_source(rewards, config) == pytest.approx(0.4)


def test_scaling_off_changes_nothing() -> None:
    rewards = torch.tensor([-7.0, 7.0])
    config = RewardScalingConfig(enabled=False)
    assert scale_rewards(rewards, config) is rewards
    assert share_outside_source(rewards, config) == 0


def test_empty_source_range_is_an_error() -> None:
    config = RewardScalingConfig(enabled=True, source_min=1, source_max=1)
    with pytest.raises(ValueError, match="empty"):
        scale_rewards(torch.zeros(1), config)


def test_overlong_penalty_grows_linearly_and_has_no_cap() -> None:
    lengths = torch.tensor([1, 40, 45, 50, 60])
    shaped = shape_rewards(torch.ones(5), lengths, torch.zeros(5), DAPO)
    assert shaped.tolist() == [1, 1, 0, -1, -3]


def test_stop_coefficient_scales_truncated_rewards_only() -> None:
    config = DAPO.model_copy(update={"stop_properly_penalty_coef": 0.25})
    shaped = shape_rewards(torch.tensor([4.0, 4.0]), torch.tensor([60, 60]), torch.tensor([True, False]), config)
    assert shaped.tolist() == [1, 4]


def test_shaping_off_changes_nothing() -> None:
    rewards = torch.ones(2)
    assert shape_rewards(rewards, torch.tensor([99, 99]), torch.ones(2), RewardShapingConfig(enabled=False)) is rewards


def test_incomplete_shaping_is_an_error() -> None:
    with pytest.raises(ValueError, match="max_response_length"):
        shape_rewards(torch.ones(1), torch.ones(1), torch.zeros(1), RewardShapingConfig(enabled=True))


def test_overlong_filter_only_takes_out() -> None:
    mask = filter_overlong(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([True, False, False]))
    assert mask.tolist() == [0, 0, 1]

"""Reward scaling and shaping, and dynamic sampling, against NeMo-RL's."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron.config.schema.grpo import RewardScalingConfig, RewardShapingConfig
from nemotron.rl.advantages import baseline_and_std, prompt_groups
from nemotron.rl.dynamic_sampling import DynamicSampler, Selection
from nemotron.rl.reward_transforms import scale_rewards, shape_rewards
from tests.golden.golden_vectors import Case
from tests.golden.tensors import assert_close, tensor

RTOL = 1e-5
# Rewards near 0 are differences of float32 numbers of size about 1, whose last bit is 6e-8.
FLOOR = 1e-7


@pytest.mark.golden("reward_scaling_shaping", part="scaling")
def test_scaling(case: Case) -> None:
    """Clamp to the source range, map to the target range."""
    scaled = scale_rewards(tensor(case.data["rewards"]), RewardScalingConfig.model_validate(case.data["config"]))
    assert_close(scaled, case.data["scaled"], rtol=RTOL, atol=FLOOR, what="scaled rewards")


@pytest.mark.golden("reward_scaling_shaping", part="shaping")
def test_shaping(case: Case) -> None:
    """DAPO's overlong penalty, or the factor on truncated responses."""
    data = case.data
    shaped = shape_rewards(
        tensor(data["rewards"]),
        tensor(data["response_lengths"]),
        tensor(data["truncated"]),
        RewardShapingConfig.model_validate(data["config"]),
    )
    assert_close(shaped, data["shaped"], rtol=RTOL, atol=FLOOR, what="shaped rewards")


Row = tuple[int, int, float, float, float]
"""Generation batch, position in it, reward, std, baseline."""


@pytest.mark.golden("dynamic_sampling", part=None)
def test_dynamic_sampling(case: Case) -> None:
    """The whole sequence of generation batches of one training batch."""
    config = case.file["config"]
    group_size = config["num_generations_per_prompt"]
    sampler: DynamicSampler[Row] = DynamicSampler(
        config["num_prompts_per_step"] * group_size, config["dynamic_sampling_max_gen_batches"]
    )
    for step in case.file["sequence"]:
        rewards, recorded_std = tensor(step["rewards"]), tensor(step["std"])
        groups = prompt_groups([[i // group_size] for i in range(len(rewards))])
        # The vectors record no baseline on input; plain group means reproduce both their std and their baselines.
        baseline, std = baseline_and_std(groups, rewards, leave_one_out=False)
        assert_close(std, step["std"], rtol=RTOL, atol=0, what="std")
        rows = list(zip(rewards.tolist(), recorded_std.tolist(), baseline.tolist(), strict=True))
        batch = step["gen_batch"]
        selection = sampler.add([(batch, i, *row) for i, row in enumerate(rows)], recorded_std, rewards)
        _check_selection(selection, step)


def _check_selection(selection: Selection[Row], step: dict[str, Any]) -> None:
    returned = step["returned"]
    assert selection.complete == step["is_batch_complete"]
    assert selection.num_gen_batches == step["gen_batch"]
    assert selection.num_discarded == step["metrics"].get("dynamic_sampling_num_discarded_valid_samples")
    assert_close(list(selection.rewards), returned["total_reward"], rtol=RTOL, atol=0, what="total_reward")
    # When nothing of a generation batch survives, NeMo-RL returns no rows, though its cache keeps the earlier ones.
    new = selection.complete or any(batch == step["gen_batch"] for batch, *_ in selection.rows)
    rows = selection.rows if new else ()
    for column, name in ((2, "filtered_reward"), (3, "std"), (4, "baseline")):
        assert_close([row[column] for row in rows], returned[name], rtol=RTOL, atol=0, what=name)
    # `idx` numbers rows across batches with an offset per batch that the file does not name.
    offsets = {row[0]: index - row[1] for row, index in zip(rows, returned["idx"], strict=True)}
    assert [offsets[row[0]] + row[1] for row in rows] == returned["idx"]
    assert len(set(offsets.values())) == len(offsets)

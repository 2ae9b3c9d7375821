"""Baselines, estimators, clipping and multi-turn grouping against NeMo-RL's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nemotron.config.schema.grpo import AdvEstimatorConfig, LossFnConfig
from nemotron.rl.advantages import (
    AdvantageInputs,
    baseline_and_std,
    clip_advantages,
    estimate_advantages,
    grpo_advantages,
    prompt_groups,
)
from tests.golden.golden_vectors import Case
from tests.golden.tensors import assert_close, tensor

RTOL = 1e-5
# Baselines and advantages near 0 are differences of float32 rewards of size about 1, whose last bit is 6e-8.
FLOOR = 3e-7
COLUMNS = 3  # width given to estimators whose vectors are one value per response


def _rounding_only(name: str) -> bool:
    """Cases whose std records the summation order of float32 and is documentation (README of the vectors)."""
    return name.startswith(("const", "nearly"))


@pytest.mark.golden("advantage_baseline_std")
def test_baseline_and_std(case: Case) -> None:
    """Mean and std per prompt; in the rounding cases the std is that of exact arithmetic."""
    data = case.data
    rewards, groups = tensor(data["rewards"]), prompt_groups(data["prompts"])
    baseline, std = baseline_and_std(
        groups,
        rewards,
        leave_one_out=data["leave_one_out_baseline"],
        valid=tensor(data["valid_mask"]),
        std_rewards=None if data["std_rewards"] is None else tensor(data["std_rewards"]),
    )
    assert_close(baseline, data["baseline"], rtol=RTOL, atol=FLOOR, what="baseline")
    if _rounding_only(data["name"]):
        counted = tensor(data["valid_mask"]) > 0
        _, exact = _exact(groups, rewards, counted, leave_one_out=data["leave_one_out_baseline"])
        assert_close(std, exact, rtol=RTOL, atol=0, what="std")
    else:
        assert_close(std, data["std"], rtol=RTOL, atol=FLOOR, what="std")


def _exact(groups: Tensor, rewards: Tensor, valid: Tensor, *, leave_one_out: bool) -> tuple[list[float], list[float]]:
    """Mean and std that the float32 rewards really have: torch's two-pass formulas in float64, row by row."""
    means, stds = [], []
    for i in range(len(rewards)):
        others = (groups == groups[i]) & valid
        if leave_one_out:
            others[i] = False
        counted = rewards[others].double()
        means.append(float(counted.mean()))
        stds.append(float(counted.std()) if counted.unique().numel() > 1 else 0.0)
    return means, stds


@pytest.mark.golden("advantage_estimators")
def test_estimators(case: Case) -> None:
    """grpo, gdpo, reinforce++, raw_reward. Equal rewards give exactly 0, whatever float32 made of them."""
    data = case.data
    advantages = estimate_advantages(_estimator_inputs(data), _estimator_config(data), _loss_config(data))
    if "advantages" in data:
        assert_close(advantages, data["advantages"], rtol=RTOL, atol=FLOOR, what="advantages")
        return
    assert all(torch.equal(advantages[:, 0], column) for column in advantages.T)
    expected = _exact_grpo(data) if _rounding_only(data.get("rewards_name", "")) else data["advantage_per_sequence"]
    assert_close(advantages[:, 0], expected, rtol=RTOL, atol=FLOOR, what="advantages")


def _exact_grpo(data: dict[str, Any]) -> list[float]:
    """The GRPO advantages of a case in exact arithmetic."""
    groups, rewards = prompt_groups(data["prompt_ids"]), tensor(data["rewards"])
    all_valid = torch.ones(len(rewards), dtype=torch.bool)
    means, stds = _exact(groups, rewards, all_valid, leave_one_out=data["use_leave_one_out_baseline"])
    scales = [std + 1e-6 if std > 0 and data["normalize_rewards"] else 1.0 for std in stds]
    return [(r - mean) / scale for r, mean, scale in zip(rewards.tolist(), means, scales, strict=True)]


def _estimator_inputs(data: dict[str, Any]) -> AdvantageInputs:
    """Everything a case brings; what it does not bring (prompts, mask) has no influence on its result."""
    components = tensor(data["components"]) if "components" in data else None
    rewards = tensor(data["rewards"]) if "rewards" in data else tensor(data["components"]).sum(0)
    return AdvantageInputs(
        groups=prompt_groups(data["prompt_ids"]) if "prompt_ids" in data else torch.zeros(len(rewards)).long(),
        rewards=rewards,
        mask=tensor(data["mask"]) if "mask" in data else torch.ones(len(rewards), COLUMNS),
        components=components,
        prev_logprobs=tensor(data["logprobs_policy"]) if "logprobs_policy" in data else None,
        reference_policy_logprobs=tensor(data["logprobs_reference"]) if "logprobs_reference" in data else None,
    )


def _estimator_config(data: dict[str, Any]) -> AdvEstimatorConfig:
    values = {"name": data["estimator"]}
    for name in ("use_leave_one_out_baseline", "minus_baseline", "normalize_rewards"):
        if name in data:
            values[name] = data[name]
    if "normalize_advantages" in data:  # PPO's name for the switch of raw_reward
        values["normalize_rewards"] = data["normalize_advantages"]
    return AdvEstimatorConfig.model_validate(values)


def _loss_config(data: dict[str, Any]) -> LossFnConfig:
    names = {
        "use_kl_in_reward": "use_kl_in_reward",
        "kl_coef": "reference_policy_kl_penalty",
        "kl_type": "reference_policy_kl_type",
    }
    return LossFnConfig.model_validate({ours: data[theirs] for theirs, ours in names.items() if theirs in data})


@pytest.mark.golden("advantage_clip")
def test_clip(case: Case) -> None:
    """Either bound may be open."""
    clipped = clip_advantages(tensor(case.data["in"]), case.data["low"], case.data["high"])
    assert_close(clipped, case.data["out"], rtol=RTOL, atol=0, what="clipped advantages")


@pytest.mark.golden("multi_turn_prompt_grouping", part=None)
def test_multi_turn_grouping(case: Case) -> None:
    """Responses to one prompt stay one group although their tool results differ."""
    data = case.data
    prompts = data["prompt_ids_for_adv"]
    rows = [prompt + result for prompt, result in zip(prompts, data["tool_result_token_ids"], strict=True)]
    groups = prompt_groups(rows, lengths=[len(prompt) for prompt in prompts])
    assert groups.tolist() == prompt_groups(prompts).tolist()
    rewards = tensor(data["rewards"])
    baseline, std = baseline_and_std(groups, rewards, leave_one_out=True)
    advantages = grpo_advantages(rewards, baseline, std, normalize=True)
    assert_close(advantages, data["advantages"], rtol=RTOL, atol=FLOOR, what="advantages")

"""Prompt groups, baselines, estimators."""

from __future__ import annotations

import math
from random import Random
from statistics import mean, stdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nemotron.config.schema.grpo import AdvEstimatorConfig, LossFnConfig
from nemotron.rl.advantages import (
    AdvantageInputs,
    baseline_and_std,
    clip_advantages,
    estimate_advantages,
    gdpo_advantages,
    grpo_advantages,
    prompt_groups,
    raw_reward_advantages,
    reinforce_plus_plus_advantages,
)

REWARD = st.floats(-100, 100, width=32)


def _one_group(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.int64)


def test_groups_are_by_content_not_by_position() -> None:
    assert prompt_groups([[1, 2], [3], [1, 2], [3, 0], [3]]).tolist() == [0, 1, 0, 2, 1]


def test_groups_cut_rows_to_the_original_prompt() -> None:
    assert prompt_groups([[1, 2, 9], [1, 2, 8, 8], [1, 3, 9]], lengths=[2, 2, 2]).tolist() == [0, 0, 1]


@settings(deadline=None)
@given(REWARD, REWARD)
def test_leave_one_out_of_two_is_the_other_reward(first: float, second: float) -> None:
    baseline, std = baseline_and_std(_one_group(2), torch.tensor([first, second]), leave_one_out=True)
    assert baseline.tolist() == pytest.approx([second, first], rel=1e-6, abs=1e-9)
    assert std.tolist() == [0, 0]


@settings(deadline=None)
@given(st.lists(REWARD, min_size=3, max_size=9))
def test_leave_one_out_against_the_definition(rewards: list[float]) -> None:
    baseline, std = baseline_and_std(_one_group(len(rewards)), torch.tensor(rewards), leave_one_out=True)
    for i in range(len(rewards)):
        others = rewards[:i] + rewards[i + 1 :]
        assert baseline[i].item() == pytest.approx(mean(others), rel=1e-9, abs=1e-9)
        assert std[i].item() == pytest.approx(stdev(others), rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(REWARD, st.integers(1, 40), st.booleans(), st.booleans())
def test_equal_rewards_have_exactly_no_spread_and_no_advantage(
    reward: float, size: int, leave_one_out: bool, normalize: bool
) -> None:
    rewards = torch.full((size,), reward)
    baseline, std = baseline_and_std(_one_group(size), rewards, leave_one_out=leave_one_out)
    assert not std.any()
    assert not grpo_advantages(rewards, baseline, std, normalize=normalize).any()


@settings(deadline=None)
@given(REWARD, REWARD, st.integers(2, 40))
def test_one_reward_apart_sees_no_spread_in_the_others(odd: float, reward: float, others: int) -> None:
    # A spread of 1e-9 instead of 0 would divide its advantage by 1e-6.
    rewards = torch.tensor([odd] + [reward] * others)
    _, std = baseline_and_std(_one_group(others + 1), rewards, leave_one_out=True)
    assert std[0].item() == 0


def test_nearly_equal_rewards_have_their_true_spread() -> None:
    rewards = torch.tensor([0.5, 0.5, 0.5, 0.500001])
    _, std = baseline_and_std(_one_group(4), rewards, leave_one_out=False)
    assert std[0].item() == pytest.approx(stdev(rewards.tolist()), rel=1e-6)


def test_invalid_responses_count_for_nobody() -> None:
    rewards, valid = torch.tensor([1.0, 3.0, 100.0]), torch.tensor([1.0, 1.0, 0.0])
    baseline, std = baseline_and_std(_one_group(3), rewards, leave_one_out=False, valid=valid)
    assert baseline.tolist() == [2, 2, 2]
    assert std.tolist() == pytest.approx([math.sqrt(2)] * 3)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-3, 3, width=32), st.booleans()), min_size=2, max_size=8),
    st.booleans(),
)
def test_formula_of_nemo_rl_with_invalid_responses(rows: list[tuple[float, bool]], leave_one_out: bool) -> None:
    """Sums in plain Python: N is the valid count less one under leave-one-out, for invalid rows too."""
    rewards, valid = [row[0] for row in rows], [float(row[1]) for row in rows]
    baseline, std = baseline_and_std(
        _one_group(len(rows)), torch.tensor(rewards), leave_one_out=leave_one_out, valid=torch.tensor(valid)
    )
    for i in range(len(rows)):
        if sum(valid) <= 1:
            expected, variance = rewards[i], 0.0
        else:
            n = sum(valid) - leave_one_out
            weights = [v * (j != i or not leave_one_out) for j, v in enumerate(valid)]
            expected = sum(w * r for w, r in zip(weights, rewards, strict=True)) / n
            square = sum(w * r * r for w, r in zip(weights, rewards, strict=True)) / n
            variance = max((square - expected**2) * n / (n - 1), 0.0) if n > 1 else 0.0
        assert baseline[i].item() == pytest.approx(expected, abs=1e-9)
        assert std[i].item() ** 2 == pytest.approx(variance, abs=1e-9)


def test_std_from_other_rewards() -> None:
    rewards, unshaped = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 5.0, 8.0])
    baseline, std = baseline_and_std(_one_group(3), rewards, leave_one_out=False, std_rewards=unshaped)
    assert baseline.tolist() == [2, 2, 2]
    assert std.tolist() == pytest.approx([math.sqrt(3)] * 3)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_order_of_the_batch_does_not_matter(prompts: list[int], random: Random) -> None:
    order = list(range(len(prompts)))
    random.shuffle(order)
    rewards = torch.tensor([float(i * i % 7) for i in range(len(prompts))])
    straight = baseline_and_std(prompt_groups([[p] for p in prompts]), rewards, leave_one_out=True)
    shuffled = baseline_and_std(prompt_groups([[prompts[i]] for i in order]), rewards[order], leave_one_out=True)
    for one, other in zip(straight, shuffled, strict=True):
        assert one[order].tolist() == pytest.approx(other.tolist(), abs=1e-12)


def test_grpo_normalises_by_std_plus_epsilon_and_leaves_zero_std_alone() -> None:
    got = grpo_advantages(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.5]), torch.tensor([0.5, 0.0]), normalize=True)
    assert got.tolist() == pytest.approx([1 / (0.5 + 1e-6), 0.5])


def test_reinforce_plus_plus_is_white_over_the_valid_tokens() -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    got = reinforce_plus_plus_advantages(_one_group(3), torch.tensor([0.0, 1.0, 5.0]), mask, minus_baseline=True)
    values = got[mask.bool()].double()
    assert values.mean().item() == pytest.approx(0, abs=1e-6)
    assert values.var(unbiased=False).item() == pytest.approx(1, abs=1e-5)


def test_kl_in_reward_lowers_the_advantage_of_a_token_that_drifted() -> None:
    config = AdvEstimatorConfig(name="reinforce_plus_plus")
    loss = LossFnConfig(use_kl_in_reward=True, reference_policy_kl_penalty=0.5)
    inputs = AdvantageInputs(
        groups=_one_group(2),
        rewards=torch.tensor([1.0, 0.0]),
        mask=torch.ones(2, 2),
        prev_logprobs=torch.tensor([[-0.1, -1.0], [-1.0, -1.0]]),
        reference_policy_logprobs=torch.full((2, 2), -1.0),
    )
    got = estimate_advantages(inputs, config, loss)
    assert got[0, 0] < got[0, 1]
    assert got[1, 0] == got[1, 1]
    without = estimate_advantages(inputs, config, LossFnConfig())
    assert without[0, 0] == without[0, 1]


def test_gdpo_standardises_the_sum_over_the_batch() -> None:
    components = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 3.0, 1.0, 0.0]])
    got = gdpo_advantages(prompt_groups([[1], [1], [2], [2]]), components, normalize=False, leave_one_out=False)
    assert got.mean().item() == pytest.approx(0, abs=1e-6)
    assert got.std().item() == pytest.approx(1, abs=1e-6)


def test_gdpo_of_equal_components_is_zero_and_of_one_component_an_error() -> None:
    groups = _one_group(3)
    assert not gdpo_advantages(groups, torch.ones(2, 3), normalize=True, leave_one_out=True).any()
    with pytest.raises(ValueError, match="at least two"):
        gdpo_advantages(groups, torch.ones(1, 3), normalize=True, leave_one_out=True)


def test_raw_reward_stands_on_every_token() -> None:
    got = raw_reward_advantages(torch.tensor([1.0, -2.0]), torch.ones(2, 3), normalize=False)
    assert got.tolist() == [[1, 1, 1], [-2, -2, -2]]


def test_whitening_equal_rewards_does_not_blow_up() -> None:
    assert not raw_reward_advantages(torch.ones(2), torch.ones(2, 3), normalize=True).any()
    assert torch.isfinite(raw_reward_advantages(torch.ones(2), torch.zeros(2, 3), normalize=True)).all()
    nearly = raw_reward_advantages(torch.tensor([0.0, 2e-6]), torch.ones(2, 3), normalize=True)
    assert nearly[1, 0].item() == pytest.approx(1e-6 / 1e-4)  # the variance counts as at least 1e-8


def test_estimator_gives_one_value_per_response_and_ignores_missing_rewards() -> None:
    inputs = AdvantageInputs(
        groups=_one_group(4),
        rewards=torch.tensor([1.0, 0.0, 1.0, 0.0]),
        mask=torch.ones(4, 3),
        valid=torch.tensor([1.0, 1.0, 1.0, 0.0]),
    )
    config = AdvEstimatorConfig(name="grpo", normalize_rewards=False, use_leave_one_out_baseline=True)
    got = estimate_advantages(inputs, config, LossFnConfig())
    assert got.shape == (4, 3)
    assert got[:3, 0].tolist() == [0.5, -1.0, 0.5]


@pytest.mark.parametrize("name", ["opd", "gdpo"])
def test_estimator_without_its_inputs_is_an_error(name: str) -> None:
    inputs = AdvantageInputs(groups=_one_group(2), rewards=torch.ones(2), mask=torch.ones(2, 3))
    config = AdvEstimatorConfig.model_validate({"name": name})
    with pytest.raises(ValueError, match=name):
        estimate_advantages(inputs, config, LossFnConfig())


def test_clip() -> None:
    values = torch.tensor([-3.0, 0.0, 3.0])
    assert clip_advantages(values, None, None) is values
    assert clip_advantages(values, -1, None).tolist() == [-1, 0, 3]
    assert clip_advantages(values, -1, 2).tolist() == [-1, 0, 2]

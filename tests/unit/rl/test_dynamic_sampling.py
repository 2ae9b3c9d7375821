"""Filling a training batch with responses that differ."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from nemotron.errors import EngineError
from nemotron.rl.advantages import baseline_and_std, prompt_groups
from nemotron.rl.dynamic_sampling import DynamicSampler, group_spread


def _std(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_full_batch_at_once() -> None:
    got = DynamicSampler[str](2, 3).add(["a", "b"], _std(1, 1), torch.tensor([0.0, 1.0]))
    assert (got.complete, got.rows, got.num_discarded, got.num_gen_batches) == (True, ("a", "b"), 0, 1)


def test_survivors_are_kept_across_batches_and_the_surplus_is_discarded() -> None:
    sampler = DynamicSampler[str](3, 3)
    first = sampler.add(["a", "b"], _std(0, 1), torch.tensor([5.0, 1.0]))
    assert (first.complete, first.rows, first.num_discarded) == (False, ("b",), None)
    second = sampler.add(["c", "d", "e"], _std(1, 1, 1), torch.tensor([2.0, 3.0, 4.0]))
    assert (second.complete, second.rows, second.num_discarded) == (True, ("b", "c", "d"), 1)
    assert second.rewards == (5.0, 1.0, 2.0)


def test_batches_without_survivors_are_not_in_the_reported_rewards() -> None:
    sampler = DynamicSampler[str](1, 3)
    nothing = sampler.add(["a"], _std(0), torch.tensor([9.0]))
    assert (nothing.rows, nothing.rewards) == ((), (9.0,))
    assert sampler.add(["b"], _std(1), torch.tensor([2.0])).rewards == (2.0,)


def test_starts_afresh_after_a_full_batch() -> None:
    sampler = DynamicSampler[str](1, 3)
    sampler.add(["a", "b"], _std(1, 1), torch.tensor([1.0, 2.0]))
    again = sampler.add(["c"], _std(1), torch.tensor([3.0]))
    assert (again.rows, again.num_gen_batches) == (("c",), 1)


def test_gives_up_after_more_than_the_allowed_batches() -> None:
    sampler = DynamicSampler[str](2, 2)
    for _ in range(2):
        assert not sampler.add(["a"], _std(0), torch.tensor([0.0])).complete
    with pytest.raises(EngineError, match="0 of 2 responses") as caught:
        sampler.add(["a"], _std(0), torch.tensor([0.0]))
    assert "dynamic_sampling_max_gen_batches" in (caught.value.hint or "")


def test_the_last_allowed_batch_may_still_fill_up() -> None:
    sampler = DynamicSampler[str](1, 1)
    sampler.add(["a"], _std(0), torch.tensor([0.0]))
    assert sampler.add(["b"], _std(1), torch.tensor([0.0])).complete


SIZE = 4
GROUP = st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=SIZE, max_size=SIZE)


@given(st.lists(GROUP, min_size=1, max_size=6))
@example([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [None, 1.0, 1.0, 1.0]])
def test_whole_groups_stay_exactly_where_valid_rewards_differ(groups: list[list[float | None]]) -> None:
    rewards = torch.tensor([reward or 0.0 for group in groups for reward in group])
    valid = torch.tensor([reward is not None for group in groups for reward in group])
    spread = group_spread(rewards, valid, SIZE)
    kept = [set(group) - {None} for group in groups]
    wanted = [i for i, values in enumerate(kept) if len(values) > 1]
    rows = [(i, k) for i in range(len(groups)) for k in range(SIZE)]
    found = DynamicSampler[tuple[int, int]](len(rows), 3).add(rows, spread, rewards).rows
    assert found == tuple((i, k) for i in wanted for k in range(SIZE))
    # What stays has something to learn from: with either baseline some valid row of each group is off it.
    for leave_one_out in (True, False):
        numbers = prompt_groups([[i] for i, _ in rows])
        baseline, _ = baseline_and_std(numbers, rewards, leave_one_out=leave_one_out, valid=valid.float())
        off = (rewards - baseline).abs() * valid
        assert all(off[i * SIZE : (i + 1) * SIZE].max() > 0 for i in wanted)


def test_the_row_unit_is_nemo_rls_and_loses_the_only_row_that_differs() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    _, std = baseline_and_std(prompt_groups([[7]] * 4), rewards, leave_one_out=True, valid=torch.ones(4))
    rows = DynamicSampler[int](4, 3).add(range(4), std, rewards).rows
    assert rows == (1, 2, 3)
    assert DynamicSampler[int](4, 3).add(range(4), group_spread(rewards, rewards > -1, 4), rewards).rows == (0, 1, 2, 3)

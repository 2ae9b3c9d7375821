"""Rewards where verdicts are missing, and the cost of hostile answers."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.judge.compare import aggregate, comparison_pairs
from nemotron.judge.responses import read_conversation, read_response
from nemotron.judge.style import RewardTerms, count_style, low_is_good_weights, style_density
from nemotron.judge.types import JudgedResponse, Verdict, derive_seed

ANSWERS = [JudgedResponse("", "x" * length) for length in (40, 10, 20, 30)]


def test_a_response_without_a_verdict_has_no_reward() -> None:
    """Pairs (0,1) and (1,2) survive of a circle of four; response 3 met nobody."""
    result = aggregate([Verdict(5, 1, 1), Verdict(4, 2, 2)], [(0, 1), (1, 2)], ANSWERS, RewardTerms())
    assert result.rewards == [5.0, 2.5, 2.0, None]
    assert result.base_scores == [5.0, 2.5, 2.0, None]


def test_nobody_survives() -> None:
    result = aggregate([], [], ANSWERS, RewardTerms(answer_bonus=1.0, group_style_penalty_coeff=1.0))
    assert result.rewards == [None] * 4
    assert result.metrics == {}


def test_group_terms_are_about_the_scored_responses_only() -> None:
    """Lengths 40, 10, 20 count; the unscored response of 30 characters neither gets a share nor moves the others'."""
    verdicts, pairs = [Verdict(5, 1, 1), Verdict(4, 2, 2)], [(0, 1), (1, 2)]
    result = aggregate(verdicts, pairs, ANSWERS, RewardTerms(group_answer_length_penalty_coeff=0.5))
    expected = [0.5 * weight for weight in low_is_good_weights([40, 10, 20])]
    assert result.bonuses == pytest.approx([*expected, 0.0])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_weights_are_centred_and_prefer_the_low(values: list[int]) -> None:
    weights = low_is_good_weights(values)
    assert sum(weights) == pytest.approx(0, abs=1e-12)
    if len(set(values)) > 1:
        assert max(weights) == weights[values.index(min(values))]


@given(st.integers(2, 12))
def test_every_response_meets_somebody(count: int) -> None:
    for strategy in ("circular", "all_pairs"):
        met = {index for pair in comparison_pairs(strategy, count) for index in pair}
        assert met == set(range(count))


@pytest.mark.parametrize(
    "text", ["\n" * 50_000, " " * 50_000, "```" * 20_001, "*" * 50_000, "1" * 50_000, "_" * 50_000]
)
def test_style_of_long_answers_costs_little(text: str) -> None:
    started = time.process_time()
    assert style_density(text + "- a") >= 0
    assert time.process_time() - started < 20


def test_items_behind_blank_lines_and_tabs_count_once() -> None:
    assert count_style("\n\n\n  - a\n\n\t* b\n \n3.\tc\n").list_items == 3


@given(st.recursive(st.none() | st.booleans() | st.text(max_size=5), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["output", "type", "summary", "content", "text"]), x)))  # fmt: skip
def test_any_object_reads_as_some_response(value: object) -> None:
    assert isinstance(read_response(value), JudgedResponse)


def test_user_parts_are_not_lost() -> None:
    turns = read_conversation([{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}])
    assert turns == [{"role": "user", "content": "hi"}]


def test_seeds_differ_by_every_part_and_fit_31_bits() -> None:
    seeds = {derive_seed(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(1, 2, 3) == 1161130152

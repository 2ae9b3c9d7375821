"""Held-out answers checked by reward functions: what is right, what could not be said."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from nemotron.config.schema.extras import HeldoutConfig
from nemotron.config.schema.rewards import RewardConfig
from nemotron.rewards import VERIFIERS, build_rewards
from nemotron.rewards.heldout import by_rewards, by_verifier

CONFIG = RewardConfig.model_validate(
    {"functions": [{"name": "exact"}, {"name": "format", "label": "rude", "weight": -1.0, "require": ["fool"]}]}
)


def test_every_function_and_all_of_them() -> None:
    row = {"expected_answer": "4"}
    with build_rewards(CONFIG) as scorer:
        check = by_rewards(scorer, CONFIG)
        found = check([(row, "4", True), (row, "5", True), (row, "4 fool", True), ({}, "4", True)])
    assert found == [
        {"exact": True, "rude": True, "fully_right": True},
        {"exact": False, "rude": True, "fully_right": False},
        {"exact": False, "rude": False, "fully_right": False},
        {"exact": None, "rude": True, "fully_right": None},
    ]


def test_a_verifier_says_yes_or_no() -> None:
    row = {"world": {"intent": "book", "slots": {"place": "room", "day": "Friday"}, "tone": "curt"}}
    [found] = by_verifier(VERIFIERS["tiny_world"])([(row, "A room is booked for Friday. Thank you.", True)])
    assert found["fully_right"] is True


@pytest.mark.parametrize("checks", [{}, {"verifier": "tiny_world", "rewards": {"functions": [{"name": "exact"}]}}])
def test_one_kind_of_check_is_named(checks: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="give either `verifier` or `rewards`"):
        HeldoutConfig.model_validate({"data_path": "a.jsonl", "max_samples": 1, **checks})

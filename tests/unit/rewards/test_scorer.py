"""Several functions make one reward; what is missing stays missing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from nemotron.config.schema.rewards import RewardConfig
from nemotron.rewards import build_rewards, row_problems
from nemotron.rewards.scorer import combine

TAGS = {"name": "format", "tags": ["answer"]}
EXACT = {"name": "exact", "extract": "<answer>(.*?)</answer>"}


def config(*functions: dict[str, Any], **keys: Any) -> RewardConfig:
    return RewardConfig.model_validate({"functions": list(functions), **keys})


def test_weighted_sum_and_components() -> None:
    with build_rewards(config({**EXACT, "weight": 2.0}, {**TAGS, "weight": 0.5}, workers=2)) as scorer:
        assert scorer.labels == ("exact", "format")
        right = scorer.score({"answer": 7}, "<answer>7</answer>", ended=True)
        wrong = scorer.score({"answer": 7}, "<answer>8</answer>", ended=True)
    assert (right.reward, right.components, right.missing) == (2.5, {"exact": 1.0, "format": 1.0}, {})
    assert (wrong.reward, wrong.components) == (0.5, {"exact": 0.0, "format": 1.0})


def test_a_missing_component_leaves_the_sample_without_reward() -> None:
    with build_rewards(config(EXACT, TAGS)) as scorer:
        score = scorer.score({}, "<answer>7</answer>", ended=True)
    assert score.reward is None
    assert score.components == {"exact": None, "format": 1.0}
    assert score.missing == {"exact": "the row has no `expected_answer` or `answer`"}


def test_an_optional_component_hands_its_weight_on() -> None:
    rewards = config({**EXACT, "weight": 2.0, "optional": True}, {**TAGS, "weight": 0.5})
    assert combine(rewards, {"exact": 1.0, "format": 1.0}) == 2.5
    assert combine(rewards, {"exact": None, "format": 1.0}) == 2.5
    assert combine(rewards, {"exact": None, "format": 0.0}) == 0.0
    assert combine(rewards, {"exact": 1.0, "format": None}) is None
    assert combine(config({**TAGS, "optional": True}), {"format": None}) is None


def test_many_keep_their_order() -> None:
    with build_rewards(config(EXACT, workers=3)) as scorer:
        scores = scorer.score_many(({"answer": i % 5}, f"<answer>{i % 3}</answer>", True) for i in range(60))
    assert [score.reward for score in scores] == [float(i % 5 == i % 3) for i in range(60)]


def test_rows_are_checked_without_an_answer() -> None:
    rewards = config(TAGS, EXACT)
    assert row_problems(rewards, {"answer": "x"}) == []
    assert row_problems(rewards, {"answer": {}}) == [
        (1, "`expected_answer` or `answer` must be a text, a number or a list of them")
    ]


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ([], "at least 1 item"),
        ([TAGS, TAGS], "called `format`"),
        ([{**TAGS, "weight": -1.0}], "positive weight"),
        ([{"name": "format"}], "demands nothing"),
        ([{"name": "format", "tags": ["a"], "prefilled": ["b"]}], "not in `tags`"),
        ([{"name": "regex"}], "either `pattern` or `pattern_field`"),
        ([{"name": "regex", "pattern": "("}], "no regular expression"),
        ([{"name": "json_schema"}], "give one of"),
        ([{"name": "user", "function": "no_colon"}], "match pattern"),
        ([{"name": "magic"}], "expected tags"),
        ([{**TAGS, "wieght": 1.0}], "not permitted"),
    ],
)
def test_refused(functions: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(*functions)

"""Verifiers as a source of rewards: sums, pass rate, and what is missing."""

from __future__ import annotations

import pytest

from nemotron.config.schema.rewards import RewardConfig
from nemotron.contracts.samples import Completion
from nemotron.data.rows import PromptRow
from nemotron.rewards.scorer import build_rewards
from nemotron.rewards.source import VerifierSource, passed
from nemotron.rewards.types import Score

CONFIG = RewardConfig.model_validate(
    {
        "functions": [
            {"name": "exact", "weight": 2.0},
            {"name": "format", "label": "short", "max_characters": 5},
            {"name": "format", "label": "rude", "weight": -0.5, "require": ["fool"]},
        ]
    }
)
ROW = PromptRow("rows:1", [{"role": "user", "content": "?"}], None, {"expected_answer": "4"})
DONE = Completion([1], [0.0], truncated=False)


def test_rewards_details_and_metrics() -> None:
    with build_rewards(CONFIG) as scorer:
        source = VerifierSource(scorer, CONFIG)
        good = source.submit(ROW, ["4", "four, fool"], [DONE, DONE], seed=1).result(10)
        unfit = PromptRow("rows:2", ROW.messages, None, {})
        bad = source.submit(unfit, ["4"], [DONE], seed=1).result(10)
        metrics = source.metrics([good, bad])
        error = source.too_many_missing([good, bad], 2, 0.1)
    assert list(good.rewards) == [3.0, -0.5]
    assert good.details[0] == {"components": {"exact": 1.0, "short": 1.0, "rude": 0.0}, "passed": True}
    assert (list(bad.rewards), bad.missing) == ([None], 1)
    assert "passed" not in bad.details[0]
    assert metrics["reward/exact/mean"] == 0.5
    assert metrics["reward/short/mean"] == pytest.approx(2 / 3)
    assert metrics["train/pass_rate"] == 0.5
    assert metrics["reward/exact/missing_share"] == pytest.approx(1 / 3)
    assert [value for name, value in metrics.items() if name.startswith("reward/missing/exact/")] == [1.0]
    assert error.message.startswith("33% of the responses in step 2 could not be scored, the limit is 10%: exact: ")


@pytest.mark.parametrize(
    ("components", "right"),
    [
        ({"exact": 1.0, "short": 1.0, "rude": 0.0}, True),
        ({"exact": 1.0, "short": 0.5, "rude": 0.0}, False),
        ({"exact": 1.0, "short": 1.0, "rude": 1.0}, False),
        ({"exact": 1.0, "short": None, "rude": 0.0}, True),
        ({"exact": None, "short": None, "rude": None}, False),
    ],
)
def test_passed(components: dict[str, float | None], right: bool) -> None:
    assert passed(Score(0.0, components, {}), CONFIG) is right

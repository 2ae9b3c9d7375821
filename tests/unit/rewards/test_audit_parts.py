"""The sample, what is asked about it, the results and the limits."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron.audit import scoring
from nemotron.audit.judging import Questions
from nemotron.audit.results import crossed, results
from nemotron.audit.sample import draw
from nemotron.config.schema.judge import GenrmCompareConfig, JudgeConfig
from nemotron.config.schema.reward_audit import AuditedRewardModel, AuditLimits, AuditSettings, LabelledPairs
from nemotron.errors import DataError
from nemotron.judge.groups import JudgeSettings
from nemotron.runs.jsonl import to_json
from tests.unit.rewards.audit_pairs import judged, pair, scored

ROWS = [
    {"prompt": f"p{k}", "chosen": "yes", "rejected": "no", "principle": "Be kind." if k % 2 else " "} for k in range(50)
]
SETTINGS = AuditSettings(
    pairs=10,
    seed=1,
    both_orders=True,
    repeats=3,
    repeat_pairs=4,
    repeat_temperature=0.5,
    compare_verdicts=[],
    worst=5,
)
QUESTIONS = Questions(JudgeSettings(GenrmCompareConfig(), JudgeConfig()), SETTINGS, "judge")


def written(path: Path, rows: list[dict[str, Any]]) -> LabelledPairs:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return LabelledPairs(data_path=str(path))


def prompts(data: LabelledPairs, count: int | None, seed: int) -> list[str]:
    return [one.messages[0]["content"] for one in draw(data, count, seed).pairs]


def test_the_sample_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    data = written(tmp_path / "a.jsonl", ROWS)
    shuffled = written(tmp_path / "b.jsonl", random.Random(1).sample(ROWS, len(ROWS)))
    chosen = prompts(data, 10, 7)
    assert len(set(chosen)) == 10
    assert prompts(shuffled, 10, 7) == chosen
    assert prompts(data, 20, 7)[:10] == chosen, "a larger sample holds the smaller one"
    assert prompts(data, 10, 8) != chosen
    assert len(prompts(data, None, 7)) == len(prompts(data, 500, 7)) == draw(data, 1, 7).rows == 50


def test_principles_and_renamed_fields(tmp_path: Path) -> None:
    data = written(tmp_path / "a.jsonl", ROWS)
    assert {one.principle for one in draw(data, None, 1).pairs} == {"Be kind.", None}
    renamed = [{"q": row["prompt"], "good": "yes", "bad": "no"} for row in ROWS]
    keys = {"prompt_key": "q", "chosen_key": "good", "rejected_key": "bad"}
    other = written(tmp_path / "b.jsonl", renamed).model_copy(update=keys)
    assert [one.chosen for one in draw(other, 3, 1).pairs] == ["yes"] * 3
    with pytest.raises(DataError, match="has no pairs"):
        draw(written(tmp_path / "c.jsonl", []), 3, 1)


def test_a_key_says_what_is_asked() -> None:
    first, later = pair(0), pair(4)
    key = QUESTIONS.key(first)
    assert QUESTIONS.key(replace(first, row_id="elsewhere:9")) == key, "the place of a row is no part of the question"
    for other in (replace(first, chosen="better"), replace(first, principle="Be kind."), replace(first, index=9)):
        assert QUESTIONS.key(other) != key
    assert QUESTIONS.repeats(later) == 0
    for change in ({"seed": 2}, {"both_orders": False}, {"repeat_temperature": None}):
        assert replace(QUESTIONS, audit=SETTINGS.model_copy(update=change)).key(first) != key
    hotter = GenrmCompareConfig(use_principle=True)
    assert replace(QUESTIONS, settings=JudgeSettings(hotter, JudgeConfig())).key(first) != key
    assert replace(QUESTIONS, model="other").key(first) != key


def test_what_is_asked_is_what_trains_but_for_the_pairing() -> None:
    trained = GenrmCompareConfig(
        num_rollouts_per_prompt=8, comparison_strategy="all_pairs", num_judges_per_comparison=2, answer_bonus=0.3
    )
    questions = replace(QUESTIONS, settings=JudgeSettings(trained, JudgeConfig()))
    compare = questions.as_trained().compare
    assert (compare.comparison_strategy, compare.num_rollouts_per_prompt) == ("circular", 2)
    assert (compare.num_judges_per_comparison, compare.answer_bonus) == (2, 0.3)
    again = questions.again(3).compare
    assert (again.num_judges_per_comparison, again.genrm_responses_create_params.temperature) == (3, 0.5)
    assert questions.count([pair(k) for k in range(10)]) == 10 * 2 * 2 + 4 * 2 * 3


def test_batches_of_a_reward_model() -> None:
    cut = scoring.batches([pair(k) for k in range(10)], 4)
    assert [len(batch) for batch in cut] == [4, 4, 2]
    model = AuditedRewardModel(path="rm", precision="float32", batch_size=4)
    key = scoring.key(model, pair(0))
    assert scoring.key(model.model_copy(update={"batch_size": 5}), pair(0)) != key
    assert scoring.key(model, pair(1)) != key


def test_results_are_json_with_every_interval() -> None:
    rows = judged([pair(k) for k in range(20)], lambda a, b: (5, 2, 1) if a == "good" else (2, 5, 6), repeats=2)
    found = json.loads(to_json(results(rows, kind="judge", pairs_in_data=90, worst=5)))
    assert found["metrics"]["agreement"] == 1
    assert found["metrics"]["pairs_in_data"] == 90
    for name, value in found["metrics"].items():
        if name.endswith("_low"):
            assert value <= found["metrics"][name.removesuffix("_low")] <= found["metrics"][f"{name[:-4]}_high"], name
    assert found["details"]["worst"] == []
    wrong = results(scored([pair(0), pair(1)], [-2.0, 1.0]), kind="reward_model", pairs_in_data=2, worst=5)
    assert [one["row_id"] for one in wrong["details"]["worst"]] == ["pairs.jsonl:1"]


def test_limits() -> None:
    none = AuditLimits(min_agreement=None, max_position_bias=None, max_length_bias=None, max_missing_share=None)
    metrics = {"agreement": 0.7, "position_bias": -0.3, "length_bias": 0.2, "missing_share": 0.1}
    assert crossed(metrics, none) == []
    tight = AuditLimits(min_agreement=0.8, max_position_bias=0.1, max_length_bias=0.1, max_missing_share=0.0)
    assert crossed(metrics, tight) == [
        "agreement 0.700 is below `limits.min_agreement` 0.8",
        "position bias -0.300 is beyond `limits.max_position_bias` 0.1",
        "length bias 0.200 is beyond `limits.max_length_bias` 0.1",
        "missing share 0.100 is beyond `limits.max_missing_share` 0",
    ]
    exact = AuditLimits(min_agreement=0.7, max_position_bias=0.3, max_length_bias=0.2, max_missing_share=0.1)
    assert crossed(metrics, exact) == []
    assert (
        crossed({**metrics, "agreement": 0.9, "missing_share": 0.0, "position_bias": None, "length_bias": 0}, tight)
        == []
    )
    assert crossed(dict.fromkeys(metrics), tight) == ["agreement is not known, as every verdict is missing"]

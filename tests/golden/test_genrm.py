"""NeMo-Gym's genrm_compare, number by number: pairs, verdict parsing, extraction, aggregation, judge messages.

Vectors of 0.4.0 let NaN and Infinity pass as scores; what 0.7.0 changes is in ``delta_0_7_0`` and is what this project
does by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from nemotron.judge.compare import aggregate, comparison_pairs
from nemotron.judge.messages import judge_messages
from nemotron.judge.parsing import parse_verdict
from nemotron.judge.responses import prompt_key, read_conversation, read_response, shown_answer, typed_messages
from nemotron.judge.style import RewardTerms, count_style, low_is_good_weights, style_density
from nemotron.judge.types import Verdict
from tests.golden.golden_vectors import Case


def numbers(values: list[Any]) -> list[float]:
    return [float(value) for value in values]


def parsed(case: Mapping[str, Any], *, allow_non_finite: bool) -> list[float] | None:
    verdict = parse_verdict(
        case["judge_output"],
        default_score=case.get("default_score", 3.0),
        default_ranking=case.get("default_ranking", 3.5),
        allow_non_finite=allow_non_finite,
    )
    return None if verdict is None else [verdict.score_1, verdict.score_2, verdict.ranking]


def exactly(values: list[float]) -> Any:
    return pytest.approx(values, rel=0, abs=0, nan_ok=True)


@pytest.mark.golden("genrm_compare", part="pairs")
def test_pairs(case: Case) -> None:
    data = case.data
    if "error" in data:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
            comparison_pairs(data["strategy"], data["n"])
        assert type(caught.value).__name__ == data["error"]["type"]
        assert str(caught.value) == data["error"]["message"]
        return
    pairs = comparison_pairs(data["strategy"], data["n"])
    assert [list(pair) for pair in pairs] == data["pairs"]
    assert len(pairs) == data["num_pairs"]


@pytest.mark.golden("genrm_compare", part="parse")
def test_parse(case: Case) -> None:
    data = case.data
    found = parsed(data, allow_non_finite=case.file["source"]["version"].startswith("0.4."))
    if data["raise_on_fail_raises"] is not None:
        assert found is None
        assert numbers(data["result"]) == [data["default_score"], data["default_score"], data["default_ranking"]]
    else:
        assert found == exactly(numbers(data["result"]))


@pytest.mark.golden("genrm_compare", part=None)
def test_parse_as_0_7_0(case: Case) -> None:
    """Our default is 0.7.0's: the vectors that it changes, and every other one unchanged."""
    delta = {entry["name"]: entry for entry in case.file["delta_0_7_0"]["parse"]}
    for data in case.file["parse"]:
        found = parsed(data, allow_non_finite=False)
        expected = numbers(delta[data["name"]]["result_0_7_0"] if data["name"] in delta else data["result"])
        default = [data["default_score"], data["default_score"], data["default_ranking"]]
        assert (default if found is None else found) == exactly(expected), data["name"]
    for data in delta.values():
        as_0_7, as_0_4 = parsed(data, allow_non_finite=False), parsed(data, allow_non_finite=True)
        assert ([3.0, 3.0, 3.5] if as_0_7 is None else as_0_7) == exactly(numbers(data["result_0_7_0"])), data["name"]
        assert ([3.0, 3.0, 3.5] if as_0_4 is None else as_0_4) == exactly(numbers(data["result_0_4_0"])), data["name"]


@pytest.mark.golden("genrm_compare", part="extract")
def test_extract(case: Case) -> None:
    response = read_response(case.data["response_obj"])
    assert [response.reasoning, response.answer] == case.data["reasoning_and_text"]
    assert shown_answer(response) == case.data["output_text"]


@pytest.mark.golden("genrm_compare", part="style")
def test_style(case: Case) -> None:
    counts = count_style(case.data["text"])
    assert case.data["counts"] == {
        "header_count": counts.headers,
        "list_count": counts.list_items,
        "bold_count": counts.bold,
        "emoji_count": counts.emoji,
    }
    assert style_density(case.data["text"]) == case.data["density"]


@pytest.mark.golden("genrm_compare", part="length_weights")
def test_length_weights(case: Case) -> None:
    assert low_is_good_weights(case.data["lengths"]) == case.data["weights"]


@pytest.mark.golden("genrm_compare", part="style_density_weights")
def test_style_density_weights(case: Case) -> None:
    assert low_is_good_weights(case.data["densities"]) == case.data["weights"]


@pytest.mark.golden("genrm_compare", part="aggregate")
def test_aggregate(case: Case) -> None:
    """NeMo-Gym's default score for a response without a verdict is asked for here; the loop never asks for it."""
    data = dict(case.data)
    params = dict(data["params"])
    method, default_score = params.pop("aggregator_method"), params.pop("default_score", 3.0)
    if "error" in data:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
            aggregate([], [], [], RewardTerms(**params), method=method, default_score=default_score)
        assert type(caught.value).__name__ == data["error"]["type"]
        assert str(caught.value) == data["error"]["message"]
        return
    result = aggregate(
        [Verdict(*map(float, scores)) for scores in data["comparison_results"]],
        [(first, second) for first, second, _ in data["comparison_metadata"]],
        [read_response(response) for response in data["response_objs"]],
        RewardTerms(**params),
        method=method,
        default_score=default_score,
    )
    assert result.rewards == pytest.approx(data["rewards"], rel=1e-6, abs=1e-12)
    assert result.base_scores == pytest.approx(data["base_scores"], rel=1e-6, abs=1e-12)
    assert result.bonuses == pytest.approx(data["bonuses"], rel=1e-6, abs=1e-12)
    assert result.metrics == pytest.approx(data["metrics"], rel=1e-6, abs=1e-12)


@pytest.mark.golden("genrm_compare", part="prompt_keys")
def test_prompt_key(case: Case) -> None:
    data = case.data
    assert prompt_key(data["input"], data["principle"]) == data["key_from_plain_dicts"]
    typed = typed_messages(data["input"])
    assert typed == data["pydantic_dump"]
    assert prompt_key(typed, data["principle"]) == data["key_from_pydantic_input_as_used_by_verify"]
    if case.file["source"]["version"].startswith("0.4."):
        shown = read_conversation(data["input"], part_kind="output_text")
        assert shown == data["conversation_history_sent_to_judge"]


@pytest.mark.golden("genrm_compare", part=None)
def test_judge_messages(case: Case) -> None:
    cases = case.file["genrm_model_messages"]["cases"]
    assert cases
    for data in cases:
        given = data["metadata"]
        messages = judge_messages(
            [{"role": "user", "content": "q"}],
            given.get("response_1"),
            given.get("response_2"),
            principle=given.get("principle"),
            supports_principle_role=data["supports_principle_role"],
        )
        assert messages == data["result"]["messages"]


@pytest.mark.golden("genrm_http_roundtrip", part=None)
def test_http_roundtrip(case: Case) -> None:
    """The captured run: circular pairs, answers without their reasoning, the principle as a role, and the reward."""
    row, log = case.file["row"], case.file["upstream_log"]
    sent = [entry["body"] for entry in log if entry["body"]["model"] == "judge-stub"]
    assert sent
    conversation = read_conversation(row["responses_create_params"]["input"])
    answers = [next(m["content"] for m in body["messages"] if m["role"] == "response_1") for body in sent]
    for body, (first, second) in zip(sent, comparison_pairs("circular", len(sent)), strict=True):
        expected = judge_messages(conversation, answers[first], answers[second], principle=row["principle"])
        assert body["messages"] == expected
    assert case.file["result"]["response"]["output"][1]["content"][0]["text"] == answers[0]
    own = read_response(case.file["result"]["response"])
    assert shown_answer(own) == answers[0]
    assert own.reasoning == "hmm 1"

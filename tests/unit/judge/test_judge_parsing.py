"""The parser beyond the golden vectors: linear time, the objects of the definition, no exception ever."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.judge.parsing import balanced_objects, parse_verdict
from nemotron.judge.types import Verdict

CASES = Path(__file__).parents[2] / "cases" / "verdicts.jsonl"


def parse(text: str) -> Verdict | None:
    return parse_verdict(text, default_score=3.0, default_ranking=3.5)


def balanced_by_definition(text: str) -> list[str]:
    """From each brace, read on until it balances; where it never does, start one character later. Quadratic."""
    found, start = [], 0
    while start < len(text):
        end = _end_of_object(text, start) if text[start] == "{" else None
        if end is None:
            start += 1
        else:
            found.append(text[start : end + 1])
            start = end + 1
    return found


def _end_of_object(text: str, start: int) -> int | None:
    depth, quoted, position = 0, False, start
    while position < len(text):
        char = text[position]
        if quoted and char == "\\":
            position += 1
        elif char == '"':
            quoted = not quoted
        elif not quoted and char in "{}":
            depth += 1 if char == "{" else -1
            if depth == 0:
                return position
        position += 1
    return None


@given(st.text(alphabet='{}"\\ a', max_size=40))
def test_scan_finds_what_the_definition_finds(text: str) -> None:
    assert balanced_objects(text) == balanced_by_definition(text)


@given(st.text(alphabet='{}[]"\\:,`json score_1 0123.eEnNaI\n', max_size=80) | st.text(max_size=60))
def test_any_text_gives_a_verdict_or_none(text: str) -> None:
    found = parse(text)
    assert found is None or isinstance(found, Verdict)


@pytest.mark.parametrize("unit", ["{", '{"', "```json\n{", "```json", '{"a":"\\', "}{", '{"score_1":'])
def test_long_broken_output_costs_little(unit: str) -> None:
    """NeMo-Gym needs 2.5 s for 8,000 unclosed braces; here 100,000 characters must do."""
    text = unit * (100_000 // len(unit))
    started = time.process_time()
    assert parse(text) is None
    assert time.process_time() - started < 20, "where it is quadratic, it takes minutes"


@pytest.mark.parametrize(
    "text",
    [
        '{"score_1": 1' + "0" * 400 + "}",
        '{"score_1": ' + "1" * 5000 + "}",
        '{"a": ' * 20_000 + "1" + "}" * 20_000,
        '{"score_1": NaN}',
        '{"score_1": "Infinity"}',
        '{"overall": {"x": 1}, "score_1": 4}',
    ],
    ids=["too large for a float", "too many digits", "too deep", "nan", "infinity", "overall without a key"],
)
def test_not_a_verdict(text: str) -> None:
    assert parse(text) is None


def test_a_bad_object_does_not_hide_a_good_one() -> None:
    assert parse('{"score_1": NaN} {"score_1": 5, "score_2": 1, "ranking": 1} {"score_1": null}') == Verdict(5, 1, 1)


def test_unclosed_fence_is_read_as_plain_text() -> None:
    assert parse('```json\n{"score_1": 5, "score_2": 1, "ranking": 1}') == Verdict(5, 1, 1)


def strictly(text: str) -> Verdict | None:
    return parse_verdict(text, default_score=None, default_ranking=3.5)


@pytest.mark.parametrize("case", [json.loads(line) for line in CASES.read_text().splitlines()])
def test_replies_of_judges(case: dict[str, Any]) -> None:
    assert strictly(case["reply"]) == (None if case["want"] is None else Verdict(*case["want"]))


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("4")
KEYS = st.sampled_from(["score_1", "score_2", "score2", "ranking", "overall"])


@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=5), max_size=3), st.sampled_from(["", "<think>", "</think>"]))
def test_a_verdict_has_both_scores_or_is_missing(objects: list[dict[str, Any]], tag: str) -> None:
    """Whatever a judge writes, a score that it did not give never decides."""
    found = strictly(tag.join(json.dumps(value) for value in objects))
    given_scores = [(_number(value.get("score_1")), _number(value.get("score_2"))) for value in objects]
    assert found is None or (found.score_1, found.score_2) in given_scores


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def test_half_a_verdict_counts_where_a_config_sets_the_default() -> None:
    assert parse('{"score_1": 4, "score2": 5, "ranking": 5}') == Verdict(4, 3, 5)


def test_what_a_judge_writes_before_its_verdict_costs_no_step_of_python() -> None:
    def lines(text: str) -> int:
        count = 0

        def line(frame: FrameType, event: str, argument: object) -> object:
            nonlocal count
            count += event == "line"
            return line

        sys.settrace(line)
        try:
            assert balanced_objects(text) == ['{"score_1": 4}']
        finally:
            sys.settrace(None)
        return count

    assert lines("The first one is right. " * 200 + '{"score_1": 4}') == lines('{"score_1": 4}')

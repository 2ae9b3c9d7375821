"""Exact, choice and format read answers as a person would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.config.schema.rewards import ChoiceRewardConfig, ExactRewardConfig, FormatRewardConfig
from nemotron.rewards.choices import Choice
from nemotron.rewards.plain import Exact, Format
from nemotron.rewards.text import MISSING, answer_part, field, last_boxed, last_fenced
from nemotron.rewards.types import VerifierError


def cases(name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (Path(__file__).parents[2] / "cases" / f"{name}.jsonl").read_text().splitlines()
    ]


OPTIONS: dict[str, Any] = {"options": [{"A": "Paris"}, {"B": "Rome"}, {"C": "Oslo"}], "expected_answer": "B"}

EXACT = [
    # options, right answer, response, value
    ({}, "Rome", " rome\n", 1.0),
    ({}, "Rome", "Rome.", 0.0),
    ({"ignore_punctuation": True}, "Rome", "Rome.", 1.0),
    ({"ignore_case": False}, "Rome", "rome", 0.0),
    ({"ignore_articles": True}, "city", "The city", 1.0),
    ({"collapse_whitespace": False}, "a b", "a  b", 0.0),
    ({}, "a b", "a \n b", 1.0),
    ({}, "12", "\uff11\uff12", 1.0),
    ({"normalize_unicode": False}, "12", "\uff11\uff12", 0.0),
    ({}, ["Rome", "Roma"], "roma", 1.0),
    ({}, 12, "12", 1.0),
    ({"match": "contains"}, "4", "It is 42", 0.0),
    ({"match": "contains"}, "4", "It is 4.", 1.0),
    ({"match": "starts_with"}, "yes", "Yes, it is", 1.0),
    ({"match": "starts_with"}, "yes", "Yesterday", 0.0),
    ({"match": "ends_with"}, "yes", "I say yes", 1.0),
    ({"extract": "<a>(.*?)</a>"}, "4", "<a>3</a><a>4</a> x", 1.0),
    ({"extract": "[0-9]+"}, "4", "first 3, then 4", 1.0),
    ({"extract": "[0-9]+"}, "4", "four", 0.0),
    ({}, "4", "<think>5</think>4", 1.0),
    ({"strip_thinking": False}, "4", "<think>5</think>4", 0.0),
]


@pytest.mark.parametrize(("options", "gold", "response", "value"), EXACT)
def test_exact(options: dict[str, Any], gold: Any, response: str, value: float) -> None:
    function = Exact(ExactRewardConfig.model_validate({"name": "exact", **options}))
    assert function({"answer": gold}, response, ended=True) == value
    assert function({"expected_answer": gold, "answer": "other"}, response, ended=True) == value


CHOICE = [
    # extract, response, chosen letter
    ("lenient", "\\boxed{B}", "B"),
    ("lenient", "\\boxed{\\text{B}}", "B"),
    ("lenient", "\\boxed{B. Rome}", "B"),
    ("lenient", "Not (A). The answer is (B).", "B"),
    ("lenient", "Answer: b", "B"),
    ("lenient", "**Answer:** **B**", "B"),
    ("lenient", "The answer is a joke", None),
    ("lenient", "The answer is B, not (A)", "B"),
    ("lenient", "B", "B"),
    ("lenient", "b.", "B"),
    ("lenient", "So it is\n**B**\n", "B"),
    ("lenient", "B) Rome", "B"),
    ("lenient", "It must be Rome", "B"),
    ("lenient", "Rome or Oslo", None),
    ("lenient", "A man walked by", None),
    ("lenient", "(D)", None),
    ("lenient", "", None),
    ("boxed", "Answer: B", None),
    ("boxed", "\\boxed{A} no \\boxed{B}", "B"),
    ("answer_colon", "answer is B", "B"),
    ("answer_colon", "\\boxed{B}", None),
    ("answer_colon", "Answer: Bad", None),
    (r"choice=(\w)", "choice=A choice=b", "B"),
    ("lenient", "<think>Answer: A</think> Answer: B", "B"),
]


@pytest.mark.parametrize(("extract", "response", "letter"), CHOICE)
def test_choice(extract: str, response: str, letter: str | None) -> None:
    function = Choice(ChoiceRewardConfig.model_validate({"name": "choice", "extract": extract}))
    for right in "ABC":
        assert function({**OPTIONS, "expected_answer": right}, response, ended=True) == float(right == letter)


@pytest.mark.parametrize("case", cases("choice"))
def test_answers_as_models_write_them(case: dict[str, Any]) -> None:
    function = Choice(ChoiceRewardConfig.model_validate({"name": "choice"}))
    assert function.chosen(case["answer"], case["options"]) == case["want"]


NOISE = st.lists(st.sampled_from(["\\boxed{x^2}", "\\boxed{}", "Answer: see below", "a (B) test", "E=mc", "so"])).map(
    "\n".join
)
FORMS = [
    "\\boxed{%s}",
    "\\boxed{\\text{%s}}",
    "\\boxed{\\textbf{(%s)}\\ 12}",
    "Answer: %s",
    "**Answer:** **%s**",
    "Answer: $%s$",
]


@given(NOISE, st.sampled_from(FORMS), st.sampled_from("ABC"), NOISE)
def test_what_is_no_answer_hides_none(before: str, form: str, letter: str, after: str) -> None:
    """A box with a formula, or a word after `Answer:`, is not the end of the search."""
    function = Choice(ChoiceRewardConfig.model_validate({"name": "choice"}))
    row = {**OPTIONS, "expected_answer": letter}
    for said in (letter, row["options"]["ABC".index(letter)][letter]):
        if said == letter or "(" not in form:
            assert function(row, f"{before}\n{form % said}\n{after}", ended=True) == 1.0


@pytest.mark.parametrize(
    "unit", ["\n", " ", "*", "_ ", "(", "Answer", "Answer: ", "answer is ", "\\boxed{", "\\boxed{}"]
)
@pytest.mark.timeout(20)
def test_long_answers_of_nothing_come_to_an_end(unit: str) -> None:
    """A pattern that walks the same white space twice takes minutes for this."""
    function = Choice(ChoiceRewardConfig.model_validate({"name": "choice"}))
    for start in ("", "Answer"):
        assert function(OPTIONS, start + unit * (100_000 // len(unit)), ended=True) == 0.0


@pytest.mark.parametrize("config", [{}, {"ignore_punctuation": True}, {"match": "contains"}])
def test_a_blank_right_answer_is_found_and_pays_nobody(config: dict[str, Any]) -> None:
    function = Exact(ExactRewardConfig.model_validate({"name": "exact", **config}))
    blank = "?!" if config.get("ignore_punctuation") else " "
    assert function.problem({"answer": blank}) is not None
    for answer in ("", "anything"):
        with pytest.raises(VerifierError):
            function({"answer": blank}, answer, ended=True)


@pytest.mark.parametrize(
    ("gold", "texts"), [(1e-05, ["0.00001"]), (2.0, ["2", "2.0"]), (1e20, ["1" + "0" * 20]), (0.5, ["0.5"])]
)
def test_numbers_of_rows_are_written_as_people_write_them(gold: float, texts: list[str]) -> None:
    function = Exact(ExactRewardConfig.model_validate({"name": "exact"}))
    assert [function({"answer": gold}, text, ended=True) for text in texts] == [1.0] * len(texts)
    assert function.problem({"answer": float("nan")}) is not None


def test_choice_needs_an_answer_among_its_letters() -> None:
    function = Choice(ChoiceRewardConfig.model_validate({"name": "choice"}))
    assert function.problem(OPTIONS) is None
    assert function.problem({**OPTIONS, "expected_answer": "D"}) == "the right answer is none of the letters A, B, C"
    assert function.problem({"answer": "D"}) is None
    assert function({"options": ["Paris", "Rome"], "answer": "b"}, "I say Rome", ended=True) == 1.0


FORMAT = [
    # options, response, value
    ({"tags": ["think", "answer"]}, "<think>a</think> <answer>b</answer>", 1.0),
    ({"tags": ["think", "answer"]}, "<answer>b</answer><think>a</think>", 0.0),
    ({"tags": ["think", "answer"]}, "<think>a</think><answer> </answer>", 0.0),
    ({"tags": ["think", "answer"]}, "<think>a<answer>b</answer></think>", 0.0),
    ({"tags": ["answer"]}, "<answer>b</answer><answer>b</answer>", 0.0),
    ({"tags": ["answer"]}, "<answer>b", 0.0),
    ({"tags": ["answer"]}, "</answer>b<answer>", 0.0),
    ({"tags": ["answer"]}, "x <answer>b</answer> y", 1.0),
    ({"tags": ["answer"], "only_tags": True}, "x <answer>b</answer>", 0.0),
    ({"tags": ["answer"], "only_tags": True}, " <answer>b</answer>\n", 1.0),
    ({"tags": ["think"], "prefilled": ["think"]}, "a</think> b", 1.0),
    ({"tags": ["think"], "prefilled": ["think"]}, "<think>a</think> b", 0.0),
    ({"tags": ["think"], "prefilled": ["think"], "only_tags": True}, "a</think> b", 0.0),
    ({"require": ["[0-9]", "x$"]}, "1x", 1.0),
    ({"require": ["[0-9]", "x$"]}, "1y", 0.0),
    ({"require": ["[0-9]", "x$"], "score": "share"}, "1y", 0.5),
    ({"forbid": ["sorry"]}, "I am sorry", 0.0),
    ({"min_characters": 3, "max_characters": 5}, "abcd", 1.0),
    ({"min_characters": 3, "max_characters": 5, "score": "share"}, "ab", 0.5),
    ({"max_characters": 5}, "abcdef", 0.0),
]


@pytest.mark.parametrize(("options", "response", "value"), FORMAT)
def test_format(options: dict[str, Any], response: str, value: float) -> None:
    function = Format(FormatRewardConfig.model_validate({"name": "format", **options}))
    assert function({}, response, ended=True) == value


def test_format_of_an_answer_that_was_cut_off() -> None:
    function = Format(FormatRewardConfig.model_validate({"name": "format", "require_end": True}))
    assert (function({}, "x", ended=True), function({}, "x", ended=False)) == (1.0, 0.0)


def test_reading_fields_and_answers() -> None:
    row = {"a": {"b": 1, "c": None}, "a.b": 2, "d": {"e.f": 3}}
    assert (field(row, "a.b"), field(row, "a.c"), field(row, "x.y"), field(row, "a")) == (2, MISSING, MISSING, row["a"])
    assert answer_part("a</think>b</think>c", True) == "c"
    assert answer_part("a<think>b", True) == "a"
    assert last_boxed("\\boxed{a} \\boxed{\\frac{1}{2}} \\boxed{") == "\\frac{1}{2}"
    assert last_boxed("\\boxed{\\{1, 2\\}}") == "\\{1, 2\\}"
    assert last_boxed("none") is None
    assert last_fenced("```\na\n```\n~~~py\nb\n```\n~~~\n") == "b\n```\n"
    assert last_fenced("```\nnot closed") is None


@given(st.text("ab{}\\x ", max_size=30))
@settings(max_examples=200, deadline=None)
def test_a_balanced_box_is_read_back(text: str) -> None:
    safe = text.replace("\\", "").replace("{", "").replace("}", "")
    assert last_boxed(f"{text} \\boxed{{{safe}{{{safe}}}}} {safe}") == f"{safe}{{{safe}}}"


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_text_breaks_a_function(text: str) -> None:
    Exact(ExactRewardConfig.model_validate({"name": "exact"}))({"answer": "a"}, text, ended=True)
    Choice(ChoiceRewardConfig.model_validate({"name": "choice"}))(OPTIONS, text, ended=True)
    Format(FormatRewardConfig.model_validate({"name": "format", "tags": ["a"]}))({}, text, ended=True)

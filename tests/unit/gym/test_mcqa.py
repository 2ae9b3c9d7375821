"""Letters of multiple-choice answers, read as NeMo-Gym's mcqa server reads them."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron.gym import mcqa_old
from nemotron.gym.mcqa import grade

OPTIONS = [{"A": "Rome"}, {"B": "the lamp"}, {"C": "Monday"}, {"D": None}]
STRICT, BOXED, COLON, MARKDOWN = (
    "strict_single_letter_boxed",
    "lenient_boxed",
    "lenient_answer_colon",
    "lenient_answer_colon_md",
)


@pytest.mark.parametrize(
    ("mode", "text", "letter"),
    [
        (STRICT, r"so \boxed{B}", "B"),
        (STRICT, r"\boxed{ (B) }", "B"),
        (STRICT, r"\boxed{b}", None),
        (STRICT, r"\boxed{D}", None),
        (STRICT, r"\boxed{the lamp}", None),
        (STRICT, "B", None),
        (STRICT, "", None),
        # What was taken back does not count, whichever way.
        (STRICT, r"\boxed{A} no, \boxed{B}", "B"),
        (STRICT, r"\boxed{B} no, \boxed{A}", "A"),
        (STRICT, r"\boxed{B} no, \boxed{Z}", None),
        (STRICT, r"\boxed{B} or \boxed{", None),
        (STRICT, r"\boxed{\text{B}}", "B"),
        (STRICT, r"\boxed{B: the lamp}", "B"),
        (STRICT, r"\boxed{B) lamp}", "B"),
        (STRICT, r"\boxed{Be}", None),
        (STRICT, r"\boxed{A and B}", None),
        (BOXED, r"\boxed{The  Lamp}", "B"),
        (BOXED, r"\boxed{\text{Rome}}", "A"),
        (BOXED, r"\boxed{Rome or Monday}", None),
        (BOXED, r"\boxed{Rome} no, \boxed{the lamp}", "B"),
        (COLON, "Answer: b", "B"),
        (COLON, "The answer : The Lamp", "B"),
        (COLON, "Answer: it is B", None),
        (COLON, "Answer: see below.\nAnswer: B", None),
        (MARKDOWN, "**Answer**: B", "B"),
        (MARKDOWN, "Answer: Bees", None),
        (MARKDOWN, "Answer: A\n**Answer:** B because of the lamp", "B"),
        (MARKDOWN, "Answer: B\nAnswer: A or B", "B"),
        (MARKDOWN, "Answer: it must be B.", "B"),
        (MARKDOWN, "Answer: ب", "B"),
        (MARKDOWN, "Answer: Z", None),
    ],
)
def test_letters(mode: str, text: str, letter: str | None) -> None:
    row = {"options": OPTIONS, "expected_answer": "b", "grading_mode": mode}
    assert grade(row, text) == (float(letter == "B"), letter)


@pytest.mark.parametrize(
    ("mode", "text", "letter"),
    [
        (STRICT, r"so \boxed{B}", "B"),
        (STRICT, r"\boxed{ (B) }", "B"),
        (STRICT, r"\boxed{b}", None),
        (STRICT, r"\boxed{D}", None),
        (STRICT, r"\boxed{the lamp}", None),
        (STRICT, "B", None),
        (STRICT, "", None),
        (STRICT, r"\boxed{A} no, \boxed{B}", "A"),
        (BOXED, r"\boxed{The  Lamp}", "B"),
        (BOXED, r"\boxed{\text{Rome}}", "A"),
        (BOXED, r"\boxed{Rome or Monday}", None),
        (COLON, "Answer: b", "B"),
        (COLON, "The answer : The Lamp", "B"),
        (COLON, "Answer: it is B", None),
        (MARKDOWN, "**Answer**: B", "B"),
        (MARKDOWN, "Answer: Bees", None),
        (STRICT, r"\boxed{E = mc} so \boxed{B}", "B"),
        (STRICT, r"\boxed{Z} so \boxed{B}", "B"),
        (BOXED, r"\boxed{x^{2}} so \boxed{The lamp}", "B"),
        (BOXED, r"\boxed{\text{B}}", "B"),
        (BOXED, r"\boxed{$B$}", "B"),
        (COLON, "Answer: see below.\nAnswer: $B$", "B"),
        (COLON, "Answer: **B**", "B"),
        (MARKDOWN, "Answer: Z\n**Answer:** B", "B"),
    ],
)
def test_letters_by_the_rule_of_0_4_0(mode: str, text: str, letter: str | None) -> None:
    row = {"options": OPTIONS, "expected_answer": "b", "grading_mode": mode}
    assert mcqa_old.grade(row, text) == (float(letter == "B"), letter)


@pytest.mark.parametrize(
    ("pattern", "text", "letter"),
    [
        (r"final: (\w)", "final: a final: B", "B"),
        (r"final: (.+)", "final: monday", "C"),
        ([r"nothing (\w)", r"pick (\w)"], "pick z", "Z"),
        (r"broken (", r"\boxed{A}", "A"),
        (r"final: (\w)", r"\boxed{A}", "A"),
    ],
)
def test_a_rows_own_pattern_comes_first(pattern: Any, text: str, letter: str) -> None:
    row = {"options": OPTIONS, "expected_answer": letter, "template_metadata": {"output_regex": pattern}}
    assert grade(row, text) == (1.0, letter)


def test_without_a_right_answer_nothing_is_right() -> None:
    assert grade({"options": OPTIONS}, r"\boxed{A}") == (0.0, "A")


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match="grading_mode"):
        grade({"options": OPTIONS, "expected_answer": "A", "grading_mode": "guess"}, "A")

"""Every instruction has an answer that follows it and one that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.config.schema.rewards import RewardConfig
from nemotron.rewards import build_rewards, row_problems
from nemotron.rewards.instructions import INSTRUCTIONS, RELATIONS, sentences

CASES: dict[str, list[tuple[dict[str, Any], str, str]]] = {
    # arguments, an answer that follows, one that does not
    "keywords:existence": [({"keywords": ["cat", "dog"]}, "Dogs chase Cats", "only a cat")],
    "keywords:forbidden_words": [({"forbidden_words": ["cat"]}, "concatenate", "A Cat.")],
    "keywords:frequency": [({"keyword": "ha", "frequency": 2, "relation": "at least"}, "Ha ha", "ha")],
    "keywords:letter_frequency": [({"letter": "e", "let_frequency": 2, "let_relation": "less than"}, "Eva", "Eve")],
    "length_constraints:number_words": [({"num_words": 3, "relation": "at most"}, "one two three", "one two, 3 4")],
    "length_constraints:number_characters": [({"num_characters": 3, "relation": "exactly"}, " abc ", "abcd")],
    "length_constraints:number_sentences": [
        ({"num_sentences": 2, "relation": "exactly"}, 'He said "Hi." It cost 3.50 dollars.', "One.")
    ],
    "length_constraints:number_paragraphs": [({"num_paragraphs": 2}, "a\n***\nb", "a\n***\n\n***\nb")],
    "length_constraints:nth_paragraph_first_word": [
        ({"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"}, "a\n\n'Then' b", "then a\n\nb"),
        ({"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "then"}, "", "then"),
    ],
    "detectable_format:number_bullet_lists": [({"num_bullets": 2}, "x\n* a\n- b", "* a\n**b** c")],
    "detectable_format:number_highlighted_sections": [({"num_highlights": 2}, "*a* and **b c**", "*a* ** **")],
    "detectable_format:multiple_sections": [
        ({"section_spliter": "Part", "num_sections": 2}, "Part 1\nx\nPart 2\ny", "Part one Part 2")
    ],
    "detectable_format:title": [({}, "<<My title>>\ntext", "<< >> text")],
    "detectable_format:json_format": [({}, '```json\n{"a": 1}\n```', "{a: 1}")],
    "detectable_format:constrained_response": [({}, "Well. My answer is no.", "No.")],
    "detectable_content:number_placeholders": [({"num_placeholders": 2}, "[name], [street]", "[name] []")],
    "detectable_content:postscript": [({"postscript_marker": "P.S."}, "Bye\nP. S. one more", "Bye P.S.")],
    "startend:end_checker": [({"end_phrase": "The End."}, '"... the end."', "the end. Really")],
    "startend:start_checker": [({"start_phrase": "Once upon"}, "once upon a time", "It was once upon")],
    "startend:quotation": [({}, '"all of it"', '"only" a part')],
    "change_case:english_capital": [({}, "ALL 3 OF IT!", "All of it")],
    "change_case:english_lowercase": [({}, "all 3 of it!", "All of it")],
    "change_case:capital_word_frequency": [
        ({"capital_frequency": 1, "capital_relation": "more than"}, "A BC d", "A Bc d")
    ],
    "punctuation:no_comma": [({}, "a b", "a, b")],
    "combination:repeat_prompt": [({"prompt_to_repeat": "What is it?"}, "what is it? It is.", "It is.")],
    "last_word:last_word_answer": [({"last_word": "contest"}, "It is a Contest.", "contest it is")],
    "last_word:last_word_sent": [({"last_word": "so"}, "Why so? Is it so!", "So it is. So.")],
    "first_word:first_word_answer": [({"first_word": "well"}, "Well, no.", "Oh well")],
    "first_word:first_word_sent": [({"first_word": "it"}, "It is. 'It' was.", "It is. Was it?")],
    "count:lowercase_counting": [({"N": 2}, "ONE two Three four", "one two three")],
    "letters:letter_counting": [({"N": 3, "relation": "at least"}, "a1b2c", "ab 12345")],
    "letters:letter_counting2": [({"letter": "e", "let_frequency": 2, "let_relation": "at least"}, "Eve", "eva")],
    "paragraphs:paragraphs": [({}, "a\n***\nb", "a\n\nb")],
    "paragraphs:paragraphs2": [({}, "a\n\n\nb", "a\nb")],
    "count:keywords_multiple": [
        (
            {f"keyword{i}": word for i, word in enumerate("abcde", 1)},
            "A b. b c c c " + "d, " * 5 + "e " * 7,
            "a b b c c c " + "d " * 5 + "e " * 8,
        )
    ],
    "format:line_indent": [({}, "a\n b\n\n   c", "a\nb"), ({}, "a\n\tb", "a")],
    "ratio:stop_words": [({"percentage": 50.0}, "the big house and a dog", "it is the dog")],
    "count:person_names": [({"N": 2.0}, "Emma and Noah", "Emma, EMMA, Bob")],
    "combination:two_responses": [({}, "a\n******\nb", "a\n******\na")],
}
CONFIG = RewardConfig.model_validate({"functions": [{"name": "instructions"}], "workers": 1})


Value = Callable[[dict[str, Any], str], float | None]


@pytest.fixture(scope="module")
def value() -> Iterator[Value]:
    """The reward of an answer, by one process for all of them."""
    with build_rewards(CONFIG) as scorer:
        yield lambda row, response: scorer.score(row, response, ended=True).reward


def row(*checks: tuple[str, dict[str, Any] | None], **more: Any) -> dict[str, Any]:
    return {"instruction_id_list": [name for name, _ in checks], "kwargs": [kwargs for _, kwargs in checks], **more}


def test_every_instruction_is_tried() -> None:
    assert set(CASES) == set(INSTRUCTIONS)


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in CASES.items() for case in cases])
def test_followed_or_not(value: Value, name: str, case: tuple[dict[str, Any], str, str]) -> None:
    arguments, follows, does_not = case
    padded = {**arguments, "a_column_of_others": None}
    assert value(row((name, padded)), follows) == float(bool(follows))
    assert value(row((name, padded)), f"<think>{follows}</think>{does_not}") == 0.0
    assert value(row((name, padded)), " ") == 0.0


def test_all_or_share(value: Value) -> None:
    checks = row(("punctuation:no_comma", {}), ("change_case:english_lowercase", None))
    assert value(checks, "A b") == 0.0
    assert value({**checks, "grading_mode": "fraction"}, "A b") == 0.5
    assert value({**checks, "grading_mode": "binary"}, "a b") == 1.0


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({}, "the row has no list `instruction_id_list`"),
        (row(("punctuation:no_coma", {})), "did you mean `punctuation:no_comma`?"),
        (
            row(("language:response_language", {"language": "de"})),
            "there is no instruction `language:response_language`",
        ),
        (row(("keywords:existence", {})), "the instruction `keywords:existence` needs `keywords`: expected a list"),
        (row(("length_constraints:number_words", {"num_words": 3, "relation": "about"})), "at least or at most"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "as long as"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": ["{}"]}, "must be an object"),
        ({"instruction_id_list": [{"a": 1}], "kwargs": [None]}, "there is no instruction"),
    ],
)
def test_rows_that_cannot_be_used(bad: dict[str, Any], problem: str) -> None:
    [(_, found)] = row_problems(CONFIG, bad)
    assert problem in found


@given(st.lists(st.text("abc ", min_size=1).filter(str.strip), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_sentences_are_counted(parts: list[str]) -> None:
    text = " ".join(f"{part.strip()}." for part in parts)
    assert sentences(text) == len(parts)
    assert sentences(text.rstrip(".")) == len(parts)


@given(st.integers(0, 50), st.integers(0, 50))
def test_relations_fit_together(count: int, bound: int) -> None:
    assert RELATIONS["less than"](count, bound) != RELATIONS["at least"](count, bound)
    assert RELATIONS["more than"](count, bound) != RELATIONS["at most"](count, bound)

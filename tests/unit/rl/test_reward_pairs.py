"""Pairs as tokens for a reward model: what is shared, what is left out."""

from __future__ import annotations

import pytest

from nemotron.data.rows import PairRow
from nemotron.errors import DataError
from nemotron.rl.reward_pairs import from_rows
from tests.unit.rl.tiny_policy import VOCABULARY, tiny_chat


def row(chosen: str, rejected: str, number: int = 1, **fields: object) -> PairRow:
    return PairRow(f"f:{number}", [{"role": "user", "content": "hi "}], chosen, rejected, fields)


def ids(text: str) -> list[int]:
    return [VOCABULARY[letter] for letter in text]


def test_what_both_answers_begin_with_is_prompt() -> None:
    [pair] = from_rows([row("abcz", "abq")], tiny_chat(), limit=20).pairs
    assert pair.group.prompt_ids == ids("hi ab")
    assert [c.token_ids for c in pair.group.completions] == [[*ids("cz"), 0], [*ids("q"), 0]]
    assert pair.row_lengths == [8, 7]
    assert pair.texts(tiny_chat()) == ("hi ", "abcz", "abq")


def test_an_answer_that_begins_with_the_other_keeps_a_token_of_its_own() -> None:
    [pair] = from_rows([row("abc", "ab")], tiny_chat(), limit=20).pairs
    assert [c.token_ids for c in pair.group.completions] == [[*ids("c"), 0], [0]]
    [bare] = from_rows([row("abc", "ab")], tiny_chat(), limit=20, add_eos=False).pairs
    assert [c.token_ids for c in bare.group.completions] == [ids("bc"), ids("b")]


def test_pairs_that_are_too_long_or_the_same_tokens_are_left_out_by_name() -> None:
    rows = [row("abcdefgh", "b", 1), row("a", "b", 2), row("A", "B", 3)]
    kept = from_rows(rows, tiny_chat(), limit=10)
    assert [pair.id for pair in kept.pairs] == ["f:2"]
    assert (kept.too_long, kept.same, kept.rejected) == (["f:1"], ["f:3"], 2)


def test_margins_come_from_a_field() -> None:
    [pair] = from_rows([row("a", "b", lead=2)], tiny_chat(), limit=20, margin_key="lead").pairs
    assert pair.margin == 2.0
    for wrong in ({}, {"lead": "2"}, {"lead": True}):
        with pytest.raises(DataError, match="no number under `lead`"):
            from_rows([row("a", "b", **wrong)], tiny_chat(), limit=20, margin_key="lead")

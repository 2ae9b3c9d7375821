"""Decoding that is held to a schema writes documents of that schema, whatever the model would rather say."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.judge.questions import verdict_schema
from nemotron.judge.server.constraint import Constraint, chain_of, token_texts
from nemotron.judge.server.protocol import ApiError

VERDICT = verdict_schema((1, 5))
# Single letters, so that everything can be written, and pieces across the borders of what the schema fixes.
LETTERS = sorted(set('{}":, score_rankingtuefl0123456789-'))
TOKENS = dict(
    enumerate([*LETTERS, '{"', '": ', ', "', "score_", '_1":', "5}", " 4,", '{"score_1": 3, "sc', "<|end|>", "é"])
)

LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-20, 20),
        st.integers(0, 30),
    ),
    st.lists(st.one_of(st.integers(0, 99), st.booleans(), st.none()), min_size=1, max_size=4).map(
        lambda v: {"enum": v}
    ),
)


def an_object(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["score", "rank", "tie", "fun"])
    return st.dictionaries(names, inner, min_size=1, max_size=3).map(
        lambda properties: {
            "type": "object",
            "properties": properties,
            "required": sorted(properties),
            "additionalProperties": False,
        }
    )


SCHEMAS = st.recursive(LEAVES, an_object, max_leaves=5)


def written(constraint: Constraint, rng: random.Random) -> str:
    """A text of tokens drawn among the allowed ones, ended at the first chance or later."""
    state, text = constraint.start, ""
    while True:
        allowed = constraint.allowed(state)
        if constraint.complete(state) and (not allowed or rng.random() < 0.5):
            return text
        assert allowed, f"nothing may follow {text!r}"
        token = rng.choice(sorted(allowed))
        state, text = allowed[token], text + TOKENS[token]


@given(SCHEMAS, st.integers(0, 2**32))
def test_whatever_is_drawn_is_a_document_of_the_schema(schema: dict[str, Any], seed: int) -> None:
    text = written(Constraint(chain_of(schema), TOKENS), random.Random(seed))
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    "text", ['{"score_1": 3, "score_2": 5, "ranking": 6}', '{"score_1":1,"score_2":2,"ranking":4}']
)
def test_the_usual_ways_to_write_a_verdict_are_allowed(text: str) -> None:
    constraint = Constraint(chain_of(VERDICT), TOKENS)
    state, by_text = constraint.start, {text: token for token, text in TOKENS.items()}
    for letter in text:
        assert not constraint.complete(state)
        state = constraint.allowed(state)[by_text[letter]]
    assert constraint.complete(state)
    assert constraint.allowed(state) == {}


@pytest.mark.parametrize("text", ['{"score_1": 6', '{"score_1": 12', '{"score_2', " {", '{"score_1": 3, "score_2": 5}'])
def test_what_is_no_verdict_is_not_allowed(text: str) -> None:
    constraint = Constraint(chain_of(VERDICT), TOKENS)
    states, by_text = [constraint.start], {text: token for token, text in TOKENS.items()}
    for letter in text:
        following = constraint.allowed(states[-1])
        if by_text[letter] not in following:
            return
        states.append(following[by_text[letter]])
    assert not constraint.complete(states[-1])
    raise AssertionError(f"{text!r} was allowed")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "number"},
        {"type": "integer"},
        {"type": "integer", "minimum": 0, "maximum": 10**9},
        {"type": "integer", "minimum": 1, "maximum": 5, "multipleOf": 2},
        {"type": "array", "items": {"type": "boolean"}},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": []},
        {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": True},
        {"anyOf": [VERDICT]},
        {"enum": [1.5]},
        {"enum": []},
        {},
    ],
)
def test_a_schema_that_it_cannot_keep_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="does not keep to such a schema") as refused:
        chain_of(schema)
    assert (refused.value.status, refused.value.param) == (400, "response_format")


def test_tokens_are_read_as_they_stand_behind_others() -> None:
    """Some tokenizers drop the space of the first token of a text."""

    def decode(texts: list[list[int]]) -> list[str]:
        words = {0: " a", 1: " b", 2: "c"}
        return ["".join(words[token] for token in text).removeprefix(" ") for text in texts]

    assert token_texts(decode, [0, 1, 2]) == {0: " a", 1: " b", 2: "c"}

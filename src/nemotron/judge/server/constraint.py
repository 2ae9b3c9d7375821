"""Decoding that is held to a JSON schema: which tokens may come next.

Only schemas with finitely many documents of one layout, as a verdict's: objects with all properties required, whole
numbers within bounds, enumerations, booleans. Their documents are a chain of choices between literal texts, so what may
follow is a walk along that chain. A schema beyond that is refused, never half kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemotron.judge.server.protocol import ApiError

State = frozenset[tuple[int, str]]
"""Where a text can stand: (link of the chain, what is written of it)."""
Link = tuple[str, ...]
"""Texts of which one stands here."""
MOST_CHOICES = 1000
_SPACE: Link = ("", " ")
_SAYS_NOTHING = frozenset({"title", "description", "$schema"})
_FIELD = "response_format"


def chain_of(schema: Any) -> tuple[Link, ...]:
    """The documents of a schema. Raises ApiError (400) for one that this server does not keep to."""
    if not isinstance(schema, dict):
        raise _unsupported("a schema is an object")
    keys = set(schema) - _SAYS_NOTHING
    if "enum" in keys and keys <= {"enum", "type"}:
        return (_literals(schema["enum"]),)
    kind = schema.get("type")
    if kind == "boolean" and keys == {"type"}:
        return (("true", "false"),)
    if kind == "integer" and keys == {"type", "minimum", "maximum"}:
        low, high = schema["minimum"], schema["maximum"]
        if not (isinstance(low, int) and isinstance(high, int) and low <= high < low + MOST_CHOICES):
            raise _unsupported(f"an integer needs bounds at most {MOST_CHOICES} apart")
        return (tuple(str(number) for number in range(low, high + 1)),)
    if kind == "object" and keys <= {"type", "properties", "required", "additionalProperties"}:
        return _object(schema)
    raise _unsupported("only objects, bounded integers, booleans and enumerations")


def _object(schema: Mapping[str, Any]) -> tuple[Link, ...]:
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not properties or schema.get("additionalProperties", False) is not False:
        raise _unsupported("an object lists its properties and has no others")
    if not isinstance(required, list) or set(map(str, required)) != set(properties):
        raise _unsupported("an object requires all of its properties")
    chain: list[Link] = [("{",)]
    for place, (name, value) in enumerate(properties.items()):
        chain += [(",",), _SPACE] if place else []
        chain += [(f"{json.dumps(name)}:",), _SPACE, *chain_of(value)]
    return (*chain, ("}",))


def _literals(values: Any) -> Link:
    if not isinstance(values, list) or not values or len(values) > MOST_CHOICES:
        raise _unsupported(f"an enumeration has 1 to {MOST_CHOICES} values")
    if not all(isinstance(value, str | int | bool) or value is None for value in values):
        raise _unsupported("an enumeration has texts, whole numbers, booleans and null")
    return tuple(dict.fromkeys(json.dumps(value) for value in values))


def _unsupported(why: str) -> ApiError:
    return ApiError(400, f"`{_FIELD}`: this server does not keep to such a schema: {why}", param=_FIELD)


class Constraint:
    """What may be written next, in tokens of one tokenizer.

    Example::

        state = constraint.start
        allowed = constraint.allowed(state)      # token id -> the state after it
        state = allowed[token]
        constraint.complete(state)               # whether the text may end here
    """

    def __init__(self, chain: Sequence[Link], tokens: Mapping[int, str]) -> None:
        """``tokens``: id -> text in the middle of a text; special tokens left out."""
        self._chain = tuple(chain)
        letters = set("".join(text for link in chain for text in link))
        self._tokens = {token: text for token, text in tokens.items() if text and letters.issuperset(text)}
        self._known: dict[State, dict[int, State]] = {}
        self.start = self._closed({(0, "")})

    def allowed(self, state: State) -> dict[int, State]:
        """Tokens that go on from a state, and where each of them leads."""
        if state not in self._known:
            found = {token: self._after(state, text) for token, text in self._tokens.items()}
            self._known[state] = {token: after for token, after in found.items() if after}
        return self._known[state]

    def complete(self, state: State) -> bool:
        """Whether the document may end here."""
        return any(link == len(self._chain) for link, _ in state)

    def _after(self, state: State, text: str) -> State:
        for letter in text:
            moved = {(link, written + letter) for link, written in state if link < len(self._chain)}
            state = self._closed({one for one in moved if any(t.startswith(one[1]) for t in self._chain[one[0]])})
            if not state:
                return state
        return state

    def _closed(self, places: set[tuple[int, str]]) -> State:
        """With every place that is reached without writing anything."""
        todo, found = list(places), set(places)
        while todo:
            link, written = todo.pop()
            after = (link + 1, "")
            if link < len(self._chain) and written in self._chain[link] and after not in found:
                found.add(after)
                todo.append(after)
        return frozenset(found)


def token_texts(decode: Callable[[list[list[int]]], list[str]], ids: Sequence[int]) -> dict[int, str]:
    """Text of each token where it follows another: some tokenizers drop the space of a first one.

    ``decode`` gives the text of each of several texts.
    """
    before = ids[0]
    [lead] = decode([[before]])
    return {
        token: text.removeprefix(lead)
        for token, text in zip(ids, decode([[before, token] for token in ids]), strict=True)
        if text.startswith(lead)
    }

"""Rows that cannot be trained on: never cut or spliced, always counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from nemotron.errors import DataError


@dataclass(frozen=True, slots=True)
class TooLong:
    """A row that was left out because it exceeds the limit of tokens."""

    id: str
    tokens: int
    limit: int
    reason: Literal["too-long"] = "too-long"


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A row that was left out because the chat template writes a part of it otherwise once others follow."""

    id: str
    reason: Literal["template-rewrites-prompt"] = "template-rewrites-prompt"


LeftOut = TooLong | Rewritten


class RewrittenError(DataError):
    """A row that is left out as :class:`Rewritten`."""


class Row(Protocol):
    """A row of text."""

    @property
    def id(self) -> str: ...


class Tokens(Protocol):
    """What becomes of it."""

    @property
    def length(self) -> int: ...


R = TypeVar("R", bound=Row)
T = TypeVar("T", bound=Tokens)


def sort_rows(rows: Iterable[R], tokens_of: Callable[[R], T], limit: int) -> tuple[list[T], list[LeftOut]]:
    """What can be used of ``rows`` within ``limit`` tokens, and those that cannot.

    Raises:
        DataError: what ``tokens_of`` raises, other than :class:`RewrittenError`.
    """
    kept: list[T] = []
    refused: list[LeftOut] = []
    for row in rows:
        try:
            tokens = tokens_of(row)
        except RewrittenError:
            refused.append(Rewritten(row.id))
            continue
        if tokens.length > limit:
            refused.append(TooLong(row.id, tokens.length, limit))
        else:
            kept.append(tokens)
    return kept, refused

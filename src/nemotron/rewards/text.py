"""Reading rows and answers: nested fields, reasoning cut off, the last match of a pattern."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from nemotron.contracts.answers import answer_of

ANSWER_FIELDS = ("expected_answer", "answer")
"""Where a row has its right answer when the config names no field."""

MISSING = object()
"""What `field` gives for a field that the row does not have. None counts as not there: Parquet fills gaps with it."""


def field(row: Mapping[str, Any], name: str) -> Any:
    """The value of ``name`` in a row, `MISSING` without one. Dots descend, a key that has dots itself comes first."""
    if name in row:
        return MISSING if row[name] is None else row[name]
    at: Any = row
    for part in name.split("."):
        if not isinstance(at, Mapping) or part not in at:
            return MISSING
        at = at[part]
    return MISSING if at is None else at


def first_field(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value of the first of ``names`` that the row has."""
    return next((value for name in names if (value := field(row, name)) is not MISSING), MISSING)


def listed_fields(names: tuple[str, ...]) -> str:
    """Field names for a message: ``\\`a\\` or \\`b\\```."""
    return " or ".join(f"`{name}`" for name in names)


def gold_answers(row: Mapping[str, Any], name: str | None) -> list[str] | None:
    """The right answers of a row as texts (a list in the row means: any of these); None when there is none to use."""
    value = field(row, name) if name else first_field(row, ANSWER_FIELDS)
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, str | int | float) and not _is_nan(item) for item in values):
        return None
    return [said for item in values for said in _said(item)]


def different_golds(row: Mapping[str, Any], name: str | None) -> list[str]:
    """Each right answer of a row once, as one text: the number 2.0 is `2`, as 2 is; empty where none can be used."""
    value = field(row, name) if name else first_field(row, ANSWER_FIELDS)
    if gold_answers(row, name) is None:
        return []
    return list(dict.fromkeys(_said(item)[0].strip() for item in (value if isinstance(value, list) else [value])))


def _said(value: str | int | float) -> list[str]:
    """How a value of a row is written as an answer: 0.00001 and not 1e-05; both 2 and 2.0 where a table has 2.0."""
    if not isinstance(value, float):
        return [str(value)]
    plain = f"{Decimal(repr(value)):f}"
    return [plain.removesuffix(".0"), plain] if plain.endswith(".0") else [plain]


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def gold_problem(row: Mapping[str, Any], name: str | None) -> str | None:
    """Why the right answers of a row cannot be used: none, of another type, or blank, which an empty answer equals."""
    names = (name,) if name else ANSWER_FIELDS
    golds = gold_answers(row, name)
    if golds is not None:
        return None if all(map(str.strip, golds)) else f"{listed_fields(names)} is blank"
    value = first_field(row, names)
    if value is MISSING:
        return f"the row has no {listed_fields(names)}"
    return f"{listed_fields(names)} must be a text, a number or a list of them"


def answer_part(response: str, strip_thinking: bool) -> str:
    """What a function looks at: the answer (`contracts.answers`), or all that was written."""
    return answer_of(response) if strip_thinking else response


def last_match(pattern: re.Pattern[str], text: str) -> str | None:
    """The first group (else the whole) of the last match."""
    found = _last(pattern, text)
    if found is None:
        return None
    return next((group for group in found.groups() if group is not None), found.group())


def last_boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{...}``, braces balanced; None without one that is closed."""
    return next(boxes_backwards(text), None)


def boxes_backwards(text: str) -> Iterator[str]:
    """The contents of all closed boxes, the last one first."""
    opened: list[int] = []
    boxes: list[tuple[int, int]] = []
    for found in _BRACE.finditer(text):
        if found[0] == "{":
            opened.append(found.start())
        elif opened:
            begin = opened.pop()
            if text.endswith("\\boxed", 0, begin):
                boxes.append((begin + 1, found.start()))
    for begin, end in sorted(boxes, reverse=True):
        yield text[begin:end]


_BRACE = re.compile(r"(?<!\\)[{}]")
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)


def last_fenced(text: str) -> str | None:
    """The content of the last closed fenced block."""
    found = _last(_FENCE, text)
    return found.group(3) if found else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)

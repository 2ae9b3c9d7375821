"""Change some fields of a JSON object and keep every other byte: numbers, escapes and order stay as written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"


def members(line: bytes) -> list[tuple[str, str]]:
    """Name and written value of each field of a JSON object that is known to be valid, in file order."""
    text = line.decode()
    at = _skip(text, _skip(text, 0) + 1)
    found = []
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        at = _value_end(text, start)
        found.append((name, text[start:at]))
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def rewritten(line: bytes, ours: Mapping[str, Any], *, without: Iterable[str] = ()) -> bytes:
    """The object with ``ours`` first, then its other fields byte for byte; ``without`` names fields to leave out."""
    gone = {*without, *ours}
    parts = [orjson.dumps(name) + b":" + orjson.dumps(value) for name, value in ours.items()]
    parts += [orjson.dumps(name) + b":" + value.encode() for name, value in members(line) if name not in gone]
    return b"{" + b",".join(parts) + b"}"


def renamed(line: bytes, names: Mapping[str, str]) -> bytes:
    """The object with some fields renamed (old name to new), values and order untouched."""
    parts = [orjson.dumps(names.get(name, name)) + b":" + value.encode() for name, value in members(line)]
    return b"{" + b",".join(parts) + b"}"


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def _value_end(text: str, start: int) -> int:
    """Where a value ends. Python refuses whole numbers of more than 4300 digits, so numbers are not converted."""
    if text[start] in "-0123456789":
        at = start + 1
        while text[at] in "+-.eE0123456789":
            at += 1
        return at
    if text[start] in "[{":
        return _nested_end(text, start)
    _, end = _DECODER.raw_decode(text, start)
    return int(end)


def _nested_end(text: str, start: int) -> int:
    """The matching bracket: only strings can hide brackets, and they are skipped as a whole."""
    depth, at = 0, start
    while True:
        letter = text[at]
        if letter == '"':
            _, at = _DECODER.raw_decode(text, at)
            continue
        depth += (letter in "[{") - (letter in "]}")
        at += 1
        if depth == 0:
            return at

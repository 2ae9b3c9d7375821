"""What an endpoint's answer says: completions of both APIs, names of models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemotron.disk.documents import parse_json
from nemotron.judge.responses import read_response

EXCERPT_CHARS = 300
_MOST_TOKENS = 1 << 32
"""What an endpoint counts beyond it is no count."""
_LARGEST_LOGPROB = 0.1
"""A probability is at most 1, but for rounding."""
_TOO_LONG_MARKS = ("context_length_exceeded", "maximum context length", "max_model_len")


@dataclass(frozen=True, slots=True)
class Said:
    """A completion."""

    text: str
    first_token: Mapping[str, float] | None
    tokens_read: int
    tokens_written: int


def chat_completion(raw: str) -> Said | None:
    """The first choice; an empty text when the model said nothing; None when this is no chat completion."""
    try:
        answer = parse_json(raw)
        choice = answer["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    if content is not None and not isinstance(content, str):
        return None
    usage = answer.get("usage")
    read, written = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    return Said(content or "", _first_token(choice), read, written)


def response_text(raw: str) -> Said | None:
    """The answer in a Responses-API object, without what was thought before; None when this is none."""
    try:
        response = parse_json(raw)
    except ValueError:
        return None
    if not isinstance(response, dict) or not isinstance(response.get("output"), list):
        return None
    return Said(read_response(response).answer, None, 0, 0)


def model_names(raw: str) -> list[str] | None:
    try:
        return [str(entry["id"]) for entry in parse_json(raw)["data"]]
    except (ValueError, KeyError, TypeError):
        return None


def too_long(raw: str) -> bool:
    """Whether a refusal means that the question does not fit the model's context."""
    return any(mark in raw for mark in _TOO_LONG_MARKS)


def excerpt(text: str) -> str:
    flat = " ".join(text.split())
    return f"`{flat[:EXCERPT_CHARS]}{'...' if len(flat) > EXCERPT_CHARS else ''}`" if flat else "nothing"


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS:
        return value
    return 0


def _first_token(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """What could stand first, by its text; of texts that several tokens have, the sum."""
    try:
        entries = choice["logprobs"]["content"][0]["top_logprobs"]
        found: dict[str, float] = {}
        for entry in entries:
            text, value = str(entry["token"]), float(entry["logprob"])
            if not value <= _LARGEST_LOGPROB:
                return None
            found[text] = value if text not in found else math.log(math.exp(value) + math.exp(found[text]))
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None
    return found or None

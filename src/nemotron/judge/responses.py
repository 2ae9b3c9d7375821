"""NeMo-Gym rows and Responses-API objects: text out of them, and the key that groups equal prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron.judge.types import JudgedResponse, Message

EMPTY_ANSWER = "None"
"""What the judge is shown for an empty answer."""


def read_response(response: object) -> JudgedResponse:
    """Reasoning and answer of a Responses-API object. Anything of another shape reads as empty text.

    Reasoning is the text of all ``summary`` parts of ``reasoning`` items, the answer that of all ``output_text`` parts
    of ``message`` items, concatenated without a separator.
    """
    items = response.get("output") if isinstance(response, Mapping) else None
    reasoning: list[str] = []
    answer: list[str] = []
    for item in _mappings(items):
        if item.get("type") == "reasoning":
            reasoning += _texts(item.get("summary"), None)
        elif item.get("type") == "message":
            answer += _texts(item.get("content"), "output_text")
    return JudgedResponse("".join(reasoning), "".join(answer))


def shown_answer(response: JudgedResponse) -> str:
    """What the judge is shown: the answer as it is, or ``None`` (the word) when it is blank."""
    return response.answer if response.answer.strip() else EMPTY_ANSWER


def read_conversation(messages: Sequence[Mapping[str, Any]], *, part_kind: str | None = None) -> list[Message]:
    """Role and text of each turn.

    Text parts of every kind (``input_text``, ``output_text``, ``text``) are joined, as NeMo-Gym 0.7.0 does. Its 0.4.0
    keeps only ``part_kind="output_text"``, which shows the judge an empty prompt for ``input_text`` parts.
    """
    turns = []
    for message in messages:
        content = message.get("content")
        text = content if isinstance(content, str) else "".join(_texts(content, part_kind))
        turns.append(Message(role=str(message.get("role", "user")), content=text))
    return turns


def prompt_key(messages: Sequence[Mapping[str, Any]], principle: str | None) -> str:
    """SHA-256 of a prompt and its principle, equal to NeMo-Gym's group key for the same plain messages."""
    document = json.dumps({"input": messages, "principle": principle}, sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()


def typed_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as NeMo-Gym's ``/verify`` keys them: with ``type: message`` filled in."""
    return [{"type": "message", **message} for message in messages]


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _texts(parts: object, kind: str | None) -> list[str]:
    return [
        part["text"]
        for part in _mappings(parts)
        if isinstance(part.get("text"), str) and (kind is None or part.get("type") == kind)
    ]

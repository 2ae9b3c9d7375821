"""The chat that a generative reward model is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemotron.judge.types import Message

ROLES = ("principle", "response_1", "response_2")
"""Roles that a judge's chat template knows beside those of a conversation."""


def judge_messages(
    conversation: Sequence[Message],
    response_1: str | None,
    response_2: str | None,
    *,
    principle: str | None = None,
    supports_principle_role: bool = True,
) -> list[Message]:
    """The conversation, then the roles ``principle``, ``response_1``, ``response_2``.

    The principle is left out when it is empty or the judge's chat template does not know the role. How a verdict has to
    look is said by the judge's chat template, not here. A response of None is left out: NeMo-Gym forwards what it has.
    """
    messages = list(conversation)
    if principle and supports_principle_role:
        messages.append(Message(role="principle", content=principle))
    for role, answer in (("response_1", response_1), ("response_2", response_2)):
        if answer is not None:
            messages.append(Message(role=role, content=answer))
    return messages


def responses_request(messages: Sequence[Message]) -> dict[str, Any]:
    """The same chat for a judge model of NeMo-Gym (``genrm_model``), which makes the roles of ``metadata`` itself."""
    return {
        "input": [{**message, "type": "message"} for message in messages if message["role"] not in ROLES],
        "metadata": {message["role"]: message["content"] for message in messages if message["role"] in ROLES},
    }

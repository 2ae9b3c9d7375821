"""One view of every prepared row: its prompt, and its two answers where it has two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemotron.data.prep.kinds import Row, reject

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, with a preferred and another answer in preference data.

    ``prompt`` is text or messages; answers are lists of messages.
    """

    prompt: str | list[Message]
    chosen: list[Message] | None = None
    rejected: list[Message] | None = None


def example(row: Row) -> Example:
    """Read a row that was kept.

    Raises:
        RejectedRow: none of the known forms.
    """
    if "context" in row and "completions" in row:
        best, worst = sorted(row["completions"], key=lambda c: int(c["rank"]))
        return Example(row["context"], _answer(best["completion"]), _answer(worst["completion"]))
    if "chosen" in row and "rejected" in row:
        chosen, rejected = _answer(row["chosen"]), _answer(row["rejected"])
        if chosen[0].get("role") in ("user", "system"):
            # Whole conversations: everything before the last message is the prompt.
            return Example(chosen[:-1], chosen[-1:], rejected[-1:])
        return Example(row["prompt"], chosen, rejected)
    params = row.get("responses_create_params")
    if isinstance(params, dict):
        return Example(params["input"])
    for name in ("messages", "prompt", "text", "question", "problem", "input"):
        if name in row:
            return Example(row[name])
    reject("missing-field", "the row has no prompt")


def _answer(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return [value] if isinstance(value, dict) else list(value)


def as_messages(prompt: str | list[Message]) -> list[Message]:
    """A prompt as messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def content_text(message: Message) -> str:
    """The text of a message; parts are joined.

    Raises:
        RejectedRow: a part is not text.
    """
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if any(not isinstance(text, str) for text in texts):
            reject("not-text", "a message has a part that is not text")
        return "".join(str(text) for text in texts)
    if not isinstance(content, str):
        reject("not-text", "a message has no text")
    return content

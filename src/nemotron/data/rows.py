"""Prompt rows: read JSONL line by line, nothing skipped in silence. No torch here.

A row carries its prompt in one of these forms (DESIGN section 8): NeMo-Gym's ``responses_create_params.input``,
``messages``, ``prompt`` or ``text``. Every other field stays with the row unchanged. Files may be compressed, as the
shards of a manifest may be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron.errors import DataError, Origin

Message = dict[str, str]

_BLOCK_BYTES = 1 << 20
_LONGEST_LINE = 1 << 28


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt.

    Example: ``PromptRow("train.jsonl:3", [{"role": "user", "content": "Hi"}], principle=None, fields={...})``.
    """

    id: str
    """``file name:line``, stable over runs."""
    messages: list[Message]
    """Conversation up to the answer; each message has ``role`` and string ``content``."""
    principle: str | None
    """What the judge is asked to look at, when the row says so."""
    fields: dict[str, Any]
    """The whole row as read."""


def read_prompts(path: Path) -> Iterator[PromptRow]:
    """Stream the rows of a JSONL file; blank lines are passed over.

    Raises:
        DataError: the file cannot be read, a line is not a JSON object, or a row has no prompt. The place is named.
    """
    for number, fields in read_objects(path):
        yield prompt_row(path, number, fields)


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stream ``(1-based line number, object)`` of a file: ``.jsonl``, ``.jsonl.gz`` or ``.jsonl.zst``.

    Raises:
        DataError: the file cannot be read, is damaged or not UTF-8, or a line is not a JSON object.
    """
    for number, line in read_lines(path):
        if line.strip():
            yield number, _parse(path, number, line)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Stream ``(1-based line number, line)`` of a plain or compressed file.

    Raises:
        DataError: the file cannot be read or is damaged.
    """
    if path.name.endswith((".gz", ".zst")):
        # Only here: plain files need none of the packages for data preparation.
        from nemotron.data.lines import read_stream

        for block in read_stream(path, _BLOCK_BYTES, _LONGEST_LINE):
            yield from enumerate(block.lines, start=block.first_line or 1)
        return
    try:
        with path.open("rb") as lines:
            yield from enumerate(lines, start=1)
    except OSError as error:
        raise DataError(
            f"cannot read data file `{path}`: {error.strerror}", hint="check `data.train.data_path` and friends"
        ) from error


def prompt_row(path: Path, number: int, fields: dict[str, Any]) -> PromptRow:
    """Find the prompt of one parsed row.

    Raises:
        DataError: no prompt in any of the known forms, or a message without role and text.
    """
    origin = Origin(str(path), line=number)
    params = fields.get("responses_create_params")
    if isinstance(params, dict):
        source = params.get("input")
    else:
        source = next((fields[name] for name in ("messages", "prompt", "text") if name in fields), None)
    if isinstance(source, str):
        source = [{"role": "user", "content": source}]
    if not isinstance(source, list) or not source:
        raise DataError(
            "row has no prompt",
            hint="give `responses_create_params.input`, `messages`, `prompt` or `text`",
            origin=origin,
        )
    principle = fields.get("principle")
    return PromptRow(
        id=f"{path.name}:{number}",
        messages=[_message(message, origin) for message in source],
        principle=principle if isinstance(principle, str) and principle.strip() else None,
        fields=fields,
    )


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise DataError("line is not UTF-8", origin=Origin(str(path), line=number)) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"line is not JSON: {error.msg}", origin=Origin(str(path), line=number, column=error.colno)
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            f"line holds a JSON {type(value).__name__}, expected an object", origin=Origin(str(path), line=number)
        )
    return value


def _message(message: Any, origin: Origin) -> Message:
    """Keep role and text. List content (Responses API parts) is joined; a part without text cannot be a text prompt."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise DataError("a prompt message needs `role` and `content`", origin=origin)
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if any(not isinstance(text, str) for text in texts):
            raise DataError("a prompt message has a part that is not text", origin=origin)
        content = "".join(text for text in texts if text)
    if not isinstance(content, str):
        raise DataError("a prompt message has no text `content`", origin=origin)
    return {"role": message["role"], "content": content}

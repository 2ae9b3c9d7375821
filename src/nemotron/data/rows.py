"""Prompt rows and preference pairs: read JSONL line by line, nothing skipped in silence. No torch here.

How a prompt or a pair may be written stands in :mod:`nemotron.data.forms`. Every other field stays with the row
unchanged. Files may be compressed, as the shards of a manifest may be.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron.data.content import check_lines, packing, unreadable
from nemotron.data.forms import PAIR_KEYS, PairKeys, read_pair, usable_prompt
from nemotron.data.turns import Message, UnusableRow, type_name
from nemotron.disk.documents import LONGEST_LINE, MalformedError, lines_of, open_regular, parse_json
from nemotron.errors import DataError, Origin

__all__ = ["PAIR_KEYS", "Message", "PairKeys", "PairRow", "PromptRow"]

_BLOCK_BYTES = 1 << 20


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


@dataclass(frozen=True, slots=True)
class PairRow:
    """A prompt with a preferred and another answer.

    Example: ``PairRow("train.jsonl:3", [{"role": "user", "content": "Hi"}], "Hello!", "What?", fields={...})``.
    """

    id: str
    """``file name:line``, stable over runs."""
    messages: list[Message]
    """The turns before the answers; each message has ``role`` and string ``content``."""
    chosen: str
    """The preferred answer."""
    rejected: str
    """The other answer; never the same text."""
    fields: dict[str, Any]
    """The whole row as read."""


def read_prompts(path: Path) -> Iterator[PromptRow]:
    """Stream the rows of a JSONL file; blank lines are passed over.

    Raises:
        DataError: the file cannot be read, a line is not a JSON object, or a row has no prompt. The place is named.
    """
    for number, fields in read_objects(path):
        yield prompt_row(path, number, fields)


def read_pairs(path: Path, keys: PairKeys = PAIR_KEYS) -> Iterator[PairRow]:
    """Stream the pairs of a JSONL file, plain or compressed; blank lines are passed over.

    Raises:
        DataError: the file cannot be read, a line is not a JSON object, or a row is no pair. The place is named.
    """
    for number, fields in read_objects(path):
        yield pair_row(path, number, fields, keys)


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stream ``(1-based line number, object)`` of a file: ``.jsonl``, ``.jsonl.gz`` or ``.jsonl.zst``.

    Raises:
        DataError: the file cannot be read, is damaged or not UTF-8, or a line is not a JSON object.
    """
    for number, line in read_lines(path):
        if line.strip():
            yield number, parse_row(path, number, line)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Stream ``(1-based line number, line)`` of a plain or compressed file.

    Raises:
        DataError: the file cannot be read, is damaged, or is something else than lines.
    """
    check_lines(path)
    if packing(path) is not None:
        # Only here: plain files need none of the packages for data preparation.
        from nemotron.data.lines import read_stream

        for block in read_stream(path, _BLOCK_BYTES, LONGEST_LINE):
            yield from enumerate(block.lines, start=block.first_line or 1)
        return
    try:
        with open_regular(path) as lines:
            for number, line in enumerate(lines_of(lines, LONGEST_LINE), start=1):
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except OSError as error:
        raise unreadable(path, error) from error


def prompt_row(path: Path, number: int, fields: dict[str, Any]) -> PromptRow:
    """Find the prompt of one parsed row.

    Raises:
        DataError: no prompt in any of the known forms, or one that a model cannot be shown.
    """
    try:
        messages = usable_prompt(fields)
    except UnusableRow as problem:
        raise placed(problem, path, number) from problem
    principle = fields.get("principle")
    return PromptRow(
        id=f"{path.name}:{number}",
        messages=messages,
        principle=principle if isinstance(principle, str) and principle.strip() else None,
        fields=fields,
    )


def pair_row(path: Path, number: int, fields: dict[str, Any], keys: PairKeys = PAIR_KEYS) -> PairRow:
    """Find the prompt and the two answers of one parsed row.

    Raises:
        DataError: none of the known forms, a tie, an empty answer, or two answers that are the same.
    """
    try:
        found = read_pair(fields, keys)
    except UnusableRow as problem:
        raise placed(problem, path, number) from problem
    return PairRow(f"{path.name}:{number}", found.messages, str(found.chosen), str(found.rejected), fields)


def placed(problem: UnusableRow, path: Path, number: int) -> DataError:
    """What is wrong with a row, as an error with its place."""
    return DataError(problem.detail, hint=problem.hint, origin=Origin(str(path), line=number))


def parse_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """The object of one line.

    Raises:
        DataError: the line is no JSON object, or one that nothing can be done with.
    """
    try:
        value = parse_json(line.strip())
    except MalformedError as error:
        origin = Origin(str(path), line=number, column=error.column)
        raise DataError(f"the line {error.message}", origin=origin) from error
    if not isinstance(value, dict):
        message = f"a row must be a JSON object, this line holds {type_name(value)}"
        raise DataError(message, origin=Origin(str(path), line=number))
    return value

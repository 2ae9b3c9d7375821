"""Prompt rows and preference pairs: read JSONL line by line, nothing skipped in silence. No torch here.

A row carries its prompt in one of these forms (DESIGN section 8): NeMo-Gym's ``responses_create_params.input``,
``messages``, ``prompt`` or ``text``. How a pair may be written stands at :func:`pair_row`. Every other field stays with
the row unchanged. Files may be compressed, as the shards of a manifest may be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

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


@dataclass(frozen=True, slots=True)
class PairKeys:
    """Fields that hold a pair, as ``data.*.{prompt_key, chosen_key, rejected_key}`` name them."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"


PAIR_KEYS = PairKeys()


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


def pair_row(path: Path, number: int, fields: dict[str, Any], keys: PairKeys = PAIR_KEYS) -> PairRow:
    """Find the prompt and the two answers of one parsed row.

    ``prompt``, ``chosen`` and ``rejected`` are texts or messages; message lists of the answers may repeat the prompt,
    which may then be left out. NeMo-RL's ``context`` with ranked ``completions`` (lower is better), HelpSteer3's
    ``overall_preference`` and NeMo-Aligner's ``chosen_response``, ``rejected_response`` are read too.

    Raises:
        DataError: none of these forms, a tie, an empty answer, or two answers that are the same.
    """
    origin = Origin(str(path), line=number)
    prompt, chosen, rejected = _pair_parts(fields, keys, origin)
    turns = _turns(prompt, origin) if prompt is not None else None
    before, chosen_text = _answer(chosen, "preferred", turns, origin)
    other_before, rejected_text = _answer(rejected, "other", turns, origin)
    if turns is None and before != other_before:
        _refuse("the two conversations differ before their last message", origin)
    messages = before if turns is None else turns
    if not messages:
        _refuse("the pair has no prompt", origin, "give `prompt`, or whole conversations as `chosen` and `rejected`")
    if chosen_text == rejected_text:
        _refuse("both answers are the same, so nothing is preferred", origin, "drop the row")
    return PairRow(f"{path.name}:{number}", messages, chosen_text, rejected_text, fields)


def _pair_parts(fields: dict[str, Any], keys: PairKeys, origin: Origin) -> tuple[Any, Any, Any]:
    """Prompt (None: inside the answers), preferred and other answer, as they are written."""
    if keys.chosen in fields and keys.rejected in fields:
        return fields.get(keys.prompt), fields[keys.chosen], fields[keys.rejected]
    if "completions" in fields and "context" in fields:
        return (fields["context"], *_ranked(fields["completions"], origin))
    if {"context", "response1", "response2", "overall_preference"} <= fields.keys():
        score, both = fields["overall_preference"], (fields["response1"], fields["response2"])
        if isinstance(score, bool) or not isinstance(score, int | float):
            _refuse("`overall_preference` must be a number", origin)
        if score == 0:
            _refuse("`overall_preference` is 0: neither answer is preferred", origin, "drop the row")
        return (fields["context"], *(both if score < 0 else both[::-1]))
    if {"prompt", "chosen_response", "rejected_response"} <= fields.keys():
        return fields["prompt"], fields["chosen_response"], fields["rejected_response"]
    if set(fields) == {"text"}:
        hint = "`nemotron steps run data_prep/rl_prep` joins NeMo-Aligner's lines: `kind: aligner_pairs` in its blend"
        _refuse("the row is one `text`, half of a pair in NeMo-Aligner's alternating lines", origin, hint)
    needs = f"give `{keys.prompt}`, `{keys.chosen}` and `{keys.rejected}`, or `context` and `completions`"
    _refuse("row is no preference pair", origin, needs)


def _ranked(both: Any, origin: Origin) -> tuple[Any, Any]:
    if not isinstance(both, list) or len(both) != 2 or not all(isinstance(c, dict) for c in both):
        _refuse("`completions` must be two objects with `rank` and `completion`", origin)
    ranks = [completion.get("rank") for completion in both]
    if any(isinstance(rank, bool) or not isinstance(rank, int) for rank in ranks):
        _refuse("each of `completions` needs a whole number as `rank`", origin)
    if ranks[0] == ranks[1]:
        _refuse(f"both completions have rank {ranks[0]}: neither is preferred", origin, "drop the row")
    first, second = both if ranks[0] < ranks[1] else reversed(both)
    return first.get("completion"), second.get("completion")


def _turns(prompt: Any, origin: Origin) -> list[Message]:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        _refuse("the prompt of a pair must be a text or messages", origin)
    messages = [_message(message, origin) for message in prompt]
    if not messages[-1]["content"].strip():
        _refuse("the prompt is empty", origin)
    return messages


def _answer(value: Any, which: str, turns: list[Message] | None, origin: Origin) -> tuple[list[Message], str]:
    """The messages before an answer, where they are written with it, and its text."""
    before: list[Message] = []
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and value:
        *before, last = [_message(message, origin) for message in value]
        if last["role"] != "assistant":
            _refuse(f"the {which} answer ends with a message of `{last['role']}`, not of `assistant`", origin)
        if before and turns is not None and before != turns:
            _refuse(f"the {which} answer has messages before its last that are not the prompt", origin)
        value = last["content"]
    if not isinstance(value, str):
        _refuse(f"the {which} answer must be a text or messages", origin)
    if not value.strip():
        _refuse(f"the {which} answer is empty", origin, "drop the row")
    if turns is None and not before:
        hint = "give `prompt` too, or whole conversations; `data_prep/rl_prep` makes them of Anthropic-HH transcripts"
        _refuse("the pair has no prompt", origin, hint)
    return before, value


def _refuse(message: str, origin: Origin, hint: str | None = None) -> NoReturn:
    raise DataError(message, hint=hint, origin=origin)


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

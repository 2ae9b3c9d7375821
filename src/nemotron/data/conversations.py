"""Conversations with the answers to learn from, as rows of supervised fine-tuning write them.

A row is a whole conversation (`messages`, or ShareGPT's `conversations`), a prompt in any of the fields that
:mod:`nemotron.data.forms` knows with its answer in a field of its own, or a preference pair, of which the preferred
answer is learned. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron.data.forms import SPOKEN, filled, pair_form, read_prompt, without_form
from nemotron.data.rows import placed, read_objects
from nemotron.data.turns import (
    ASSISTANT,
    Message,
    Row,
    UnusableRow,
    blank,
    conversation,
    message,
    no_tools,
    refuse,
    type_name,
    with_system,
)
from nemotron.suggest import listed

WHOLE = ("messages", *SPOKEN)
"""Where a whole conversation may stand."""
ANSWERS = ("output", "response", "completion", "answer")
"""Where the answer to a prompt may stand; the first of these that a row has."""


@dataclass(frozen=True, slots=True)
class AnswerKeys:
    """Fields that hold a question and its answer, as ``data.*.{input_key, output_key}`` name them; None: not named."""

    question: str | None = None
    answer: str | None = None


FOUND = AnswerKeys()
"""The fields are found by their names."""


@dataclass(frozen=True, slots=True)
class ConversationRow:
    """A conversation that is learned from.

    Example: ``ConversationRow("train.jsonl:3", [user turn, assistant turn], (1,), fields={...})``.
    """

    id: str
    """``file name:line``, stable over runs."""
    messages: list[Message]
    """All turns, the last of them an answer."""
    answers: tuple[int, ...]
    """Which turns are learned, ascending; the last turn always is."""
    fields: dict[str, Any]
    """The whole row as read."""


def read_conversations(path: Path, keys: AnswerKeys = FOUND) -> Iterator[ConversationRow]:
    """Stream the conversations of a JSONL file, plain or compressed; blank lines are passed over.

    Raises:
        DataError: the file cannot be read, a line is not a JSON object, or a row is no conversation. The place is
            named.
    """
    for number, fields in read_objects(path):
        yield conversation_row(path, number, fields, keys)


def conversation_row(path: Path, number: int, fields: dict[str, Any], keys: AnswerKeys = FOUND) -> ConversationRow:
    """Find the turns of one parsed row, and which of them are learned.

    Raises:
        DataError: none of the known forms, nothing to learn, or what a model cannot be shown.
    """
    try:
        messages, answers = read_conversation(fields, keys)
    except UnusableRow as problem:
        raise placed(problem, path, number) from problem
    return ConversationRow(f"{path.name}:{number}", messages, answers, fields)


def read_conversation(row: Row, keys: AnswerKeys = FOUND) -> tuple[list[Message], tuple[int, ...]]:
    """The turns of a row, and which of them are learned: the answers behind the first turn of somebody else.

    OpenAI's ``weight: 0`` leaves an answer out of what is learned.

    Raises:
        UnusableRow: none of the known forms, nothing to learn, or what a model cannot be shown.
    """
    messages, unlearned = _turns(row, keys)
    if messages[-1]["role"] != ASSISTANT:
        refuse("no-answer", f"the conversation ends with a turn of `{messages[-1]['role']}`, not with an answer")
    spoken = next((i for i, turn in enumerate(messages) if turn["role"] != ASSISTANT), len(messages))
    answers = [i for i, turn in enumerate(messages) if turn["role"] == ASSISTANT and i > spoken and i not in unlearned]
    if not answers:
        what = "an answer and no prompt" if spoken == len(messages) else "no answer with a weight above 0"
        refuse("nothing-to-learn", f"the conversation holds {what}")
    if answers[-1] != len(messages) - 1:
        # What stands behind the last one is never seen by the loss.
        messages = messages[: answers[-1] + 1]
    empty = next((i for i in answers if blank(messages[i]["content"])), None)
    if empty is not None:
        refuse("empty-answer", f"the answer in turn {empty + 1} of the conversation is empty")
    return messages, tuple(answers)


def _turns(row: Row, keys: AnswerKeys) -> tuple[list[Message], frozenset[int]]:
    """All turns, and which answers are said not to be learned."""
    if keys.question is None and keys.answer is None:
        pair = pair_form(filled(row))
        if pair is not None:
            reading = pair.read(row)
            return [*reading.messages, {"role": ASSISTANT, "content": str(reading.chosen)}], frozenset()
        whole = next((name for name in WHOLE if row.get(name) is not None), None)
        if whole is not None:
            return _whole(row, whole)
    source, name = keys.question, keys.answer or next((name for name in ANSWERS if row.get(name) is not None), None)
    if source is not None and row.get(source) is None:
        refuse("missing-field", "row has no prompt", f"it has no `{source}`: check `input_key` of the data set")
    if name is None or row.get(name) is None:
        hint = f"give `messages`, or a prompt and its answer in {listed(ANSWERS)}: {without_form(row)}"
        if keys.answer is not None:
            hint = f"it has no `{keys.answer}`: check `output_key` of the data set"
        refuse("missing-field", "row has no answer to learn from", hint)
    before = _question(row, source) if source is not None else _prompt(row, name)
    return [*before, *_answer(row[name], name)], frozenset()


def _whole(row: Row, name: str) -> tuple[list[Message], frozenset[int]]:
    no_tools(row)
    value = row[name]
    if value.__class__ is not list:
        refuse("wrong-type", f"`{name}` must be a list of messages, not {type_name(value)}")
    turns = conversation(value, name)
    messages = with_system(row, turns)
    shift = len(messages) - len(turns)
    unlearned = (i + shift for i, turn in enumerate(value) if turn.__class__ is dict and turn.get("weight") == 0)
    return messages, frozenset(unlearned)


def _question(row: Row, name: str) -> list[Message]:
    no_tools(row)
    return with_system(row, conversation(row[name], name))


def _prompt(row: Row, answer: str) -> list[Message]:
    """The prompt in any field but that of the answer."""
    reading = read_prompt({key: value for key, value in row.items() if key != answer})
    if reading.answer is not None:
        refuse("ends-with-answer", f"the prompt in `{reading.source}` ends with an answer before the answer")
    return reading.messages


def _answer(value: Any, name: str) -> list[Message]:
    """An answer: a text, or messages that end with one."""
    if value.__class__ is str:
        return [{"role": ASSISTANT, "content": value}]
    if value.__class__ is dict:
        value = [value]
    if value.__class__ is not list or not value:
        refuse("wrong-type", f"the answer, `{name}`, must be a text or messages, not {type_name(value)}")
    return [message(turn, name) for turn in value]

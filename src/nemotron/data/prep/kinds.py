"""What identifies a row that can be used, and how it is written where no trainer reads it as it is.

Which rows can be used, and what a model is shown of them, is decided in :mod:`nemotron.data.forms` for all readers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import eq, itemgetter
from typing import Any

import orjson

from nemotron.data.forms import (
    ANSWERS,
    DPO,
    EXCHANGE,
    GYM,
    JOINT,
    LABELLED,
    MESSAGES,
    OPENAI,
    PAIR,
    PROMPT_FORMS,
    SCORED,
    SPOKEN,
    Form,
    Kind,
    Reading,
    find_form,
    refuse_undecided,
    without_form,
)
from nemotron.data.pair_forms import LABELLED_SIDES
from nemotron.data.prep.rawjson import renamed, rewritten
from nemotron.data.turns import SYSTEM_FIELDS, TOOL_FIELDS, Message, Row, blank, refuse

Answers = tuple[str, str]
"""The preferred and the other answer."""
Texts = tuple[str, Answers | None]
"""The prompt, and the answers that go with it, where near duplicates must share those too."""
Columns = tuple[list[str], list[str] | None, list[str] | None]
"""Prompts, and preferred and other answers, of many rows."""

PLACEHOLDER = "_hf_placeholder"
_BREAK = "\x1f"
_SLOW = SYSTEM_FIELDS | TOOL_FIELDS
"""Fields that change what a model is shown of a prompt."""
# Where the last answer begins in the texts that NeMo-Aligner's own preparation scripts write.
_ANSWER_STARTS = ("\n\nAssistant:", "<extra_id_1>Assistant\n")
_PROMPT, _CHOSEN, _REJECTED = itemgetter("prompt"), itemgetter("chosen"), itemgetter("rejected")


def form_of(row: Mapping[str, Any], names: Sequence[str], kind: Kind | None) -> Form:
    """The form of a row with these fields; ``kind`` is what the blend declares, if it does.

    Raises:
        UnusableRow: no form fits, or it is not known which; the message names what the row has and what is missing.
    """
    if PLACEHOLDER in row and GYM not in row:
        refuse("placeholder", "the row stands for a row of another data set (`resolve_hf_placeholders` is off)")
    form = find_form(names, kind)
    asks = form.kind == "prompt" if form is not None else kind == "verifier"
    if asks and kind in (None, "verifier") and any(name in row for name in ANSWERS):
        refuse("no-answer", "nothing to check an answer with: all of its fields are null")
    if form is None:
        declared = f"not a `{kind}` row: " if kind is not None else ""
        refuse("missing-field", declared + without_form(row, kind), "`fields` of the blend renames")
    if kind is None and form.kind == "prompt":
        refuse_undecided(names)
    return form


def texts_of(reading: Reading) -> Texts:
    """What tells rows apart. One user message reads like the same text."""
    answers = None if reading.chosen is None or reading.rejected is None else (reading.chosen, reading.rejected)
    return prompt_text(reading.messages), answers


def prompt_text(messages: Sequence[Message]) -> str:
    """The turns of a prompt as one text."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return _BREAK.join([f"{turn['role']}{_BREAK}{turn['content']}" for turn in messages])


def many_of(form: Form, names: Sequence[str]) -> Callable[[Sequence[Row]], Columns | None] | None:
    """How rows with these fields are checked together, if they can be; it gives None when one needs a closer look."""
    if _SLOW.isdisjoint(names):
        return _TOGETHER.get(form)
    return None


def _prompts(rows: Sequence[Row]) -> Columns | None:
    """Rows whose prompts are good texts."""
    prompts = list(map(_PROMPT, rows))
    return (prompts, None, None) if _good(prompts) else None


def _pairs(rows: Sequence[Row]) -> Columns | None:
    """Rows of three good texts, by far the most common pairs."""
    columns = prompts, chosen, rejected = [list(map(get, rows)) for get in (_PROMPT, _CHOSEN, _REJECTED)]
    if not all(map(_good, columns)) or any(map(eq, chosen, rejected)):
        return None
    return prompts, chosen, rejected


def _good(texts: list[Any]) -> bool:
    """Whether all are texts with something in them. Every pass runs without a step of the interpreter per row."""
    return set(map(type, texts)) <= {str} and all(texts) and not any(map(str.isspace, texts))


_TOGETHER = {PROMPT_FORMS[0]: _prompts, PAIR: _pairs}


def as_written(form: Form, row: Row, line: bytes, reading: Reading) -> bytes:
    """The line of a row in the output: as it came, or in the form that every trainer reads.

    What is new comes first; all other fields keep their bytes.
    """
    if form in _SOURCES:
        return _as_pair(form, row, line, reading)
    if reading.chosen is not None:
        return line
    if reading.source == f"{GYM}.input":
        params = {**row[GYM], "input": _without_last(row[GYM]["input"])} if reading.answer is not None else None
        return line if params is None else rewritten(line, {GYM: params})
    odd = reading.source in (*SPOKEN, "instruction") or (reading.source == "input" and row["input"].__class__ is dict)
    return rewritten(line, {"prompt": reading.messages}) if odd or reading.answer is not None else line


def _without_last(turns: Any) -> Any:
    return turns[:-1]


def _as_pair(form: Form, row: Row, line: bytes, reading: Reading) -> bytes:
    """A pair as ``prompt``, ``chosen``, ``rejected``."""
    if form is JOINT:
        if reading.source == "":
            return rewritten(line, _our_pair(reading))
        return rewritten(line, {"prompt": reading.messages}) if reading.source in row and _asks(reading) else line
    if form is SCORED:
        names = ("response1", "response2") if row["overall_preference"] < 0 else ("response2", "response1")
        ours = {"prompt": row["context"], "chosen": row[names[0]], "rejected": row[names[1]]}
        return rewritten(line, ours, without=("context", *names))
    if form is DPO and row.get("prompt") is not None:
        return renamed(line, {"chosen_response": "chosen", "rejected_response": "rejected"})
    return rewritten(line, _our_pair(reading), without=_SOURCES[form])


def _asks(reading: Reading) -> bool:
    return reading.source not in ("chosen", "rejected")


def _our_pair(reading: Reading) -> dict[str, Any]:
    return {"prompt": reading.messages, "chosen": reading.chosen, "rejected": reading.rejected}


_SOURCES: dict[Form, tuple[str, ...]] = {
    JOINT: (),
    SCORED: (),
    DPO: ("chosen_response", "rejected_response"),
    OPENAI: ("input", "preferred_output", "non_preferred_output"),
    MESSAGES: ("chosen_messages", "rejected_messages"),
    EXCHANGE: ("response_j", "response_k"),
    **dict(zip(LABELLED, LABELLED_SIDES, strict=True)),
}
"""Forms of pairs that are written anew, and the fields that are not needed then."""


def join_aligner_pair(chosen: bytes, rejected: bytes) -> bytes:
    """One pair from two ``text`` lines of NeMo-Aligner, preferred answer first; other fields of the first line stay.

    Raises:
        UnusableRow: a line without text, or two texts that do not share a prompt.
    """
    rows = [orjson.loads(line) for line in (chosen, rejected)]
    texts = [_pair_text(row) for row in rows]
    cuts = [max((text.rfind(mark) + len(mark) for mark in _ANSWER_STARTS if mark in text), default=0) for text in texts]
    prompt = texts[0][: cuts[0]]
    if not prompt or prompt != texts[1][: cuts[1]]:
        refuse("different-prompts", "the two lines of a pair do not share a prompt that ends where the answer starts")
    answers = [text[cut:].removeprefix(" ") for text, cut in zip(texts, cuts, strict=True)]
    ours = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
    return rewritten(chosen, ours, without=("text",))


def _pair_text(row: Any) -> str:
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str) or blank(text):
        refuse("wrong-type", "both lines of a pair need a `text`")
    return text

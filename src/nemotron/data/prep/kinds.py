"""Row kinds: which fields make a row usable, and the texts that identify it.

A *form* is one way to write a row. Forms are found by the fields of a row, and the answer is kept per set of field
names, so that a file of a million equal rows is looked at once.

==============  =====================================================================  ==========
form            fields                                                                 kind
==============  =====================================================================  ==========
gym             ``responses_create_params`` (NeMo-Gym)                                 nemo_gym
ranked          ``context``, ``completions`` with ranks (NeMo-RL)                      preference
scored          ``context``, ``response1``, ``response2``, ``overall_preference``      preference
pair            ``prompt``, ``chosen``, ``rejected`` (texts or messages)               preference
dpo             ``prompt``, ``chosen_response``, ``rejected_response`` (NeMo-Aligner)  preference
whole_pair      ``chosen``, ``rejected``: two conversations with one beginning         preference
verifier        a question or prompt with an answer, tests or verifier data            verifier
prompt          ``prompt``, ``messages`` or ``text``                                   prompt
==============  =====================================================================  ==========
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import eq, itemgetter
from typing import Any, NoReturn

import orjson

from nemotron.data.prep.blend import Kind

Row = dict[str, Any]
Answers = tuple[str, str]
"""The preferred and the other answer."""
Texts = tuple[str, Answers | None]
"""The prompt, and the answers that go with it, where near duplicates must share those too."""
Columns = tuple[list[str], list[str] | None, list[str] | None]
"""Prompts, and preferred and other answers, of many rows."""

PLACEHOLDER = "_hf_placeholder"
QUESTIONS = ("question", "problem", "input", "prompt", "messages")
ANSWERS = (
    *("answer", "expected_answer", "ground_truth", "tests", "unit_tests", "verifier_metadata"),
    *("reward_model", "solution", "test_cases"),
)
_BREAK = "\x1f"


class RejectedRow(Exception):
    """This row cannot be used. ``reason`` is a stable word for counting, ``detail`` is about this very row."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


# Forms are compared by identity: they are counted once per row.
@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """How rows with certain fields are checked and, where NeMo-RL could not read them, rewritten."""

    name: str
    kind: Kind
    check: Callable[[Row], Texts]
    rewrite: Callable[[Row, bytes], bytes] | None = None
    many: Callable[[Sequence[Row]], Columns | None] | None = None
    """``check`` of many rows in a few passes; None when any of them needs a closer look."""


def reject(reason: str, detail: str) -> NoReturn:
    """Refuse the row.

    Raises:
        RejectedRow: always.
    """
    raise RejectedRow(reason, detail)


def conversation(value: Any, name: str) -> str:
    """The text of a prompt: of a string, or of messages. One user message reads like the same string.

    Raises:
        RejectedRow: neither a text nor a list of messages with roles, or nothing in it.
    """
    if value.__class__ is str:
        if not value or value.isspace():
            reject("empty-prompt", f"`{name}` is empty")
        text: str = value
        return text
    if value.__class__ is not list:
        reject("wrong-type", f"`{name}` must be a text or a list of messages, not {type_name(value)}")
    if not value:
        reject("empty-prompt", f"`{name}` has no message")
    if len(value) == 1:
        only = value[0]
        if only.__class__ is dict and only.get("role") == "user" and only.get("content").__class__ is str:
            text = only["content"]
            if not text or text.isspace():
                reject("empty-prompt", f"the message of `{name}` is empty")
            return text
    return _BREAK.join([_message(message, name) for message in value])


def _message(message: Any, name: str) -> str:
    if message.__class__ is not dict:
        reject("wrong-type", f"`{name}` holds {type_name(message)} where a message belongs")
    role, content = message.get("role"), message.get("content")
    if role.__class__ is not str:
        if message.get("type").__class__ is str:
            # A Responses item that is not a message: a tool call or its result.
            return orjson.dumps(message, option=orjson.OPT_SORT_KEYS).decode()
        reject("wrong-type", f"a message of `{name}` has no `role`")
    if content.__class__ is list:
        parts = [part.get("text") if part.__class__ is dict else part for part in content]
        if all(part.__class__ is str for part in parts):
            content = "".join(str(part) for part in parts)
        else:
            content = orjson.dumps(content, option=orjson.OPT_SORT_KEYS).decode()
    if content is None and ("tool_calls" in message or "function_call" in message):
        content = orjson.dumps(message, option=orjson.OPT_SORT_KEYS).decode()
    if content.__class__ is not str:
        reject("wrong-type", f"a message of `{name}` has no text `content`")
    return f"{role}{_BREAK}{content}"


def answer(value: Any, name: str) -> str:
    """The text of an answer: of a string, or of one or more messages.

    Raises:
        RejectedRow: neither of them, or nothing in it.
    """
    if value.__class__ is str:
        if not value or value.isspace():
            reject("empty-answer", f"`{name}` is empty")
        text: str = value
        return text
    if value.__class__ is dict:
        value = [value]
    if value.__class__ is not list:
        reject("wrong-type", f"`{name}` must be a text or messages, not {type_name(value)}")
    if not value:
        reject("empty-answer", f"`{name}` has no message")
    return _BREAK.join([_message(message, name) for message in value])


def different(prompt: str, chosen: str, rejected: str) -> Texts:
    """The texts of a pair.

    Raises:
        RejectedRow: both answers are the same, so that nothing is preferred.
    """
    if chosen == rejected:
        reject("same-answers", "the preferred and the other answer are the same")
    return prompt, (chosen, rejected)


def check_prompt(row: Row) -> Texts:
    """``prompt``."""
    return conversation(row["prompt"], "prompt"), None


def check_prompts(rows: Sequence[Row]) -> Columns | None:
    """:func:`check_prompt` of many rows whose prompts are good texts."""
    prompts = list(map(_PROMPT, rows))
    return (prompts, None, None) if _good(prompts) else None


_PROMPT, _CHOSEN, _REJECTED = itemgetter("prompt"), itemgetter("chosen"), itemgetter("rejected")


def _good(texts: list[Any]) -> bool:
    """Whether all are texts with something in them. Every pass runs without a step of the interpreter per row."""
    return set(map(type, texts)) <= {str} and all(texts) and not any(map(str.isspace, texts))


def check_messages(row: Row) -> Texts:
    """``messages``."""
    if row["messages"].__class__ is not list:
        reject("wrong-type", f"`messages` must be a list, not {type_name(row['messages'])}")
    text = conversation(row["messages"], "messages")
    return text, None


def check_text(row: Row) -> Texts:
    """``text``."""
    if row["text"].__class__ is not str:
        reject("wrong-type", f"`text` must be a text, not {type_name(row['text'])}")
    text = conversation(row["text"], "text")
    return text, None


def check_pair(row: Row) -> Texts:
    """``prompt``, ``chosen``, ``rejected``."""
    prompt = conversation(row["prompt"], "prompt")
    return different(prompt, answer(row["chosen"], "chosen"), answer(row["rejected"], "rejected"))


def check_pairs(rows: Sequence[Row]) -> Columns | None:
    """:func:`check_pair` of many rows of three good texts, by far the most common ones."""
    columns = prompts, chosen, rejected = [list(map(get, rows)) for get in (_PROMPT, _CHOSEN, _REJECTED)]
    if not all(map(_good, columns)) or any(map(eq, chosen, rejected)):
        return None
    return prompts, chosen, rejected


def check_dpo(row: Row) -> Texts:
    """``prompt``, ``chosen_response``, ``rejected_response``."""
    prompt = conversation(row["prompt"], "prompt")
    chosen = answer(row["chosen_response"], "chosen_response")
    return different(prompt, chosen, answer(row["rejected_response"], "rejected_response"))


def check_ranked(row: Row) -> Texts:
    """``context`` and two ``completions`` of different rank."""
    prompt = conversation(row["context"], "context")
    both = row["completions"]
    if both.__class__ is not list or len(both) != 2 or any(c.__class__ is not dict for c in both):
        reject("wrong-type", "`completions` must be a list of two objects with `rank` and `completion`")
    ranks = [c.get("rank") for c in both]
    if any(rank.__class__ is not int for rank in ranks):
        reject("wrong-type", "each of `completions` needs a whole number as `rank`")
    if ranks[0] == ranks[1]:
        reject("tie", f"both completions have rank {ranks[0]}")
    best, worst = sorted(both, key=lambda c: c["rank"])
    return different(
        prompt, answer(best.get("completion"), "completion"), answer(worst.get("completion"), "completion")
    )


def check_scored(row: Row) -> Texts:
    """HelpSteer3's ``overall_preference``: below 0 prefers ``response1``, above 0 ``response2``."""
    prompt = conversation(row["context"], "context")
    score = row["overall_preference"]
    if score.__class__ not in (int, float):
        reject("wrong-type", f"`overall_preference` must be a number, not {type_name(score)}")
    if score == 0:
        reject("tie", "`overall_preference` is 0: neither answer is preferred")
    first, second = answer(row["response1"], "response1"), answer(row["response2"], "response2")
    return different(prompt, first, second) if score < 0 else different(prompt, second, first)


def check_whole_pair(row: Row) -> Texts:
    """Two conversations that differ in the last answer only."""
    chosen, rejected = row["chosen"], row["rejected"]
    if chosen.__class__ is not list or rejected.__class__ is not list:
        reject("wrong-type", "without `prompt`, `chosen` and `rejected` must be whole conversations of one kind")
    if len(chosen) < 2 or len(chosen) != len(rejected) or chosen[:-1] != rejected[:-1]:
        reject("different-prompts", "`chosen` and `rejected` do not have the same messages before the last")
    prompt = conversation(chosen[:-1], "chosen")
    return different(prompt, answer(chosen[-1:], "chosen"), answer(rejected[-1:], "rejected"))


def check_verifier(row: Row) -> Texts:
    """A question, and something to check the answer with."""
    name = next(name for name in QUESTIONS if name in row)
    if all(row[answer_name] is None for answer_name in ANSWERS if answer_name in row):
        reject("no-answer", "nothing to check an answer with: all of its fields are null")
    text = conversation(row[name], name)
    return text, None


def check_gym(row: Row) -> Texts:
    """``responses_create_params.input``, and ``agent_ref`` where there is one."""
    params = row["responses_create_params"]
    if params.__class__ is not dict:
        reject("wrong-type", f"`responses_create_params` must be an object, not {type_name(params)}")
    if "input" not in params:
        reject("missing-field", "`responses_create_params` has no `input`")
    agent = row.get("agent_ref")
    if agent is not None and (agent.__class__ is not dict or agent.get("name").__class__ is not str):
        reject("wrong-type", "`agent_ref` must be an object with a `name`")
    text = conversation(params["input"], "responses_create_params.input")
    return text, None


def type_name(value: Any) -> str:
    """The JSON type of a value, in words."""
    names = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)

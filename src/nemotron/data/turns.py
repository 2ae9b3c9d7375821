"""Turns of a conversation as rows write them: a text, messages, or ShareGPT's objects with `from` and `value`.

Here alone it is decided what a model can be shown. A chat template is given roles and texts, so whatever else a turn
holds, tools that are called or pictures, makes its row unusable: left out in silence it would change the question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

Row = dict[str, Any]
Message = dict[str, str]

ASSISTANT = "assistant"
_SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bard", "bing", "claude"), ASSISTANT),
    "system": "system",
    "developer": "developer",
}
"""How ShareGPT's `from` names the roles, and some files their `role`."""
_ROLES = frozenset(_SPEAKERS.values())
_CALLS = ("function_call", "tool_call", "function_response", "tool_response", "observation", "tool", "function")
_CALL_ITEMS = ("_call", "_call_output", "item_reference")
"""How the types of items of the Responses API end that are no messages."""
TOOL_FIELDS = frozenset(("tools", "functions"))
SYSTEM_FIELDS = frozenset(("system", "system_prompt"))
_WRITTEN_TOOLS = re.compile(r"\s*[\[{]\s*[^\s\]}]")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": ASSISTANT}


class UnusableRow(Exception):
    """This row cannot be used. ``reason`` is a stable word for counting, ``detail`` is about this very row."""

    def __init__(self, reason: str, detail: str, hint: str | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.hint = hint


def refuse(reason: str, detail: str, hint: str | None = None) -> NoReturn:
    """Refuse the row.

    Raises:
        UnusableRow: always.
    """
    raise UnusableRow(reason, detail, hint)


def conversation(value: Any, name: str) -> list[Message]:
    """The turns of a prompt, or of a whole conversation.

    Raises:
        UnusableRow: neither a text nor messages, or nothing in it.
    """
    if value.__class__ is str:
        if blank(value):
            refuse("empty-prompt", f"`{name}` is empty")
        return [{"role": "user", "content": value}]
    if value.__class__ is not list:
        refuse("wrong-type", f"`{name}` must be a text or a list of messages, not {type_name(value)}")
    if not value:
        refuse("empty-prompt", f"`{name}` has no message")
    found = [message(turn, name) for turn in value]
    if blank(found[-1]["content"]) and found[-1]["role"] != ASSISTANT:
        refuse("empty-prompt", f"`{name}` is empty" if len(found) == 1 else f"the last message of `{name}` is empty")
    return found


def message(turn: Any, name: str) -> Message:
    """Role and text of one turn. Parts of a content are joined.

    Raises:
        UnusableRow: no role, no text, or something beside the text that the model would have to see.
    """
    if turn.__class__ is not dict:
        refuse("wrong-type", f"`{name}` holds {type_name(turn)} where a message belongs: it needs `role` and `content`")
    kind = turn.get("type")
    if turn.get("tool_calls") or turn.get("function_call") or (kind.__class__ is str and kind.endswith(_CALL_ITEMS)):
        refuse("tools", f"a message of `{name}` calls tools, which are not shown to the model")
    role, content = turn.get("role"), turn.get("content")
    if role.__class__ is not str and "from" in turn and "value" in turn:
        role, content = _speaker(turn["from"], name), turn["value"]
    if role.__class__ is not str or blank(role):
        refuse("wrong-type", f"a message of `{name}` has no role: it needs `role` and `content`")
    if role not in _ROLES:
        # `role` with a speaker's name, or in capitals: an answer that is not known for one would be part of its prompt.
        role = _SPEAKERS.get(role.lower(), role)
    if content.__class__ is list:
        content = "".join([_part(part, name) for part in content])
    if content.__class__ is not str:
        refuse("wrong-type", f"a message of `{name}` has no text `content`")
    return {"role": role, "content": content}


def _speaker(name: Any, where: str) -> str:
    if name.__class__ is str and name.lower() in _CALLS:
        refuse("tools", f"a message of `{where}` is a tool's (`{name}`), and tools are not shown to the model")
    role = _SPEAKERS.get(name.lower()) if name.__class__ is str else None
    return role or refuse("wrong-type", f"a message of `{where}` is `from` a speaker that is not known: `{name}`"[:200])


def _part(part: Any, name: str) -> str:
    if part.__class__ is str:
        return str(part)
    text = part.get("text") if part.__class__ is dict else None
    kind = part.get("type") if part.__class__ is dict else None
    if text.__class__ is not str or (kind is not None and (kind.__class__ is not str or "text" not in kind)):
        refuse("not-text", f"a message of `{name}` has a part that is not text")
    return str(text)


def transcript(text: str, name: str) -> list[Message] | None:
    """Turns of an Anthropic-HH transcript, which begin with ``\\n\\nHuman:`` or ``\\n\\nAssistant:``; None: it is none.

    Raises:
        UnusableRow: it does not end with an answer.
    """
    pieces = _HH_TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if pieces[0].strip() or len(pieces) < 5:
        return None
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    messages = [{"role": _HH_ROLES[speaker], "content": body.strip()} for speaker, body in turns]
    if messages[-1]["role"] != ASSISTANT:
        refuse("not-a-transcript", f"`{name}` does not end with an answer")
    return messages


def with_system(row: Mapping[str, Any], turns: list[Message]) -> list[Message]:
    """The turns behind the system text that stands in a field of its own, where they have none."""
    if SYSTEM_FIELDS.isdisjoint(row):
        return turns
    texts = (row.get(name) for name in sorted(SYSTEM_FIELDS))
    text = next((text for text in texts if text.__class__ is str and not blank(text)), None)
    if text is None or turns[0]["role"] in ("system", "developer"):
        return turns
    return [{"role": "system", "content": text}, *turns]


def no_tools(holder: Mapping[str, Any], name: str = "") -> None:
    """Refuse what offers tools: no chat template is given them.

    Raises:
        UnusableRow: there are tools.
    """
    if TOOL_FIELDS.isdisjoint(holder):
        return
    for field in sorted(TOOL_FIELDS):
        tools = holder.get(field)
        if tools and (tools.__class__ in (list, dict) or (tools.__class__ is str and _WRITTEN_TOOLS.match(tools))):
            detail = f"`{name}{field}` offers tools, which are not shown to the model"
            refuse("tools", detail, "leave the row out, or write the tools into its system turn and drop the field")


def blank(text: str) -> bool:
    """Whether nothing can be seen in a text."""
    return not text or text.isspace()


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

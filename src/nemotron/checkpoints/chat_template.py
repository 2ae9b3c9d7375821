"""The chat templates of a tokenizer, found and tried out as transformers would, without importing it.

A template is somebody else's program. It is compiled and carried out in a process with limits first
(``template_trial``): one that counts to a billion, or writes a billion letters, would hold whoever renders it for ever.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemotron.checkpoints.template_trial import ENDLESS, tried
from nemotron.disk.documents import parse_json, read_bytes, read_json
from nemotron.errors import ArtifactError
from nemotron.processes.environment import plain_environment

DEFAULT = "default"
LONGEST_S = 60.0
"""However busy the machine is; of the processor it gets much less (`template_trial`)."""
MOST_LETTERS = 4 << 20
_CONFIG, _FILE, _MORE = "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates"
_OWN_FORMAT = "tekken.json"
"""Tokenizers of this format bring the form of a conversation along, in code."""


def refusals() -> tuple[type[Exception], ...]:
    """What a template may raise on a conversation that it was not written for: it is a program, and not all of them
    say ``raise_exception`` before they add ``None`` to a text."""
    from jinja2 import TemplateError

    return (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def templates_of(folder: Path) -> dict[str, str]:
    """Name -> text. Files of their own win over those in `tokenizer_config.json`; a single template is `default`."""
    files = {}
    if (folder / _FILE).is_file():
        files[DEFAULT] = _text(folder / _FILE)
    files |= {path.stem: _text(path) for path in sorted((folder / _MORE).glob("*.jinja"))}
    return files or _in_config(folder)


def _in_config(folder: Path) -> dict[str, str]:
    try:
        settings = read_json(folder / _CONFIG)
    except (OSError, ValueError):
        return {}  # another check says what is wrong with the file
    found: Any = settings.get("chat_template") if isinstance(settings, dict) else None
    if isinstance(found, str):
        return {DEFAULT: found}
    named = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    return {str(entry.get("name")): str(entry.get("template")) for entry in named}


def read_template(path: Path) -> str:
    """The text of a template. Raises OSError: no regular file, not readable, or too large."""
    return read_bytes(path, MOST_LETTERS).decode("utf-8", "replace")


def _text(path: Path) -> str:
    try:
        return read_template(path)
    except OSError as error:
        raise ArtifactError(
            f"cannot read the chat template `{path}`: {error.strerror}", hint="copy or download it again"
        ) from error


def folder_problem(folder: Path) -> str | None:
    """Why conversations cannot be written with the tokenizer in ``folder``; None when they can."""
    templates = templates_of(folder)
    if DEFAULT in templates:
        problem = template_fault(templates[DEFAULT])
        return f"has a chat template that {problem}" if problem else None
    if (folder / _OWN_FORMAT).is_file():
        return None
    if templates:
        names = ", ".join(f"`{name}`" for name in templates)
        return f"has the chat templates {names}, but none is called `{DEFAULT}`"
    return "has no chat template"


def template_fault(template: str) -> str | None:
    """Why nobody can write with a template: a clause about it; None of one that can be used, or without jinja2.

    It breaks Jinja's rules (with the line), or does not come to an end on a few short conversations.
    """
    fault: str | None = _tried(template, "{}", _USUAL).get("fault")
    return fault


_ANSWER = "7f3answer"
Turns = tuple[str | tuple[str], ...]
"""What user and assistant say by turns, after the words of a system, which are a tuple."""
Conversation = tuple[tuple[str, str], ...]
"""Turns, each a role and what it says."""
THOUGHT = "<think>\nt\n</think>\n\nb"


def _spoken(turns: Turns) -> Conversation:
    system, rest = (turns[0], turns[1:]) if isinstance(turns[0], tuple) else ((), turns)
    speakers = (("user", "assistant")[number % 2] for number in range(len(rest)))
    return (*(("system", text) for text in system), *zip(speakers, map(str, rest), strict=True))


_SIMPLE = tuple(map(_spoken, (("a",), ("a", "b"), (("s",), "a"), (("s",), "a", "b"))))
_USUAL = (
    *_SIMPLE,
    *map(_spoken, (("hello", _ANSWER), ("a", "b", "c"), ("a", "b", "c", "d"), ("a", THOUGHT), ("a", THOUGHT, "c"))),
)
"""What is asked for again and again, and tried together: a process for each would take a tenth of a second."""


def refused(template: str, more: Mapping[str, Any], roles: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """What a template says of those that it does not take among conversations of the given roles; nothing of a template
    that has a fault, or without jinja2.

    ``more``: as for :func:`rendered`.
    """
    given = tuple(tuple((role, "a") for role in one) for one in roles)
    told = _tried(template, json.dumps(more, sort_keys=True, default=str), given).get("refused", ())
    return {one: why for one, why in zip(roles, told, strict=False) if why is not None}


def rendered_turn(template: str, more: Mapping[str, Any]) -> str | None:
    """What a template writes behind the text of an assistant's last turn; None when it does not take a plain one.

    ``more``: as for :func:`rendered`.
    """
    text = rendered(template, ("hello", _ANSWER), more)
    _, found, rest = (text or "").rpartition(_ANSWER)
    return rest if found else None


def rendered(template: str, turns: Turns, more: Mapping[str, Any]) -> str | None:
    """A conversation without the beginning of an answer; None when the template does not take it, or without jinja2.

    ``more``: special tokens and keyword arguments, by the names that the template has for them.
    """
    asked = _spoken(turns)
    conversations = _USUAL if asked in _USUAL else (asked,)
    texts = _tried(template, json.dumps(more, sort_keys=True, default=str), conversations).get("texts")
    text: str | None = texts[conversations.index(asked)] if texts else None
    return text


def refuses_all(template: str, more: Mapping[str, Any]) -> str | None:
    """What a template says that takes neither a question nor one with its answer, not even after a system's words; None
    of one that takes any of them, that has a fault, or without jinja2.

    ``more``: as for :func:`rendered`.
    """
    told: list[str | None] = _tried(template, json.dumps(more, sort_keys=True, default=str), _USUAL).get("refused", [])
    simple = told[: len(_SIMPLE)]
    return simple[0] if simple and None not in simple else None


def written(template: str, given: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Why a template that is no chat template cannot be used, and what it writes of ``given``; None where it does not
    take that, or without jinja2."""
    found = _tried(template, json.dumps(given, sort_keys=True), (_spoken(("a",)),))
    texts = found.get("texts")
    return found.get("fault"), texts[0] if texts else None


@cache
def _shipped() -> frozenset[str]:
    """The templates of the shipped models."""
    assets = Path(__file__).parents[1] / "assets"
    return frozenset(path.read_text(encoding="utf-8") for path in assets.glob(f"*/*/{_FILE}"))


@lru_cache(maxsize=16)
def _tried(template: str, more: str, conversations: tuple[Conversation, ...]) -> dict[str, Any]:
    """What came of a template in a process of its own; empty without jinja2."""
    if find_spec("jinja2") is None:
        return {}
    if template in _shipped():
        # Ours, byte for byte: a process for it would be most of what a dry run of the tiny config costs.
        return tried(template, conversations, parse_json(more))
    asked = json.dumps({"template": template, "more": parse_json(more), "conversations": conversations})
    # Not from the folder in which we stand: a module of the user's may be called like one of ours.
    command = [sys.executable, "-P", "-m", "nemotron.checkpoints.template_trial"]
    try:
        ended = subprocess.run(
            command,
            input=asked.encode(),
            capture_output=True,
            check=False,
            timeout=LONGEST_S,
            env=plain_environment(),
        )
    except subprocess.TimeoutExpired:
        return {"fault": ENDLESS}
    try:
        found: dict[str, Any] = parse_json(ended.stdout)
    except ValueError:
        # The kernel ended it: its time or its memory is used up.
        return {"fault": ENDLESS}
    return found

"""The chat templates of a tokenizer, found and parsed as transformers does, without importing it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemotron.disk.documents import read_json

DEFAULT = "default"
_CONFIG, _FILE, _MORE = "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates"
_OWN_FORMAT = "tekken.json"
"""Tokenizers of this format bring the form of a conversation along, in code."""


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


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def folder_problem(folder: Path) -> str | None:
    """Why conversations cannot be written with the tokenizer in ``folder``; None when they can."""
    templates = templates_of(folder)
    if DEFAULT in templates:
        problem = syntax_problem(templates[DEFAULT])
        return f"has a chat template that does not parse: {problem}" if problem else None
    if (folder / _OWN_FORMAT).is_file():
        return None
    if templates:
        names = ", ".join(f"`{name}`" for name in templates)
        return f"has the chat templates {names}, but none is called `{DEFAULT}`"
    return "has no chat template"


@lru_cache(maxsize=16)
def syntax_problem(template: str) -> str | None:
    """What a template's text breaks of Jinja's rules, with its line; None when it parses, or without jinja2."""
    try:
        from jinja2 import TemplateSyntaxError
    except ModuleNotFoundError:
        return None
    try:
        _environment().compile(template)
    except TemplateSyntaxError as error:
        reason = (error.message or "syntax error").partition("\n")[0].rstrip(".").replace("'", "`")
        return f"line {error.lineno}: {reason[0].lower()}{reason[1:]}"
    return None


_ANSWER = "7f3answer"


def rendered_turn(template: str, more: Mapping[str, Any]) -> str | None:
    """What a template writes behind the text of an assistant's last turn; None when it does not take a plain one.

    ``more``: as for :func:`rendered`.
    """
    text = rendered(template, conversation("hello", _ANSWER), more)
    _, found, rest = (text or "").rpartition(_ANSWER)
    return rest if found else None


def conversation(*turns: str) -> list[dict[str, str]]:
    """Messages of user and assistant by turns."""
    return [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]


def rendered(template: str, messages: list[dict[str, str]], more: Mapping[str, Any]) -> str | None:
    """A conversation without the beginning of an answer; None when the template does not take it, or without jinja2.

    ``more``: special tokens and keyword arguments, by the names that the template has for them.
    """
    try:
        from jinja2 import TemplateError
    except ModuleNotFoundError:
        return None

    def refuse(message: str) -> None:
        raise TemplateError(message)

    try:
        environment = _environment()
        environment.globals.update(raise_exception=refuse, strftime_now=lambda form: datetime.now().strftime(form))
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        values = {**more, "messages": messages, "add_generation_prompt": False}
        text: str = environment.from_string(template).render(values)
    except Exception:  # noqa: BLE001  a template is a program, and may fail in any way; the run says how
        return None
    return text


def _environment() -> Any:
    """Jinja as transformers sets it up. Raises ModuleNotFoundError without jinja2."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}``, which marks what the assistant says; here it marks nothing."""

        tags = {"generation"}  # noqa: RUF012  jinja2 declares it as a plain set

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])

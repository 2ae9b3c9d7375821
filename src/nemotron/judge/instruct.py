"""The one turn of the user in which an instruct model is asked: rendered from one template file.

A template of the user's is somebody else's program: it is tried out in a process with limits before it is rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron.checkpoints.chat_template import read_template, refusals, written
from nemotron.disk.home import expanded
from nemotron.errors import ConfigError, JudgeError
from nemotron.judge.form import VerdictForm
from nemotron.judge.types import Message

if TYPE_CHECKING:
    from jinja2 import Template

SHIPPED = Path(__file__).with_name("instruct.jinja")
_SENTINELS = {"response_1": "7f3first", "response_2": "7f3second"}
KEY = "judge.instruct_template"


def instruct_messages(
    conversation: Sequence[Message],
    response_1: str,
    response_2: str,
    *,
    principle: str | None,
    verdict: VerdictForm,
    scale: tuple[float, float],
    about: int | None = None,
    template: str | None = None,
) -> list[Message]:
    """One turn of the user: conversation, principle, both answers, what is asked, and the form of the verdict.

    Raises JudgeError when the template refuses them.
    """
    given = {
        "conversation": list(conversation),
        "principle": principle,
        "response_1": response_1,
        "response_2": response_2,
        "verdict": verdict,
        "about": about,
        "lowest": _number(scale[0]),
        "highest": _number(scale[1]),
    }
    try:
        text = _compiled(template).render(given)
    except refusals() as error:
        raise JudgeError(f"`{KEY}` refuses a comparison: {error}", hint="correct that file") from error
    return [Message(role="user", content=text)]


def _number(bound: float) -> str:
    return f"{bound:g}"


@lru_cache(maxsize=4)
def _compiled(template: str | None) -> Template:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=False)
    return environment.from_string(SHIPPED.read_text(encoding="utf-8") if template is None else template)


def own_template(path: str) -> str:
    """The text of a user's template that can be rendered. Raises ConfigError: there is none, or it cannot be used."""
    file = expanded(path)
    try:
        text = read_template(file)
    except OSError as error:
        raise ConfigError(f"cannot read `{path}`: {error.strerror}", hint=f"copy `{SHIPPED}`") from error
    if (fault := template_fault(text)) is not None:
        raise ConfigError(
            f"the template `{path}` {fault}", hint=f"`{SHIPPED}` is one that works, and says what it is given"
        )
    return text


def template_fault(text: str) -> str | None:
    """Why comparisons cannot be asked with a template: a clause about it; None of one that can, or without jinja2."""
    if find_spec("jinja2") is None:
        return None
    conversation = [{"role": "user", "content": "a"}]
    given: dict[str, Any] = {
        **_SENTINELS,
        "conversation": conversation,
        "principle": "p",
        "lowest": "1",
        "highest": "5",
    }
    for verdict, about in (("text", None), ("logits", 1), ("logits", 2)):
        fault, made = written(text, {**given, "verdict": verdict, "about": about})
        if fault is not None:
            return fault
        if made is None:
            return f"cannot be rendered for `judge.verdict={verdict}`"
        hidden = [name for name, answer in _SENTINELS.items() if answer not in made]
        if hidden:
            return f"does not show {' and '.join(f'`{name}`' for name in hidden)}"
    # Only now: reading what was written to hold its reader up is what the trial is for.
    from jinja2 import Environment, meta

    unknown = meta.find_undeclared_variables(Environment().parse(text)) - {*given, "verdict", "about"}
    return f"uses {', '.join(f'`{name}`' for name in sorted(unknown))}, which nobody gives it" if unknown else None

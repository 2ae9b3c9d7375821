"""The dotlist: what a word of the command line does to the config.

=================  ======================================================================
``a.b=v``          sets a key that exists (in the YAML, or in the step's model)
``+a.b=v``         adds a key that is not set yet; the model must know it or be open there
``++a.b=v``        adds or sets
``~a.b``           deletes
``a.0.b=v``        list positions count from 0
=================  ======================================================================

Values are YAML 1.2. A mapping merges into a mapping, a list replaces a list; one does not replace the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nemotron.config.origins import Node, YamlError
from nemotron.config.yaml import parse_yaml
from nemotron.errors import Origin, UsageError

Operation = Literal["set", "add", "force", "delete"]

_WORD = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<key>[^=]*?)(?:(?P<equals>=)(?P<value>.*))?", re.DOTALL)
_SEGMENT = re.compile(r"[^\s.=\[\]{}+~$][^\s.=\[\]{}]*")
_OPERATIONS: dict[str | None, Operation] = {None: "set", "+": "add", "++": "force", "~": "delete"}


@dataclass(frozen=True, slots=True)
class Override:
    """One parsed word: ``grpo.max_num_steps=3`` is ``Override("set", ("grpo", "max_num_steps"), Node(3, ...))``."""

    operation: Operation
    path: tuple[str, ...]
    value: Node | None
    """None for a deletion."""
    origin: Origin
    text: str
    """The word as it was typed."""

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join(self.path)


def is_override(word: str) -> bool:
    """Whether a word means to be an override; other bare words are slips that deserve another message."""
    return "=" in word or word.startswith("~")


def shown_word(word: str) -> str:
    """A word that is no override, for a message: what follows a colon may be the value of a secret."""
    name, colon, _ = word.partition(":")
    return f"{name}:..." if colon else word


def parse_overrides(tokens: Sequence[tuple[int, str]], source: str = "command line") -> list[Override]:
    """Parse words of the command line, or of another ``source``, given with their 1-based argument positions.

    Raises:
        UsageError: a word is not an override, its key is malformed or its value is not YAML; the origin names the word.
    """
    return [_parse(text, Origin(source, argument=position)) for position, text in tokens]


def _parse(text: str, origin: Origin) -> Override:
    match = _WORD.fullmatch(text)
    assert match is not None  # the pattern takes any text
    prefix, key, value = match["prefix"], match["key"], match["value"]
    if prefix != "~" and match["equals"] is None:
        raise UsageError(
            f"`{shown_word(text)}` is not an override", hint="write `key=value`, or `~key` to delete", origin=origin
        )
    if prefix == "~" and match["equals"] is not None:
        raise UsageError(f"`~{key}=...` deletes and sets at once", hint=f"write `~{key}`", origin=origin)
    path = tuple(key.split("."))
    if not all(_SEGMENT.fullmatch(segment) for segment in path):
        hint = "write names joined by dots; list positions too, as in `policy.scheduler.0.name=x`"
        # Not the value: it may be a secret.
        word = text if match["equals"] is None else f"{prefix or ''}{key}=..."
        raise UsageError(f"`{key}` in `{word}` is not a config key", hint=hint, origin=origin)
    return Override(_OPERATIONS[prefix], path, None if value is None else _value(key, value, origin), origin, text)


def _value(key: str, value: str, origin: Origin) -> Node:
    try:
        node = parse_yaml(value, origin, flow_only=True)
    except YamlError as error:
        message = f"the value of `{key}` is not YAML: {error.message.removeprefix('broken YAML: ')}"
        hint = f"to give a string, quote it for YAML: `'{key}=\"...\"'`"
        raise UsageError(message, hint=hint, origin=origin) from None
    if node is None:
        hint = f"write `{key}=null`, or `'{key}=\"\"'` for an empty string"
        raise UsageError(f"`{key}=` has no value", hint=hint, origin=origin)
    return node

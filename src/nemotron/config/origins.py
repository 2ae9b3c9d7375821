"""Values that remember where they were written, from the YAML line or command-line word to the last message."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron.errors import ConfigError, Origin

PYTHON = "Python"
"""The source of a value that a call of :mod:`nemotron.api` gave."""


@dataclass(slots=True)
class Node:
    """A config value with its origin. Layers and overrides rewrite trees of these, so that an origin never gets lost.

    Example: ``Node({"lr": Node(1e-6, Origin("a.yaml", 2, 7))}, Origin("a.yaml", 1, 1))`` stands for ``{"lr": 1e-6}``.
    """

    value: Any
    """``dict[str, Node]``, ``list[Node]`` or a scalar (str, int, float, bool, None)."""
    origin: Origin


class YamlError(ConfigError):
    """A YAML file cannot be read; ``snippet`` shows the lines around the place."""

    def __init__(self, message: str, *, origin: Origin, hint: str | None = None, snippet: str | None = None) -> None:
        super().__init__(message, hint=hint, origin=origin)
        self.snippet = snippet


def plain(node: Node) -> Any:
    """The value without origins: dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def located(value: Any, origin: Origin) -> Node:
    """The inverse of :func:`plain`: every part of ``value`` gets the same origin."""
    if isinstance(value, dict):
        return Node({key: located(child, origin) for key, child in value.items()}, origin)
    if isinstance(value, list):
        return Node([located(child, origin) for child in value], origin)
    return Node(value, origin)


def walk(node: Node, key: str = "") -> Iterator[tuple[str, Node]]:
    """Every value below ``node`` with its dotted key, sections before their content; list items count from 0."""
    yield key, node
    if isinstance(node.value, dict):
        for name, child in node.value.items():
            yield from walk(child, f"{key}.{name}" if key else name)
    elif isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from walk(child, f"{key}.{index}" if key else str(index))


def kind(value: Any) -> str:
    """What a value is, in the words of a message, e.g. ``the string `abc```, ``a list``, ``null``."""
    if value is None:
        return "`null`"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f"the string `{value}`" if value else "an empty string"
    return f"the {'integer' if isinstance(value, int) else 'number'} `{value}`"


def no_text(value: str) -> str | None:
    """Why no file, tokenizer or program takes a text: a clause after its name; None of one that all take."""
    if "\x00" in value:
        return "holds a null character, which is no text"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        letter = ord(value[error.start])
        # An argument or a variable whose bytes are no UTF-8 comes in with each of them as such a letter.
        byte = f"the byte 0x{letter - 0xDC00:02x}, which is not UTF-8" if 0xDC80 <= letter <= 0xDCFF else ""
        return f"holds {byte or f'half a surrogate pair, `{chr(92)}u{letter:04x}`, which is no text'}"
    return None


def readable(value: str) -> str:
    """A text that can be printed, whatever is in it."""
    return value.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def shown(path: Path) -> str:
    """A path as a user would type it: relative when it lies under the current folder."""
    absolute = path.absolute()
    cwd = Path.cwd()
    return str(absolute.relative_to(cwd)) if absolute.is_relative_to(cwd) else str(absolute)

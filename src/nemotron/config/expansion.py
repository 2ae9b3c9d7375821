"""How much the references of a config stand for, counted before anything is resolved.

OmegaConf resolves a reference anew wherever it is met. Forty lines that each refer twice to the line above would take
it years, and a section that refers to itself ends in the interpreter's own limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MOST = 1 << 20
"""Letters and values that all references of a config may stand for. The largest shipped one needs a hundredth."""
_REFERENCE = re.compile(r"\$\{\s*(?:oc\.select\s*:\s*)?['\"]?(\.*[^\s.${}:,'\"][^\s${}:,'\"]*|\.+)['\"]?\s*[,}]")
_ITEM = re.compile(r"\[([^\]]*)\]")

Key = tuple[Any, ...]


@dataclass
class Expansion:
    """What the references of ``root`` stand for."""

    root: dict[str, Any]
    _weights: dict[Key, int] = field(default_factory=dict)
    _open: set[Key] = field(default_factory=set)
    _path: list[str] = field(default_factory=list)
    _total: int = 0

    def fault(self) -> tuple[str, str] | None:
        """The key of a reference that cannot be resolved, and why: a clause after its name. None when all can."""
        try:
            self._weight((), self.root)
        except _Endless as found:
            return found.key, found.reason
        return None

    def _weight(self, key: Key, value: Any) -> int:
        if key in self._weights:
            return self._weights[key]
        if key in self._open:
            raise _Endless(self._path[-1], f"refers to `{_dotted(key)}`, which contains it")
        self._open.add(key)
        weight = 1
        if isinstance(value, str):
            weight += len(value)
            if "${" in value:
                weight += self._referred(key, value)
        else:
            weight += sum(self._weight((*key, name), child) for name, child in _children(value))
        self._open.discard(key)
        self._weights[key] = weight
        return weight

    def _referred(self, key: Key, text: str) -> int:
        """What the references in a text stand for."""
        self._path.append(_dotted(key))
        found = 0
        for name in _REFERENCE.findall(text):
            target = _target(key, name)
            value = _at(self.root, target)
            # A text that refers to itself, maybe through others, is one that OmegaConf notices and names.
            if value is not None and not (target in self._open and isinstance(value, str)):
                found += self._weight(target, value)
        self._total += found
        if self._total > MOST:
            raise _Endless(_dotted(key), f"and the references before it stand for more than {MOST:,} letters")
        self._path.pop()
        return found


class _Endless(Exception):
    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _dotted(key: Key) -> str:
    return ".".join(map(str, key)) or "the config"


def _target(key: Key, name: str) -> Key:
    """The place that a reference at ``key`` means: from the root, or with leading dots from the section around it."""
    rest = name.lstrip(".")
    up = len(name) - len(rest)
    base = key[: max(len(key) - up, 0)] if up else ()
    names = _ITEM.sub(r".\1", rest).split(".")
    return (*base, *(part for part in names if part))


def _at(root: Any, target: Key) -> Any:
    """What stands at a place, by the keys as they are; None where there is nothing."""
    at = root
    for name in target:
        if isinstance(at, dict) and name in at:
            at = at[name]
        elif isinstance(at, list) and str(name).isdecimal() and int(name) < len(at):
            at = at[int(name)]
        else:
            return None
    return at

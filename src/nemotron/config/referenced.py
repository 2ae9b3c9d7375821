"""The part of a config that its interpolations need: OmegaConf builds a node for each of these values and for no other.

Its nodes took most of the time of a compile, and nine in ten values of a config refer to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_KEY = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")
"""A reference whose key stands there as it is."""
_RESOLVER = re.compile(r"\$\{(?:oc\.env|mul|div|max|asset|run_dir|artifact):")
"""Resolvers that look at their arguments alone."""

Path = tuple[str, ...]


def part_of(raw: dict[str, Any], texts: Iterable[str]) -> dict[str, Any]:
    """Of ``raw`` the texts with an interpolation, and what they refer to; all of it where that cannot be told.

    Args:
        raw: a config before interpolation.
        texts: every text in it. A key that is itself computed, is relative or has an index, and resolvers that look
            keys up, may refer to anything.
    """
    wanted: set[Path] = set()
    for text in texts:
        if "${" not in text:
            continue
        if "${" in _RESOLVER.sub("", _KEY.sub("", text)):
            return raw
        wanted |= {tuple(key.split(".")) for key in _KEY.findall(text)}
    above = {path[:length] for path in wanted for length in range(len(path))}
    return _kept(raw, (), wanted, above)


def _kept(value: dict[str, Any], path: Path, wanted: set[Path], above: set[Path]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, child in value.items():
        at = (*path, str(name))
        if at in wanted or (isinstance(child, list) and (at in above or _refers(child))):
            found[name] = child
        elif isinstance(child, dict):
            if (inside := _kept(child, at, wanted, above)) or at in above:
                found[name] = inside
        elif _refers(child):
            found[name] = child
    return found


def _refers(value: Any) -> bool:
    """Whether there is an interpolation in a value."""
    if isinstance(value, str):
        return "${" in value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_refers, children))


def filled(raw: Any, resolved: Any) -> Any:
    """A copy of ``raw`` with its interpolations as they are in ``resolved``, which has at least :func:`part_of` it."""
    if isinstance(raw, str):
        return resolved if "${" in raw else raw
    if isinstance(raw, dict):
        inside = resolved if isinstance(resolved, dict) else {}
        return {name: filled(child, inside.get(name)) for name, child in raw.items()}
    if isinstance(raw, list):
        beside = resolved if isinstance(resolved, list) else [None] * len(raw)
        return [filled(child, other) for child, other in zip(raw, beside, strict=True)]
    return raw

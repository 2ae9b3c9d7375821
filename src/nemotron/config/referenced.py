"""References of a config, followed without OmegaConf where that has nothing to compute: a value that is another key's.

OmegaConf parses every text and builds a node for every value; that took most of the time of a compile. Nine in ten
values refer to nothing, and of the others most are a mere ``${key}``. What is computed is left to it, with the part of
the config that it needs for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_KEY = re.compile(r"\$\{([^\W\d]\w*(?:\.\w+)*)\}")
"""A reference whose key stands there as it is."""
_RESOLVER = re.compile(r"\$\{(?:oc\.env|mul|div|max|asset|run_dir|artifact):")
"""Resolvers that look at their arguments alone."""

_FURTHEST = 64
"""References of one another that are followed here."""

_NOTHING = object()
Path = tuple[str, ...]


class UnresolvableError(Exception):
    """A reference leads nowhere, or back to itself."""


def is_plain(text: str) -> bool:
    """Whether a text refers to nothing, or is a reference and nothing else."""
    return "${" not in text or _KEY.fullmatch(text) is not None


def part_of(raw: dict[str, Any], resolver: str | None = None) -> dict[str, Any] | None:
    """Of ``raw``, a config before interpolation, the texts that compute something, and all that those refer to.

    None where that cannot be told: a key that is itself computed, is relative or has an index, and resolvers that look
    keys up, may refer to anything.

    Args:
        resolver: only texts that depend on what it gives.
    """
    needed, texts = _Needed(raw), list(_texts(raw))
    if any("${" in _RESOLVER.sub("", _KEY.sub("", text)) for _, text in texts):
        return None
    changing = None if resolver is None else _dependents(texts, f"${{{resolver}:")
    for path, text in texts:
        if not is_plain(text) and (changing is None or path in changing):
            needed.key(path)
    above = {path[:length] for path in needed.whole for length in range(len(path))}
    return _kept(raw, (), needed.whole, above)


def _dependents(texts: list[tuple[Path, str]], begin: str) -> set[Path]:
    """Places of the texts in which ``begin`` stands, and of those that refer to one of them, however far."""
    found = {path for path, text in texts if begin in text}
    rest = {path: [tuple(key.split(".")) for key in _KEY.findall(text)] for path, text in texts if path not in found}
    while more := {path for path, keys in rest.items() if any(_meet(key, other) for key in keys for other in found)}:
        found |= more
        rest = {path: keys for path, keys in rest.items() if path not in more}
    return found


def _meet(one: Path, other: Path) -> bool:
    """Whether one of two places is the other, or is in it. The way to a place may be a reference: see `_Needed`."""
    return all(a == b for a, b in zip(one, other, strict=False))


class _Needed:
    """Places of a config that cannot be resolved without one another."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.whole: set[Path] = set()
        """Each with all that is below it."""

    def key(self, path: Path) -> None:
        """A place, or the list or the reference on the way to it, and what that refers to."""
        at: Any = self.raw
        for depth, name in enumerate(path):
            if not isinstance(at, dict):
                path = path[:depth]
                break
            # YAML has keys that are no texts, too.
            at = next((child for key, child in at.items() if str(key) == name), _NOTHING)
            if at is _NOTHING:
                return
        if path not in self.whole:
            self.whole.add(path)
            for _, text in _texts(at):
                self.references(text)

    def references(self, text: str) -> None:
        """What a text refers to."""
        for key in _KEY.findall(text):
            self.key(tuple(key.split(".")))


def _texts(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every text with an interpolation, and where it stands."""
    if isinstance(value, str):
        if "${" in value:
            yield path, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in items:
        yield from _texts(child, (*path, str(name)))


def _kept(value: dict[str, Any], path: Path, whole: set[Path], above: set[Path]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, child in value.items():
        at = (*path, str(name))
        if at in whole:
            found[name] = child
        elif at in above:
            found[name] = _kept(child, at, whole, above)
    return found


def laid_over(values: Any, newer: Any) -> Any:
    """``values`` with what ``newer``, a part of them, has in its places."""
    if isinstance(values, dict) and isinstance(newer, dict):
        return values | {name: laid_over(values.get(name), child) for name, child in newer.items()}
    return newer


def filled(raw: dict[str, Any], computed: Any) -> dict[str, Any]:
    """A copy of ``raw`` without an interpolation.

    Args:
        computed: :func:`part_of` it, resolved.

    Raises:
        UnresolvableError: a reference cannot be followed.
    """
    return dict(_Followed(raw, computed).copy(raw, computed))


class _Followed:
    """A config whose references are followed."""

    def __init__(self, raw: dict[str, Any], computed: Any) -> None:
        self.raw, self.computed = raw, computed
        self._open: set[str] = set()

    def copy(self, value: Any, computed: Any) -> Any:
        """A value without interpolations; ``computed`` is what stands in its place there."""
        if isinstance(value, str):
            if (match := _KEY.fullmatch(value)) is not None:
                return self._at(match[1])
            if "${" in value and computed is _NOTHING:
                raise UnresolvableError(value)
            return computed if "${" in value else value
        if isinstance(value, dict):
            inside = computed if isinstance(computed, dict) else {}
            return {name: self.copy(child, inside.get(name, _NOTHING)) for name, child in value.items()}
        if isinstance(value, list):
            beside = computed if isinstance(computed, list) else [_NOTHING] * len(value)
            return [self.copy(child, other) for child, other in zip(value, beside, strict=True)]
        return value

    def _at(self, key: str) -> Any:
        # A key that refers into itself grows with every turn.
        if key in self._open or len(self._open) > _FURTHEST:
            raise UnresolvableError(key)
        self._open.add(key)
        value: Any = self.raw
        computed = self.computed
        names = key.split(".")
        for depth, name in enumerate(names):
            if isinstance(value, str) and (match := _KEY.fullmatch(value)) is not None:
                found = self._at(".".join([match[1], *names[depth:]]))
                self._open.discard(key)
                return found
            value, computed = _child(value, name), _child(computed, name)
            if value is _NOTHING:
                raise UnresolvableError(key)
        found = self.copy(value, computed)
        self._open.discard(key)
        return found


def _child(value: Any, name: str) -> Any:
    if isinstance(value, dict) and name in value:
        return value[name]
    if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
        return value[int(name)]
    return _NOTHING

"""Overrides onto the merged layers. Every problem becomes a finding, so that all are reported at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from pydantic import BaseModel

from nemotron.config import known
from nemotron.config.merge import merge
from nemotron.config.origins import Node, kind, walk
from nemotron.config.overrides import Override, shown_word
from nemotron.errors import Finding, Origin


class Applier:
    """Applies overrides to a tree of layers, one after another, and keeps what went wrong as findings.

    After :meth:`apply`, ``findings`` holds one error for each override that cannot work or has no effect, and
    ``removed`` the origin of every deletion: a key found missing later can be traced to the word that deleted it.
    """

    def __init__(self, root: Node, model: type[BaseModel] | None) -> None:
        self.root = root
        self.findings: list[Finding] = []
        self.removed: dict[str, Origin] = {}
        self._model = model
        self._written: list[tuple[Override, Node]] = []

    def apply(self, overrides: Sequence[Override]) -> None:
        """Apply all; an override undone by a later one is an error too, for one of the two is a mistake."""
        for override in overrides:
            if (problem := self._one(override)) is not None:
                self.findings.append(problem)
        final = {id(node) for _, node in walk(self.root)}
        for override, value in self._written:
            leaves = {id(node) for _, node in walk(value) if not (isinstance(node.value, dict) and node.value)}
            if not leaves & final:
                message = f"`{self._text(override)}` has no effect: a later argument undoes it"
                self.findings.append(_problem(override, "no-effect", message, "keep one of the two"))

    def _one(self, override: Override) -> Finding | None:
        parent = self._parent(override)
        if isinstance(parent, Finding):
            return parent
        name = override.path[-1]
        if override.value is None:
            return self._delete(override, parent, name)
        exists = _child(parent, name) is not None
        if override.operation == "add" and exists:
            hint = f"to change it, write `{self._text(override)[1:]}`"
            return _problem(override, "already-set", f"`{override.key}` is set already", hint)
        if not exists and (problem := self._refuse_unknown(override, len(override.path))):
            return problem
        value = copy.deepcopy(override.value)
        problem = _put(parent, name, value, override)
        if problem is None:
            self._written.append((override, value))
        return problem

    def _parent(self, override: Override) -> Node | Finding:
        """The section that holds the last name; sections that the model knows are created on the way."""
        at = self.root
        for depth, name in enumerate(override.path[:-1], 1):
            child = _child(at, name)
            if child is None and isinstance(at.value, list):
                return _bad_index(override, depth, at)
            if child is None or child.value is None:
                if override.operation == "delete":
                    return self._unknown(override, len(override.path), adding=False)
                if child is None and (problem := self._refuse_unknown(override, depth)):
                    return problem
                # An optional section that is absent or null starts empty; what it then lacks, validation says.
                child = Node({}, override.origin)
                at.value[name] = child
            if not isinstance(child.value, dict | list):
                section = ".".join(override.path[:depth])
                return _problem(
                    override,
                    "not-a-section",
                    f"`{override.key}` cannot be set: `{section}` is {kind(child.value)}",
                    None,
                )
            at = child
        return at

    def _delete(self, override: Override, parent: Node, name: str) -> Finding | None:
        if _child(parent, name) is None:
            if known.look_up(self._model, override.path) is known.Standing.KNOWN:
                message = f"`{override.key}` is not set, so there is nothing to delete"
                return _problem(override, "no-effect", message, None)
            return self._unknown(override, len(override.path), adding=False)
        if isinstance(parent.value, list):
            del parent.value[int(name)]
        else:
            del parent.value[name]
        self.removed[override.key] = override.origin
        return None

    def _refuse_unknown(self, override: Override, depth: int) -> Finding | None:
        """Why a key that the tree does not hold may not be written; None when it may."""
        if isinstance(self._at(override.path[: depth - 1]), list):
            return None  # positions are checked where the list is at hand
        place = known.look_up(self._model, override.path[:depth])
        if place is known.Standing.KNOWN or (place is known.Standing.OPEN and override.operation in ("add", "force")):
            return None
        return self._unknown(override, depth, adding=place is known.Standing.OPEN)

    def _unknown(self, override: Override, depth: int, *, adding: bool) -> Finding:
        key = ".".join(override.path[:depth])
        names = {dotted for dotted, _ in walk(self.root)} | known.keys(self._model)
        if adding:
            # The section takes any key, so only a misspelt neighbour is worth a guess.
            names = {name for name in names if name.rpartition(".")[0] == key.rpartition(".")[0]}
        guess = self._source(known.nearest(key, names), names)
        hints = [f"did you mean `{guess}`?"] if guess else []
        if adding:
            hints.append(f"to add a new key here, write `+{self._text(override)}`")
        return _problem(override, "unknown-key", f"unknown key `{shown_word(key)}`", "; ".join(hints) or None)

    def _source(self, key: str | None, names: set[str]) -> str | None:
        """The key that a guess only refers to: that one is to be set, and the guess follows it."""
        text = self._at(key.split(".")) if key else None
        target = text[2:-1] if isinstance(text, str) and text.startswith("${") else None
        return target if target in names else key

    def _text(self, override: Override) -> str:
        """The word as typed, unless its value is a secret, or may be: an unknown key may be that of one, mistyped."""
        declared = known.look_up(self._model, override.path) is known.Standing.KNOWN
        plain = override.value is not None and not isinstance(override.value.value, str | list | dict)
        shown = plain or (declared and not known.is_secret(self._model, override.key))
        return override.text if shown or override.value is None else f"{override.text.partition('=')[0]}=..."

    def _at(self, path: Sequence[str]) -> object:
        at: Node | None = self.root
        for name in path:
            at = _child(at, name) if at is not None else None
        return None if at is None else at.value


def _child(parent: Node, name: str) -> Node | None:
    if isinstance(parent.value, dict):
        child: Node | None = parent.value.get(name)
        return child
    if isinstance(parent.value, list) and name.isdecimal() and int(name) < len(parent.value):
        item: Node = parent.value[int(name)]
        return item
    return None


def _put(parent: Node, name: str, value: Node, override: Override) -> Finding | None:
    old = _child(parent, name)
    if old is not None and _changes_kind(old.value, value.value):
        # A text that stands where none belongs may be a secret at the wrong key.
        new = "a string" if isinstance(value.value, str) else kind(value.value)
        message = f"`{override.key}` is {kind(old.value)} and cannot become {new}"
        below = f"set keys below it, as in `{override.key}.NAME=...`, or "
        hint = f"replace it whole: `~{override.key} '+{override.key}=...'`"
        return _problem(override, "wrong-type", message, below + hint if isinstance(old.value, dict) else hint)
    if old is not None and isinstance(old.value, dict) and isinstance(value.value, dict):
        if not value.value:
            message = f"`{override.key}` gets an empty mapping, which has no effect: mappings merge"
            return _problem(override, "no-effect", message, f"to delete the section, write `~{override.key}`")
        merge(old, value)
    elif isinstance(parent.value, dict):
        parent.value[name] = value
    elif old is not None:
        parent.value[int(name)] = value
    elif override.operation in ("add", "force") and name == str(len(parent.value)):
        parent.value.append(value)
    else:
        return _bad_index(override, len(override.path), parent)
    return None


def _changes_kind(old: object, new: object) -> bool:
    """Whether a section or list would be lost to something else by a slip; null and interpolations are meant."""
    if isinstance(old, list):
        return isinstance(new, dict)
    if isinstance(old, dict) and old:
        return not (isinstance(new, dict) or new is None or (isinstance(new, str) and "${" in new))
    return False


def _bad_index(override: Override, depth: int, items: Node) -> Finding:
    key = ".".join(override.path[: depth - 1])
    message = f"`{override.path[depth - 1]}` is not a position in `{key}`, a list of {len(items.value)}"
    return _problem(override, "unknown-key", message, f"to append, write `+{key}.{len(items.value)}=...`")


def _problem(override: Override, name: str, message: str, hint: str | None) -> Finding:
    return Finding("error", name, message, key=override.key, origin=override.origin, hint=hint)

"""Where the value of one key comes from: every layer that wrote it, the last one wins, and what it refers to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nemotron.config import known
from nemotron.config.docs import docs_by_key
from nemotron.config.edit import Applier
from nemotron.config.layers import Resolved, chain_of
from nemotron.config.merge import merge_layer
from nemotron.config.origins import Node, plain
from nemotron.config.overrides import Override
from nemotron.errors import NotFoundError, Origin

SECRET = "[secret]"


@dataclass(frozen=True, slots=True)
class Written:
    """One layer's word about a key."""

    origin: Origin
    text: str
    """The value as it stands there, references unresolved."""


@dataclass(frozen=True, slots=True)
class Explained:
    """A key and how it got its value."""

    key: str
    text: str
    """The value that the run gets."""
    meaning: str
    """What the key means; empty where nothing is written about it."""
    layers: tuple[Written, ...]
    """In the order in which they were laid on each other: the last one counts."""
    sources: tuple[Explained, ...] = ()
    """Keys that the value refers to."""


def explain(
    resolved: Resolved,
    config_dir: Path,
    name_or_path: str,
    overrides: Sequence[Override],
    model: type[BaseModel],
    key: str,
) -> Explained:
    """Explain ``key`` of the config that :func:`nemotron.config.layers.load` made from the same arguments.

    Raises:
        NotFoundError: no layer and no model knows the key.
    """
    names = known.keys(model)
    if key not in names and key not in resolved.origins:
        guess = known.nearest(key, {*names, *resolved.origins})
        hint = f"did you mean `{guess}`?" if guess else "`nemotron steps show STEP --all` lists all keys"
        raise NotFoundError(f"there is no key `{key}`", hint=hint)
    states = list(_states(config_dir, name_or_path, overrides, model))
    return _explained(resolved, states, model, key)


def _states(
    config_dir: Path, name_or_path: str, overrides: Sequence[Override], model: type[BaseModel]
) -> Iterator[tuple[Origin | None, Node]]:
    """The tree after every layer. Of a file each value has its own line; of a word the position is the same for all."""
    root = Node({}, Origin(""))
    for _, layer in chain_of(config_dir, name_or_path):
        merge_layer(root, layer)
        yield None, _copy(root)
    applier = Applier(root, model)
    for override in overrides:
        applier.apply([override])
        yield override.origin, _copy(root)


def _copy(node: Node) -> Node:
    if isinstance(node.value, dict):
        return Node({name: _copy(child) for name, child in node.value.items()}, node.origin)
    if isinstance(node.value, list):
        return Node([_copy(child) for child in node.value], node.origin)
    return Node(node.value, node.origin)


def _explained(
    resolved: Resolved,
    states: Sequence[tuple[Origin | None, Node]],
    model: type[BaseModel],
    key: str,
    above: tuple[str, ...] = (),
) -> Explained:
    secret = known.is_secret(model, key)
    layers: list[Written] = []
    before: Node | None = None
    for word, root in states:
        node = _at(root, key)
        origin = node.origin if node is not None else word
        if origin is not None and not _same(node, before):
            layers.append(Written(origin, "not set" if node is None else _written(plain(node), secret=secret)))
        before = node
    value = resolved.get(key, _MISSING)
    text = "not set" if value is _MISSING else _written(value, secret=secret)
    meaning = " ".join(docs_by_key(model).get(key, "").replace("``", "`").split())
    wanted = sorted(({resolved.source(key)} | resolved.sources(key)) - {key, *above})
    sources = tuple(_explained(resolved, states, model, source, (*above, key)) for source in wanted)
    return Explained(key, text, meaning, tuple(layers), sources)


_MISSING = object()


def _written(value: Any, *, secret: bool) -> str:
    """A value as a layer has it; of a secret only where it is to be found."""
    reference = isinstance(value, str) and value.startswith("${")
    return SECRET if secret and value is not None and not reference else _text(value)


def _at(root: Node, key: str) -> Node | None:
    node = root
    for name in key.split("."):
        if isinstance(node.value, dict) and name in node.value:
            node = node.value[name]
        elif isinstance(node.value, list) and name.isdecimal() and int(name) < len(node.value):
            node = node.value[int(name)]
        else:
            return None
    return node


def _same(one: Node | None, other: Node | None) -> bool:
    """Whether nobody has written the key in between: not even the same value again."""
    if one is None or other is None:
        return one is other
    return one.origin == other.origin and plain(one) == plain(other)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return f"a section of {len(value)} keys: {', '.join(map(str, value))}"
    return json.dumps(value, ensure_ascii=False, default=str)

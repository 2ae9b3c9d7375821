"""The parameter table of a step: meaning and type from the model, values from its default.yaml."""

from __future__ import annotations

import json
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from nemotron.config import known
from nemotron.config.docs import docs_by_key
from nemotron.config.layers import read_layers
from nemotron.config.origins import plain, walk
from nemotron.config.schema.fields import Omittable
from nemotron.errors import NotFoundError
from nemotron.suggest import listed

_SIMPLE = {int: "integer", float: "number", str: "string", bool: "true | false", type(None): "null", Any: "anything"}
_REFUSES_NULL = get_args(Omittable)[1]
_BOUNDS = {Ge: ("ge", ">="), Gt: ("gt", ">"), Le: ("le", "<="), Lt: ("lt", "<")}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One config key of a step."""

    name: str
    type: str
    default: Any
    """As default.yaml has it, interpolations unresolved; else the model's own."""
    source: Literal["yaml", "model", "none"]
    """Where the default comes from; ``none``: the key is optional and not set."""
    description: str
    section: bool
    """Whether it only groups other parameters."""


def parameters(model: type[BaseModel], config_dir: Path, name: str = "default") -> list[Parameter]:
    """Every key that ``model`` declares, with the value that the config ``name`` gives it."""
    root, _ = read_layers(config_dir, name)
    values = {key: node for key, node in walk(root) if key}
    rows = []
    docs = docs_by_key(model)
    for key, field in known.fields(model).items():
        members = [m for m in known.alternatives(field.annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
        node = values.get(key)
        source: Literal["yaml", "model", "none"] = "yaml" if node is not None else "none"
        default = plain(node) if node is not None and not (members and isinstance(node.value, dict)) else None
        own = None if field.is_required() or members else field.get_default(call_default_factory=True)
        if node is None and own is not None:
            source, default = "model", own
        description = " ".join(docs.get(key, "").replace("``", "`").split())
        rows.append(Parameter(key, type_text(field), default, source, description, bool(members)))
    return rows


def below(rows: Sequence[Parameter], prefix: str) -> list[Parameter]:
    """The parameter called ``prefix`` and those below it, else those that begin with it; all for an empty one.

    Raises:
        NotFoundError: there is none.
    """
    key = prefix.rstrip(".")
    found = [row for row in rows if not key or row.name == key or row.name.startswith(f"{key}.")]
    found = found or [row for row in rows if row.name.startswith(key)]
    if not found:
        names = [row.name for row in rows]
        guess = known.nearest(key, names)
        sections = dict.fromkeys(name.partition(".")[0] for name in names)
        hint = f"did you mean `{guess}`?" if guess else f"there are {listed(sections)}"
        raise NotFoundError(f"this step has no parameter `{key}`", hint=hint)
    return found


def value_of(config_dir: Path, rows: Sequence[Parameter], key: str) -> str:
    """The value of a key in default.yaml as YAML would have it; keys below an open mapping (``kwargs``) count too."""
    row = next((row for row in rows if row.name == key), None)
    if row is not None:
        return "not set" if row.source == "none" else json.dumps(row.default, ensure_ascii=False, default=str)
    root, _ = read_layers(config_dir, "default")
    values = {name: node for name, node in walk(root)}
    return json.dumps(plain(values[key]), ensure_ascii=False, default=str) if key in values else "not set"


def type_text(field: FieldInfo) -> str:
    """A type in words, with its bounds: ``integer >= 1``, ``k1 | k2 | k3``, ``list of string | null``."""
    text = _with_bounds(_text(field.annotation), field.metadata)
    return text.removesuffix(" | null") if _REFUSES_NULL in field.metadata else text


def _text(annotation: Any) -> str:
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _with_bounds(_text(arguments[0]), arguments[1:])
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(_text(part) for part in arguments))
    if origin is Literal:
        return " | ".join(str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in arguments)
    if origin in (list, tuple):
        return f"list of {_text(arguments[0])}"
    if annotation is SecretStr:
        return "secret string"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return "mapping" if origin is dict or annotation is dict else "list" if annotation is list else "anything"


def _with_bounds(text: str, metadata: Any) -> str:
    bounds = [bound for item in metadata for bound in (item.metadata if isinstance(item, FieldInfo) else [item])]
    words = [f"{_BOUNDS[type(b)][1]} {_exact(getattr(b, _BOUNDS[type(b)][0]))}" for b in bounds if type(b) in _BOUNDS]
    return " ".join([text, *words])


def _exact(bound: Any) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)

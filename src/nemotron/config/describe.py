"""The parameter table of a step: meaning and type from the model, values from its default.yaml."""

from __future__ import annotations

import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from nemotron.config import known
from nemotron.config.layers import read_layers
from nemotron.config.origins import plain, walk
from nemotron.config.schema.fields import Omittable

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
    for key, field in known.fields(model).items():
        members = [m for m in known.alternatives(field.annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
        node = values.get(key)
        source: Literal["yaml", "model", "none"] = "yaml" if node is not None else "none"
        default = plain(node) if node is not None and not (members and isinstance(node.value, dict)) else None
        own = None if field.is_required() or members else field.get_default(call_default_factory=True)
        if node is None and own is not None:
            source, default = "model", own
        description = " ".join((field.description or "").replace("``", "`").split())
        rows.append(Parameter(key, type_text(field), default, source, description, bool(members)))
    return rows


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
    words = [f"{_BOUNDS[type(b)][1]} {getattr(b, _BOUNDS[type(b)][0]):g}" for b in bounds if type(b) in _BOUNDS]
    return " ".join([text, *words])

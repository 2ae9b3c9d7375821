"""Which keys a pydantic model knows: for overrides, did-you-mean, and the parameter table of `steps show`."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from nemotron.config.schema.fields import Off
from nemotron.config.schema.reads import Embedded
from nemotron.suggest import closest


class Standing(Enum):
    """What a model says about a key."""

    KNOWN = "known"
    """A declared field."""
    OPEN = "open"
    """Not declared, but the section passes any key through."""
    UNKNOWN = "unknown"


def look_up(model: type[BaseModel] | None, path: Sequence[str]) -> Standing:
    """What ``model`` says about the key ``path``. Without a model everything is open.

    Example: ``look_up(Config, ("grpo", "max_num_steps"))`` is ``Standing.KNOWN``.
    """
    if model is None:
        return Standing.OPEN
    current: list[Any] = [model]
    place = Standing.KNOWN
    for name in path:
        steps = [step for annotation in current for step in _step(annotation, name)]
        if not steps:
            return Standing.UNKNOWN
        if not any(known for known, _ in steps):
            place = Standing.OPEN
        current = [alternative for _, annotation in steps for alternative in alternatives(annotation)]
        # A section that is switched off takes unread keys along, but it is no place to add new ones.
        current = [annotation for annotation in current if annotation is not Off]
    return place


def _step(annotation: Any, name: str) -> Iterator[tuple[bool, Any]]:
    """One level down: (declared?, annotation found there), or nothing where ``annotation`` does not allow ``name``."""
    if annotation is Any or annotation is object or annotation is dict:
        yield False, Any
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = model_fields(annotation).get(name)
        if field is not None:
            yield True, field.annotation
        elif annotation.model_config.get("extra") == "allow":
            yield False, Any
    elif get_origin(annotation) is dict:
        yield False, get_args(annotation)[1]
    elif get_origin(annotation) in (list, tuple) and name.isdecimal():
        yield True, get_args(annotation)[0]


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union, flattened, without ``Annotated`` wrappers; a plain annotation gives itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in alternatives(part)]
    return [annotation]


def model_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields by the name they have in YAML (the alias, where Python's naming rules forced one)."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


@cache
def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Every declared field below ``model`` by dotted key, sections before their content."""
    return dict(_fields(model, "", ()))


def _fields(model: type[BaseModel], prefix: str, above: tuple[type, ...]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model_fields(model).items():
        key = f"{prefix}{name}"
        yield key, field
        for member in alternatives(field.annotation):
            if isinstance(member, type) and issubclass(member, BaseModel) and member not in above:
                yield from _fields(member, f"{key}.", (*above, model))


def keys(model: type[BaseModel] | None) -> set[str]:
    """Every declared dotted key; empty without a model."""
    return set() if model is None else set(fields(model))


def embedded_reads(model: type[BaseModel], section: str, key: str) -> bool:
    """Whether the embedded engine looks at ``key`` of a config, or at something below it.

    Args:
        section: the key of the algorithm's section; some keys are read by some algorithms alone.
    """
    current: list[type[BaseModel]] = [model]
    only: set[str] = set()
    for name in (name for name in key.split(".") if not name.isdecimal()):
        # A section without marks is read as a whole, and so is what no model describes.
        current = [one for one in current if _marks(one)]
        if not current:
            return True
        found = [field for one in current if (field := model_fields(one).get(name)) is not None]
        marked = [field for field in found if any(mark.by(section) for mark in _marks_of(field))]
        if not marked or (only and name not in only):
            return False
        only = {one for field in marked for mark in _marks_of(field) for one in mark.only}
        current = [
            member
            for field in marked
            for one in alternatives(field.annotation)
            for member in (one, *get_args(one))
            if isinstance(member, type) and issubclass(member, BaseModel) and member is not Off
        ]
    return True


def _marks_of(field: FieldInfo) -> list[Embedded]:
    return [mark for mark in field.metadata if isinstance(mark, Embedded)]


@cache
def _marks(model: type[BaseModel]) -> bool:
    return any(_marks_of(field) for field in model.model_fields.values())


def is_secret(model: type[BaseModel] | None, key: str) -> bool:
    """Whether the value of ``key`` must not be shown."""
    field = None if model is None else fields(model).get(key)
    return field is not None and SecretStr in alternatives(field.annotation)


def nearest(key: str, names: Iterable[str]) -> str | None:
    """The known key that ``key`` most likely meant: a misspelt sibling first, then the same name in another section."""
    parent, _, last = key.rpartition(".")
    names = {name for name in names if name != key and not key.startswith(f"{name}.")}
    siblings = {name.rpartition(".")[2]: name for name in sorted(names) if name.rpartition(".")[0] == parent}
    if (guess := closest(last, siblings)) is not None:
        return siblings[guess]
    namesakes = sorted(name for name in names if name.rpartition(".")[2] == last)
    inside = [name for name in namesakes if name.startswith(f"{parent}.")]
    if namesakes:
        return closest(key, inside or namesakes, cutoff=0.0)
    # Beside known siblings a long common prefix would make any of them look near.
    return None if siblings else closest(key, sorted(names), cutoff=0.8)

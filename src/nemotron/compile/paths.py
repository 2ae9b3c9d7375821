"""Paths of a job: absolute, so that it reads the same files wherever it goes on."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nemotron.config.schema.fields import OnDisk
from nemotron.disk.home import expanded, homeless


def with_absolute_paths(values: dict[str, Any], config: BaseModel | None) -> dict[str, Any]:
    """A copy of ``values`` in which every relative path of ``config``, the same as types, is absolute.

    A path that only a default gives, as ``search_path: .``, is written down: it means another folder elsewhere.
    """
    found = copy.deepcopy(values)
    for (*parents, name), default, mark in _paths(config, ()):
        at: Any = found
        for parent in parents:
            at = at[parent]
        # The config as types may have been made for a run folder that has no name yet.
        written = at[name] if isinstance(at, list) else at.get(name, default)
        if written != (path := _absolute(written, mark)):
            at[name] = path
    return found


def _paths(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str, OnDisk]]:
    """Place and text of everything that may be a path, and what it may be else."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            here, child, mark = (*place, field.alias or name), getattr(value, name), _mark(field)
            if mark is None or not isinstance(child, str):
                yield from _paths(child, here)
            elif not mark.unless or getattr(value, mark.unless) is None:
                yield here, child, mark
    elif isinstance(value, dict | list):
        items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in items:
            yield from _paths(child, (*place, key))


def _absolute(text: str, mark: OnDisk) -> str:
    """``text`` as an absolute path; as it is where it is none."""
    path = expanded(text)
    if "://" in text or homeless(text) or (mark.or_text and not text.endswith(".jinja")):
        return text
    return text if mark.or_name and not os.path.isdir(path) else str(path.absolute())


def _mark(field: FieldInfo) -> OnDisk | None:
    """The mark of a field, or of one of the types that its value may have."""
    return next((mark for mark in (*field.metadata, *_inside(field.annotation)) if isinstance(mark, OnDisk)), None)


def _inside(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for argument in get_args(annotation):
        yield from _inside(argument)

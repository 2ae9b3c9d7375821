"""Imported by every Python process that has this folder on its path: notes which keys of a config are read.

``RECORD_READS`` names a folder. Every process leaves a file there with the dotted keys that anything looked up in the
config of a training step, from the moment the whole config had been validated.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nemotron.config.schema.base import Strict
from nemotron.config.schema.logger import LoggerConfig
from nemotron.config.schema.training import TrainingConfig

_places: dict[int, tuple[str, BaseModel]] = {}
"""Identity of a section -> its key, and the section itself, so that no other object takes its identity."""
_read: set[str] = set()
_lookup = BaseModel.__getattribute__
_dump, _copy = BaseModel.model_dump, BaseModel.model_copy


def _key_of(section: BaseModel) -> str | None:
    found = _places.get(id(section))
    if found is None and isinstance(section, TrainingConfig | LoggerConfig):
        # The loggers read their section from the job by itself.
        found = _places[id(section)] = ("" if isinstance(section, TrainingConfig) else "logger", section)
    return found[0] if found else None


def _note(value: Any, key: str) -> None:
    if isinstance(value, BaseModel):
        _places.setdefault(id(value), (key, value))
    elif isinstance(value, list | tuple):
        for one in value:
            _note(one, key)
    elif isinstance(value, dict):
        for name, one in value.items():
            _note(one, f"{key}.{name}")


def _keep(key: str) -> None:
    """At once: a child process may be killed."""
    if key not in _read:
        _read.add(key)
        with (Path(os.environ["RECORD_READS"]) / f"{os.getpid()}.txt").open("a") as file:
            file.write(f"{key}\n")


def _recorded(self: Strict, name: str) -> Any:
    value = _lookup(self, name)
    if not name.startswith("_") and name in type(self).__pydantic_fields__:
        section = _key_of(self)
        if section is not None:
            key = f"{section}.{name}" if section else name
            _keep(key)
            _note(value, key)
    return value


def _dumped(self: Strict, *args: Any, **kwargs: Any) -> Any:
    section = _key_of(self)
    # A leaf is dumped to be handed on; of larger sections a hash is made.
    if section and not any(isinstance(value, BaseModel) for value in vars(self).values()):
        for name in type(self).__pydantic_fields__:
            _keep(f"{section}.{name}")
    return _dump(self, *args, **kwargs)


def _copied(self: Strict, **kwargs: Any) -> Any:
    copy = _copy(self, **kwargs)
    section = _key_of(self)
    if section is not None:
        _places[id(copy)] = (section, copy)
    return copy


Strict.__getattribute__ = _recorded  # type: ignore[method-assign]
Strict.model_dump = _dumped  # type: ignore[method-assign,assignment]
Strict.model_copy = _copied  # type: ignore[method-assign,assignment]

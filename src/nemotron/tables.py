"""TOML tables as frozen dataclasses: every key is known, every value has its type.

Configs are pydantic models; manifests are not, because building models takes longer than all else `steps list` does.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
Problem = Literal["unknown", "missing", "wrong"]
_SIMPLE = {str: "string", int: "integer", bool: "boolean", Path: "path"}


class TableError(Exception):
    """A table does not fit; says which key, where, and why."""

    def __init__(
        self, problem: Literal["unknown", "missing", "wrong"], name: str, section: str, detail: str = ""
    ) -> None:
        super().__init__(problem, name, section, detail)
        self.problem, self.name, self.section, self.detail = problem, name, section, detail


def read_table(kind: type[T], table: object, section: str = "") -> T:
    """``table`` as the dataclass ``kind``, and what is nested in it likewise.

    Args:
        section: dotted place of the table, for the error.

    Raises:
        TableError: the first thing that does not fit; a key that is not known before one that is missing, for that is
            often the same key misspelt.
    """
    if not isinstance(table, dict):
        _wrong(section, "a table")
    hints = _hints(kind)  # type: ignore[arg-type]
    for name in table:
        if name not in hints:
            raise TableError("unknown", str(name), section)
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in table and field.default is MISSING and field.default_factory is MISSING:
            raise TableError("missing", field.name, section)
    return kind(**{name: _value(hints[name], value, _below(section, name)) for name, value in table.items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _below(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _value(wanted: Any, value: object, place: str) -> Any:
    """``value`` when it is of the type ``wanted``. Raises TableError."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        # Only `X | None` occurs, and TOML has no null.
        return _value(next(one for one in arguments if one is not type(None)), value, place)
    if origin is Literal:
        if value not in arguments:
            _wrong(place, " or ".join([", ".join(map(repr, arguments[:-1])), repr(arguments[-1])]))
        return value
    if origin is list:
        if not isinstance(value, list):
            _wrong(place, "a valid list")
        return [_value(arguments[0], one, _below(place, str(index))) for index, one in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            _wrong(place, "a valid dictionary")
        return {name: _value(arguments[1], one, _below(place, str(name))) for name, one in value.items()}
    if is_dataclass(wanted):
        return read_table(wanted, value, place)  # type: ignore[arg-type]
    # Exactly: a boolean is an integer to Python, and not to whoever wrote the manifest.
    if type(value) is not wanted and not (wanted is Path and isinstance(value, Path)):
        _wrong(place, f"a valid {_SIMPLE[wanted]}")
    return value


def _wrong(place: str, detail: str) -> NoReturn:
    section, _, name = place.rpartition(".")
    raise TableError("wrong", name, section, f"should be {detail}")

"""Leaving keys out, switching sections off, and one-or-many."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import ValidationError

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import Count, Off, Omittable, needs_keys_when_enabled, one_or_many


class Engine(Strict):
    enabled: bool
    size: Count
    rank: Omittable[Count] = None


class Rows(Strict):
    path: str


class Tree(Strict):
    engine: Annotated[Engine | Off, needs_keys_when_enabled(Engine)]
    rows: Annotated[Rows | list[Rows], one_or_many(Rows)] = Rows(path="a")


def errors(values: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        Tree.model_validate(values)
    return [(".".join(map(str, error["loc"])), error["type"]) for error in caught.value.errors()]


def test_an_omitted_key_is_none_and_an_explicit_null_is_an_error() -> None:
    tree = Tree.model_validate({"engine": {"enabled": True, "size": 1}})
    assert isinstance(tree.engine, Engine)
    assert tree.engine.rank is None
    assert errors({"engine": {"enabled": True, "size": 1, "rank": None}}) == [("engine.rank", "null_not_allowed")]


def test_a_section_that_is_off_may_leave_out_required_keys() -> None:
    assert Tree.model_validate({"engine": {"enabled": False}}).engine == Off(enabled=False)


def test_a_section_that_is_on_may_not() -> None:
    assert errors({"engine": {"enabled": True}}) == [("engine.size", "missing")]


def test_a_typo_in_a_section_that_is_off_is_still_found() -> None:
    assert errors({"engine": {"enabled": False, "sice": 1}}) == [("engine.sice", "extra_forbidden")]


def test_a_wrong_value_in_a_section_that_is_off_is_still_found() -> None:
    assert errors({"engine": {"enabled": False, "size": 0}}) == [("engine.size", "greater_than_equal")]


def test_one_or_many_keeps_plain_locations() -> None:
    on = {"enabled": False}
    assert Tree.model_validate({"engine": on, "rows": [{"path": "b"}]}).rows == [Rows(path="b")]
    assert errors({"engine": on, "rows": {"pth": "b"}}) == [("rows.path", "missing"), ("rows.pth", "extra_forbidden")]
    assert errors({"engine": on, "rows": [{"path": 1}]}) == [("rows.0.path", "string_type")]

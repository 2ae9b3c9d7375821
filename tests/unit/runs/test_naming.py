"""Ids by time, and names that are a part of an id."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nemotron.errors import NotFoundError
from nemotron.runs.naming import by_part, by_time, dated_id


@dataclass
class Thing:
    id: str


def test_what_starts_later_sorts_later_whatever_it_is_called() -> None:
    ids = [dated_id([word], "thing") for _ in range(200) for word in ("zebra", "ape", "")]
    assert len(set(ids)) == len(ids)
    assert sorted(ids, key=by_time) == ids


def test_a_part_of_an_id_finds_it() -> None:
    known = [Thing("20250101-000000-a-0001"), Thing("20250101-000000-b-0002")]
    assert by_part(known, "0002", kind="thing").id.endswith("b-0002")
    with pytest.raises(NotFoundError, match="`2025` fits 2 things"):
        by_part(known, "2025", kind="thing")
    for name in ("", "20250101-000000-a-0003"):
        with pytest.raises(NotFoundError, match=f"no thing `{name}` here"):
            by_part(known, name, kind="thing", where=" here")

"""What interpolations need of a config: less of it, and the same values."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemotron.config.layers import load
from nemotron.config.referenced import UnresolvableError, filled, part_of
from nemotron.config.resolvers import interpolate
from nemotron.manifest import STEPS

CONFIGS = [path for path in sorted(STEPS.rglob("config/*.yaml")) if "???" not in path.read_text()]
MANY = [False, pytest.param(True, marks=pytest.mark.full)]
"""Whether to try many examples."""
NAMES = ("a", "b", "c")
KEYS = st.lists(st.sampled_from([*NAMES, "0", "1"]), min_size=1, max_size=3).map(".".join)
REFERENCES = st.one_of(
    KEYS.map(lambda key: f"${{{key}}}"),
    KEYS.map(lambda key: f"x${{{key}}}/y"),
    KEYS.map(lambda key: f"${{oc.env:NOT_SET_ANYWHERE,${{{key}}}}}"),
    KEYS.map(lambda key: f"${{oc.select:{key},7}}"),
    KEYS.map(lambda key: f"${{.{key}}}"),
    KEYS.map(lambda key: f"\\\\${{{key}}}"),
    st.sampled_from(["${a[0]}", "${a.${b}}", "${ a }", "${c.a}${c.b}", "${run_dir:}", "${run_dir:}/x"]),
)
LEAVES = st.one_of(st.none(), st.integers(0, 9), st.sampled_from(["b", "text", "", "0"]), REFERENCES)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from([*NAMES, 0, True]), inner, max_size=3)
    ),
    max_leaves=12,
)


def resolved(raw: dict[str, Any]) -> Any:
    """As `interpolate` does it."""
    with suppress(UnresolvableError):
        if (part := part_of(raw)) is not None:
            return filled(raw, OmegaConf.to_container(OmegaConf.create(part), resolve=True))
    return OmegaConf.to_container(OmegaConf.create(raw), resolve=True)


def count(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(count, items))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(STEPS).as_posix())
def test_of_a_shipped_config_less_is_built_and_the_same_comes_out(path: Path) -> None:
    found = load(path.parent, path.stem, [], run_dir="run")
    assert interpolate(found.raw, found.origins, run_dir="run")[0] == found.values
    assert OmegaConf.to_container(OmegaConf.create(found.raw), resolve=True) == found.values
    part = part_of(found.raw)
    assert part is not None
    if count(found.raw) > 100:
        assert count(part) < count(found.raw) / 5


@pytest.mark.parametrize("many", MANY, ids=["some", "many"])
def test_whatever_the_config_omegaconf_says_the_same(many: bool) -> None:
    @settings(max_examples=500 if many else 120, deadline=None)
    @given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
    def holds(raw: dict[str, Any]) -> None:
        try:
            whole = OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
        except (OmegaConfBaseException, RecursionError):
            return  # refused before (a section that contains itself), or by the part as well, below
        assert resolved(raw) == whole

    holds()


@pytest.mark.parametrize("many", MANY, ids=["some", "many"])
def test_what_cannot_be_resolved_cannot_be_without_the_rest(many: bool) -> None:
    @settings(max_examples=300 if many else 80, deadline=None)
    @given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
    def holds(raw: dict[str, Any]) -> None:
        def fails(how: Callable[[dict[str, Any]], object]) -> bool:
            try:
                how(raw)
            except (OmegaConfBaseException, RecursionError):
                return True
            return False

        assert fails(resolved) == fails(lambda raw: OmegaConf.to_container(OmegaConf.create(raw), resolve=True))

    holds()


@pytest.mark.parametrize("many", MANY, ids=["some", "many"])
def test_for_another_run_folder_nothing_is_forgotten(many: bool) -> None:
    @settings(max_examples=500 if many else 120, deadline=None)
    @given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
    def holds(raw: dict[str, Any]) -> None:
        values, findings = interpolate(raw, {}, run_dir="one")
        if not findings:
            assert interpolate(raw, {}, run_dir="two", before=values) == interpolate(raw, {}, run_dir="two")

    holds()


@pytest.mark.parametrize(
    "raw", [{"a": "${a.b}"}, {"a": "${b.c}", "b": "${a.c}"}, {f"k{i}": f"${{k{i + 1}}}" for i in range(200)}]
)
def test_what_leads_nowhere_is_said_by_omegaconf(raw: dict[str, Any]) -> None:
    assert part_of(raw) == {}
    with pytest.raises(UnresolvableError):
        filled(raw, {})
    _, findings = interpolate(raw, {}, run_dir="run")
    assert findings

"""The dotlist: grammar, effects, and one clear finding for each thing that cannot work."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.config.edit import Applier
from nemotron.config.merge import merge
from nemotron.config.origins import located, plain
from nemotron.config.overrides import is_override, parse_overrides
from nemotron.errors import Origin, UsageError
from tests.unit.config.config_sample import Sample, resolve

FILE = Origin("a.yaml")


@pytest.mark.parametrize(
    ("word", "operation", "key", "value"),
    [
        ("a.b=1", "set", "a.b", 1),
        ("+a.b=x", "add", "a.b", "x"),
        ("++a.b=true", "force", "a.b", True),
        ("a.0.b=null", "set", "a.0.b", None),
        ("a=6e9", "set", "a", 6e9),
        ("a=1e-6", "set", "a", 1e-6),
        ("a=[1, x, {y: 2}]", "set", "a", [1, "x", {"y": 2}]),
        ("a={p: 3}", "set", "a", {"p": 3}),
        ('a=""', "set", "a", ""),
        ("a='1'", "set", "a", "1"),
        ("a=b=c", "set", "a", "b=c"),
        ("a=http://host:80/v1", "set", "a", "http://host:80/v1"),
        ("a=${b.c}", "set", "a", "${b.c}"),
        ("a=${oc.env:X,1}", "set", "a", "${oc.env:X,1}"),
        ("a=-3", "set", "a", -3),
        ("a=1,2", "set", "a", "1,2"),
        ("a-b.c_d=1", "set", "a-b.c_d", 1),
    ],
)
def test_grammar(word: str, operation: str, key: str, value: object) -> None:
    (override,) = parse_overrides([(3, word)])
    assert override.value is not None
    assert (override.operation, override.key, plain(override.value)) == (operation, key, value)
    assert override.origin == Origin("command line", argument=3)


def test_deletion_has_no_value() -> None:
    (override,) = parse_overrides([(1, "~a.b")])
    assert (override.operation, override.key, override.value) == ("delete", "a.b", None)


@pytest.mark.parametrize(
    ("word", "message", "hint"),
    [
        ("a", "`a` is not an override", "write `key=value`"),
        ("=5", "`` in `=...` is not a config key", "names joined by dots"),
        ("a..b=1", "`a..b` in `a..b=...` is not a config key", "names joined by dots"),
        ("a[0]=1", "`a[0]` in `a[0]=...` is not a config key", "list positions"),
        ("a b=1", "`a b` in `a b=...` is not a config key", "names joined by dots"),
        ("+++a=1", "`+a` in `+++a=...` is not a config key", "names joined by dots"),
        ("~a=1", "`~a=...` deletes and sets at once", "write `~a`"),
        ("a=", "`a=` has no value", "write `a=null`"),
        ("a=# note", "`a=` has no value", "write `a=null`"),
        ("a=[1,2", "the value of `a` is not YAML", "quote it for YAML"),
        ("a=@x", "the value of `a` is not YAML", "quote it for YAML"),
        ("a=x: y", "a mapping or list on the command line needs braces or brackets", "quote it for YAML"),
        ("a=- 1", "a mapping or list on the command line needs braces or brackets", "quote it for YAML"),
        ("a={b: 1, b: 2}", "duplicate key `b`", "quote it for YAML"),
    ],
)
def test_malformed_words_name_themselves(word: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_overrides([(1, "fine=1"), (7, word)])
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert caught.value.origin == Origin("command line", argument=7)


def test_bare_words_are_recognised() -> None:
    assert [is_override(word) for word in ("dryrun", "a=1", "~a", "+a=1")] == [False, True, True, True]


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["train.max_num_steps=3"], "train.max_num_steps", 3),
        (["train.seed=3"], "train.seed", 3),  # the YAML leaves it out, the model knows it
        (["train.megatron.enabled=false"], "train.megatron", {"enabled": False}),
        (["train.scheduler.1.steps=5"], "train.scheduler.1", {"name": "b", "steps": 5}),
        (["train.scheduler=[{name: z}]"], "train.scheduler", [{"name": "z"}]),
        (["+train.scheduler.2={name: z}"], "train.scheduler.2", {"name": "z"}),
        (["train={seed: 4}"], "train.max_num_steps", 10),
        (["train={seed: 4}"], "train.seed", 4),
        (["+server.port=80"], "server.port", 80),
        (["++server.url=x"], "server.url", "x"),
        (["++server.port=80"], "server.port", 80),
        (["+train.seed=9"], "train.seed", 9),
        (["+extra.a.b=1"], "extra.a", {"b": 1}),
        (["~train.scheduler"], "train.scheduler", None),
        (["~train.scheduler.0"], "train.scheduler", [{"name": "b", "steps": 2}]),
        (["train.scheduler=null"], "train.scheduler", None),
        (["~train.scheduler", "+train.scheduler=[]"], "train.scheduler", []),
        (["+extra.a=1", "extra.a=2", "+extra.b=3"], "extra", None),
    ],
)
def test_effects(tmp_path: Path, words: list[str], key: str, value: object) -> None:
    resolved = resolve(tmp_path, words)
    if key == "extra":  # the first of two settings of one key has no effect
        assert [finding.name for finding in resolved.findings] == ["no-effect"]
        return
    assert not resolved.findings
    assert resolved.get(key) == value


@pytest.mark.parametrize(
    ("word", "name", "message", "hint"),
    [
        ("train.max_num_step=3", "unknown-key", "unknown key `train.max_num_step`", "`train.max_num_steps`?"),
        ("trian.seed=3", "unknown-key", "unknown key `trian`", "did you mean `train`?"),
        ("max_num_steps=3", "unknown-key", "unknown key `max_num_steps`", "did you mean `train.max_num_steps`?"),
        ("zzz=3", "unknown-key", "unknown key `zzz`", None),
        ("+train.zzz=3", "unknown-key", "unknown key `train.zzz`", None),
        ("++train.zzz=3", "unknown-key", "unknown key `train.zzz`", None),
        ("train.megatron.sise=3", "unknown-key", "unknown key `train.megatron.sise`", "`train.megatron.size`?"),
        ("server.port=3", "unknown-key", "unknown key `server.port`", "to add a new key here, write `+server.port=3`"),
        ("extra.a=1", "unknown-key", "unknown key `extra.a`", "to add a new key here, write `+extra.a=1`"),
        ("clusters.a.enabled=true", "unknown-key", "unknown key `clusters.a`", "`+clusters.a.enabled=true`"),
        ("+clusters.a.enabld=true", "unknown-key", "unknown key `clusters.a.enabld`", None),
        ("+name=x", "already-set", "`name` is set already", "to change it, write `name=x`"),
        ("~nam", "unknown-key", "unknown key `nam`", "did you mean `name`?"),
        ("~train.seed", "no-effect", "`train.seed` is not set, so there is nothing to delete", None),
        ("~gone.deep", "unknown-key", "unknown key `gone.deep`", None),
        ("name.x=1", "not-a-section", "`name.x` cannot be set: `name` is the string `sample`", None),
        (
            "train.scheduler.2.name=x",
            "unknown-key",
            "`2` is not a position in `train.scheduler`, a list of 2",
            "append",
        ),
        ("train.scheduler.x=1", "unknown-key", "`x` is not a position in `train.scheduler`", "append"),
        ("+train.scheduler.5={name: x}", "unknown-key", "`5` is not a position in `train.scheduler`", "append"),
        ("train=[1]", "wrong-type", "`train` is a mapping and cannot become a list", "set keys below it"),
        ("train=3", "wrong-type", "`train` is a mapping and cannot become the integer `3`", "set keys below it"),
        (
            "train.scheduler={a: 1}",
            "wrong-type",
            "`train.scheduler` is a list and cannot become a mapping",
            "replace",
        ),
        ("train={}", "no-effect", "`train` gets an empty mapping, which has no effect", "`~train`"),
    ],
)
def test_what_cannot_work_is_a_finding(tmp_path: Path, word: str, name: str, message: str, hint: str | None) -> None:
    resolved = resolve(tmp_path, [word])
    (finding,) = resolved.findings
    assert (finding.severity, finding.name, finding.exit_code) == ("error", name, 3)
    assert finding.message.startswith(message)
    assert finding.origin == Origin("command line", argument=5)
    assert hint in finding.hint if hint and finding.hint else finding.hint is None


def test_undone_overrides_are_named_with_their_own_argument(tmp_path: Path) -> None:
    resolved = resolve(tmp_path, ["train.seed=1", "train.seed=2", "+extra.a=1", "~extra"])
    assert [(f.message.split(" has")[0], str(f.origin)) for f in resolved.findings] == [
        ("`train.seed=1`", "command line, argument 5"),
        ("`+extra.a=1`", "command line, argument 7"),
    ]


def test_secrets_are_not_repeated(tmp_path: Path) -> None:
    resolved = resolve(tmp_path, ["server.api_key=hush", "server.api_key=hushhush", "+server.url=x"])
    assert [finding.key for finding in resolved.findings] == ["server.url", "server.api_key"]
    assert "hush" not in str(resolved.findings)


def test_a_misspelt_override_does_not_hide_the_next(tmp_path: Path) -> None:
    resolved = resolve(tmp_path, ["train.sed=1", "nmae=x", "train.lr=0.5"])
    assert [finding.key for finding in resolved.findings] == ["train.sed", "nmae"]
    assert resolved.get("train.lr") == 0.5


NAMES = st.sampled_from(["a", "b", "c", "dd"])
SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS |= st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]))
MAPPINGS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(NAMES, st.integers(0, 9), max_size=3),
    lambda inner: st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    root = located({}, FILE)
    for layer in layers:
        merge(root, located(copy.deepcopy(layer), FILE))
    value: dict[str, Any] = plain(root)
    return value


@given(MAPPINGS)
def test_merging_nothing_or_the_same_changes_nothing(tree: dict[str, Any]) -> None:
    assert merged(tree) == merged(tree, {}) == merged({}, tree) == merged(tree, tree) == tree


@given(MAPPINGS, MAPPINGS)
def test_the_later_layer_wins_everywhere(base: dict[str, Any], over: dict[str, Any]) -> None:
    assert merged(base, over, over) == merged(base, over)
    assert merged(merged(base, over), over) == merged(base, over)
    assert set(merged(base, over)) == set(base) | set(over)

    def covered(part: dict[str, Any], whole: dict[str, Any]) -> bool:
        def same(value: Any, other: Any) -> bool:
            return covered(value, other) if isinstance(value, dict) and isinstance(other, dict) else value == other

        return all(same(value, whole[key]) for key, value in part.items())

    assert covered(over, merged(base, over))


def same_shape(depth: int = 2) -> st.SearchStrategy[dict[str, Any]]:
    """Trees in which a name is always a section or always a scalar: where merging is associative."""
    inner = same_shape(depth - 1) if depth else st.just({})
    return st.fixed_dictionaries({}, optional={"a": st.integers(0, 9), "b": st.integers(0, 9), "s": inner})


@given(same_shape(), same_shape(), same_shape())
def test_merging_is_associative(x: dict[str, Any], y: dict[str, Any], z: dict[str, Any]) -> None:
    assert merged(merged(x, y), z) == merged(x, merged(y, z))


@given(st.lists(NAMES, min_size=1, max_size=4), SCALARS)
def test_any_scalar_survives_the_command_line(path: list[str], value: Any) -> None:
    """What JSON can write, an override reads back as it was: JSON is YAML."""
    import json

    key = ".".join(path)
    (override,) = parse_overrides([(1, f"{key}={json.dumps(value, ensure_ascii=False)}")])
    assert override.value is not None
    found = plain(override.value)
    assert found == value
    assert type(found) is type(value)


@given(st.text(max_size=20))
def test_any_word_parses_or_is_refused_cleanly(word: str) -> None:
    try:
        origin = parse_overrides([(1, word)])[0].origin
    except UsageError as error:
        origin = error.origin
    assert origin == Origin("command line", argument=1)


@given(st.dictionaries(NAMES, st.integers(0, 9), max_size=4), NAMES, st.integers(10, 19))
def test_setting_touches_one_key_and_applying_twice_is_applying_once(
    section: dict[str, int], name: str, value: int
) -> None:
    override = parse_overrides([(1, f"++{name}={value}")])
    once = Applier(located(dict(section), FILE), None)
    once.apply(override)
    assert not once.findings
    assert plain(once.root) == {**section, name: value}
    twice = Applier(once.root, None)
    twice.apply(override)
    assert plain(twice.root) == plain(once.root)


def test_overriding_a_tree_leaves_the_override_itself_alone(tmp_path: Path) -> None:
    overrides = parse_overrides([(1, "extra={a: {b: 1}}"), (2, "+extra.a.c=2")])
    for _ in range(2):
        applier = Applier(located({"extra": {"x": 1}}, FILE), Sample)
        applier.apply(overrides)
        assert plain(applier.root) == {"extra": {"x": 1, "a": {"b": 1, "c": 2}}}


SECRET = "sk-0123456789abcdef"


OPERATIONS = ("", "+", "++", "~")
RESTS = (f"={SECRET}", f"=[{SECRET}", f"={{a: {SECRET}}}", f".x={SECRET}", f" x={SECRET}", f":{SECRET}")


@settings(max_examples=25)
@given(key=st.from_regex(r"[a-z_]{1,9}(\.[a-z_]{1,9}){0,2}", fullmatch=True))
def test_the_value_of_an_unknown_key_is_never_repeated(key: str) -> None:
    """It may be a secret's, mistyped."""
    for operation, rest in itertools.product(OPERATIONS, RESTS):
        never_repeated(operation, rest, key)


@pytest.mark.full
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("rest", RESTS)
@given(key=st.from_regex(r"[a-z_]{1,9}(\.[a-z_]{1,9}){0,2}", fullmatch=True))
def test_the_value_of_many_unknown_keys_is_never_repeated(operation: str, rest: str, key: str) -> None:
    never_repeated(operation, rest, key)


def never_repeated(operation: str, rest: str, key: str) -> None:
    said: object = None
    try:
        words = parse_overrides([(1, f"{operation}{key}{rest}")])
        applier = Applier(located({"extra": {"b": 1}}, FILE), Sample)
        applier.apply(words)
        said = [(finding.message, finding.hint) for finding in applier.findings]
    except UsageError as error:
        said = (error.message, error.hint)
    assert SECRET not in str(said)

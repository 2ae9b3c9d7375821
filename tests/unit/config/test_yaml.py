"""YAML 1.2 scalars, places of values, and what is said about broken files."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron.config.origins import YamlError, plain, walk
from nemotron.config.yaml import parse_yaml, read_yaml
from nemotron.errors import ConfigError, NemotronError, NotFoundError, Origin

FILE = Origin("a.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6e9", 6e9),
        ("1e-6", 1e-6),
        ("1.0e-6", 1e-6),
        ("-3", -3),
        ("012", 12),
        ("0o17", 15),
        ("0x1f", 31),
        (".inf", float("inf")),
        ("true", True),
        ("yes", "yes"),
        ("off", "off"),
        ("null", None),
        ("~", None),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("1,2", "1,2"),
        ("=", "="),
        ("'6e9'", "6e9"),
        ("", None),
        ("${oc.env:HOME}", "${oc.env:HOME}"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    node = parse_yaml(f"a: {text}", FILE)
    assert node is not None
    found = plain(node)["a"]
    assert found == value
    assert type(found) is type(value)


def test_every_value_knows_its_line_and_column() -> None:
    node = parse_yaml("a:\n  b: 1\n  c: [x, {d: 2}]\n", FILE)
    assert node is not None
    places = {key: (child.origin.line, child.origin.column) for key, child in walk(node)}
    assert places == {
        "": (1, 1),
        "a": (1, 1),
        "a.b": (2, 6),
        "a.c": (3, 6),
        "a.c.0": (3, 7),
        "a.c.1": (3, 10),
        "a.c.1.d": (3, 14),
    }


def test_merge_keys_let_own_values_win_in_every_copy() -> None:
    node = parse_yaml("base: &b {p: 1, q: 1}\none: &o\n  <<: *b\n  q: 2\ntwo: *o\n", FILE)
    assert node is not None
    assert plain(node)["one"] == plain(node)["two"] == {"p": 1, "q": 2}


@pytest.mark.parametrize(
    ("text", "message", "place", "snippet"),
    [
        (
            "x: 1\ny: 2\na: [1,2\nb: 3\n",
            "broken YAML: while parsing a flow sequence: expected `,` or `]`, but got `:`",
            "a.yaml:4:2",
            "2 | y: 2\n3 | a: [1,2\n4 | b: 3\n  |  ^",
        ),
        ("a: 1\na: 2\n", "duplicate key `a`, first given in line 1", "a.yaml:2:1", "1 | a: 1\n2 | a: 2\n  | ^"),
        (
            "a: 1\n b: 2\n",
            "broken YAML: mapping values are not allowed here",
            "a.yaml:2:3",
            "1 | a: 1\n2 |  b: 2\n  |   ^",
        ),
        ("a: *gone\n", "broken YAML: found undefined alias `gone`", "a.yaml:1:4", "1 | a: *gone\n  |    ^"),
        (
            "a: !!python/object x\n",
            "unknown tag `tag:yaml.org,2002:python/object`",
            "a.yaml:1:4",
            "1 | a: !!python/object x\n  |    ^",
        ),
        (
            "a: !!python/object:os.system {b: 1}\n",
            "unknown tag `tag:yaml.org,2002:python/object:os.system`",
            "a.yaml:1:4",
            "1 | a: !!python/object:os.system {b: 1}\n  |    ^",
        ),
        ("a: !foo [1]\n", "unknown tag `!foo`", "a.yaml:1:4", "1 | a: !foo [1]\n  |    ^"),
        ("!foo a: 1\n", "unknown tag `!foo`", "a.yaml:1:1", "1 | !foo a: 1\n  | ^"),
        ("? [1]\n: 2\n", "a key must be a plain string", "a.yaml:1:3", "1 | ? [1]\n  |   ^"),
        (
            "a: &x [*x]\n",
            "an alias refers to the value that contains it",
            "a.yaml:1:4",
            "1 | a: &x [*x]\n  |    ^",
        ),
        (
            "a: {\n",
            "broken YAML: while parsing a flow node: expected the node content, but found `<stream end>`",
            "a.yaml:2:1",
            "1 | a: {",
        ),
        ("a: !!int x\n", "`x` is not a int", "a.yaml:1:4", "1 | a: !!int x\n  |    ^"),
    ],
)
def test_broken_text_shows_place_and_lines(text: str, message: str, place: str, snippet: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse_yaml(text, FILE)
    assert (caught.value.message, str(caught.value.origin), caught.value.snippet) == (message, place, snippet)


@pytest.mark.parametrize("text", ["a:\n\t- 1", "a: \x01", "---\na: 1\n---\nb: 1\n", "%x\na: 1"])
def test_other_broken_text_is_an_error_too(text: str) -> None:
    with pytest.raises(YamlError, match="broken YAML"):
        parse_yaml(text, FILE)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"", YamlError, "is empty"),
        (b"# only words\n", YamlError, "is empty"),
        (b"- 1\n- 2\n", YamlError, "must hold a mapping, but holds a list"),
        (b"just text", YamlError, "must hold a mapping, but holds a single value"),
        (b"a: \xff\n", YamlError, "is not UTF-8 text: byte 3 is 0xff"),
        (None, NotFoundError, "there is no config file"),
    ],
)
def test_unusable_files(tmp_path: Path, content: bytes | None, kind: type[NemotronError], message: str) -> None:
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=message):
        read_yaml(path)


def test_a_folder_is_not_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert plain(read_yaml(path)) == {"a": 1}


@pytest.mark.parametrize("before", [0, 70, 5000])
def test_of_a_line_that_no_terminal_shows_the_place_is_shown(before: int) -> None:
    text = f"a: 1\n{'b' * before}x: [1, 2\n{' ' * 300}y: 3 }} {'z' * 9000}"
    with pytest.raises(YamlError) as caught:
        parse_yaml(text, Origin("c.yaml"))
    rows = (caught.value.snippet or "").splitlines()
    assert max(map(len, rows)) < 200
    # The mark stands under what is meant.
    mark, line = rows[-1].index("^"), rows[-2]
    at = caught.value.origin
    assert at is not None
    assert at.line is not None
    assert at.column is not None
    assert line[mark] == text.splitlines()[at.line - 1][at.column - 1]

"""The `defaults:` chain, its merge rules and its errors, and where `-c` looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron.config.layers import config_names, find_config, load, read_layers
from nemotron.config.origins import plain
from nemotron.errors import ConfigError, NotFoundError, Origin
from tests.unit.config.config_sample import resolve, write


def merged(folder: Path, name: str) -> object:
    return plain(read_layers(folder, name)[0])


def test_later_layers_win_mappings_merge_lists_replace(tmp_path: Path) -> None:
    write(tmp_path, "a: {x: 1, y: 2}\nl: [1, 2, 3]\nkeep: yes\n", "base")
    write(tmp_path, "a: {y: 20}\nz: 1\n", "other")
    path = write(tmp_path, "defaults: [base.yaml, other.yaml]\na: {z: 3}\nl: [9]\n", "top")
    root, files = read_layers(tmp_path, "top")
    assert plain(root) == {"a": {"x": 1, "y": 20, "z": 3}, "l": [9], "keep": "yes", "z": 1}
    assert [file.name for file in files] == ["base.yaml", "other.yaml", path.name]


def test_a_chain_is_read_parents_first(tmp_path: Path) -> None:
    write(tmp_path, "v: 1\nfirst: 1\n", "a")
    write(tmp_path, "defaults: a.yaml\nv: 2\n", "b")
    write(tmp_path, "defaults: b.yaml\nv: 3\n", "c")
    assert merged(tmp_path, "c") == {"v": 3, "first": 1}


def test_the_same_parent_twice_is_no_circle(tmp_path: Path) -> None:
    write(tmp_path, "v: 1\n", "root")
    for name in ("left", "right"):
        write(tmp_path, f"defaults: root\n{name}: 1\n", name)
    write(tmp_path, "defaults: [left, right]\n", "top")
    assert merged(tmp_path, "top") == {"v": 1, "left": 1, "right": 1}


def test_a_file_of_ones_own_inherits_by_the_name_of_the_steps_config(tmp_path: Path) -> None:
    write(tmp_path / "step", "v: 1\nw: 1\n", "default")
    own = write(tmp_path / "elsewhere", "defaults: default\nv: 2\n", "default")
    assert merged(tmp_path / "step", str(own)) == {"v": 2, "w": 1}


def test_override_marker_replaces_a_whole_section(tmp_path: Path) -> None:
    write(tmp_path, "a: {x: 1}\nb: {x: 1}\nc: {x: 1}\n", "base")
    text = "defaults: base\na: {_override_: true, y: 2}\nb: {_override_: false, y: 2}\nc: {y: 2}\n"
    write(tmp_path, text, "top")
    assert merged(tmp_path, "top") == {"a": {"y": 2}, "b": {"x": 1, "y": 2}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("a:\n  b:\n    _override_: true\n", "`_override_` does not work in `a.b`", (3, 17)),
        ("_override_: true\n", "`_override_` does not work in the top of the file", (1, 13)),
        ("a:\n  _override_: 1\n", "`a._override_` must be `true` or `false`", (2, 15)),
        ("defaults: {a: b}\n", "`defaults` takes a path or a list of paths, not a mapping", (1, 11)),
        ("defaults: [{base: x}]\n", "`defaults` takes a path or a list of paths, not a mapping", (1, 12)),
        ("defaults: 3\n", "`defaults` takes a path or a list of paths, not the integer `3`", (1, 11)),
        ("defaults: top.yaml\n", "`defaults` go in a circle: top.yaml -> top.yaml", (1, 11)),
    ],
)
def test_misuse_names_the_place(tmp_path: Path, text: str, message: str, place: tuple[int, int]) -> None:
    path = write(tmp_path, text, "top")
    with pytest.raises(ConfigError) as caught:
        read_layers(tmp_path, "top")
    assert caught.value.message == message
    assert caught.value.origin == Origin(str(path), *place)


def test_a_longer_circle_names_every_file(tmp_path: Path) -> None:
    write(tmp_path, "defaults: b.yaml\n", "a")
    write(tmp_path, "defaults: c.yaml\n", "b")
    write(tmp_path, "defaults: b.yaml\n", "c")
    with pytest.raises(ConfigError, match=r"circle: b\.yaml -> c\.yaml -> b\.yaml"):
        read_layers(tmp_path, "a")


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("gone.yaml", "paths in `defaults` are relative to the file"),
        ("gone", "the step has the configs `default`, `tiny`"),
        ("_self_", "the file itself always comes last"),
    ],
)
def test_a_missing_parent_is_named(tmp_path: Path, entry: str, hint: str) -> None:
    write(tmp_path, "a: 1\n", "default")
    path = write(tmp_path, f"a: 2\ndefaults: {entry}\n", "tiny")
    with pytest.raises(NotFoundError, match=f"`defaults` names `{entry}`, which does not exist") as caught:
        read_layers(tmp_path, "tiny")
    assert caught.value.origin == Origin(str(path), 2, 11)
    assert hint in (caught.value.hint or "")


def test_config_names_list_the_default_first(tmp_path: Path) -> None:
    for name in ("tiny", "default", "cluster"):
        write(tmp_path, "a: 1\n", name)
    assert config_names(tmp_path) == ["default", "cluster", "tiny"]


def test_a_bare_name_is_never_a_file_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "step", "a: 1\n", "tiny")
    write(tmp_path / "cwd", "a: 2\n", "tiny")
    monkeypatch.chdir(tmp_path / "cwd")
    assert find_config(tmp_path / "step", "tiny") == tmp_path / "step" / "tiny.yaml"
    assert find_config(tmp_path / "step", "tiny.yaml") == Path("tiny.yaml")
    assert find_config(tmp_path / "step", "./tiny.yaml") == Path("tiny.yaml")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("tinny", "there is no config `tinny` for this step", "did you mean `tiny`?"),
        ("", "there is no config `` for this step", "Configs: `default`, `tiny`"),
        ("x/y.yaml", "the config file `x/y.yaml` does not exist", ""),
        ("./", "the config file `./` is a folder, not a config file", ""),
    ],
)
def test_unknown_configs(tmp_path: Path, name: str, message: str, hint: str) -> None:
    for known in ("tiny", "default"):
        write(tmp_path, "a: 1\n", known)
    with pytest.raises(NotFoundError) as caught:
        find_config(tmp_path, name)
    assert caught.value.message == message
    assert hint in (caught.value.hint or "")


def test_resolved_finds_values_and_origins(tmp_path: Path) -> None:
    resolved = resolve(tmp_path, ["train.scheduler.1.steps=7", "train.lr=${train.max_num_steps}"])
    assert resolved.get("train.scheduler.1.steps") == 7
    assert resolved.get("train.scheduler.9.steps", "none") == "none"
    assert resolved.origin("train.scheduler.1.steps") == Origin("command line", argument=5)
    assert resolved.origin("train.scheduler.0.name") == Origin(str(tmp_path / "default.yaml"), 5, 13)
    # A key that nobody wrote has the origin of its section; one that refers to another has that one's.
    assert resolved.origin("train.seed") == Origin(str(tmp_path / "default.yaml"), 2, 1)
    assert resolved.origin("train.lr") == Origin(str(tmp_path / "default.yaml"), 3, 18)


def test_values_that_refer_to_each_other_still_have_an_origin(tmp_path: Path) -> None:
    write(tmp_path, "a: 1\nb: ${a}\nc: ${b}\n")
    resolved = load(tmp_path, "default", [], run_dir="r")
    assert resolved.values == {"a": 1, "b": 1, "c": 1}
    assert resolved.origin("c") == Origin(str(tmp_path / "default.yaml"), 1, 4)


def test_the_run_folder_can_be_named_later(tmp_path: Path) -> None:
    resolved = resolve(tmp_path, ["name=${run_dir:}/x"], run_dir="first")
    assert resolved.values["name"] == "first/x"
    assert resolved.in_run_dir("second").values["name"] == "second/x"

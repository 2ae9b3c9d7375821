"""Interpolation: the resolvers, and errors that name key, place and variable."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron.config import resolvers
from nemotron.config.layers import load
from nemotron.config.resolvers import interpolate
from nemotron.errors import CompileError, Origin
from tests.unit.config.config_sample import resolve, write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${mul:3,4}", 12),
        ("${mul:${train.max_num_steps},2}", 20),
        ("${mul:0.5,4}", 2.0),
        ("${div:4,2}", 2.0),
        ("${max:3,${train.max_num_steps}}", 10),
        ("${oc.env:SAMPLE_VARIABLE}", "found"),
        ("${oc.env:NOT_SET_ANYWHERE,none}", "none"),
        ("${oc.env:NOT_SET_ANYWHERE,}", ""),
        ("${oc.decode:${oc.env:SAMPLE_NUMBER}}", 7),
        ("${oc.select:not.there,5}", 5),
        ("${run_dir:}/logs", "runs/one/logs"),
        ("${train.scheduler.1.name}", "b"),
        ("${server}", {"url": None}),
    ],
)
def test_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, text: str, value: object
) -> None:
    monkeypatch.setenv("SAMPLE_VARIABLE", "found")
    monkeypatch.setenv("SAMPLE_NUMBER", "7")
    gc.collect()  # what earlier tests left unclosed is warned of when it goes
    recwarn.clear()
    found = resolve(tmp_path, [f"+extra.x={text}"]).get("extra.x")
    assert found == value
    assert type(found) is type(value)
    # OmegaConf's warnings have a path of the machine and are for who calls it.
    assert not recwarn.list


def test_overrides_come_before_interpolation(tmp_path: Path) -> None:
    write(tmp_path, "a: 1\nb: ${a}\nc: {d: '${mul:${b},10}'}\n")
    from nemotron.config.overrides import parse_overrides

    resolved = load(tmp_path, "default", parse_overrides([(1, "a=5")]), run_dir="r")
    assert resolved.values == {"a": 5, "b": 5, "c": {"d": 50}}
    assert resolved.raw["b"] == "${a}"


def test_assets_are_paths_into_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolvers, "ASSETS", tmp_path / "assets")
    (tmp_path / "assets" / "world").mkdir(parents=True)
    (tmp_path / "assets" / "world" / "data.jsonl").touch()
    found = resolve(tmp_path / "c", ["name=${asset:world/data.jsonl}"])
    assert found.values["name"] == str(tmp_path / "assets" / "world" / "data.jsonl")
    with pytest.raises(CompileError) as caught:
        resolve(tmp_path / "c", ["name=${asset:world/dat.jsonl}"])
    (finding,) = caught.value.findings
    assert "there is no shipped asset `world/dat.jsonl`" in finding.message
    assert finding.hint == "did you mean `world/data.jsonl`?"
    with pytest.raises(CompileError) as caught:
        resolve(tmp_path / "c", ["name=${asset:another}"])
    assert caught.value.findings[0].hint == "there is `world/data.jsonl`"
    assert finding.exit_code == 4


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "${oc.env:NOT_SET_ANYWHERE}",
            "`name` needs the environment variable `NOT_SET_ANYWHERE`, which is not set",
            "set it, or give a default: `${oc.env:NOT_SET_ANYWHERE,value}`",
        ),
        (
            "${train.max_num_step}",
            "`name` refers to `train.max_num_step`, which does not exist",
            "max_num_steps`?",
        ),
        ("${asset:a}${", "`name` holds a broken interpolation: `${asset:a}${`", "write `${key}` or"),
        ("${artefact:x}", "`name` uses the unknown resolver `artefact`", "did you mean `artifact`?"),
        ("${zzzz:x}", "`name` uses the unknown resolver `zzzz`", "known are `oc.env`"),
        ("${name}", "`name` refers to itself through `${name}`", None),
        ("${div:1,0}", "`name` cannot be resolved from `${div:1,0}`: division by zero", None),
        (
            "${max:}",
            "`name` cannot be resolved from `${max:}`: these are no arguments of `max`",
            "write `${max:a,b}`",
        ),
        (
            "${asset:}",
            "`name` cannot be resolved from `${asset:}`: these are no arguments of `asset`",
            "write `${asset:tiny_world/policy}`",
        ),
        (
            "${oc.env:}",
            "`name` cannot be resolved from `${oc.env:}`: these are no arguments of `oc.env`",
            "write `${oc.env:NAME,default}`",
        ),
        ("${mul:a,2}", "`name` cannot be resolved: the string `a` is not a number", None),
        ("???", "`name` has no default and must be given", "add `name=...` to the command line"),
    ],
)
def test_what_cannot_be_resolved(tmp_path: Path, text: str, message: str, hint: str | None) -> None:
    with pytest.raises(CompileError) as caught:
        resolve(tmp_path, [f"name='{text}'"])
    (finding,) = caught.value.findings
    assert finding.message == message
    assert (finding.key, finding.origin) == ("name", Origin("command line", argument=5))
    assert finding.hint is None if hint is None else hint in (finding.hint or "")


def test_artifacts_are_reserved(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        resolve(tmp_path, ["name=${artifact:policy}"])
    assert caught.value.finding_exit_code == 10


def test_all_are_reported_at_once_without_those_that_only_follow(tmp_path: Path) -> None:
    words = ["name=${oc.env:NOT_SET_ANYWHERE}", "+extra.a=${name}", "+extra.b=${nmae}", "train.sed=1"]
    with pytest.raises(CompileError) as caught:
        resolve(tmp_path, words)
    assert [(f.name, f.key) for f in caught.value.findings] == [
        ("unknown-key", "train.sed"),
        ("unresolved", "name"),
        ("unresolved", "extra.b"),
    ]


@pytest.mark.parametrize(
    "double",
    [
        lambda last: f"${{{last}}}${{{last}}}",
        lambda last: {"x": f"${{{last}}}", "y": f"${{{last}}}"},
        lambda last: [f"${{{last}}}", f"${{{last}}}"],
        lambda last: f"${{oc.select:{last}}}${{oc.select:{last}, x}}",
        lambda last: f"${{.{last}}}${{.{last}}}",
    ],
)
def test_references_that_double_are_counted_before_they_are_resolved(double: Callable[[str], Any]) -> None:
    values = {"a0": "x", **{f"a{i}": double(f"a{i - 1}") for i in range(1, 40)}}
    started = time.monotonic()
    _, found = interpolate(values, {}, run_dir="r")
    assert time.monotonic() - started < 60, "resolved, there would be 2**39 references"
    assert [finding.name for finding in found] == ["circular-reference"]
    assert "stand for more than" in found[0].message


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"a": {"b": "${a}"}}, "a.b"),
        ({"a": {"b": {"c": "${..b}"}}}, "a.b.c"),
        ({"a": {"b": ["${oc.select:a}"]}}, "a.b.0"),
        ({"a": {"c": "${b}"}, "b": {"d": "${a}"}}, "b.d"),
    ],
)
def test_a_section_that_holds_itself(values: dict[str, Any], key: str) -> None:
    _, found = interpolate(values, {}, run_dir="r")
    assert [(finding.name, finding.key) for finding in found] == [("circular-reference", key)]


def test_ordinary_references_are_many() -> None:
    values = {"a": {"b": "x" * 1000}, **{f"r{i}": "${a}" for i in range(500)}}
    resolved, found = interpolate(values, {}, run_dir="r")
    assert not found
    assert resolved["r499"] == values["a"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('train:\n  max_num_steps: "a\\udfffb"', "half a surrogate pair, `\\udfff`"),
        ('train:\n  "\\ud800": 1', "half a surrogate pair, `\\ud800`"),
        ('train:\n  max_num_steps: "a\\0b"', "a null character"),
        ("train:\n  max_num_steps: ${oc.env:BROKEN}", "the byte 0xff, which is not UTF-8"),
    ],
)
def test_what_is_no_text_is_refused_at_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setenv("BROKEN", "a\udcff")
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(CompileError) as raised:
        load(tmp_path, "own", (), run_dir="r")
    (found,) = raised.value.findings
    assert said in found.message
    assert found.origin is not None
    assert found.origin.line == 2


@pytest.mark.parametrize("digits", [19, 400])
@pytest.mark.parametrize("key", ["train.max_num_steps", "train.lr", "anything.at_all"])
def test_a_whole_number_that_nothing_can_take_is_refused_whatever_its_key(
    tmp_path: Path, key: str, digits: int
) -> None:
    section, _, name = key.partition(".")
    (tmp_path / "own.yaml").write_text(f"{section}:\n  {name}: [1, -9{digits * '0'}]")
    with pytest.raises(CompileError) as raised:
        load(tmp_path, "own", (), run_dir="r")
    (found,) = raised.value.findings
    assert (found.name, found.key) == ("out-of-range", f"{key}.1")
    assert "bits: no library takes more than 64" in found.message
    assert found.origin is not None


def test_the_largest_number_is_one(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"train:\n  max_num_steps: {2**63 - 1}")
    assert load(tmp_path, "own", (), run_dir="r").values["train"]["max_num_steps"] == 2**63 - 1

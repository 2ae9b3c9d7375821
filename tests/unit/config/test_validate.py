"""Strict typing: every problem at once, where it was written, in words that name the fix."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, model_validator

from nemotron.config.layers import load
from nemotron.config.schema.base import Strict
from nemotron.config.schema.checkpointing import CheckpointingConfig
from nemotron.config.schema.fields import form_in_words
from nemotron.config.schema.rewards import UserRewardConfig
from nemotron.config.validate import validate
from nemotron.errors import Origin
from nemotron.profiles.model import SlurmProfile
from tests.unit.config.config_sample import GOOD, Sample, resolve, write


def test_a_good_config_has_no_findings(tmp_path: Path) -> None:
    config, findings = validate(resolve(tmp_path), Sample)
    assert findings == []
    assert config is not None
    assert config.train.max_num_steps == 10
    assert config.train.seed == 0


@pytest.mark.parametrize(
    ("word", "name", "message", "hint"),
    [
        ("train.max_num_steps=abc", "wrong-type", "expected an integer, got the string `abc`", None),
        ("train.max_num_steps='3'", "wrong-type", "expected an integer, got the string `3`", "drop the quotes"),
        ("train.max_num_steps=6e3", "wrong-type", "expected an integer, got the number `6000.0`", "write `6000`"),
        ("train.max_num_steps=1.5", "wrong-type", "expected an integer, got the number `1.5`", None),
        ("train.max_num_steps=true", "wrong-type", "expected an integer, got `true`", None),
        ("train.max_num_steps=null", "wrong-type", "expected an integer, got `null`", None),
        ("train.max_num_steps=[1]", "wrong-type", "expected an integer, got a list", None),
        ("train.max_num_steps=0", "out-of-range", "must be at least 1, got the integer `0`", None),
        ("train.lr=fast", "wrong-type", "expected a number, got the string `fast`", None),
        (
            "train.mode=aut",
            "wrong-type",
            "expected `auto`, `off` or an integer, got the string `aut`",
            "`train.mode=auto`?",
        ),
        ("train.scheduler=3", "wrong-type", "expected a list, got the integer `3`", None),
        ("name=3", "wrong-type", "expected a string, got the integer `3`", """put it in quotes: `'name="3"'`"""),
        ("name=0123", "wrong-type", "expected a string, got the integer `123`", """`'name="0123"'`"""),
        ("name=1e5", "wrong-type", "expected a string, got the number `100000.0`", """`'name="1e5"'`"""),
        ("name=true", "wrong-type", "expected a string, got `true`", """`'name="true"'`"""),
        ("extra=3", "wrong-type", "expected a mapping, got the integer `3`", None),
        (
            "train.limit=null",
            "invalid-value",
            "null is not a value of this key; leave the key out instead",
            "drop it; where a config sets it, `~train.limit` takes it away",
        ),
        (
            "+clusters.a={enabled: yes, size: 1}",
            "wrong-type",
            "expected `true` or `false`, got the string `yes`",
            "YAML 1.2",
        ),
    ],
)
def test_wrong_values(tmp_path: Path, word: str, name: str, message: str, hint: str | None) -> None:
    config, findings = validate(resolve(tmp_path, [word]), Sample)
    assert config is None
    (finding,) = findings
    assert finding.name == name
    assert finding.message.partition(": ")[2] == message
    assert finding.origin == Origin("command line", argument=5)
    assert finding.hint is None if hint is None else hint in (finding.hint or "")


@pytest.mark.parametrize("model", [UserRewardConfig, CheckpointingConfig, SlurmProfile])
def test_a_form_is_told_in_words(model: type[BaseModel]) -> None:
    """Nobody should have to read a pattern to see what to write."""
    patterns = re.findall(r"'pattern': '(.*?)'[,}]", str(model.model_json_schema()))
    assert patterns
    for pattern in patterns:
        words = form_in_words(pattern.replace("\\\\", "\\"))
        assert words is not None, pattern
        example = re.search(r"as `([^`]+)`", words)
        assert example is not None
        assert re.fullmatch(pattern.replace("\\\\", "\\"), example[1])


def test_what_a_hint_tells_to_write_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of a file loses its quotes nowhere; one of a variable never had any."""
    _, (finding,) = validate(resolve(tmp_path, text=GOOD.replace("name: sample", "name: 0123")), Sample)
    assert finding.hint == "put it in quotes, as it is written"
    monkeypatch.setenv("STEPS", "4")
    written = GOOD.replace("max_num_steps: 10", 'max_num_steps: "${oc.env:STEPS}"')
    _, (finding,) = validate(resolve(tmp_path, text=written), Sample)
    told = (finding.hint or "").partition("`")[2].rstrip("`")
    config, findings = validate(resolve(tmp_path, text=written.replace("${oc.env:STEPS}", told)), Sample)
    assert (config and config.train.max_num_steps, findings) == (4, [])


def test_a_key_with_dots_in_a_file_is_told_to_be_nested(tmp_path: Path) -> None:
    _, (finding,) = validate(resolve(tmp_path, text=GOOD + "train.seed: 3\n"), Sample)
    assert finding.message == "unknown key `train.seed`"
    assert "`train: {seed: ...}`" in (finding.hint or "")


def test_unknown_and_missing_keys_point_at_their_place(tmp_path: Path) -> None:
    text = GOOD.replace("name: sample\n", "").replace("  max_num_steps: 10", "  max_num_step: 10\n  zzz: 1")
    _, findings = validate(resolve(tmp_path, text=text), Sample)
    path = str(tmp_path / "default.yaml")
    assert [(f.name, f.message, f.origin, f.hint) for f in findings] == [
        ("missing-key", "the key `name` is missing", Origin(path), findings[0].hint),
        ("missing-key", "the key `train.max_num_steps` is missing", Origin(path, 1, 1), findings[1].hint),
        ("unknown-key", "unknown key `train.max_num_step`", Origin(path, 2, 17), "did you mean `train.max_num_steps`?"),
        ("unknown-key", "unknown key `train.zzz`", Origin(path, 3, 8), None),
    ]
    assert findings[0].hint == "set `name=...`, or inherit the step's own config: `defaults: default`"


def test_a_deleted_required_key_is_traced_to_the_word(tmp_path: Path) -> None:
    _, findings = validate(resolve(tmp_path, ["~name"]), Sample)
    (finding,) = findings
    assert finding.message == "`name` is required, and deleted here"
    assert finding.origin == Origin("command line", argument=5)


def test_everything_at_once_files_first_then_the_command_line(tmp_path: Path) -> None:
    write(tmp_path, "train: {max_num_steps: x}\n", "base")
    text = "defaults: base\nname: 1\ntrain:\n  lr: y\n"
    words = ["train.sed=1", "train.mode=z", "train.scheduler.0.name=1"]
    _, findings = validate(resolve(tmp_path, words, text=text), Sample)
    assert [(Path(f.origin.source).name, f.origin.line or f.origin.argument) for f in findings if f.origin] == [
        ("base.yaml", 1),
        ("default.yaml", 2),
        ("default.yaml", 4),
        ("command line", 5),
        ("command line", 6),
        ("command line", 7),
    ]


def test_list_items_have_places_too(tmp_path: Path) -> None:
    text = GOOD.replace("steps: 2", "steps: two")
    _, findings = validate(resolve(tmp_path, text=text), Sample)
    (finding,) = findings
    assert finding.key == "train.scheduler.1.steps"
    assert finding.origin == Origin(str(tmp_path / "default.yaml"), 7, 14)


def test_a_value_that_refers_to_another_blames_that_one(tmp_path: Path) -> None:
    words = ["+extra.lr=fast", "train.lr=${extra.lr}"]
    _, findings = validate(resolve(tmp_path, words), Sample)
    (finding,) = findings
    assert finding.key == "extra.lr"
    assert finding.message == "`extra.lr`: expected a number, got the string `fast` (`train.lr` refers to it)"
    assert finding.origin == Origin("command line", argument=5)


def test_secrets_are_not_repeated(tmp_path: Path) -> None:
    _, findings = validate(resolve(tmp_path, ["server.api_key=31337"]), Sample)
    (finding,) = findings
    assert "31337" not in f"{finding.message} {finding.hint}"


def test_a_section_that_is_off_may_lack_keys_but_not_misspell_them(tmp_path: Path) -> None:
    assert validate(resolve(tmp_path, ["train.megatron={enabled: false}"]), Sample)[1] == []
    _, findings = validate(resolve(tmp_path, ["train.megatron={enabled: false, sise: 1}"]), Sample)
    assert [(f.name, f.key, f.hint) for f in findings] == [
        ("unknown-key", "train.megatron.sise", "did you mean `train.megatron.size`?")
    ]
    _, findings = validate(resolve(tmp_path, ["train.megatron={enabled: true}"]), Sample)
    assert [(f.name, f.key) for f in findings] == [("missing-key", "train.megatron.size")]


class Ordered(Strict):
    """A model with a rule across fields."""

    low: int
    high: int

    @model_validator(mode="after")
    def _in_order(self) -> Ordered:
        if self.low > self.high:
            raise ValueError(f"`low` {self.low} is above `high` {self.high}")
        return self


class WithRule(Strict):
    """Holds a section with a rule."""

    bounds: Ordered


def test_rules_of_a_model_are_told_in_its_own_words(tmp_path: Path) -> None:
    write(tmp_path, "bounds: {low: 3, high: 1}\n")
    _, findings = validate(load(tmp_path, "default", [], run_dir="r", model=WithRule), WithRule)
    (finding,) = findings
    assert (finding.name, finding.key) == ("invalid-value", "bounds")
    assert finding.message == "`bounds`: `low` 3 is above `high` 1"
    assert finding.origin is not None
    assert finding.origin.line == 1

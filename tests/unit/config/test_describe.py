"""The parameter table: meaning from the model, values from default.yaml; and which keys a model knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron.config import known
from nemotron.config.describe import parameters
from nemotron.config.known import Standing
from tests.unit.config.config_sample import GOOD, Sample, write


def test_parameters_join_model_and_yaml(tmp_path: Path) -> None:
    write(tmp_path, GOOD + "extra: {a: 1}\n")
    rows = {row.name: row for row in parameters(Sample, tmp_path)}
    assert list(rows)[:3] == ["name", "train", "train.max_num_steps"]
    assert rows["train"].section
    steps = rows["train.max_num_steps"]
    assert (steps.type, steps.default, steps.source, steps.description) == ("integer >= 1", 10, "yaml", "Steps.")
    assert (rows["train.seed"].default, rows["train.seed"].source) == (0, "model")
    assert (rows["train.limit"].type, rows["train.limit"].source) == ("integer", "none")
    assert rows["train.mode"].type == "auto | off | integer"
    assert rows["train.scheduler"].default == [{"name": "a"}, {"name": "b", "steps": 2}]
    assert rows["server.url"].type == "string | null"
    assert rows["server.api_key"].type == "secret string | null"
    assert rows["extra"].default == {"a": 1}
    assert rows["clusters"].type == "mapping"


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("train.max_num_steps", Standing.KNOWN),
        ("train.max_num_step", Standing.UNKNOWN),
        ("train.scheduler.7.name", Standing.KNOWN),
        ("train.scheduler.x", Standing.UNKNOWN),
        ("train.megatron.size", Standing.KNOWN),
        ("train.megatron.other", Standing.UNKNOWN),
        ("server.url", Standing.KNOWN),
        ("server.other", Standing.OPEN),
        ("server.other.deeper", Standing.OPEN),
        ("extra.a.b.c", Standing.OPEN),
        ("clusters.any", Standing.OPEN),
        ("clusters.any.size", Standing.OPEN),
        ("clusters.any.other", Standing.UNKNOWN),
        ("name.deeper", Standing.UNKNOWN),
    ],
)
def test_what_a_model_says_about_a_key(key: str, place: Standing) -> None:
    assert known.look_up(Sample, key.split(".")) is place


@pytest.mark.parametrize(
    ("key", "guess"),
    [
        ("train.max_num_step", "train.max_num_steps"),
        ("server.max_num_steps", "train.max_num_steps"),
        ("trian", "train"),
        ("train.megatron.zzz", None),
        ("something.else", None),
    ],
)
def test_nearest_prefers_siblings_then_namesakes(key: str, guess: str | None) -> None:
    assert known.nearest(key, known.keys(Sample)) == guess

"""PPO's model against NeMo-RL v0.7.0's keys for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron.config.known import Standing, look_up
from nemotron.config.schema.ppo import PpoConfig, ValueConfig, ValueLossConfig
from nemotron.steps.rl.nemo_rl.ppo.step import STEP

# key -> [declared type, required, value in the exemplar if it has one]
KEYS: dict[str, list[Any]] = json.loads((Path(__file__).parent / "nemo_rl_ppo_v0.7.0.json").read_text())["keys"]


def test_every_key_is_accepted() -> None:
    assert len(KEYS) > 300
    assert [key for key in KEYS if look_up(STEP.config, key.split(".")) is Standing.UNKNOWN] == []


@pytest.mark.parametrize(("section", "model"), [("ppo", PpoConfig), ("value", ValueConfig)])
def test_required_keys_are_those_of_nemo_rl(section: str, model: Any) -> None:
    theirs = {key.split(".")[1] for key, (_, required, *_) in KEYS.items() if _direct(key, section) and required}
    ours = {name for name, field in model.model_fields.items() if field.is_required()}
    assert ours == theirs


@pytest.mark.parametrize(
    ("section", "model"), [("ppo", PpoConfig), ("value", ValueConfig), ("value_loss_fn", ValueLossConfig)]
)
def test_the_exemplar_of_nemo_rl_is_valid(section: str, model: Any) -> None:
    values: dict[str, Any] = {}
    for key, (_, _, *exemplar) in KEYS.items():
        if key.startswith(f"{section}.") and exemplar:
            *path, name = key.split(".")[1:]
            at = values
            for part in path:
                at = at.setdefault(part, {})
            at[name] = exemplar[0]
    model.model_validate(values)


def _direct(key: str, section: str) -> bool:
    return key.startswith(f"{section}.") and key.count(".") == 1

"""The DPO model against the full key list of NeMo-RL v0.7.0, and the shipped configs against the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron.config.known import Standing, look_up
from nemotron.config.resolvers import interpolate
from nemotron.steps.rl.nemo_rl.dpo.step import STEP

# key -> [declared type, required, value in the exemplar if it has one]
KEYS: dict[str, list[Any]] = json.loads((Path(__file__).parent / "nemo_rl_dpo_v0.7.0.json").read_text())["keys"]


def test_every_key_is_accepted() -> None:
    assert len(KEYS) > 300
    assert [key for key in KEYS if look_up(STEP.config, key.split(".")) is Standing.UNKNOWN] == []


def test_the_exemplar_of_nemo_rl_is_valid() -> None:
    raw: dict[str, Any] = {
        "engine": "auto",
        "eval": {"heldout": None},
        "limits": {"max_rejected_share": 0.0},
    }
    for key, (_, _, *exemplar) in KEYS.items():
        if exemplar:
            at = raw
            *sections, name = key.split(".")
            for section in sections:
                at = at.setdefault(section, {})
            at[name] = exemplar[0]
    raw["policy"].pop("megatron_cfg")  # only the keys that dpo.yaml sets in a section that it switches off
    values, findings = interpolate(raw, {}, run_dir="")
    assert findings == []
    config = STEP.config.model_validate(values)
    assert config.dpo.max_num_steps == 150
    assert config.dpo.reference_policy_kl_penalty == 0.05
    assert config.data.named_validation_sets().keys() == {"default"}


@pytest.mark.parametrize("key", [key for key in KEYS if key.startswith("dpo.")])
def test_defaults_are_those_of_the_exemplar(key: str) -> None:
    field = type(STEP.config.model_fields["dpo"].annotation) and STEP.config.model_fields["dpo"].annotation
    assert field is not None
    assert getattr(field(), key.removeprefix("dpo.")) == KEYS[key][2]

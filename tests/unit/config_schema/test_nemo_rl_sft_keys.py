"""The SFT model against the full key list of NeMo-RL v0.7.0, and its exemplar against the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron.config.known import Standing, look_up
from nemotron.config.resolvers import interpolate
from nemotron.config.schema.sft import SftConfig
from nemotron.steps.sft.nemo_rl.step import STEP

# key -> [declared type, required, value in the exemplar if it has one]
KEYS: dict[str, list[Any]] = json.loads((Path(__file__).parent / "nemo_rl_sft_v0.7.0.json").read_text())["keys"]


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
    raw["logger"]["num_val_samples_to_print"] = 0  # required by GRPO's logger, and here of every step
    raw["policy"].pop("megatron_cfg")  # only the keys that sft.yaml sets in a section that it switches off
    values, findings = interpolate(raw, {}, run_dir="")
    assert findings == []
    config = STEP.config.model_validate(values)
    assert (config.sft.max_num_steps, config.sft.val_global_batch_size) == (60, 32)
    assert config.data.add_generation_prompt is False


@pytest.mark.parametrize("key", [key for key in KEYS if key.startswith("sft.")])
def test_defaults_are_those_of_the_exemplar(key: str) -> None:
    assert getattr(SftConfig(), key.removeprefix("sft.")) == KEYS[key][2]

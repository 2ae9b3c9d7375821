"""The guide lists every option with its default, as the models have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from nemotron.config.schema.rewards import AnyReward, RewardFunctionConfig

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "verifiers.md"


def test_every_option_stands_in_the_guide() -> None:
    sections = GUIDE.read_text(encoding="utf-8").partition("## Options")[2].split("\n| option |")
    models = [RewardFunctionConfig, *get_args(AnyReward)]
    assert len(sections) == len(models) + 1
    for model, table in zip(models, sections[1:], strict=True):
        for name, field in model.model_fields.items():
            if name == "name" or (model is not RewardFunctionConfig and name in RewardFunctionConfig.model_fields):
                continue
            value = field.get_default(call_default_factory=True)
            default = "required" if field.is_required() else f"`{json.dumps(value)}`"
            [line] = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
            assert f"| {default} |" in line

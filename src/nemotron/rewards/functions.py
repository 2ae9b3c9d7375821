"""From the config of a reward function to the function, and what it needs of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nemotron.config.schema import rewards as schema
from nemotron.config.schema.rewards import RewardFunctionConfig
from nemotron.rewards import choices, code, instructions, math_answers, patterns, plain, user
from nemotron.rewards.types import RewardFunction


class CheckedFunction(RewardFunction, Protocol):
    """A reward function that can look at a row before there is an answer."""

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why this row can never be scored, in one clause; None when it can."""


_KINDS: dict[type[RewardFunctionConfig], Any] = {
    schema.CodeRewardConfig: code.Code,
    schema.InstructionsRewardConfig: instructions.Instructions,
    schema.MathRewardConfig: math_answers.Math,
    schema.RegexRewardConfig: patterns.Regex,
    schema.JsonSchemaRewardConfig: patterns.JsonSchema,
    schema.UserRewardConfig: user.User,
    schema.ExactRewardConfig: plain.Exact,
    schema.ChoiceRewardConfig: choices.Choice,
    schema.FormatRewardConfig: plain.Format,
    schema.TinyWorldRewardConfig: plain.TinyWorld,
}


ISOLATED: tuple[type[RewardFunctionConfig], ...] = (
    schema.MathRewardConfig,
    schema.RegexRewardConfig,
    schema.JsonSchemaRewardConfig,
    schema.UserRewardConfig,
)
"""Functions that may hang or crash: they run in a worker process, which can be killed."""


def build_function(config: RewardFunctionConfig) -> CheckedFunction:
    """The function that ``config`` describes. Cheap: libraries are loaded at the first call."""
    function: CheckedFunction = _KINDS[type(config)](config)
    return function

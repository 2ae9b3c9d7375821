"""From the config of a reward function to the function, and what it needs of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import nemotron.rewards.counted_instructions  # noqa: F401 - adds its checks to those of `instructions`
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


def isolated(config: RewardFunctionConfig) -> bool:
    """Whether a function may hang or crash, so that it runs in a worker process, which can be killed.

    It does where it applies a pattern or schema that a config or a row brings, computes with what a model wrote, or is
    the user's own. What is left to this process are our own patterns, and the sandbox, which has processes of its own.
    """
    if isinstance(config, schema.ExactRewardConfig):
        return config.extract is not None
    if isinstance(config, schema.ChoiceRewardConfig):
        return config.own_pattern is not None
    if isinstance(config, schema.FormatRewardConfig):
        return bool(config.require or config.forbid)
    return not isinstance(config, schema.CodeRewardConfig | schema.TinyWorldRewardConfig)


def build_function(config: RewardFunctionConfig) -> CheckedFunction:
    """The function that ``config`` describes. Cheap: libraries are loaded at the first call."""
    function: CheckedFunction = _KINDS[type(config)](config)
    return function

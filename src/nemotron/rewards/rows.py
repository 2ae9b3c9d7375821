"""What reward functions need of a row, asked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from nemotron.config.schema.rewards import RewardConfig
from nemotron.rewards.functions import CheckedFunction, build_function


def row_problems(config: RewardConfig, row: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Why a row cannot be scored: (index into ``rewards.functions``, clause) for each function that cannot use it."""
    found = []
    for index, function in enumerate(_functions(config.model_dump_json())):
        problem = function.problem(row)
        if problem is not None:
            found.append((index, problem))
    return found


@lru_cache(maxsize=4)
def _functions(config: str) -> tuple[CheckedFunction, ...]:
    return tuple(build_function(function) for function in RewardConfig.model_validate_json(config).functions)

"""Checks of held-out answers: from yes/no verifiers, and from reward functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nemotron.config.schema.rewards import RewardConfig
from nemotron.contracts.heldout import Check, Item
from nemotron.rewards.scorer import Scorer
from nemotron.rewards.source import passed
from nemotron.rewards.types import Score

if TYPE_CHECKING:
    from nemotron.rewards import Verifier


def by_verifier(verifier: Verifier) -> Check:
    """A check from a program that says yes or no."""

    def check(items: Sequence[Item]) -> list[dict[str, bool]]:
        return [verifier(row, response, ended=ended) for row, response, ended in items]

    return check


def by_rewards(scorer: Scorer, config: RewardConfig) -> Check:
    """A check from reward functions: each is right where it has its best value; all of them is ``fully_right``."""

    def properties(score: Score) -> Mapping[str, bool | None]:
        found: dict[str, bool | None] = {}
        for function in config.functions:
            value = score.components[function.shown]
            found[function.shown] = None if value is None else value == (1.0 if function.weight >= 0 else 0.0)
        return {**found, "fully_right": None if score.reward is None else passed(score, config)}

    def check(items: Sequence[Item]) -> list[Mapping[str, bool | None]]:
        return [properties(score) for score in scorer.score_many(items)]

    return check

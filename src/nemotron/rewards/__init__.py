"""Rewards and measurements from programs that read a response and its row, without a model.

Rewards, for training (``rewards:`` of a config, `RewardConfig`)::

    with build_rewards(config.rewards) as scorer:
        score = scorer.score(row, response, ended=True)      # waits; thread-safe
        future = scorer.submit(row, response, ended=True)    # concurrent.futures.Future[Score]
        scores = scorer.score_many([(row, response, True)])  # in order
        score.reward, score.components, score.missing        # None where missing, and why

``row`` is `PromptRow.fields`. A function that raises, times out or meets an unfit row is *missing*, never 0: its
component is None with a reason, and the sample has no reward unless the function is ``optional``.
``row_problems(config, row)`` finds unfit rows before anything starts, ``gold_problems(config, rows)``
right answers that cannot be right, ``setup_problems(config)`` what it lacks here.

Measurements, for the held-out metric (``eval.heldout.verifier``): `VERIFIERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nemotron.rewards import tiny_world
from nemotron.rewards.golds import GoldProblem, gold_problems
from nemotron.rewards.rows import SetupProblem, row_problems, scorable, setup_problems
from nemotron.rewards.scorer import Scorer, build_rewards
from nemotron.rewards.types import RewardFunction, Score, VerifierError

__all__ = [
    "VERIFIERS",
    "GoldProblem",
    "RewardFunction",
    "Score",
    "Scorer",
    "SetupProblem",
    "Verifier",
    "VerifierError",
    "build_rewards",
    "gold_problems",
    "row_problems",
    "scorable",
    "setup_problems",
]


class Verifier(Protocol):
    """Judges one response to one row: aspect name -> passed; ``fully_right`` is the aspect that counts as accuracy."""

    def __call__(self, row: Mapping[str, Any], response: str, *, ended: bool) -> dict[str, bool]: ...


VERIFIERS: dict[str, Verifier] = {"tiny_world": tiny_world.score}
"""Verifiers by the name that ``eval.heldout.verifier`` uses."""

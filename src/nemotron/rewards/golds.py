"""Right answers scored against themselves, before anything starts: those that nobody can be paid for, or everybody."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nemotron.config.schema import rewards as schema
from nemotron.config.schema.rewards import RewardConfig, RewardFunctionConfig
from nemotron.rewards.rows import usable_functions
from nemotron.rewards.scorer import build_rewards
from nemotron.rewards.text import gold_answers

MOST = 500
"""Different right answers of a function that are tried."""
_TIMEOUT_S = 2.0
_PROBES = ("", "zq")
"""Answers that are right only where everything is."""
_PLAIN_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{1,6})?")
"""Right answers of `math` that need no trial."""


@dataclass(frozen=True, slots=True)
class GoldProblem:
    """Right answers of one function that cannot be right."""

    index: int
    """Into ``rewards.functions``."""
    row: int
    """The first of the rows, as an index."""
    message: str
    tried: int
    """Different right answers that were tried."""
    found: int
    """How many of them have this problem."""


@dataclass(frozen=True, slots=True)
class _Trial:
    row: Mapping[str, Any]
    place: int
    answers: tuple[str, ...]


def gold_problems(config: RewardConfig, rows: Sequence[Mapping[str, Any]]) -> list[GoldProblem]:
    """What is wrong with the right answers of ``rows``, at most two problems a function.

    Rows that a function cannot use at all are `row_problems`'.
    """
    found: list[GoldProblem] = []
    for index, function in usable_functions(config):
        settings = config.functions[index]
        fit = [(place, row) for place, row in enumerate(rows) if function.problem(row) is None]
        own = _trials((row, place, own_answers(settings, row)) for place, row in fit)
        unpaid = [trial for trial, paid in zip(own, _paid(settings, own), strict=True) if not any(paid)]
        if unpaid:
            shown = unpaid[0].answers[0]
            found.append(
                GoldProblem(index, unpaid[0].place, f"not even `{shown}` itself is right", len(own), len(unpaid))
            )
        loose = _trials((row, place, _PROBES) for place, row in fit if _has_a_pattern(settings))
        free = [trial for trial, paid in zip(loose, _paid(settings, loose), strict=True) if all(paid)]
        if free:
            found.append(GoldProblem(index, free[0].place, "any answer at all is right", len(loose), len(free)))
    return found


def own_answers(config: RewardFunctionConfig, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Answers that give the right answer of a row in a form that the function accepts.

    Empty where no form is known (a pattern of the config takes the answer out), or where none needs a trial.
    """
    if not isinstance(config, schema.AnswerRewardConfig):
        return ()
    golds = gold_answers(row, config.answer_field) or []
    if isinstance(config, schema.MathRewardConfig):
        plain = any(_PLAIN_NUMBER.fullmatch(gold.strip()) for gold in golds)
        return () if plain else tuple(f"\\boxed{{{gold}}}" for gold in golds)
    if isinstance(config, schema.ExactRewardConfig):
        return () if config.extract else tuple(golds)
    return ()


def _has_a_pattern(config: RewardFunctionConfig) -> bool:
    """Whether the row says by a pattern what is right."""
    return isinstance(config, schema.RegexRewardConfig) and config.pattern is None and not config.forbid


def _trials(candidates: Iterable[tuple[Mapping[str, Any], int, tuple[str, ...]]]) -> list[_Trial]:
    """The first rows that have something to try. Equal right answers are tried once; patterns are few."""
    found: dict[object, _Trial] = {}
    for row, place, answers in candidates:
        if answers and len(found) < MOST:
            found.setdefault(place if answers == _PROBES else answers, _Trial(row, place, answers))
    return list(found.values())


def _paid(config: RewardFunctionConfig, trials: Sequence[_Trial]) -> list[list[bool]]:
    """Whether each answer of each trial has the full value."""
    if not trials:
        return []
    alone = config.model_copy(update={"weight": 1.0, "timeout_s": _TIMEOUT_S})
    items = [(trial.row, answer) for trial in trials for answer in trial.answers]
    paid = iter(_full_values(alone.model_dump_json(), json.dumps(items)))
    return [[next(paid) for _ in trial.answers] for trial in trials]


@lru_cache(maxsize=32)
def _full_values(function: str, items: str) -> tuple[bool, ...]:
    """Whether each answer has the full value; both arguments are JSON. The jobs of a sweep ask it of the same rows."""
    config = RewardConfig.model_validate({"functions": [json.loads(function)]})
    with build_rewards(config) as scorer:
        scores = scorer.score_many((row, answer, True) for row, answer in json.loads(items))
        return tuple(score.reward == 1.0 for score in scores)

"""Verifiers as a source of rewards for rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from nemotron.config.schema.rewards import RewardConfig
from nemotron.contracts.rewards import GroupRewards, first_failure, missing_share
from nemotron.contracts.samples import Completion
from nemotron.data.rows import PromptRow
from nemotron.errors import RewardError
from nemotron.processes.futures import gather, then
from nemotron.rewards.counts import mean, missing_counts
from nemotron.rewards.scorer import Scorer
from nemotron.rewards.types import Score


class VerifierSource:
    """A ``RewardSource`` that scores each response by itself with the functions of ``rewards:``."""

    def __init__(self, scorer: Scorer, config: RewardConfig) -> None:
        """``scorer`` belongs to the caller, who closes it."""
        self._scorer = scorer
        self._config = config

    def submit(
        self, source: PromptRow, texts: Sequence[str], completions: Sequence[Completion], *, seed: int
    ) -> Future[GroupRewards]:
        """Score a group in the background. Verifiers draw nothing, so ``seed`` has no effect."""
        scores = [
            self._scorer.submit(source.fields, text, ended=not completion.truncated)
            for text, completion in zip(texts, completions, strict=True)
        ]
        return then(gather(scores), self._group)

    def metrics(self, results: Sequence[GroupRewards]) -> dict[str, float]:
        """Mean of every function, pass rate over the scored responses, missing share and counts per reason."""
        scores: list[Score] = [score for result in results for score in result.raw]
        values = {
            label: [value for score in scores if (value := score.components[label]) is not None]
            for label in self._scorer.labels
        }
        scored = [score for score in scores if score.reward is not None]
        return {
            **{f"reward/{label}/mean": mean(found) for label, found in values.items() if found},
            "train/pass_rate": mean([float(passed(score, self._config)) for score in scored]),
            **{
                f"reward/{label}/missing_share": 1.0 - len(found) / max(len(scores), 1)
                for label, found in values.items()
            },
            **missing_counts(item for score in scores for item in score.missing.items()),
        }

    def too_many_missing(self, results: Sequence[GroupRewards], step: int, limit: float) -> RewardError:
        """The error of verifiers that give no values."""
        return RewardError(
            f"{missing_share(results):.0%} of the responses in step {step} could not be scored, the limit is "
            f"{limit:.0%}: {first_failure(results)}",
            hint="`samples.jsonl` of the run has what failed; `limits.max_missing_share` is the limit",
        )

    def _group(self, scores: list[Score]) -> GroupRewards:
        missing = [score for score in scores if score.reward is None]
        return GroupRewards(
            rewards=[score.reward for score in scores],
            details=[self._details(score) for score in scores],
            asked=len(scores),
            missing=len(missing),
            failure=next((f"{label}: {reason}" for score in missing for label, reason in score.missing.items()), None),
            raw=scores,
        )

    def _details(self, score: Score) -> Mapping[str, Any]:
        found: dict[str, Any] = {"components": dict(score.components)}
        if score.missing:
            found["missing"] = dict(score.missing)
        if score.reward is not None:
            found["passed"] = passed(score, self._config)
        return found


def passed(score: Score, config: RewardConfig) -> bool:
    """Whether every function says what it should: 1 where it is rewarded, 0 where it is a penalty.

    Optional functions without a value do not count; a score without any value has not passed.
    """
    wanted = [(function.weight, score.components[function.shown]) for function in config.functions if function.weight]
    found = [(weight, value) for weight, value in wanted if value is not None]
    return bool(found) and all(value == (1.0 if weight > 0 else 0.0) for weight, value in found)

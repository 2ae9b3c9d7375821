"""Mathematical equality, by math-verify. Runs in a worker: sympy can take for ever, and no thread can stop it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron.config.schema.rewards import MathRewardConfig
from nemotron.rewards.text import answer_part, gold_answers, gold_problem, last_boxed
from nemotron.rewards.types import VerifierError


class Math:
    """See `MathRewardConfig`."""

    def __init__(self, config: MathRewardConfig) -> None:
        self._config = config

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why the row cannot be used."""
        return gold_problem(row, self._config.answer_field)

    def __call__(self, row: Mapping[str, Any], response: str, *, ended: bool) -> float:
        """1.0 when the answer equals one of the right ones. An answer in which no mathematics is found is wrong."""
        if problem := self.problem(row):
            raise VerifierError(problem)
        golds = gold_answers(row, self._config.answer_field) or []
        if self._config.require_end and not ended:
            return 0.0
        text: str | None = answer_part(response, self._config.strip_thinking)
        if self._config.extract == "boxed":
            boxed = last_boxed(text or "")
            text = None if boxed is None else f"\\boxed{{{boxed}}}"
        if not text:
            return 0.0
        found = _parse(text)
        return float(bool(found) and any(self._equal(gold, found) for gold in golds))

    def _equal(self, gold: str, found: list[Any]) -> bool:
        from math_verify import verify  # type: ignore[import-untyped]

        # A bare `\\frac12` or `12` is found by neither extractor without a frame around it.
        right = _parse(f"\\boxed{{{gold}}}") or _parse(gold)
        if not right:
            raise VerifierError("the right answer is no mathematics that math-verify reads")
        # Time is kept by the parent process; math-verify's own alarms would swallow their timeouts as "wrong".
        return bool(
            verify(right, found, float_rounding=self._config.precision, timeout_seconds=None, raise_on_error=True)
        )


def _parse(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    found: list[Any] = parse(text, extraction_config=configs, parsing_timeout=None)
    return found

"""Mathematical equality, by math-verify. Runs in a worker: sympy can take for ever, and no thread can stop it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
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
        boxed = last_boxed(text or "")
        if boxed is not None:
            # The last box alone: math-verify makes one list of several that stand in a text without formulas.
            text = f"\\boxed{{{plainer(boxed)}}}"
        elif self._config.extract == "boxed":
            text = None
        if not text:
            return 0.0
        found = _parse(text if boxed is not None else _LOUD.sub(" ", text))
        return float(bool(found) and any(self._equal(gold, found) for gold in golds))

    def _equal(self, gold: str, found: list[Any]) -> bool:
        from math_verify import verify  # type: ignore[import-untyped]

        right = _gold(gold)
        if not right:
            raise VerifierError("the right answer is no mathematics that math-verify reads")
        if _apart(right, found, self._config.precision):
            return False
        # Time is kept by the parent process; math-verify's own alarms would swallow their timeouts as "wrong".
        return bool(
            verify(right, found, float_rounding=self._config.precision, timeout_seconds=None, raise_on_error=True)
        )


_LOUD = re.compile(r"(?<!\w)_{2,3}|_{2,3}(?!\w)")
"""Markdown's underscores for bold, which would make an index of the number that they stand around."""
_GROUPED = re.compile(r"(?<=\d)(?:\\[,;!: ]|\\thinspace|~|\u202f|\u00a0|\{,\})(?=\d{3}(?!\d))")
_UNIT = re.compile(r"(?<=\d)(?:~|\\[ ,;]|\s)*\\(?:text|mathrm|textrm|operatorname)\s*\{[^{}\d]*\}\s*$")
_MIXED = re.compile(r"^\s*(-?)(\d+)\s*(?:\\ |~)?\s*(?:\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}|(?<=\s)(\d+)/(\d+))\s*$")
_EXPONENT = re.compile(r"(?<![\w.])([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?!\w)")


_SMALL = Decimal("1e-3")
"""Share by which numbers may differ that are too small for the decimal places that are compared."""


def plainer(text: str) -> str:
    """A number as math-verify reads it: no spaces between thousands, no unit, no exponent, no full stop at the end.

    ``2\\frac{1}{2}`` is two and a half, as people write it, and not a product.
    """
    text = text.strip().strip("$").strip()
    text = _GROUPED.sub("", text)
    text = _UNIT.sub("", text)
    if mixed := _MIXED.match(text):
        sign, whole = mixed[1], int(mixed[2])
        above, below = (int(part) for part in (mixed[3] or mixed[5], mixed[4] or mixed[6]))
        return f"{sign}\\frac{{{whole * below + above}}}{{{below}}}" if below else text
    text = _EXPONENT.sub(lambda found: f"{Decimal(found[0]):f}", text)
    return re.sub(r"(?<=\d)\.\s*$", "", text)


def _gold(gold: str) -> list[Any]:
    # A bare `\\frac12` or `12` is found by neither extractor without a frame around it.
    bare = plainer(gold)
    return _parse(f"\\boxed{{{bare}}}") or _parse(bare)


def _apart(right: list[Any], found: list[Any], precision: int) -> bool:
    """Whether both are small numbers that differ in a digit that counts.

    math-verify rounds to decimal places, and so makes all numbers that are small enough equal to each other and to 0.
    """
    try:
        left, other = (Decimal(str(value[-1])) for value in (right, found))
    except InvalidOperation:
        return False
    size = max(abs(left), abs(other)) if left.is_finite() and other.is_finite() else Decimal(1)
    return size < Decimal(10) ** (1 - precision) and abs(left - other) > size * _SMALL


def _parse(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    found: list[Any] = parse(text, extraction_config=configs, parsing_timeout=None)
    return found

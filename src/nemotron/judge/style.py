"""Length and formatting of answers, and what they add to a reward.

Formulas: NeMo-Gym's genrm_compare; checked against ``style``, ``length_weights``, ``style_density_weights`` and
``aggregate`` of golden/genrm_compare.json.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nemotron.judge.types import JudgedResponse

_CODE_BLOCK = re.compile(r"```.*?```", re.DOTALL)
_HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
# NeMo-Gym writes `^\s*`, which is quadratic on long runs of blank lines. A line's own indentation is enough: blank
# lines before an item never hide it or add one.
_LIST_ITEMS = (re.compile(r"^[^\S\n]*\d+\.\s", re.MULTILINE), re.compile(r"^[^\S\n]*[-*+]\s", re.MULTILINE))
_BOLD = (re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__"))
# U+24C2-U+1F251 takes in CJK, kana and Hangul. That is NeMo-Gym's class; rewards must agree, so it stays.
_EMOJI = re.compile(
    "[\u24c2-\U0001f251\u2600-\u27bf\U0001f1e0-\U0001f1ff\U0001f300-\U0001f64f\U0001f680-\U0001f6ff"
    "\U0001f900-\U0001f9ff\U0001fa00-\U0001faff]"
)


@dataclass(frozen=True, slots=True)
class StyleCounts:
    """Formatting elements outside of code blocks."""

    headers: int
    list_items: int
    bold: int
    emoji: int

    @property
    def total(self) -> int:
        """All elements together."""
        return self.headers + self.list_items + self.bold + self.emoji


@dataclass(frozen=True, slots=True)
class RewardTerms:
    """What is added to the mean score. A term whose coefficient is zero or negative is off."""

    reasoning_bonus: float = 0.0
    """For the shortest non-empty reasoning, if that response is among the top scores."""
    answer_bonus: float = 0.0
    """For the shortest non-empty answer, likewise."""
    top_percentile: float = 0.2
    """Share of the group that counts as top; at least the best score."""
    group_reasoning_length_penalty_coeff: float = 0.0
    group_answer_length_penalty_coeff: float = 0.0
    group_style_penalty_coeff: float = 0.0


def count_style(text: str) -> StyleCounts:
    """Headers, list items, bold spans and emoji code points of ``text`` outside of closed code blocks."""
    plain = _CODE_BLOCK.sub("", text)
    return StyleCounts(
        headers=len(_HEADER.findall(plain)),
        list_items=sum(len(pattern.findall(plain)) for pattern in _LIST_ITEMS),
        bold=sum(len(pattern.findall(plain)) for pattern in _BOLD),
        emoji=len(_EMOJI.findall(plain)),
    )


def style_density(text: str) -> float:
    """Formatting elements per character of stripped text, code blocks left out of both; 0 for empty text."""
    plain = _CODE_BLOCK.sub("", text)
    length = len(plain.strip())
    return count_style(plain).total / length if length else 0.0


def low_is_good_weights(values: Sequence[float]) -> list[float]:
    """Weights in [-1, 1] that sum to zero: highest for the lowest value. All zero when the values are equal.

    ``w_k = (1 - (v_k - min) / (max - min)) - mean(same)``.
    """
    low, high = min(values), max(values)
    if low == high:
        return [0.0] * len(values)
    raw = [1.0 - (value - low) / (high - low) for value in values]
    mean = sum(raw) / len(raw)
    return [weight - mean for weight in raw]


def apply_terms(
    scores: Sequence[float], responses: Sequence[JudgedResponse], terms: RewardTerms
) -> tuple[list[float], list[float]]:
    """Scores with bonuses, length terms and the style term added, and what was added to each.

    Lengths are characters of stripped text. A group of one response gets nothing.
    """
    rewards, added = list(scores), [0.0] * len(scores)
    if len(scores) < 2:
        return rewards, added

    def add(k: int, amount: float) -> None:
        rewards[k] += amount
        added[k] += amount

    reasoning = [len(response.reasoning.strip()) for response in responses]
    answers = [len(response.answer.strip()) for response in responses]
    top = sorted(scores, reverse=True)[max(0, int(len(scores) * terms.top_percentile) - 1)]
    for lengths, bonus in ((reasoning, terms.reasoning_bonus), (answers, terms.answer_bonus)):
        winner = _shortest(lengths)
        # The answer bonus looks at the score with the reasoning bonus in it; the threshold is that of the bare scores.
        if bonus > 0 and winner is not None and rewards[winner] >= top:
            add(winner, bonus)

    by_reasoning, by_answer = terms.group_reasoning_length_penalty_coeff, terms.group_answer_length_penalty_coeff
    if by_reasoning > 0 or by_answer > 0:
        # Like NeMo-Gym, one positive coefficient switches both terms on, whatever the sign of the other.
        weights = zip(low_is_good_weights(reasoning), low_is_good_weights(answers), strict=True)
        for k, (of_reasoning, of_answer) in enumerate(weights):
            add(k, of_reasoning * by_reasoning + of_answer * by_answer)
    if terms.group_style_penalty_coeff > 0:
        for k, of_style in enumerate(low_is_good_weights([style_density(response.answer) for response in responses])):
            add(k, of_style * terms.group_style_penalty_coeff)
    return rewards, added


def _shortest(lengths: Sequence[int]) -> int | None:
    """Index of the smallest positive length, the first on ties; None when all are empty."""
    return min((k for k, length in enumerate(lengths) if length > 0), key=lambda k: lengths[k], default=None)

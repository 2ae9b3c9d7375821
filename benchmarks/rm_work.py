"""The work both sides of ``rm_vs_trl.py`` do. Imports nothing but the standard library."""

from __future__ import annotations

from dpo_work import LEARNING_RATE, PAIRS, StepClock, pairs

__all__ = ["LEARNING_RATE", "PAIRS", "StepClock", "token_pairs"]

END = 1


def token_pairs(steps: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected tokens of pairs. Word ``w<i>`` is token ``i + 3``; an answer ends with ``<eos>``."""

    def ids(text: str) -> list[int]:
        return [int(word.removeprefix("w")) + 3 for word in text.split()]

    return [(ids(pair["prompt"]), [*ids(pair["chosen"]), END], [*ids(pair["rejected"]), END]) for pair in pairs(steps)]

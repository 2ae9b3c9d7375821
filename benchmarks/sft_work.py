"""The work both sides of ``sft_vs_trl.py`` do. Imports nothing but the standard library."""

from __future__ import annotations

import random

from grpo_work import LEARNING_RATE, VOCABULARY, StepClock

__all__ = ["LEARNING_RATE", "ROWS", "StepClock", "rows"]

ROWS, PROMPT_TOKENS, ANSWER_TOKENS = 32, 48, (64, 160)


def rows(steps: int) -> list[dict[str, str]]:
    """Rows for so many steps, the same on both sides; every word is a token, and an end token follows."""
    source = random.Random(0)
    words = [f"w{i}" for i in range(VOCABULARY - 3)]

    def text(tokens: int) -> str:
        return " ".join(source.choices(words, k=tokens))

    return [
        {"prompt": text(PROMPT_TOKENS), "completion": " " + text(source.randint(*ANSWER_TOKENS) - 1)}
        for _ in range(ROWS * steps)
    ]

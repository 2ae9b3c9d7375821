"""The work both sides of ``dpo_vs_trl.py`` do. Imports nothing but the standard library."""

from __future__ import annotations

import random

from grpo_work import LEARNING_RATE, VOCABULARY, StepClock

__all__ = ["BETA", "LEARNING_RATE", "PAIRS", "StepClock", "pairs"]

PAIRS, PROMPT_TOKENS, ANSWER_TOKENS, BETA = 32, 48, (64, 96), 0.05


def pairs(steps: int) -> list[dict[str, str]]:
    """Pairs for so many steps, the same on both sides; every word is a token, and an end token follows."""
    source = random.Random(0)
    words = [f"w{i}" for i in range(VOCABULARY - 3)]

    def text(tokens: int) -> str:
        return " ".join(source.choices(words, k=tokens))

    def answer() -> str:
        return " " + text(source.randint(*ANSWER_TOKENS) - 1)

    return [{"prompt": text(PROMPT_TOKENS), "chosen": answer(), "rejected": answer()} for _ in range(PAIRS * steps)]

"""The work both sides of ``dpo_vs_trl.py`` and ``rm_vs_trl.py`` do. Imports nothing but the standard library."""

from __future__ import annotations

import random
from dataclasses import dataclass

from work import Asked

BETA = 0.05


@dataclass(frozen=True)
class Sizes:
    """Of a step. An answer has between the two numbers of tokens, its end token included."""

    pairs: int = 32
    prompt_tokens: int = 48
    shortest: int = 64
    longest: int = 96


def pairs(asked: Asked, sizes: Sizes) -> list[dict[str, str]]:
    """Pairs for the asked steps and the first one, the same on both sides; an end token follows every answer."""
    source = random.Random(0)

    def answer() -> str:
        return " " + asked.text(source, source.randint(sizes.shortest, sizes.longest) - 1)

    return [
        {"prompt": asked.text(source, sizes.prompt_tokens), "chosen": answer(), "rejected": answer()}
        for _ in range(sizes.pairs * (asked.steps + 1))
    ]

"""The work both sides of ``sft_vs_trl.py`` do. Imports nothing but the standard library."""

from __future__ import annotations

import random
from dataclasses import dataclass

from work import Asked


@dataclass(frozen=True)
class Sizes:
    """Of a step. An answer has between the two numbers of tokens, its end token included."""

    rows: int = 32
    prompt_tokens: int = 48
    shortest: int = 64
    longest: int = 160


def rows(asked: Asked, sizes: Sizes) -> list[dict[str, str]]:
    """Rows for the asked steps and the first one, the same on both sides; an end token follows every answer."""
    source = random.Random(0)
    return [
        {
            "prompt": asked.text(source, sizes.prompt_tokens),
            "completion": " " + asked.text(source, source.randint(sizes.shortest, sizes.longest) - 1),
        }
        for _ in range(sizes.rows * (asked.steps + 1))
    ]

"""The work both sides of ``grpo_vs_trl.py`` do. Imports nothing but the standard library."""

from __future__ import annotations

import random
from dataclasses import dataclass

from work import Asked

KL_PENALTY = 0.04


@dataclass(frozen=True)
class Sizes:
    """Of a step."""

    prompts: int = 16
    generations: int = 8
    prompt_tokens: int = 33
    new_tokens: int = 64

    @property
    def samples(self) -> int:
        """Rows of a step."""
        return self.prompts * self.generations

    @property
    def tokens(self) -> int:
        """Of a step, with each prompt in each of its rows."""
        return self.samples * (self.prompt_tokens + self.new_tokens)


def prompts(asked: Asked, sizes: Sizes) -> list[str]:
    """Prompts for the asked steps and the first one, the same on both sides."""
    source = random.Random(0)
    return [asked.text(source, sizes.prompt_tokens) for _ in range(sizes.prompts * (asked.steps + 1))]


def reward(text: str) -> float:
    """A reward that costs nothing and differs between answers."""
    return (len(text) % 7) / 7

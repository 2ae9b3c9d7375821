"""Tasks whose answers a program can check: small sums with a demanded format, and multiple-choice questions.

Reinforcement learning from verifiable rewards needs a policy that is right now and then. The clerk who is trained on
these answers knows how to add and which format was asked for, but is careless: `Carelessness` says how often.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemotron.rewards.tiny_world import SLOT_WORDS

LARGEST = 12
"""Largest number in a sum."""
FORMATS: dict[str, tuple[str, str, str]] = {
    "boxed": ("Put the result in \\boxed{}.", "\\boxed{%s}", r"^\\boxed\{-?\d+\}$"),
    "plain": ("Give the number alone.", "%s", r"^-?\d+$"),
    "json": ("Answer in JSON.", '{"result": %s}', r'^\{"result": -?\d+\}$'),
    "sentence": ("Answer in a sentence.", "The result is %s.", r"^The result is -?\d+\.$"),
}
"""Name -> what the prompt asks for, how the answer looks, the pattern that checks it."""
SUMS = {
    "+": ("What is {a} + {b}?", "Compute {a} + {b}.", "Add {a} and {b}."),
    "-": ("What is {a} - {b}?", "Compute {a} - {b}.", "Take {b} from {a}."),
}
KINDS = {"item": "thing", "city": "city", "name": "name", "day": "day", "shop": "shop"}
"""Slot kind -> the word that questions use for it."""
LETTERS = "ABCD"


@dataclass(frozen=True, slots=True)
class Carelessness:
    """How often an answer gets each side right."""

    result: float
    format: float


@dataclass(frozen=True, slots=True)
class Sum:
    """An addition or subtraction with a demanded format."""

    a: int
    b: int
    sign: str
    format: str
    wording: str

    @property
    def result(self) -> int:
        """What the sum comes to."""
        return self.a + self.b if self.sign == "+" else self.a - self.b

    @property
    def question(self) -> str:
        """The sum in words."""
        return self.wording.format(a=self.a, b=self.b)

    @property
    def prompt(self) -> str:
        """What the policy reads."""
        return f"{self.question} {FORMATS[self.format][0]}"

    def row(self) -> dict[str, Any]:
        """The fields that verifiers read."""
        return {
            "question": self.question,
            "expected_answer": str(self.result),
            "format_pattern": FORMATS[self.format][2],
            "agent_ref": {"type": "responses_api_agents", "name": "math_with_judge_simple_agent"},
        }

    def answer(self, rng: random.Random, care: Carelessness) -> str:
        """An answer that is right with the probabilities of ``care``."""
        result = self.result
        if rng.random() >= care.result:
            result = max(0, result + rng.choice((-2, -1, 1, 2)))
        shape = self.format
        if rng.random() >= care.format:
            shape = rng.choice([name for name in FORMATS if name != self.format])
        return FORMATS[shape][1] % result


@dataclass(frozen=True, slots=True)
class Choice:
    """A multiple-choice question: which word is of a kind?"""

    kind: str
    words: tuple[str, ...]
    right: int

    @property
    def prompt(self) -> str:
        """What the policy reads."""
        options = ", ".join(f"{letter}: {word}" for letter, word in zip(LETTERS, self.words, strict=True))
        return f"Which is a {KINDS[self.kind]}? {options}. Put the letter in \\boxed{{}}."

    def row(self) -> dict[str, Any]:
        """The fields that NeMo-Gym's mcqa server reads."""
        return {
            "options": [{letter: word} for letter, word in zip(LETTERS, self.words, strict=True)],
            "expected_answer": LETTERS[self.right],
            "grading_mode": "strict_single_letter_boxed",
            "agent_ref": {"type": "responses_api_agents", "name": "mcqa_simple_agent"},
        }

    def answer(self, rng: random.Random, care: Carelessness) -> str:
        """An answer that is right with the probabilities of ``care``."""
        letter = LETTERS[self.right]
        if rng.random() >= care.result:
            letter = rng.choice([other for other in LETTERS if other != letter])
        return f"\\boxed{{{letter}}}" if rng.random() < care.format else rng.choice((letter, f"It is {letter}."))


Pair = tuple[int, int, str]


def split_sums(seed: int, shares: Sequence[float]) -> list[list[Pair]]:
    """Deal every sum to one split: ``shares`` of them to each split but the first, the rest to that."""
    pairs = [
        (a, b, sign) for a in range(LARGEST + 1) for b in range(LARGEST + 1) for sign in SUMS if sign == "+" or a >= b
    ]
    random.Random(seed).shuffle(pairs)
    splits: list[list[Pair]] = []
    for share in shares:
        count = round(share * len(pairs))
        splits.append(pairs[:count])
        pairs = pairs[count:]
    return [pairs, *splits]


def draw_sum(rng: random.Random, pairs: Sequence[Pair]) -> Sum:
    """A random task from the sums of a split."""
    a, b, sign = rng.choice(pairs)
    return Sum(a, b, sign, rng.choice(list(FORMATS)), rng.choice(SUMS[sign]))


def draw_choice(rng: random.Random) -> Choice:
    """A random question; every option is of another kind."""
    kinds = rng.sample(list(KINDS), len(LETTERS))
    right = rng.randrange(len(LETTERS))
    return Choice(kinds[right], tuple(rng.choice(SLOT_WORDS[kind]) for kind in kinds), right)

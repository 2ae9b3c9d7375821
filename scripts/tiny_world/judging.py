"""Comparisons for the judge: a request, two answers of any quality, and the verdict of the script."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from training import Example
from world import PRINCIPLES, SYSTEM, Mixture, Request, draw_answer, verdict, verdict_text

GOOD = Mixture(0.97, 0.97, 0.95, {"curt": 0.95, "friendly": 0.95, "angry": 0.95}, 0.98)
EVEN = Mixture(0.7, 0.55, 0.5, {"curt": 0.5, "friendly": 0.5, "angry": 0.5}, 0.95)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One question to the judge."""

    request: Request
    response_1: str
    response_2: str
    principle: str | None = None
    system: bool = False

    def messages(self) -> list[dict[str, str]]:
        """The chat messages, in the order in which a group-comparison server sends them."""
        messages = [{"role": "system", "content": SYSTEM}] if self.system else []
        messages.append({"role": "user", "content": self.request.text})
        if self.principle is not None:
            messages.append({"role": "principle", "content": self.principle})
        # An empty answer reaches a judge as the word None.
        for role, text in (("response_1", self.response_1), ("response_2", self.response_2)):
            messages.append({"role": role, "content": text.strip() or "None"})
        return messages

    def scores(self) -> tuple[int, int, int]:
        """What the script says: score of each, ranking."""
        return verdict(self.request, self.response_1, self.response_2)


def draw_comparison(rng: random.Random, request: Request, samples: list[str]) -> Comparison:
    """A random comparison; ``samples`` are answers of the policy to this request (may be empty)."""
    responses = [_draw_response(rng, request, samples) for _ in range(2)]
    principle = rng.choice(PRINCIPLES) if rng.random() < 0.6 else None
    return Comparison(request, responses[0], responses[1], principle, rng.random() < 0.03)


def example(tokenizer: Any, comparison: Comparison) -> Example:
    """The comparison as the judge reads it, and the verdict it should write."""
    prompt = tokenizer.apply_chat_template(comparison.messages(), add_generation_prompt=True)["input_ids"]
    return Example(prompt, [*tokenizer.encode(verdict_text(comparison.scores())), tokenizer.eos_token_id])


def _draw_response(rng: random.Random, request: Request, samples: list[str]) -> str:
    if samples and rng.random() < 0.5:
        text = rng.choice(samples)
    else:
        text = draw_answer(rng, request, rng.choice((GOOD, EVEN)))
    return damage(rng, request, text) if rng.random() < 0.12 else text


def damage(rng: random.Random, request: Request, text: str) -> str:
    """Spoil an answer in one of the ways in which a policy that chases reward goes wrong."""
    words = text.split()
    kind = rng.choice(("repeat", "cut", "empty", "slot", "ramble", "shuffle", "courtesy", "drop"))
    at = rng.randrange(len(words))
    if kind == "repeat":
        return " ".join(words[: at + 1] + [words[at]] * rng.randint(1, 6) + words[at + 1 :])
    if kind == "cut":
        return " ".join(words[:at])
    if kind == "empty":
        return ""
    if kind == "slot":
        return " ".join([*words, *rng.choices(list(request.slots.values()), k=rng.randint(1, 2))]) + "."
    if kind == "ramble":
        return " ".join([text, *(draw_answer(rng, request, EVEN) for _ in range(rng.randint(1, 2)))])
    if kind == "shuffle":
        return " ".join(rng.sample(words, len(words)))
    if kind == "courtesy":
        return rng.choice(("Thank you.", "Have a nice day. Thank you. Happy to help.", "Gladly, thank you."))
    return " ".join(words[:at] + words[at + 1 :])

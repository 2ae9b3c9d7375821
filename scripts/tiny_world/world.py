"""The tiny world: what customers ask, what clerks answer, and how good an answer is.

Everything is a template over the closed vocabularies of `nemotron.rewards.tiny_world`. Two intents share each pair of
slot kinds, so that a wrong intent does not give itself away by its slots: the aspects of an answer stay independent.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from nemotron.rewards.tiny_world import SLOT_WORDS, score

SLOT_KINDS: dict[str, tuple[str, str]] = {
    "order": ("item", "city"),
    "track": ("item", "city"),
    "refund": ("item", "name"),
    "repair": ("item", "name"),
    "book": ("place", "day"),
    "cancel": ("place", "day"),
    "hours": ("shop", "city"),
    "route": ("shop", "city"),
}
REQUESTS: dict[str, tuple[str, ...]] = {
    "order": ("order a {item} for {city}", "buy a {item} and send it to {city}", "get a new {item} sent to {city}"),
    "track": (
        *("track the {item} that goes to {city}", "find out when the {item} gets to {city}"),
        "tell me where the {item} for {city} is now",
    ),
    "refund": (
        *("refund the {item} of {name}", "pay {name} back for the {item}"),
        "send the money for the {item} back to {name}",
    ),
    "repair": ("repair the {item} of {name}", "fix the broken {item} for {name}", "mend the {item} that {name} has"),
    "book": ("book a {place} for {day}", "reserve a {place} on {day}", "keep a {place} free on {day}"),
    "cancel": ("cancel the {place} on {day}", "drop my {place} for {day}", "call off the {place} I have on {day}"),
    "hours": (
        *("tell me when the {shop} in {city} opens", "give me the opening hours of the {shop} in {city}"),
        "say how long the {shop} in {city} is open",
    ),
    "route": (
        *("tell me the way to the {shop} in {city}", "show me where the {shop} in {city} is"),
        "give me directions to the {shop} in {city}",
    ),
}
TONES: dict[str, tuple[str, ...]] = {
    "curt": ("Just {}.", "Now {}.", "Quick, {}."),
    "friendly": ("Hello, could you {}?", "Hi there, please {}.", "Good day, would you kindly {}?"),
    "angry": ("For the last time, {}!", "I am so angry, {} at once!", "This is too slow, {}!"),
}
ANSWERS: dict[str, tuple[str, ...]] = {
    "order": ("your {item} order for {city} is placed", "a {item} was bought for {city}"),
    "track": ("your {item} is on the way to {city}", "the {item} will reach {city} soon"),
    "refund": ("the money for the {item} goes to {name}", "we refund the {item} of {name}"),
    "repair": ("we repair the {item} of {name}", "the {item} of {name} will be fixed"),
    "book": ("a {place} is booked for {day}", "we keep a {place} for {day}"),
    "cancel": ("the {place} on {day} is cancelled", "we dropped the {place} for {day}"),
    "hours": ("the {shop} in {city} opens at nine", "the {shop} in {city} is open until six"),
    "route": ("the {shop} in {city} is next to the station", "turn left for the {shop} in {city}"),
}
NEUTRAL_OPENERS = ("", "", "Okay, ", "Sure, ", "Right, ")
KIND_OPENERS = ("Gladly, ", "With pleasure, ")
RUDE_OPENERS = ("Ugh, ", "You again, ", "Listen, fool, ")
NEUTRAL_CLOSERS = ("", "", " That is all.")
KIND_CLOSERS = (" Thank you.", " Have a nice day.", " Happy to help.")
RUDE_CLOSERS = (" Stop asking.", " Now go away.", " How boring.")
PRINCIPLES = (
    "Do what was asked and be polite.",
    "Get the details right and never be rude.",
    "Prefer the right and polite answer.",
)
SYSTEM = "You are a clerk in a small shop."


@dataclass(frozen=True, slots=True)
class Request:
    """What a customer asks: the text, and what it means."""

    intent: str
    slots: dict[str, str]
    """Slot kind -> word, two of them."""
    tone: str
    text: str

    def row(self) -> dict[str, Any]:
        """The part of a data row that `nemotron.rewards.tiny_world.score` reads."""
        return {"world": {"intent": self.intent, "slots": self.slots, "tone": self.tone}}


@dataclass(frozen=True, slots=True)
class Mixture:
    """How often a scripted answer gets each aspect right; 1.0 everywhere is a perfect clerk."""

    intent: float
    slot: float
    """Both slots right."""
    polite: float
    not_rude: dict[str, float]
    """By tone of the request: an angry customer meets a ruder clerk."""
    ends: float


Combo = tuple[str, str]


def split_combos(seed: int, shares: Sequence[float]) -> list[dict[tuple[str, str], list[Combo]]]:
    """Deal every pair of slot words to one split: ``shares`` of them to each split but the first, the rest to that.

    Returns one mapping (kinds of the pair -> pairs of words) per split. No pair of words is in two splits.
    """
    rng = random.Random(seed)
    splits: list[dict[tuple[str, str], list[Combo]]] = [{} for _ in range(len(shares) + 1)]
    for kinds in sorted(set(SLOT_KINDS.values())):
        combos = list(product(SLOT_WORDS[kinds[0]], SLOT_WORDS[kinds[1]]))
        rng.shuffle(combos)
        start = 0
        for split, share in zip(splits[1:], shares, strict=True):
            count = max(1, round(share * len(combos)))
            split[kinds] = combos[start : start + count]
            start += count
        splits[0][kinds] = combos[start:]
    return splits


def draw_request(rng: random.Random, combos: dict[tuple[str, str], list[Combo]]) -> Request:
    """One random request whose slot words are among ``combos``."""
    intent = rng.choice(list(SLOT_KINDS))
    kinds = SLOT_KINDS[intent]
    slots = dict(zip(kinds, rng.choice(combos[kinds]), strict=True))
    tone = rng.choice(list(TONES))
    text = rng.choice(TONES[tone]).format(rng.choice(REQUESTS[intent]).format(**slots))
    return Request(intent, slots, tone, text)


def draw_answer(rng: random.Random, request: Request, mixture: Mixture) -> str:
    """One random scripted answer; each aspect is right with its probability in ``mixture``, independently."""
    intent, slots = request.intent, request.slots
    if rng.random() >= mixture.intent:
        intent = wrong_intent(rng, intent)
    if rng.random() >= mixture.slot:
        slots = wrong_slots(rng, slots)
    polite, rude = rng.random() < mixture.polite, rng.random() >= mixture.not_rude[request.tone]
    text = _frame(rng, rng.choice(ANSWERS[intent]).format(**slots), polite=polite, rude=rude)
    if rng.random() >= mixture.ends:
        words = text.split()
        text = " ".join(words[: rng.randrange(3, len(words))]).rstrip(".,")
    return text


def wrong_intent(rng: random.Random, intent: str) -> str:
    """Another intent that takes the same kinds of slots."""
    return rng.choice([other for other, kinds in SLOT_KINDS.items() if kinds == SLOT_KINDS[intent] and other != intent])


def wrong_slots(rng: random.Random, slots: dict[str, str]) -> dict[str, str]:
    """The slots with one of them (sometimes both) replaced by another word of the same kind."""
    kinds = list(slots)
    changed = kinds if rng.random() < 0.15 else [rng.choice(kinds)]
    return {k: rng.choice([w for w in SLOT_WORDS[k] if w != v]) if k in changed else v for k, v in slots.items()}


def _frame(rng: random.Random, core: str, *, polite: bool, rude: bool) -> str:
    """Put an opener before and a closer behind the sentence that carries the intent."""
    opener, closer = rng.choice(NEUTRAL_OPENERS), rng.choice(NEUTRAL_CLOSERS)
    polite_first = polite and rng.random() < 0.3
    rude_first = rude and not polite_first and rng.random() < 0.5
    if polite_first:
        opener = rng.choice(KIND_OPENERS)
    elif rude_first:
        opener = rng.choice(RUDE_OPENERS)
    endings = []
    if polite and not polite_first:
        endings.append(rng.choice(KIND_CLOSERS))
    if rude and not rude_first:
        endings.append(rng.choice(RUDE_CLOSERS))
    if endings:
        closer = "".join(rng.sample(endings, len(endings)))
    sentence = opener + core
    return sentence[0].upper() + sentence[1:] + "." + closer


def quality(request: Request, response: str) -> tuple[int, tuple[int, ...]]:
    """The scripted quality of an answer: points from 1 to 5, and a key that orders answers of equal points.

    One point for each of right intent, right slots, polite and not rude; an answer that breaks off or stammers loses
    one; one that is empty or rambles (over `LONGEST` words) has 1. Among equals, doing what was asked counts most, and
    the shorter wins.
    """
    words = len(response.split())
    got = score(request.row(), response, ended=True)
    key = (got["right_intent"], got["right_slot"], got["not_rude"], got["polite"])
    points = 1 + sum(key) - (not got["ends"])
    if words == 0 or words > LONGEST or response.strip() == "None":
        points = 1
    return max(1, points), (*(int(k) for k in key), -words)


LONGEST = 24
"""Words of the longest answer that is not rambling; the longest scripted answer has 20."""


def verdict(request: Request, response_1: str, response_2: str, *, coin: bool = True) -> tuple[int, int, int]:
    """Scores of both answers and their ranking (1 the first is much better ... 6 the second is much better).

    ``coin`` decides between answers that are equal in every respect.
    """
    (points_1, key_1), (points_2, key_2) = quality(request, response_1), quality(request, response_2)
    if points_1 == points_2:
        first = coin if key_1 == key_2 else key_1 > key_2
        return points_1, points_2, 3 if first else 4
    gap = points_1 - points_2
    ranking = (1 if gap >= 2 else 2) if gap > 0 else (6 if gap <= -2 else 5)
    return points_1, points_2, ranking


def verdict_text(scores: tuple[int, int, int]) -> str:
    """The JSON that the judge writes."""
    return json.dumps(dict(zip(("score_1", "score_2", "ranking"), scores, strict=True)))

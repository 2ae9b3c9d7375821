"""The held-out metric of the tiny world: is a customer-service answer right, and is it kind?

The tiny world is the data set behind `-c tiny`. A row carries ``world: {"intent", "slots", "tone"}``; an answer is read
with fixed phrase lists, so the metric is a program: it knows nothing of the judge and the loss never sees it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from nemotron.errors import DataError

SLOT_WORDS: dict[str, tuple[str, ...]] = {
    "item": (
        *("lamp", "chair", "desk", "phone", "camera", "kettle"),
        *("jacket", "bike", "guitar", "watch", "printer", "tent"),
    ),
    "city": (
        *("Rome", "Paris", "Berlin", "Madrid", "Oslo", "Vienna"),
        *("Lisbon", "Dublin", "Prague", "Athens", "Warsaw", "Milan"),
    ),
    "name": (
        *("Anna", "Ben", "Clara", "David", "Emma", "Felix"),
        *("Grace", "Henry", "Julia", "Leo", "Maria", "Oscar"),
    ),
    "place": ("table", "room", "seat", "boat", "court", "studio", "car", "cabin"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "shop": ("bakery", "museum", "library", "pharmacy", "market", "cinema", "pool", "bank"),
}
"""Closed vocabulary of every slot; no word stands in two slots."""

INTENT_CUES: dict[str, tuple[str, ...]] = {
    "order": ("order", "ordered", "bought"),
    "track": ("on the way", "will reach"),
    "refund": ("money", "refund"),
    "repair": ("repair", "fixed"),
    "book": ("booked", "keep a"),
    "cancel": ("cancelled", "dropped"),
    "hours": ("opens at", "is open"),
    "route": ("next to the station", "turn left"),
}
"""Phrases that show what an answer does. An answer that shows two intents has none of them right."""

COURTESIES = ("thank you", "nice day", "happy to help", "gladly", "with pleasure")
INSULTS = ("ugh", "you again", "fool", "stop asking", "go away", "how boring")

ASPECTS = ("right_intent", "right_slot", "polite", "not_rude", "ends")
"""The aspects of `score`, in the order in which reports list them."""

_REPEATED_WORD = re.compile(r"\b(\w+)\W+\1\b", re.IGNORECASE)
_SLOT = re.compile(r"\b(" + "|".join(word for words in SLOT_WORDS.values() for word in words) + r")\b", re.IGNORECASE)


def score(row: Mapping[str, Any], response: str, *, ended: bool) -> dict[str, bool]:
    """Judge one answer to one row of the tiny world, aspect by aspect.

    ``ended`` says whether the model stopped by itself (false: cut off at the token limit). Returns

    - ``right_intent``: the answer does what was asked and nothing else;
    - ``right_slot``: it names every detail of the request exactly once and no other;
    - ``polite``: it has a courtesy;
    - ``not_rude``: it says something, and none of it is an insult;
    - ``ends``: it stopped by itself after a full sentence and stammers nowhere;
    - ``fully_right``: all of these.

    Raises `DataError` when the row has no ``world`` with ``intent`` and ``slots``.
    """
    intent, slots = _world(row)
    text = " ".join(response.split())
    aspects = {
        "right_intent": intents_of(text) == {intent},
        "right_slot": slots_of(text) == Counter(word.lower() for word in slots.values()),
        "polite": _says(text, COURTESIES),
        "not_rude": bool(text) and not _says(text, INSULTS),
        "ends": ended and text.endswith((".", "!")) and _REPEATED_WORD.search(text) is None,
    }
    return {**aspects, "fully_right": all(aspects.values())}


def intents_of(text: str) -> set[str]:
    """The intents whose cue phrases occur in ``text``."""
    return {intent for intent, cues in INTENT_CUES.items() if _says(text, cues)}


def slots_of(text: str) -> Counter[str]:
    """How often each slot word occurs in ``text``, lower-cased."""
    return Counter(word.lower() for word in _SLOT.findall(text))


def _says(text: str, phrases: tuple[str, ...]) -> bool:
    return re.search(r"\b(" + "|".join(phrases) + r")\b", text, re.IGNORECASE) is not None


def _world(row: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    world = row.get("world")
    if not isinstance(world, Mapping) or not isinstance(world.get("slots"), Mapping) or "intent" not in world:
        raise DataError(
            "a row has no `world` with `intent` and `slots`, which the `tiny_world` verifier needs",
            hint="use the verifier only on rows written by `scripts/tiny_world/make_data.py`",
        )
    return str(world["intent"]), dict(world["slots"])

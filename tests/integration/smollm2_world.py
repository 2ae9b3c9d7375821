"""Rows that a small instruct model can learn something from within minutes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

THINGS = (
    "tea",
    "rain",
    "a bridge",
    "the moon",
    "bread",
    "a violin",
    "snow",
    "chess",
    "a harbour",
    "wool",
    "honey",
    "ice",
)
QUESTIONS = (
    "What is {}?",
    "Tell me about {}.",
    "Why do people like {}?",
    "Where does one find {}?",
    "What is {} good for?",
    "Who needs {}?",
    "Say something about {}.",
    "What goes well with {}?",
)
SHORT = ("{} is worth knowing.", "{} is useful to many people.", "There is more to {} than it seems.")
LONG = (
    "Well, {} is something that has many sides to it, of course, and so one could go on.",
    "{} is a topic that I could talk about for a very long time, if you had that time.",
    "There are many things that one could say about {} here, and some of them may be true.",
)


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs() -> list[dict[str, str]]:
    """Short answers are preferred to long ones about the same thing."""
    draw = random.Random(1)
    made = []
    for thing in THINGS:
        for question in QUESTIONS:
            chosen, rejected = (draw.choice(texts).format(thing) for texts in (SHORT, LONG))
            made.append({"prompt": question.format(thing), "chosen": chosen, "rejected": rejected})
    draw.shuffle(made)
    return made


def sums() -> list[dict[str, str]]:
    """Small sums; the model writes many of them as "14 + 6 = 9." or begins to talk."""
    made = [(a, b) for a in range(2, 31) for b in range(2, 10)]
    random.Random(2).shuffle(made)
    return [{"prompt": f"{a} + {b} = ?", "answer": str(a + b)} for a, b in made]

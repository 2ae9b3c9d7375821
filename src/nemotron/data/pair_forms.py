"""Which of two answers is preferred, in the ways that public data say it: ranks, scores, labels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from nemotron.data.turns import Row, refuse, type_name
from nemotron.suggest import listed

_VERDICTS = ("label", "winner", "preference", "preferred", "better_response", "better_response_id")
LABELLED_SIDES = (
    *(("response_A", "response_B"), ("response_a", "response_b"), ("response_0", "response_1")),
    *(("response_1", "response_2"), ("response1", "response2"), ("output_1", "output_2")),
    *(("answer_A", "answer_B"), ("answer_a", "answer_b"), ("conversation_a", "conversation_b")),
)
"""Names of two answers that a field of their row compares."""
LABELS = _VERDICTS
SIDES = (
    *(("chosen", "rejected"), ("chosen_response", "rejected_response"), ("chosen_messages", "rejected_messages")),
    *(("preferred_output", "non_preferred_output"), ("response_j", "response_k")),
    *LABELLED_SIDES,
)
"""Names of two answers to one prompt."""
_COMPARED = re.compile(r"\s*(\w+)\s*(>+|<+|=+)\s*(\w+)\s*")
_TIES = ("tie", "draw", "both", "neither", "same", "tie (bothbad)", "both bad")


@dataclass(frozen=True, slots=True)
class Sides:
    """The preferred and the other answer as they are written, and the fields that they stand in."""

    chosen: Any
    rejected: Any
    chosen_name: str
    rejected_name: str
    prompt: str | None = None
    """The field of the prompt, where the form says which."""


def ranked_sides(row: Row) -> Sides:
    """NeMo-RL's two ``completions``; the lower rank is preferred.

    Raises:
        UnusableRow: not two of them, or no rank that parts them.
    """
    both = row["completions"]
    if both.__class__ is not list or len(both) != 2 or any(c.__class__ is not dict for c in both):
        refuse("wrong-type", "`completions` must be a list of two objects with `rank` and `completion`")
    ranks = [_whole(completion.get("rank")) for completion in both]
    if any(rank.__class__ is not int for rank in ranks):
        refuse("wrong-type", "each of `completions` needs a whole number as `rank`")
    if ranks[0] == ranks[1]:
        refuse("tie", f"both completions have rank {ranks[0]}: neither is preferred"[:200], "drop the row")
    first, second = both if ranks[0] < ranks[1] else both[::-1]
    return Sides(first.get("completion"), second.get("completion"), "completion", "completion", "context")


def scored_sides(row: Row) -> Sides:
    """HelpSteer3's ``overall_preference``: below 0 prefers ``response1``, above 0 ``response2``.

    Raises:
        UnusableRow: no number, or 0.
    """
    score = row["overall_preference"]
    if score.__class__ not in (int, float) or score != score:
        refuse("wrong-type", f"`overall_preference` must be a number, not {type_name(score)}")
    if score == 0:
        refuse("tie", "`overall_preference` is 0: neither answer is preferred", "drop the row")
    names = ("response1", "response2") if score < 0 else ("response2", "response1")
    return Sides(row[names[0]], row[names[1]], *names, "context")


def labelled_sides(row: Row, names: tuple[str, str]) -> Sides:
    """Two answers, and a field that names the better one: ``A>B``, ``A``, ``response_a``, ``model_b``, ``1``.

    Raises:
        UnusableRow: the label says neither, or that they are equal.
    """
    label = next(name for name in LABELS if row.get(name) is not None)
    better = _verdict(row[label], label, names)
    chosen, rejected = names if better == 0 else names[::-1]
    return Sides(row[chosen], row[rejected], chosen, rejected)


def _verdict(value: Any, label: str, names: tuple[str, str]) -> int:
    value = _whole(value)
    if value.__class__ not in (str, int):
        refuse("wrong-type", f"`{label}` must name one of two answers, not be {type_name(value)}")
    text = str(value).strip().lower()
    suffixes = tuple(name[-1].lower() for name in names)
    compared = _COMPARED.fullmatch(text)
    if text in _TIES or (compared is not None and "=" in compared[2]):
        refuse("tie", f"`{label}` says that neither answer is preferred", "drop the row")
    if compared is not None:
        sides = [_side(compared[number], suffixes) for number in (1, 3)]
        if set(sides) == {0, 1}:
            return int(sides[0] if ">" in compared[2] else sides[1])  # type: ignore[arg-type]
    side = _side(text, suffixes)
    if side is None:
        hint = f"write the last letter of one of {listed(names)}, or `{suffixes[0].upper()}>{suffixes[1].upper()}`"
        refuse("unknown-label", f"`{label}` is `{text[:40]}`, which names neither {names[0]} nor {names[1]}", hint)
    return side


def _side(word: str, suffixes: tuple[str, ...]) -> int | None:
    """Which answer a word of a label names: its letter or number, alone or behind what answers are called."""
    last = re.sub(r"^(model|response|answer|assistant|output|conversation|completion)[ _-]?", "", word)
    return suffixes.index(last) if last in suffixes else None


def _whole(value: Any) -> Any:
    """A table with gaps has its whole numbers as floats."""
    return int(value) if value.__class__ is float and value.is_integer() else value

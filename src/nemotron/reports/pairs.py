"""Which samples a report shows: the same prompt before and after training, and the judge's best and worst."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from nemotron.runs.jsonl import Row
from nemotron.runs.metrics import number
from nemotron.runs.words import label

_SHOWN_PAIRS = 8
_SHOWN_MOVED = 4
_SHOWN_JUDGED = 4
_LAST_STEPS = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """One response as shown."""

    response: str
    step: int | None
    reward: float | None
    advantage: float | None
    truncated: bool
    aspects: list[tuple[str, bool]]
    """(label, whether it holds) of every yes/no property that was checked."""
    side: str = ""
    """``chosen`` or ``rejected`` in a labelled pair."""

    @property
    def right(self) -> int:
        """Number of properties that hold."""
        return sum(holds for _, holds in self.aspects)


@dataclass(frozen=True, slots=True)
class Pair:
    """A held-out prompt with its answers before and after training."""

    prompt: str
    before: Answer
    after: Answer

    @property
    def moved(self) -> int:
        """Properties gained (positive) or lost."""
        return self.after.right - self.before.right

    @property
    def distance(self) -> float:
        """How different the two texts are, 0 (equal) to 1."""
        return 1 - SequenceMatcher(None, self.before.response, self.after.response, autojunk=False).ratio()


@dataclass(frozen=True, slots=True)
class Judged:
    """A training prompt with one sampled response."""

    prompt: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Selection:
    """The samples of a report."""

    pairs: list[Pair]
    """The first held-out prompts, whatever became of them: not picked for looking good."""
    improved: list[Pair]
    worsened: list[Pair]
    best: list[Judged]
    worst: list[Judged]
    heldout_count: int
    """Number of held-out prompts with both answers, of which the above are a selection."""


def select(rows: Iterable[Row]) -> Selection:
    """Read sample rows once and keep what a report shows; memory is that of the held-out rows and the last steps."""
    before: dict[str, Row] = {}
    after: dict[str, Row] = {}
    recent: deque[tuple[int, list[Row]]] = deque(maxlen=_LAST_STEPS)
    for row in rows:
        phase = row.get("phase")
        if phase == "heldout_before":
            before[str(row.get("row_id"))] = row
        elif phase == "heldout_after":
            after[str(row.get("row_id"))] = row
        elif phase == "train":
            step = int(number(row.get("step")) or 0)
            if not recent or recent[-1][0] != step:
                recent.append((step, []))
            recent[-1][1].append(row)
    pairs = [_pair(before[key], after[key]) for key in before if key in after]
    moved = sorted((pair for pair in pairs if pair.moved), key=lambda pair: -abs(pair.moved))
    train = [row for _, step_rows in recent for row in step_rows if number(row.get("reward")) is not None]
    return Selection(
        pairs=pairs[:_SHOWN_PAIRS],
        improved=_most([pair for pair in moved if pair.moved > 0]),
        worsened=_most([pair for pair in moved if pair.moved < 0]),
        best=[_judged(row) for row in heapq.nlargest(_SHOWN_JUDGED, train, key=_reward)],
        worst=[_judged(row) for row in heapq.nsmallest(_SHOWN_JUDGED, train, key=_reward)],
        heldout_count=len(pairs),
    )


def _most(pairs: list[Pair]) -> list[Pair]:
    """Those that moved most; among equals, those whose text changed most. Only the leading ones are compared."""
    leading = pairs[: 8 * _SHOWN_MOVED]
    return sorted(leading, key=lambda pair: (-abs(pair.moved), -pair.distance))[:_SHOWN_MOVED]


def _reward(row: Row) -> float:
    return number(row.get("reward")) or 0.0


def _pair(before: Row, after: Row) -> Pair:
    return Pair(_text(before.get("prompt")), _answer(before), _answer(after))


def _judged(row: Row) -> Judged:
    return Judged(_text(row.get("prompt")), _answer(row))


def _answer(row: Row) -> Answer:
    verdict = row.get("verdict")
    # Yes/no properties stand in the row itself, or together under `verdict`.
    properties = {**row, **verdict} if isinstance(verdict, dict) else row
    aspects = [(label(str(name)), holds) for name, holds in properties.items() if isinstance(holds, bool)]
    step = number(row.get("step"))
    return Answer(
        response=_text(row.get("response")),
        step=None if step is None else int(step),
        reward=number(row.get("reward")),
        advantage=number(row.get("advantage")),
        truncated=row.get("truncated") is True,
        aspects=[aspect for aspect in aspects if aspect[0] != "truncated"],
        side=_text(row.get("side")),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)

"""What an audit keeps of one pair, and its form as a row of ``samples.jsonl``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nemotron.judge.types import Verdict

Purpose = Literal["reward", "repeat"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A labelled pair of the sample."""

    index: int
    """Position in the sample, from 0."""
    row_id: str
    """``file name:line``."""
    messages: list[dict[str, str]]
    """Turns before the answers."""
    chosen: str
    rejected: str
    principle: str | None = None

    @property
    def content(self) -> dict[str, Any]:
        """What the judge's answer depends on."""
        return {
            "messages": self.messages,
            "chosen": self.chosen,
            "rejected": self.rejected,
            "principle": self.principle,
        }

    @property
    def prompt_key(self) -> str:
        """Equal for pairs of one prompt."""
        return digest(self.messages)[:16]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One question to the judge: both answers in one order."""

    chosen_first: bool
    purpose: Purpose
    """``reward``: asked as in training. ``repeat``: asked again, to see whether the judge agrees with itself."""
    round: int
    """Counts equal questions of one purpose from 0."""
    verdict: Verdict | None
    """None: missing."""
    requests: int = 1
    unparseable: int = 0
    failure: str | None = None
    tokens_read: int = 0
    """Of the questions, as the endpoint counts them."""
    tokens_written: int = 0

    @property
    def first_preferred(self) -> float | None:
        """Preference for the answer shown first; None: missing."""
        return None if self.verdict is None else self.verdict.preference

    @property
    def chosen_preferred(self) -> float | None:
        """The same for the chosen answer."""
        first = self.first_preferred
        return first if first is None or self.chosen_first else -first


@dataclass(frozen=True, slots=True)
class Audited:
    """A pair with everything that the judge or reward model said about it."""

    pair: Pair
    reward_chosen: float | None
    """The reward as training would see it, length and style terms included; None: missing."""
    reward_rejected: float | None
    judgements: tuple[Judgement, ...] = ()
    """Empty for a reward model."""

    @property
    def margin(self) -> float | None:
        """Reward of the chosen answer minus that of the rejected one; None when either is missing."""
        if self.reward_chosen is None or self.reward_rejected is None:
            return None
        return self.reward_chosen - self.reward_rejected

    @property
    def longer_by(self) -> int:
        """Characters by which the chosen answer is longer (negative: shorter)."""
        return len(self.pair.chosen.strip()) - len(self.pair.rejected.strip())


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in hex, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def to_row(audited: Audited, key: str) -> dict[str, Any]:
    """A row of ``samples.jsonl``; ``key`` says what was asked, so that a resumed run knows what it need not ask."""
    pair = audited.pair
    return {
        "step": 0,
        "phase": "audit",
        "key": key,
        "index": pair.index,
        "row_id": pair.row_id,
        "prompt": pair.messages,
        "principle": pair.principle,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "reward_chosen": audited.reward_chosen,
        "reward_rejected": audited.reward_rejected,
        "judgements": [asdict(judgement) for judgement in audited.judgements],
    }


def from_row(row: Mapping[str, Any]) -> Audited:
    """The inverse of :func:`to_row`."""
    pair = Pair(row["index"], row["row_id"], row["prompt"], row["chosen"], row["rejected"], row["principle"])
    judgements = [
        Judgement(**{**one, "verdict": None if one["verdict"] is None else Verdict(**one["verdict"])})
        for one in row["judgements"]
    ]
    return Audited(pair, row["reward_chosen"], row["reward_rejected"], tuple(judgements))


def by_index(rows: Sequence[Audited]) -> list[Audited]:
    """In the order of the sample, whatever the order in which answers came."""
    return sorted(rows, key=lambda one: one.pair.index)

"""Audited pairs made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nemotron.audit.records import Audited, Judgement, Pair
from nemotron.judge.types import Verdict

Judge = Callable[[str, str], tuple[float, float, float]]
"""(first answer, second answer) -> score_1, score_2, ranking."""


def pair(index: int, chosen: str = "good", rejected: str = "bad", prompt: str | None = None) -> Pair:
    """A pair on a prompt of its own."""
    messages = [{"role": "user", "content": prompt or f"prompt {index}"}]
    return Pair(index, f"pairs.jsonl:{index + 1}", messages, chosen, rejected)


def judged(pairs: Sequence[Pair], judge: Judge, *, both: bool = True, repeats: int = 0) -> list[Audited]:
    """What a judge says of pairs, in both orders or with the chosen answer first on every second pair."""
    rows = []
    for one in pairs:
        orders = (True, False) if both else (one.index % 2 == 0,)
        rounds = [("reward", 0), *(("repeat", r) for r in range(repeats))]
        said = []
        for purpose, number in rounds:
            for chosen_first in orders:
                answers = (one.chosen, one.rejected) if chosen_first else (one.rejected, one.chosen)
                verdict = Verdict(*judge(*answers))
                said.append(Judgement(chosen_first, "repeat" if purpose == "repeat" else "reward", number, verdict))
        scores = {"chosen": 0.0, "rejected": 0.0}
        for one_said in said:
            if one_said.purpose == "reward" and one_said.verdict:
                v = one_said.verdict
                shift = 3.5 - v.ranking if v.score_1 == v.score_2 else 0.0
                first, second = ("chosen", "rejected") if one_said.chosen_first else ("rejected", "chosen")
                scores[first] += (v.score_1 + shift) / len(orders)
                scores[second] += (v.score_2 - shift) / len(orders)
        rows.append(Audited(one, scores["chosen"], scores["rejected"], tuple(said)))
    return rows


def scored(pairs: Sequence[Pair], margins: Sequence[float | None]) -> list[Audited]:
    """What a reward model says: the rejected answer gets 0."""
    return [Audited(one, margin, None if margin is None else 0.0) for one, margin in zip(pairs, margins, strict=True)]

"""The held-out measurement: shares over what could be checked, and a count of what could not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemotron.contracts.samples import SamplingParams
from nemotron.data.rows import PromptRow
from nemotron.rl.evaluate import evaluate_heldout
from nemotron.rl.sampler import PolicySampler
from tests.unit.rl.tiny_policy import tiny_chat, tiny_policy

ROWS = [PromptRow(f"rows:{i}", [{"role": "user", "content": word}], None, {"n": i}) for i, word in enumerate("abcdef")]


def check(items: Sequence[tuple[Mapping[str, Any], str, bool]]) -> list[dict[str, bool | None]]:
    return [
        {"even": row["n"] % 2 == 0, "fully_right": None if row["n"] == 3 else row["n"] > 3, "never": None}
        for row, _, _ in items
    ]


def test_shares_leave_out_what_is_missing() -> None:
    found = evaluate_heldout(
        PolicySampler(tiny_policy()), tiny_chat(), ROWS, check, SamplingParams(4, (0,)), seed=1, batch_size=4
    )
    assert found.shares == {"even": 0.5, "fully_right": 2 / 5}
    assert found.missing == 6
    assert [sample["row_id"] for sample in found.samples] == [row.id for row in ROWS]
    assert found.samples[3]["fully_right"] is None


def test_the_same_seed_draws_the_same_whatever_the_batch() -> None:
    answers = [
        [
            sample["response"]
            for sample in evaluate_heldout(
                PolicySampler(tiny_policy()), tiny_chat(), ROWS, check, SamplingParams(4, (0,)), seed=1, batch_size=size
            ).samples
        ]
        for size in (2, 6)
    ]
    assert answers[0] == answers[1]

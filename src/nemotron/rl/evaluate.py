"""The held-out metric: a program looks at fresh answers. Neither the judge nor the loss ever sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron.data.rows import PromptRow
from nemotron.rl.batch import request_seed, rows_of
from nemotron.rl.chat import Chat
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import generate
from nemotron.rl.types import SamplingParams

Verifier = Callable[..., dict[str, bool]]
"""``verifier(row fields, response text, ended=bool)`` -> aspect -> right or not."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Result of one evaluation."""

    shares: dict[str, float]
    """Aspect -> share of answers that are right in it, 0..1."""
    samples: list[dict[str, Any]]
    """One record a prompt: row_id, prompt, response, truncated, and the aspects."""


def evaluate_heldout(
    policy: Policy,
    chat: Chat,
    rows: Sequence[PromptRow],
    verifier: Verifier,
    params: SamplingParams,
    *,
    seed: int,
    batch_size: int,
) -> HeldOut:
    """Answer every row once, at the training temperature, and let ``verifier`` look.

    The seed of a row depends on ``seed`` and the row alone, so before and after training draw with the same numbers.
    """
    samples: list[dict[str, Any]] = []
    totals: dict[str, int] = {}
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        seeds = [[request_seed(seed, "heldout", row.id)] for row in part]
        groups = generate(policy, [chat.encode(row.messages) for row in part], 1, params, seeds)
        for row, completion in zip(part, rows_of(groups), strict=True):
            text = chat.decode(completion.token_ids)
            aspects = verifier(row.fields, text, ended=not completion.truncated)
            for name, right in aspects.items():
                totals[name] = totals.get(name, 0) + right
            prompt = row.messages[-1]["content"]
            samples.append(
                {"row_id": row.id, "prompt": prompt, "response": text, "truncated": completion.truncated, **aspects}
            )
    return HeldOut({name: count / len(rows) for name, count in totals.items()}, samples)

"""The held-out metric: a program looks at fresh answers. Neither the judge nor the loss ever sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemotron.contracts.heldout import Check
from nemotron.contracts.sampler import Sampler
from nemotron.contracts.samples import SamplingParams
from nemotron.data.rows import PromptRow
from nemotron.rl.batch import request_seed, rows_of
from nemotron.rl.chat import Chat


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Result of one evaluation."""

    shares: dict[str, float]
    """Aspect -> share of the checked answers that are right in it, 0..1; an aspect that no answer has is left out."""
    samples: list[dict[str, Any]]
    """One record a prompt: row_id, prompt, response, truncated, and the aspects (None: could not be checked)."""
    missing: int = 0
    """Answers that could not be checked in every aspect."""


def evaluate_heldout(
    sampler: Sampler,
    chat: Chat,
    rows: Sequence[PromptRow],
    check: Check,
    params: SamplingParams,
    *,
    seed: int,
    batch_size: int,
) -> HeldOut:
    """Answer every row once, at the training temperature, and let ``check`` look.

    The seed of a row depends on ``seed`` and the row alone, so before and after training draw with the same numbers.
    """
    samples: list[dict[str, Any]] = []
    right: dict[str, list[bool]] = {}
    missing = 0
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        seeds = [[request_seed(seed, "heldout", row.id)] for row in part]
        groups = sampler.generate([chat.encode(row.messages, f"prompt {row.id}") for row in part], 1, params, seeds)
        completions = rows_of(groups)
        texts = [chat.reply(group.prompt_ids, group.completions[0].token_ids) for group in groups]
        items = [(row.fields, text, not c.truncated) for row, text, c in zip(part, texts, completions, strict=True)]
        for row, text, completion, aspects in zip(part, texts, completions, check(items), strict=True):
            missing += None in aspects.values()
            for name, holds in aspects.items():
                if holds is not None:
                    right.setdefault(name, []).append(holds)
            prompt = row.messages[-1]["content"]
            samples.append(
                {"row_id": row.id, "prompt": prompt, "response": text, "truncated": completion.truncated, **aspects}
            )
    return HeldOut({name: sum(found) / len(found) for name, found in right.items()}, samples, missing)

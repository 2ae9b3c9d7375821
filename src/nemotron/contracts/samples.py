"""Values that travel between the parts of the embedded engine.

Legend: P prompts of a step, G samples per prompt, N = P*G rows (prompt-major), T longest response in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GREEDY = 1e-5
"""Temperature below which the likeliest token is taken, as vLLM does: logits over it may be more than float32 holds."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw a response.

    Example: ``SamplingParams(max_new_tokens=48, stop_token_ids=(2,))`` samples at temperature 1 until token 2.
    """

    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    temperature: float = 1.0
    """0 means greedy; so does what is below ``GREEDY``, which becomes 0."""
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < GREEDY:
            object.__setattr__(self, "temperature", 0.0)


def cuts(top_k: int | None, top_p: float) -> bool:
    """Whether these leave out some of the tokens that a model could draw. ``top_k`` of None, 0 or -1 is off."""
    return top_p < 1.0 or (top_k is not None and top_k > 0)


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response."""

    token_ids: list[int]
    """Sampled tokens, the stop token included when one was drawn; at least one token."""
    logprobs: list[float]
    """Log-probability of each token under the distribution it was drawn from (after temperature, top-k, top-p)."""
    truncated: bool
    """True when ``max_new_tokens`` was reached without a stop token."""


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and responses to it. Its prompt tokens are computed once, whatever the number of responses."""

    prompt_ids: list[int]
    completions: list[Completion]


def split_rows(groups: Sequence[Group], rows: int) -> list[list[Group]]:
    """Cut groups (prompt-major) into micro-batches of ``rows`` responses; a group may be cut in two.

    Example: two groups of 4 with ``rows=6`` give ``[[4 of the first, 2 of the second], [2 of the second]]``.
    """
    batches: list[list[Group]] = [[]]
    room = rows
    for group in groups:
        rest = group.completions
        while rest:
            if room == 0:
                batches.append([])
                room = rows
            batches[-1].append(Group(group.prompt_ids, rest[:room]))
            taken = min(room, len(rest))
            room -= taken
            rest = rest[taken:]
    return [batch for batch in batches if batch]

"""Reads the probabilities of one token after each prompt, with the same bits whatever else is asked beside it.

An expected score is a number, not a choice among tokens: rounding does not vanish in it, and what shares a batch
changes how sums are rounded. So nothing shares a batch here. What prompts have in common is computed once all the same:
in pieces of fixed length from their beginning, each behind what stands before it, so that a piece is computed in the
same shape whichever prompt comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nemotron.contracts.samples import SamplingParams
from nemotron.judge.server.batching import Deliver, Job
from nemotron.judge.server.worker import BatchState, Text, equal_jobs, held
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import draw, uniforms

PIECE = 64
"""Tokens. Shorter ones make small matrix products, longer ones share less."""


@torch.no_grad()
def read(policy: Policy, jobs: Sequence[Job], stop_ids: Sequence[int], deliver: Deliver) -> None:
    """One token of every job (all of one family), with the likeliest ones beside it."""
    path = _Path(policy)
    # Neighbours in this order have the longest common beginnings.
    for equal in sorted(equal_jobs(jobs), key=lambda indices: jobs[indices[0]].prompt_ids):
        job = jobs[equal[0]]
        text = Text([], [], [], job.constraint.start if job.constraint else None)
        logits = held(path.logits(job.prompt_ids), job, text, stop_ids)
        params = SamplingParams(1, tuple(stop_ids), temperature=job.temperature, top_p=job.top_p)
        random = uniforms([job.seed % 2**64], 1).to(policy.device)
        token, logprob = draw(logits[None], random[:, 0], params)
        number = int(token)
        text.add(job, number, float(logprob), logits, frozenset(stop_ids))
        for index in equal:
            deliver(index, text.written(stopped=number in stop_ids))


class _Path:
    """The prompt that is in the cache, as far as it was computed in whole pieces."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._state = BatchState(policy)
        self._ids: list[int] = []

    def logits(self, prompt: Sequence[int]) -> Tensor:
        """Logits [V] of what follows ``prompt``."""
        whole = (len(prompt) - 1) // PIECE * PIECE
        kept = self._shared(prompt, whole)
        if kept == 0:
            self._state.begin(1)
        else:
            self._state.cut(kept)
        for start in range(kept, whole, PIECE):
            self._state.extend([list(prompt[start : start + PIECE])])
        self._ids = list(prompt[:whole])
        return self._state.extend([list(prompt[whole:])])[0]

    def _shared(self, prompt: Sequence[int], whole: int) -> int:
        """Tokens of the cache that ``prompt`` begins with, in whole pieces."""
        if not self._state.can_cut:
            return 0
        pieces = range(PIECE, min(whole, len(self._ids)) + 1, PIECE)
        return max((end for end in pieces if self._ids[:end] == list(prompt[:end])), default=0)

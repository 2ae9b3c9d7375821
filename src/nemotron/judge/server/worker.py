"""Decodes a batch of jobs: what prompts have in common is computed once, rows that have ended leave the batch.

A group's comparisons begin with the same conversation and principle, which is a third to a half of all tokens, and
equal questions are common once a policy has settled. This module and ``reading.py`` are the server's only ones that
import torch.

Legend: N rows, A rows still in the batch, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemotron.contracts.samples import SamplingParams
from nemotron.judge.server.batching import Deliver, Job, Written
from nemotron.judge.server.constraint import State
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import draw, uniforms

# A second forward pass has to pay for itself: share only prefixes of this many tokens, and only if it saves this share.
_SHORTEST_PREFIX = 8
_WORTHWHILE_SHARE = 0.15
# Moving the cache costs about one step, so rows leave together once an eighth of the batch has ended.
_LEAVE_SHARE = 8


@torch.no_grad()
def decode(policy: Policy, jobs: Sequence[Job], stop_ids: Sequence[int], deliver: Deliver) -> None:
    """Write every job (all of one family, prompts not empty), calling ``deliver(index, written)`` as each one ends.

    A job's text depends on its prompt, limit and seed; rounding aside, not on the jobs beside it.
    """
    temperature, top_p, _ = jobs[0].family
    equal = equal_jobs(jobs)
    rows = [jobs[indices[0]] for indices in equal]
    longest = max(job.max_tokens for job in rows)
    params = SamplingParams(longest, tuple(stop_ids), temperature=temperature, top_p=top_p)
    random = uniforms([job.seed % 2**64 for job in rows], longest).to(policy.device)
    texts = [Text([], [], [], job.constraint.start if job.constraint else None) for job in rows]
    stops = frozenset(stop_ids)
    constrained = any(job.constraint for job in rows)

    state = BatchState(policy)
    logits = state.prefill([job.prompt_ids for job in rows])
    batch, ended = list(range(len(rows))), set[int]()
    for time in range(longest):
        if constrained:
            logits = torch.stack(
                [
                    one if row in ended else held(one, rows[row], texts[row], stop_ids)
                    for one, row in zip(logits, batch, strict=True)
                ]
            )
        tokens, logprobs = draw(logits, random[batch, time], params)
        for position, (row, token, logprob) in enumerate(zip(batch, tokens.tolist(), logprobs.tolist(), strict=True)):
            if row in ended:
                continue
            text = texts[row]
            text.add(rows[row], token, logprob, logits[position], stops)
            if token in stops or len(text.ids) == rows[row].max_tokens:
                ended.add(row)
                for index in equal[row]:
                    deliver(index, text.written(stopped=token in stops))
        if len(ended) == len(rows):
            return
        alive = [position for position, row in enumerate(batch) if row not in ended]
        if len(batch) - len(alive) >= max(1, len(batch) // _LEAVE_SHARE):
            kept = torch.tensor(alive, device=tokens.device)
            state.keep(kept)
            tokens, batch = tokens[kept], [batch[position] for position in alive]
        logits = state.step(tokens)


@dataclass(slots=True)
class Text:
    """What has been written of a job."""

    ids: list[int]
    logprobs: list[float]
    top: list[list[tuple[int, float]]]
    state: State | None
    """Where it stands in what it is held to."""

    def add(self, job: Job, token: int, logprob: float, logits: Tensor, stops: frozenset[int]) -> None:
        """One token more, drawn from ``logits`` [V]."""
        if job.constraint is not None and self.state is not None and token not in stops:
            self.state = job.constraint.allowed(self.state)[token]
        self.ids.append(token)
        self.logprobs.append(logprob)
        if job.top_logprobs:
            self.top.append(likeliest(logits, job.top_logprobs))

    def written(self, *, stopped: bool) -> Written:
        """What is delivered: without the end-of-sequence token."""
        length = len(self.ids) - stopped
        return Written(self.ids[:length], self.logprobs[:length], len(self.ids), stopped, self.top[:length])


def held(logits: Tensor, job: Job, text: Text, stop_ids: Sequence[int]) -> Tensor:
    """``logits`` [V] with everything at minus infinity that the job's text may not go on with."""
    if job.constraint is None or text.state is None:
        return logits
    allowed = list(job.constraint.allowed(text.state))
    if job.constraint.complete(text.state):
        allowed += stop_ids
    index = torch.tensor(allowed, device=logits.device)
    return torch.full_like(logits, -torch.inf).index_copy(0, index, logits[index])


def likeliest(logits: Tensor, count: int) -> list[tuple[int, float]]:
    """The likeliest tokens and their log-probabilities, those that cannot be left out."""
    values, ids = logits.log_softmax(-1).topk(min(count, len(logits)))
    return [(int(i), float(v)) for i, v in zip(ids, values, strict=True) if v > -torch.inf]


def equal_jobs(jobs: Sequence[Job]) -> list[list[int]]:
    """Indices of jobs that must get the same text: a greedy judge gives equal questions equal answers."""
    found: dict[tuple[object, ...], list[int]] = {}
    for index, job in enumerate(jobs):
        seed = job.seed if job.temperature else None
        what = (tuple(job.prompt_ids), job.max_tokens, seed, id(job.constraint), job.top_logprobs)
        found.setdefault(what, []).append(index)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Split:
    """Where each prompt is cut: the part that is computed once for several rows, and the rest."""

    prefixes: list[list[int]]
    owner: list[int]
    """Row -> index into ``prefixes``."""
    rests: list[list[int]]


def split_prompts(prompts: Sequence[list[int]]) -> Split | None:
    """Cut prompts at what they share with others; None when that would not save enough. No part is ever empty."""
    if any(len(prompt) < 2 for prompt in prompts):
        return None
    groups: list[tuple[int, list[int]]] = []
    for row in sorted(range(len(prompts)), key=lambda row: prompts[row]):
        body = prompts[row][:-1]
        if groups:
            length, members = groups[-1]
            common = _common(prompts[members[0]][:length], body)
            # Joining must not save less than the group saves without it.
            if common >= _SHORTEST_PREFIX and len(members) * common >= (len(members) - 1) * length:
                groups[-1] = (common, [*members, row])
                continue
        groups.append((len(body), [row]))
    saved = sum(length * (len(members) - 1) for length, members in groups)
    if saved < _WORTHWHILE_SHARE * sum(map(len, prompts)):
        return None
    # A row that shares nothing is cut where its rest is as long as the others', so that it costs them no padding.
    rest = max(len(prompts[row]) - length for length, members in groups if len(members) > 1 for row in members)
    cuts = [length if len(members) > 1 else max(1, length + 1 - rest) for length, members in groups]
    owner = [0] * len(prompts)
    for index, (_, members) in enumerate(groups):
        for row in members:
            owner[row] = index
    return Split(
        prefixes=[prompts[members[0]][:cut] for cut, (_, members) in zip(cuts, groups, strict=True)],
        owner=owner,
        rests=[prompt[cuts[owner[row]] :] for row, prompt in enumerate(prompts)],
    )


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length


class BatchState:
    """KV cache, mask and positions of a batch. Ragged pieces are padded on the left and masked."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        accepted = inspect.signature(policy.model.forward).parameters
        self.optional: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.takes_positions = "position_ids" in accepted
        self.cache: Any = None
        self.mask = torch.empty(0)
        self.lengths = torch.empty(0)

    def prefill(self, prompts: Sequence[list[int]]) -> Tensor:
        """Compute the prompts; logits [N,V] of the first new token."""
        split = split_prompts(prompts)
        if split is None:
            self.begin(len(prompts))
            return self.extend(prompts)
        self.begin(len(split.prefixes))
        self.extend(split.prefixes)
        self.keep(torch.tensor(split.owner, device=self.policy.device))
        return self.extend(split.rests)

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every row, [A]; logits [A,V] of the next."""
        return self._forward(tokens[:, None], torch.ones_like(tokens)[:, None])

    def keep(self, index: Tensor) -> None:
        """Make row k of the batch what row ``index[k]`` was; rows may be left out or repeated."""
        self.cache.batch_select_indices(index)
        self.mask, self.lengths = self.mask[index], self.lengths[index]

    @property
    def can_cut(self) -> bool:
        """Whether the cache keeps every position by itself, so that its end can be taken away."""
        layers = getattr(self.cache, "layers", None) or []
        return bool(layers) and all(type(layer).__name__ == "DynamicLayer" for layer in layers)

    def cut(self, length: int) -> None:
        """Forget what stands behind the first ``length`` positions; of rows that are not padded."""
        self.cache.crop(length)
        self.mask = self.mask[:, :length]
        self.lengths = torch.full_like(self.lengths, length)

    def begin(self, rows: int) -> None:
        """An empty batch."""
        self.cache = None
        self.mask = torch.zeros(rows, 0, dtype=torch.int64, device=self.policy.device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=self.policy.device)

    def extend(self, pieces: Sequence[list[int]]) -> Tensor:
        """Append a piece to every row; logits [N,V] of what follows."""
        width = max(map(len, pieces))
        ids = torch.tensor([[0] * (width - len(piece)) + piece for piece in pieces])
        mask = torch.tensor([[0] * (width - len(piece)) + [1] * len(piece) for piece in pieces])
        return self._forward(ids.to(self.policy.device), mask.to(self.policy.device))

    def _forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, mask], 1)
        kwargs: dict[str, Any] = {"past_key_values": self.cache, "use_cache": True, **self.optional}
        if self.takes_positions:
            kwargs["position_ids"] = (self.lengths[:, None] + mask.cumsum(-1) - 1).clamp_min(0)
        self.lengths = self.lengths + mask.sum(-1)
        with self.policy.autocast():
            out = self.policy.model(input_ids=ids, attention_mask=self.mask, **kwargs)
        self.cache = out.past_key_values
        logits: Tensor = out.logits[:, -1]
        # Half precision is for the matrix products; choosing among logits wants more.
        return logits if logits.dtype == torch.float64 else logits.float()

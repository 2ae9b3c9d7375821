"""Draw responses: a KV cache, each prompt computed once for its whole group, finished rows leaving the batch.

Legend: P prompts, n samples per prompt, N = P*n rows (prompt-major), A rows still in the batch, V vocabulary, M
``max_new_tokens``.

A row's random numbers come from its own seed and nothing else: one Philox stream of uniforms, one number a token,
turned into a token through the inverse of the cumulative distribution. So a row draws the same tokens whatever rows
are computed beside it, but for the float rounding of the matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nemotron.contracts.sampler import OnGroup, Pass
from nemotron.contracts.samples import Completion, Group, SamplingParams, cuts
from nemotron.errors import DataError
from nemotron.rl.decoders import Decoder, decoder_for
from nemotron.rl.kept_pass import can_keep, kept_logprobs
from nemotron.rl.llama_decoder import LlamaDecoder
from nemotron.rl.logprobs import filter_logits
from nemotron.rl.pieces import pieces, rows_at_once
from nemotron.rl.policy import Policy

# Moving the cache costs about one step, so rows leave together: an eighth of the batch, and at least four.
_LEAVE_SHARE = 8
_LEAVE_ROWS = 4
_BLOCK = 256
"""Words of a block, by which a large vocabulary is searched."""
_LARGE = 2**13
"""Words from which that is faster."""


class PolicySampler:
    """Samples with the policy itself, in this process."""

    exact_logprobs = True

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._pass: Pass | None = None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        seeds: Sequence[Sequence[int]],
        *,
        on_group: OnGroup | None = None,
        keep: bool = False,
    ) -> list[Group]:
        """See Sampler and :func:`generate`."""
        self._pass = None
        if not prompts:
            return []
        check_prompts(self._policy, prompts, params)
        keep = keep and can_keep(self._policy, prompts, params)
        decoder = decoder_for(self._policy, prompts, n, params.max_new_tokens, keep=keep)
        groups = _generate(decoder, self._policy.device, prompts, n, params, seeds, on_group)
        if isinstance(decoder, LlamaDecoder) and decoder.kept is not None and self._policy.fused is not None:
            self._pass = partial(kept_logprobs, self._policy.fused, decoder.kept, groups, params)
        return groups

    def take_pass(self) -> Pass | None:
        """See Sampler."""
        found, self._pass = self._pass, None
        return found

    def wait(self, tell: Callable[[str], None]) -> None:
        """Nothing to wait for."""

    def refresh(self) -> None:
        """Nothing to do: these are the weights that are trained."""


def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    n: int,
    params: SamplingParams,
    seeds: Sequence[Sequence[int]],
    *,
    on_group: OnGroup | None = None,
) -> list[Group]:
    """Draw ``n`` responses to each prompt.

    Args:
        prompts: P lists of token ids, none empty, of any lengths.
        seeds: [P][n] non-negative integers below 2**64, one per row.
        on_group: told of every complete group before ``generate`` returns, on the calling thread; groups may end in
            any order.

    Returns:
        One group per prompt, in order. The log-probability of a token is that of the distribution it was drawn from
        (after temperature, top-k, top-p); greedy decoding (temperature 0) reports the model's own log-probability.
        The same call gives the same bits.

    Raises:
        DataError: an empty prompt, or one that leaves no room for ``max_new_tokens`` in the model's context.
    """
    return PolicySampler(policy).generate(prompts, n, params, seeds, on_group=on_group)


@torch.no_grad()
def _generate(
    decoder: Decoder,
    device: torch.device,
    prompts: Sequence[Sequence[int]],
    n: int,
    params: SamplingParams,
    seeds: Sequence[Sequence[int]],
    on_group: OnGroup | None,
) -> list[Group]:
    run = _Run(len(prompts), n, params, seeds, device)
    groups: list[Group | None] = [None] * len(prompts)
    logits = decoder.prefill()
    while True:
        tokens = run.draw(logits)
        for index in run.ended_groups():
            groups[index] = group = run.group(index, prompts[index])
            if on_group is not None:
                on_group(index, group)
        if not run.alive_rows:
            return [group for group in groups if group is not None]
        logits = decoder.step(run.leave(decoder, tokens))


def check_prompts(policy: Policy, prompts: Sequence[Sequence[int]], params: SamplingParams) -> None:
    """Raise DataError for a prompt the model cannot continue by ``max_new_tokens``."""
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompt {index} has no tokens", hint="drop empty prompts from the data")
        if policy.max_length is not None and len(prompt) + params.max_new_tokens > policy.max_length:
            raise DataError(
                f"prompt {index} has {len(prompt)} tokens; {params.max_new_tokens} more exceed the model's "
                f"context of {policy.max_length}",
                hint="lower `policy.generation.max_new_tokens` or shorten the prompt",
            )


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """[len(seeds), count] float64 in [0, 1), row i from a Philox stream keyed by ``seeds[i]`` alone."""
    rows = [np.random.Generator(np.random.Philox(key=seed)).random(count) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def draw(logits: Tensor, uniform: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token per row of ``logits`` [A,V] float32 by inverse transform of ``uniform`` [A] float64.

    Rows do not depend on each other, and a large vocabulary goes through in pieces.

    Returns:
        token ids [A] int64 and their log-probabilities [A] float32.
    """
    rows, vocabulary = logits.shape
    if rows <= rows_at_once(vocabulary, logits.device):
        return _draw(logits, uniform, params)
    parts = [_draw(logits[part], uniform[part], params) for part in pieces(rows, vocabulary, logits.device)]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def _draw(logits: Tensor, uniform: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    if params.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, _pick(logits.log_softmax(-1), tokens)
    if params.temperature != 1:
        logits = logits / params.temperature
    if cuts(params.top_k, params.top_p):
        logits = filter_logits(logits, top_k=params.top_k, top_p=params.top_p)
    probs = logits.softmax(-1)
    search = _first_above if probs.shape[-1] < _LARGE else _first_above_in_blocks
    tokens = search(probs, uniform[:, None])
    return tokens, _pick(probs, tokens).log_()


def _first_above(weights: Tensor, share: Tensor) -> Tensor:
    """weights [A,W] >= 0, share [A,1] in [0, 1) -> [A], where the running sum exceeds that share of the total; a
    place of positive weight."""
    cdf = weights.cumsum(-1, dtype=torch.float64)
    return _above(cdf, share * cdf[:, -1:])


def _above(cdf: Tensor, target: Tensor) -> Tensor:
    """cdf [A,W] float64, target [A,1] -> [A], the first place above it."""
    total = cdf[:, -1:]
    # Strictly below the total, so that the first entry above the target has a positive weight.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, target, right=True).squeeze(-1)


def _first_above_in_blocks(weights: Tensor, share: Tensor) -> Tensor:
    """What `_first_above` does, but for rounding: first the block of words, then the word in it.

    A running sum in float64 of a whole vocabulary, of which all but one number are thrown away, is a twentieth of a
    sampling step of a small model. Within a block float32 is as exact as the softmax was.
    """
    width = weights.shape[-1]
    whole = width // _BLOCK * _BLOCK
    sums = weights[:, :whole].view(len(weights), -1, _BLOCK).sum(-1)
    if whole < width:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], 1)
    cdf = sums.cumsum(-1, dtype=torch.float64)
    target = share * cdf[:, -1:]
    block = _above(cdf, target)[:, None]
    places = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(1, places.clamp(max=width - 1)).masked_fill_(places >= width, 0.0)
    before = cdf.gather(1, (block - 1).clamp(min=0)) * (block > 0)
    # From the beginning of the block: added to what stands before it, its small weights would be rounded away.
    found = _above(inside.cumsum(-1, dtype=torch.float64), (target - before).clamp_(min=0.0))
    return block.squeeze(-1) * _BLOCK + found


def _pick(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(-1, index[:, None]).squeeze(-1)


class _Run:
    """What has been drawn so far, and which rows still draw."""

    def __init__(
        self, prompts: int, n: int, params: SamplingParams, seeds: Sequence[Sequence[int]], device: torch.device
    ) -> None:
        rows = prompts * n
        self.n, self.params, self.time = n, params, 0
        flat = [seed for group in seeds for seed in group]
        # Time-major: a step writes one contiguous row.
        self.uniforms = uniforms(flat, params.max_new_tokens).T.contiguous().to(device)
        self.tokens = torch.zeros(params.max_new_tokens, rows, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(params.max_new_tokens, rows, device=device)
        self.stops = torch.tensor(params.stop_token_ids, dtype=torch.int64, device=device)
        self.rows: Tensor | None = None  # batch position -> row; None while all rows are in the batch
        self.batch = list(range(rows))  # the same as a list
        self.lengths = [0] * rows  # 0 while a row still draws
        self.stopped = [False] * rows
        self.pending = [n] * prompts  # rows of a group that still draw
        self.fresh: list[int] = []  # groups that ended in the last step
        self.alive_rows = rows

    def draw(self, logits: Tensor) -> Tensor:
        """Draw one token for each row of the batch and record it; [A] int64."""
        time, params = self.time, self.params
        uniform = self.uniforms[time] if self.rows is None else self.uniforms[time, self.rows]
        tokens, logprobs = draw(logits, uniform, params)
        if self.rows is None:
            self.tokens[time], self.logprobs[time] = tokens, logprobs
        else:
            self.tokens[time, self.rows], self.logprobs[time, self.rows] = tokens, logprobs
        self.time += 1
        if self.time == params.max_new_tokens:
            self._end(range(len(self.batch)), tokens)
        elif len(params.stop_token_ids):
            self._end(torch.isin(tokens, self.stops).nonzero().flatten().tolist(), None)
        return tokens

    def _end(self, positions: Sequence[int], last: Tensor | None) -> None:
        """Rows at these batch positions draw no more; ``last`` are their last tokens where the limit ended them."""
        stops = set(self.params.stop_token_ids)
        ids = last.tolist() if last is not None else None
        for position in positions:
            row = self.batch[position]
            if self.lengths[row]:
                continue
            self.lengths[row] = self.time
            self.stopped[row] = ids is None or ids[position] in stops
            self.alive_rows -= 1
            self.pending[row // self.n] -= 1
            if not self.pending[row // self.n]:
                self.fresh.append(row // self.n)

    def ended_groups(self) -> list[int]:
        """Groups whose last row ended in the last step."""
        fresh, self.fresh = self.fresh, []
        return fresh

    def group(self, index: int, prompt: Sequence[int]) -> Group:
        """The finished group ``index``."""
        rows = range(index * self.n, (index + 1) * self.n)
        span = slice(rows.start, rows.stop)
        tokens = self.tokens[: self.time, span].T.tolist()
        logprobs = self.logprobs[: self.time, span].T.tolist()
        completions = [
            Completion(ids[: self.lengths[row]], values[: self.lengths[row]], truncated=not self.stopped[row])
            for row, ids, values in zip(rows, tokens, logprobs, strict=True)
        ]
        return Group(list(prompt), completions)

    def leave(self, decoder: Decoder, tokens: Tensor) -> Tensor:
        """Take finished rows out of the batch and the decoder when enough have gathered; the tokens that remain."""
        batch = len(self.batch)
        if self.alive_rows > batch - max(_LEAVE_ROWS, batch // _LEAVE_SHARE):
            return tokens
        keep = [position for position, row in enumerate(self.batch) if not self.lengths[row]]
        index = torch.tensor(keep, device=tokens.device)
        self.batch = [self.batch[position] for position in keep]
        self.rows = torch.tensor(self.batch, device=tokens.device)
        decoder.keep(index)
        return tokens[index]

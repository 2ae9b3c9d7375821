"""Response log-probabilities, values and scores for any causal model of transformers.

Where it keeps a KV cache, prompts of equal length run together, once; their cache is then repeated for the responses,
which run with it. Both passes belong to one graph, so gradients flow through the shared prompt. Models that carry a
state of another kind (Mamba, convolutions, linear attention) compute every row whole. Rows are cut into batches of
similar length, so little is padded.

What needs memory: with ``recompute`` the backward pass computes every batch anew in the place of keeping its
activations, and batches are small; logits exist for so many tokens at once as fit ``pieces.py``'s limit.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nemotron.contracts.samples import Group
from nemotron.rl.logprobs import token_logprobs
from nemotron.rl.pieces import pieces, rows_at_once

_RECOMPUTED_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens of a batch whose activations are computed anew: that many exist at once."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A response: its place in the result and the prompt of its bucket that it continues.

    Of a row that is computed whole, ``tokens`` begin with those of the prompt, and ``prompt`` is their number.
    """

    index: int
    prompt: int
    tokens: list[int]


class Model(Protocol):
    """What a pass needs of a model."""

    device: torch.device
    shares_prompts: bool
    """``shares_prompts`` of its transformers model"""
    recompute: bool

    @property
    def vocabulary(self) -> int:
        """V, numbers that the head gives for a token."""

    def forward(self, ids: Tensor, cache: Any, *, last_only: bool) -> tuple[Tensor, Any]:
        """Outputs [n,t,V] of the tokens ``ids`` [n,t] after a cache, and the cache grown.

        ``last_only``: the outputs [n,1,V] of the last position will do.
        """

    def body(self, ids: Tensor, cache: Any) -> Tensor:
        """Hidden states [n,t,D] from which ``head`` makes what ``forward`` gives."""

    def head(self, hidden: Tensor) -> Tensor:
        """[R,D] -> [R,V]."""


Readout = Callable[[Tensor, Tensor], Tensor]
"""Outputs [R,V] and the tokens [R] they are asked about -> [R], differentiable."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows that run together."""

    ids: Tensor
    """[n,t], padded on the right"""
    mask: Tensor
    """[n,t] where something is asked"""
    targets: Tensor
    """[R] the tokens asked about"""
    places: Tensor
    """[R] where their values belong in the flattened result"""
    prompts: Tensor | None
    """[n] rows of the prompts' cache that they continue; None where they begin with their prompts"""


def shares_prompts(model: Any) -> bool:
    """Whether a transformers model has a cache of keys and values that can be repeated for many rows and chosen from.

    One that carries a state of another kind has not, or mutates it in place.
    """
    from transformers import DynamicCache

    if getattr(model, "_is_stateful", False) or "past_key_values" not in inspect.signature(model.forward).parameters:
        return False
    # The layers that a model of this config makes: those of keys and values can be chosen from, others lack the method.
    return all(hasattr(layer, "batch_select_indices") for layer in DynamicCache(config=model.config).layers)


def generic_logprobs(
    model: Model, groups: Sequence[Group], *, temperature: float, top_k: int | None, top_p: float
) -> Tensor:
    """``Policy.response_logprobs`` for any model; see there."""
    read = partial(token_logprobs, temperature=temperature or 1.0, top_k=top_k, top_p=top_p)
    width = max(len(c.token_ids) for group in groups for c in group.completions)
    return _run(model, groups, read, width, ends=False)


def generic_values(model: Model, groups: Sequence[Group]) -> Tensor:
    """``ScalarModel.token_values`` for any model; see there."""
    width = max(len(c.token_ids) for group in groups for c in group.completions)
    return _run(model, groups, _scalar, width, ends=False)


def generic_scores(model: Model, groups: Sequence[Group]) -> Tensor:
    """``ScalarModel.sequence_scores`` for any model; see there."""
    return _run(model, groups, _scalar, 1, ends=True)[:, 0]


def _scalar(outputs: Tensor, tokens: Tensor) -> Tensor:
    return outputs[:, 0].float()


def _run(model: Model, groups: Sequence[Group], read: Readout, width: int, *, ends: bool) -> Tensor:
    """What ``read`` makes of the outputs: [N,width], 0.0 where nothing is asked.

    Every response token is asked about; with ``ends`` only what follows a whole response.
    """
    total = sum(len(group.completions) for group in groups)
    compute = _shared if model.shares_prompts else _whole
    found = list(compute(model, groups, read, width, ends))
    flat = torch.cat([values for values, _ in found])
    places = torch.cat([places for _, places in found]).to(flat.device)
    return flat.new_zeros(total * width).index_copy(0, places, flat).view(total, width)


def _shared(
    model: Model, groups: Sequence[Group], read: Readout, width: int, ends: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Values [R] and their places [R] in the flattened result: prompts once, then the responses over their cache."""
    device = model.device
    for prompts, rows in _buckets(groups):
        ids = torch.tensor(prompts, device=device)
        outputs, prefix = _anew(model, partial(model.forward, ids, None, last_only=True))
        if not ends:
            first = torch.tensor([row.tokens[0] for row in rows], device=device)
            last = outputs[:, -1][torch.tensor([row.prompt for row in rows], device=device)]
            yield read(last, first), torch.tensor([row.index * width for row in rows])
        unfed = 0 if ends else 1  # a response's last token is fed only where something is asked after it
        for chosen in _similar_lengths(model, [row for row in rows if len(row.tokens) > unfed], unfed):
            batch = _response_batch(chosen, width, ends, device)
            yield _anew(model, partial(_values, model, batch, prefix, read)), batch.places


def _whole(
    model: Model, groups: Sequence[Group], read: Readout, width: int, ends: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """As ``_shared``: every row from its first token, prompts included."""
    rows = [
        _Row(i, len(group.prompt_ids), [*group.prompt_ids, *completion.token_ids])
        for i, (group, completion) in enumerate((group, c) for group in groups for c in group.completions)
    ]
    unfed = 0 if ends else 1
    for chosen in _similar_lengths(model, sorted(rows, key=lambda row: -len(row.tokens)), unfed):
        batch = _whole_batch(chosen, width, ends, model.device)
        yield _anew(model, partial(_values, model, batch, None, read)), batch.places


def _values(model: Model, batch: _Batch, prefix: Any, read: Readout) -> Tensor:
    """What is asked of a batch, [R]."""
    cache = None if batch.prompts is None else _select(prefix, batch.prompts)
    if batch.ids.numel() <= rows_at_once(model.vocabulary, model.device):
        outputs, _ = model.forward(batch.ids, cache, last_only=False)
        return read(outputs[batch.mask], batch.targets)
    hidden = model.body(batch.ids, cache)[batch.mask]

    def part(hidden: Tensor, targets: Tensor) -> Tensor:
        return read(model.head(hidden), targets)

    # Logits that are kept for the backward pass would all exist together there.
    return torch.cat(
        [
            checkpoint(part, hidden[piece], batch.targets[piece], use_reentrant=False, preserve_rng_state=False)
            for piece in pieces(len(hidden), model.vocabulary, model.device)
        ]
    )


def _anew(model: Model, compute: Callable[[], Any]) -> Any:
    """What ``compute`` gives; where the model wants it, what it needs for the backward pass is computed there."""
    if not (model.recompute and torch.is_grad_enabled()):
        return compute()
    return checkpoint(compute, use_reentrant=False, preserve_rng_state=False)


def _whole_batch(rows: list[_Row], width: int, ends: bool, device: torch.device) -> _Batch:
    return _padded(rows, [row.prompt for row in rows], 0, width, ends, device, prompts=None)


def _padded(
    rows: list[_Row],
    firsts: Sequence[int],
    column: int,
    width: int,
    ends: bool,
    device: torch.device,
    *,
    prompts: Tensor | None,
) -> _Batch:
    """Rows, the longest first, as one tensor. ``firsts`` is the first token of each that is predicted, ``column`` where
    its log-probability stands."""
    # What is only there to be predicted is not fed.
    unfed = 0 if ends else 1
    longest = len(rows[0].tokens) - unfed
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    targets: list[int] = []
    places: list[int] = []
    for i, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        fed, start = len(row.tokens) - unfed, row.index * width + column
        ids[i, :fed] = torch.tensor(row.tokens[:fed])
        mask[i, fed - 1 if ends else first - 1 : fed] = True
        targets += [0] if ends else row.tokens[first:]
        places += [row.index] if ends else range(start, start + len(row.tokens) - first)
    # Padding stands on the right, behind all that is asked: a causal model has not met it yet.
    return _Batch(
        ids.to(device), mask.to(device), torch.tensor(targets, device=device), torch.tensor(places), prompts=prompts
    )


def _buckets(groups: Sequence[Group]) -> Iterator[tuple[list[list[int]], list[_Row]]]:
    """Prompts of one length, each once, and the responses to them; longest responses first."""
    buckets: dict[int, tuple[dict[tuple[int, ...], int], list[_Row]]] = defaultdict(lambda: ({}, []))
    index = 0
    for group in groups:
        prompts, rows = buckets[len(group.prompt_ids)]
        prompt = prompts.setdefault(tuple(group.prompt_ids), len(prompts))
        for completion in group.completions:
            rows.append(_Row(index, prompt, completion.token_ids))
            index += 1
    for prompts, rows in buckets.values():
        yield [list(prompt) for prompt in prompts], sorted(rows, key=lambda row: -len(row.tokens))


def _response_batch(rows: list[_Row], width: int, ends: bool, device: torch.device) -> _Batch:
    # The prompt, which is computed before, has predicted the first token.
    prompts = torch.tensor([row.prompt for row in rows], device=device)
    return _padded(rows, [1] * len(rows), 1, width, ends, device, prompts=prompts)


def _similar_lengths(model: Model, rows: list[_Row], unfed: int) -> Iterator[list[_Row]]:
    """Cut rows (longest first) where the next would be padded by more than a quarter of the longest, and where a batch
    that is computed anew is full."""
    budget = math.inf
    if model.recompute:
        budget = _RECOMPUTED_TOKENS.get(model.device.type, _RECOMPUTED_TOKENS["cuda"])
    start = 0
    for i, row in enumerate(rows):
        longest = len(rows[start].tokens) - unfed
        full = i > start and (i - start + 1) * longest > budget
        if full or (len(row.tokens) - unfed) * 4 < longest * 3:
            yield rows[start:i]
            start = i
    if rows:
        yield rows[start:]


def _select(cache: Any, index: Tensor) -> Any:
    """A cache of the rows ``index`` of ``cache``, which stays as it is; differentiable."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in chosen.layers:
        layer.batch_select_indices(index)
    return chosen

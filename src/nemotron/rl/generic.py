"""Response log-probabilities, values and scores for any causal model of transformers.

Where it keeps a KV cache, prompts of equal length run together, once; their cache is then repeated for the responses,
which run with it. Both passes belong to one graph, so gradients flow through the shared prompt. Models that carry a
state of another kind (Mamba, convolutions, linear attention) compute every row whole. Rows are cut into batches of
similar length, so little is padded.
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nemotron.contracts.samples import Group
from nemotron.rl.logprobs import token_logprobs


@dataclass(frozen=True, slots=True)
class _Row:
    """A response: its place in the result and the prompt of its bucket that it continues.

    Of a row that is computed whole, ``tokens`` begin with those of the prompt, and ``prompt`` is their number.
    """

    index: int
    prompt: int
    tokens: list[int]


class Model(Protocol):
    """What a pass needs of a model: outputs [n,t,V] of the tokens ``ids`` [n,t] after a cache, and the cache grown."""

    device: torch.device
    shares_prompts: bool
    """``shares_prompts`` of its transformers model"""

    def forward(self, ids: Tensor, cache: Any, *, last_only: bool) -> tuple[Tensor, Any]:
        """``last_only``: the outputs [n,1,V] of the last position will do."""


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

    def read(logits: Tensor, tokens: Tensor) -> Tensor:
        return token_logprobs(logits, tokens, temperature=temperature or 1.0, top_k=top_k, top_p=top_p)

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


def _run(
    model: Model, groups: Sequence[Group], read: Callable[[Tensor, Tensor], Tensor], width: int, *, ends: bool
) -> Tensor:
    """What ``read`` makes of the outputs: [N,width], 0.0 where nothing is asked.

    Every response token is asked about; with ``ends`` only what follows a whole response.
    """
    total = sum(len(group.completions) for group in groups)
    places: list[Tensor] = []
    values: list[Tensor] = []
    for outputs, targets, place in _outputs(model, groups, width, ends):
        values.append(read(outputs, targets))
        places.append(place)
    flat = torch.cat(values)
    return flat.new_zeros(total * width).index_copy(0, torch.cat(places).to(flat.device), flat).view(total, width)


def _outputs(model: Model, groups: Sequence[Group], width: int, ends: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Outputs [R,V], the tokens [R] they are asked about, and the tokens' places [R] in the flattened result."""
    if not model.shares_prompts:
        yield from _whole_outputs(model, groups, width, ends)
        return
    for prompts, rows in _buckets(groups):
        yield from _bucket_outputs(model, prompts, rows, width, ends)


def _whole_outputs(
    model: Model, groups: Sequence[Group], width: int, ends: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """See ``_outputs``: every row from its first token, prompts included."""
    rows = [(len(group.prompt_ids), [*group.prompt_ids, *c.token_ids]) for group in groups for c in group.completions]
    # What is only there to be predicted is not fed.
    unfed = 0 if ends else 1
    ordered = [_Row(i, prompt, tokens) for i, (prompt, tokens) in enumerate(rows)]
    for batch in _similar_lengths(sorted(ordered, key=lambda row: -len(row.tokens)), unfed):
        longest = len(batch[0].tokens) - unfed
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros(len(batch), longest, dtype=torch.bool)
        targets: list[int] = []
        places: list[int] = []
        for i, row in enumerate(batch):
            fed, prompt = len(row.tokens) - unfed, row.prompt
            ids[i, :fed] = torch.tensor(row.tokens[:fed])
            mask[i, fed - 1 if ends else prompt - 1 : fed] = True
            targets += [0] if ends else row.tokens[prompt:]
            places += [row.index] if ends else range(row.index * width, row.index * width + len(row.tokens) - prompt)
        # Padding stands on the right, behind all that is asked: a causal model has not met it yet.
        outputs, _ = model.forward(ids.to(model.device), None, last_only=False)
        yield (
            outputs[mask.to(model.device)],
            torch.tensor(targets, device=model.device),
            torch.tensor(places),
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


def _bucket_outputs(
    model: Model, prompts: list[list[int]], rows: list[_Row], width: int, ends: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """See ``_outputs``: the prompts once, then the responses over their cache."""
    device = model.device
    outputs, prefix = model.forward(torch.tensor(prompts, device=device), None, last_only=True)
    if not ends:
        yield (
            outputs[:, -1][torch.tensor([row.prompt for row in rows], device=device)],
            torch.tensor([row.tokens[0] for row in rows], device=device),
            torch.tensor([row.index * width for row in rows]),
        )
    unfed = 0 if ends else 1  # a response's last token is fed only where something is asked after it
    for batch in _similar_lengths([row for row in rows if len(row.tokens) > unfed], unfed):
        longest = len(batch[0].tokens) - unfed
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros(len(batch), longest, dtype=torch.bool)
        targets: list[int] = []
        places: list[int] = []
        for i, row in enumerate(batch):
            fed = len(row.tokens) - unfed
            ids[i, :fed] = torch.tensor(row.tokens[:fed])
            mask[i, fed - 1 if ends else 0 : fed] = True
            targets += [0] if ends else row.tokens[1:]
            places += [row.index] if ends else range(row.index * width + 1, row.index * width + 1 + fed)
        cache = _select(prefix, torch.tensor([row.prompt for row in batch], device=device))
        # Padding stands on the right and attention is causal, so no real token sees it.
        outputs, _ = model.forward(ids.to(device), cache, last_only=False)
        yield outputs[mask.to(device)], torch.tensor(targets, device=device), torch.tensor(places)


def _similar_lengths(rows: list[_Row], unfed: int) -> Iterator[list[_Row]]:
    """Cut rows (longest first) where the next would be padded by more than a quarter of the longest."""
    start = 0
    for i, row in enumerate(rows):
        if (len(row.tokens) - unfed) * 4 < (len(rows[start].tokens) - unfed) * 3:
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

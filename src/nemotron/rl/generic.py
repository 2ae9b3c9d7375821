"""Response log-probabilities for any causal LM of transformers that keeps a KV cache.

Prompts of equal length run together, once; their cache is then repeated for the responses, which run with it. Both
passes belong to one graph, so gradients flow through the shared prompt. Rows are cut into batches of similar length,
so little is padded.
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemotron.rl.logprobs import token_logprobs
from nemotron.rl.types import Group

if TYPE_CHECKING:
    from nemotron.rl.policy import Policy


@dataclass(frozen=True, slots=True)
class _Row:
    """A response: its place in the result and the prompt of its bucket that it continues."""

    index: int
    prompt: int
    tokens: list[int]


def generic_logprobs(
    policy: Policy, groups: Sequence[Group], *, temperature: float, top_k: int | None, top_p: float
) -> Tensor:
    """``Policy.response_logprobs`` for any model; see there."""
    total = sum(len(group.completions) for group in groups)
    width = max(len(c.token_ids) for group in groups for c in group.completions)
    places: list[Tensor] = []
    values: list[Tensor] = []
    for prompts, rows in _buckets(groups):
        for logits, targets, place in _bucket_logits(policy, prompts, rows, width):
            values.append(token_logprobs(logits, targets, temperature=temperature or 1.0, top_k=top_k, top_p=top_p))
            places.append(place)
    flat = torch.cat(values)
    return flat.new_zeros(total * width).index_copy(0, torch.cat(places).to(flat.device), flat).view(total, width)


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


def _bucket_logits(
    policy: Policy, prompts: list[list[int]], rows: list[_Row], width: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits [R,V], the tokens [R] they are asked about, and the tokens' places [R] in the flattened result."""
    model, device = policy.model, policy.device
    kwargs: dict[str, Any] = {"use_cache": True}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        kwargs["logits_to_keep"] = 1
    with policy.autocast():
        prefix = model(input_ids=torch.tensor(prompts, device=device), **kwargs)
    first = prefix.logits[:, -1][torch.tensor([row.prompt for row in rows], device=device)]
    yield (
        first,
        torch.tensor([row.tokens[0] for row in rows], device=device),
        torch.tensor([row.index * width for row in rows]),
    )
    for batch in _similar_lengths([row for row in rows if len(row.tokens) > 1]):
        longest = len(batch[0].tokens) - 1
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros(len(batch), longest, dtype=torch.bool)
        targets: list[int] = []
        places: list[int] = []
        for i, row in enumerate(batch):
            fed = len(row.tokens) - 1
            ids[i, :fed], mask[i, :fed] = torch.tensor(row.tokens[:-1]), True
            targets += row.tokens[1:]
            places += range(row.index * width + 1, row.index * width + 1 + fed)
        cache = _select(prefix.past_key_values, torch.tensor([row.prompt for row in batch], device=device))
        with policy.autocast():
            # Padding stands on the right and attention is causal, so no real token sees it.
            logits = model(input_ids=ids.to(device), past_key_values=cache, use_cache=True).logits
        yield logits[mask.to(device)], torch.tensor(targets, device=device), torch.tensor(places)


def _similar_lengths(rows: list[_Row]) -> Iterator[list[_Row]]:
    """Cut rows (longest first) where the next would be padded by more than a quarter of the longest."""
    start = 0
    for i, row in enumerate(rows):
        if (len(row.tokens) - 1) * 4 < (len(rows[start].tokens) - 1) * 3:
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

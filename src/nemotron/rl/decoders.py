"""The step that turns the last tokens into the next logits: one interface, one implementation per kind of model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nemotron.rl.llama_decoder import LlamaDecoder
from nemotron.rl.policy import Policy


class Decoder(Protocol):
    """A batch that is being continued. Rows are prompt-major: n rows of the first prompt, then of the second."""

    def prefill(self) -> Tensor:
        """Compute the prompts; logits [P*n,V] float32 for the first new token."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every row, [A] int64; logits [A,V] float32 for the next."""

    def keep(self, index: Tensor) -> None:
        """Keep the rows at these batch positions ([A'] int64, increasing), drop the others."""


def decoder_for(
    policy: Policy, prompts: Sequence[Sequence[int]], n: int, max_new_tokens: int, *, keep: bool = False
) -> Decoder:
    """The fastest decoder that can run the policy's model; with ``keep`` it leaves what ``can_keep`` speaks of."""
    if policy.fused is not None:
        weights = policy.fused.weights(policy.dtype, max(map(len, prompts)) + max_new_tokens)
        # What is not trained has no room for a second copy: a judge, a reference.
        trained = bool(policy.fused.trained)
        return LlamaDecoder(weights, prompts, n, max_new_tokens, may_pack=trained, keep=keep)
    return HfDecoder(policy, prompts, n) if policy.shares_prompts else WholeDecoder(policy, prompts, n)


class HfDecoder:
    """Any causal LM of transformers that keeps a DynamicCache. Ragged prompts are padded on the left and masked."""

    def __init__(self, policy: Policy, prompts: Sequence[Sequence[int]], n: int) -> None:
        self.policy, self.n = policy, n
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        self.ids, self.mask = ids.to(policy.device), mask.to(policy.device)
        self.ragged = not bool(mask.all())
        self.lengths = self.mask.sum(-1)
        self.cache: Any = None
        accepted = inspect.signature(policy.model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.takes_keep = "logits_to_keep" in accepted

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        kwargs: dict[str, Any] = {"past_key_values": self.cache, "use_cache": True}
        if self.ragged:
            kwargs["attention_mask"] = self.mask
        if self.takes_positions:
            kwargs["position_ids"] = positions
        if self.takes_keep:
            kwargs["logits_to_keep"] = 1
        with self.policy.autocast():
            out = self.policy.model(input_ids=ids, **kwargs)
        self.cache = out.past_key_values
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def prefill(self) -> Tensor:
        """See Decoder."""
        positions = (self.mask.cumsum(-1) - 1).clamp_min(0)
        logits = self._forward(self.ids, positions)
        self.cache.batch_repeat_interleave(self.n)
        self.mask = self.mask.repeat_interleave(self.n, 0)
        self.lengths = self.lengths.repeat_interleave(self.n, 0)
        return logits.repeat_interleave(self.n, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """See Decoder."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        logits = self._forward(tokens[:, None], self.lengths[:, None])
        self.lengths = self.lengths + 1
        return logits

    def keep(self, index: Tensor) -> None:
        """See Decoder."""
        self.cache.batch_select_indices(index)
        self.mask, self.lengths = self.mask[index], self.lengths[index]


class WholeDecoder:
    """Any causal LM: every step computes its rows from their first token. Slow, and right without a cache."""

    def __init__(self, policy: Policy, prompts: Sequence[Sequence[int]], n: int) -> None:
        self.policy, self.n = policy, n
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=policy.device)
        ids = torch.zeros(len(prompts), int(self.lengths.max()), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        self.ids = ids.to(policy.device)

    def _logits(self) -> Tensor:
        logits, _ = self.policy.forward(self.ids, None, last_only=False)
        rows = torch.arange(len(self.ids), device=self.ids.device)
        found: Tensor = logits[rows, self.lengths - 1].float()
        return found

    def prefill(self) -> Tensor:
        """See Decoder."""
        logits = self._logits()
        self.ids = self.ids.repeat_interleave(self.n, 0)
        self.lengths = self.lengths.repeat_interleave(self.n, 0)
        return logits.repeat_interleave(self.n, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """See Decoder."""
        # Padding stands behind the end of a row, where a causal model has not come yet when it is asked.
        self.ids = torch.cat([self.ids, self.ids.new_zeros(len(tokens), 1)], 1)
        self.ids.scatter_(1, self.lengths[:, None], tokens[:, None])
        self.lengths = self.lengths + 1
        return self._logits()

    def keep(self, index: Tensor) -> None:
        """See Decoder."""
        self.ids, self.lengths = self.ids[index], self.lengths[index]

"""Continue a batch token by token with a Llama-like model.

Legend: P prompts still in use, n rows per prompt, A rows in the batch, K key/value heads, r query heads per key/value
head, d head size, p positions of the longest prompt, s tokens fed since the prompts, V vocabulary.

A prompt's keys and values are kept once, whatever the number of rows that continue it, and all its rows are
multiplied with them in one product. At 128 rows of a 1M-parameter model, reading keys and values is what a step waits
for, not arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nemotron.rl.attention import NormedHeads, Rotary
from nemotron.rl.llama_arithmetic import add_normed_, capped, gated, norm
from nemotron.rl.llama_logprobs import LlamaPass, prompt_plan
from nemotron.rl.llama_parts import Layer, Shape, Weights
from nemotron.rl.packed import is_worth_packing, pack

_SETTLED = 8
"""Steps before matrices are packed, which takes as long as two or three: answers may be short."""
_WORTH = 32
"""Steps that must still be possible then."""


class LlamaDecoder:
    """See ``nemotron.rl.decoders.Decoder``."""

    def __init__(
        self,
        weights: Weights,
        prompts: Sequence[Sequence[int]],
        n: int,
        max_new_tokens: int,
        *,
        may_pack: bool = False,
    ) -> None:
        """``n`` rows for each of ``prompts``. ``may_pack``: there is memory for a second copy of the matrices."""
        self.weights, self.prompts = weights, prompts
        self.stepping = weights
        """what steps multiply with"""
        self.rows = len(prompts) * n
        self.packs = may_pack and max_new_tokens >= _SETTLED + _WORTH and is_worth_packing(weights, self.rows)
        device, shape = weights.embedding.device, weights.shape
        self.fed = 0
        # Products with a single query row gain nothing from bfloat16 on CPU.
        self.dtype = torch.float32 if device.type == "cpu" else weights.dtype
        size = (2, len(prompts) * n, shape.kv_heads, max_new_tokens, shape.head_dim)
        self.caches = [torch.empty(size, dtype=self.dtype, device=device) for _ in weights.layers]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.ragged = bool((lengths != lengths[0]).any())
        self.lengths = lengths.repeat_interleave(n)
        prompt = torch.arange(len(prompts), device=device).repeat_interleave(n)
        self.grid = PromptGrid(prompt, lengths, self.dtype, shape)
        self.prefixes: list[Tensor] = []

    def prefill(self) -> Tensor:
        """See Decoder."""
        weights = self.weights
        plan = prompt_plan(self.prompts, weights.embedding.device)
        run = LlamaPass(weights, plan, keep=False)
        logits = torch.empty(len(self.prompts), len(weights.head.weight), device=weights.embedding.device)
        for batch in plan.batches:
            found = weights.head(run.hidden(batch, is_prompt=True)[0]).float()
            logits[batch.prompts] = capped(found, weights.shape.logit_cap)
        self.prefixes = [prefix.to(self.dtype) for prefix in run.prefixes]
        return logits.index_select(0, self.grid.prompt)

    def step(self, tokens: Tensor) -> Tensor:
        """See Decoder."""
        if self.packs and self.fed == _SETTLED and 2 * len(tokens) > self.rows:
            self.rows = len(tokens)
            self.stepping = pack(self.weights, self.rows)
        weights, shape = self.stepping, self.weights.shape
        positions = (self.lengths + self.fed)[:, None] if self.ragged else self.lengths[:1] + self.fed
        rotaries = [Rotary.at(kind.cos, kind.sin, positions, shape) for kind in weights.kinds]
        holes = [self.grid.hole(kind.window, self.fed) for kind in weights.kinds]
        hidden = weights.embedding.index_select(0, tokens)
        if shape.embedding_scale != 1.0:
            hidden.mul_(shape.embedding_scale)
        for layer, cache, prefix in zip(weights.layers, self.caches, self.prefixes, strict=True):
            qkv = layer.qkv(norm(hidden, shape.eps, weights.dtype)[0])
            attended = self._attend(qkv, layer, cache, prefix, rotaries[layer.kind], holes[layer.kind])
            add_normed_(hidden, layer.out(attended.to(weights.dtype)), layer.out_norm, shape.eps)
            gate_up = layer.gate_up(norm(hidden, shape.eps, weights.dtype)[0])
            add_normed_(hidden, layer.down(gated(gate_up, shape.gate)), layer.down_norm, shape.eps)
        self.fed += 1
        return capped(weights.head(norm(hidden, shape.eps, weights.dtype)[0]).float(), shape.logit_cap)

    def _attend(
        self, qkv: Tensor, layer: Layer, cache: Tensor, prefix: Tensor, rotary: Rotary, hole: Tensor | None
    ) -> Tensor:
        """[A,(H+2K)*d] -> [A,H*d]; stores the new keys and values."""
        shape, now = self.weights.shape, self.fed
        rows, heads, kv_heads, half = len(qkv), shape.heads, shape.kv_heads, shape.half
        x = qkv.float().view(rows, 1, 2, shape.all_heads, half)
        if layer.head_norm is not None:
            NormedHeads.apply_(x, layer.head_norm, shape, qkv.dtype, keep=False)
        rotary.turn_(x, shape)
        x = x.squeeze(1)
        new = x[:, :, heads:].view(rows, 2, 2, kv_heads, half).permute(2, 0, 3, 1, 4)
        cache[:, :, :, now].view(2, rows, kv_heads, 2, half).copy_(new)
        q = x[:, :, :heads].view(rows, 2, kv_heads, heads // kv_heads, half).permute(0, 2, 3, 1, 4)
        q = q.reshape(rows * kv_heads, heads // kv_heads, shape.head_dim).to(cache.dtype)
        window = self.weights.kinds[layer.kind].window
        start = 0 if window is None else max(0, now + 1 - window)
        keys, values = cache.view(2, rows * kv_heads, -1, shape.head_dim)[:, :, start : now + 1]
        far = self.grid.scores(q, prefix[0], hole)
        probs = torch.softmax(torch.cat([far, torch.bmm(q, keys.transpose(1, 2))], -1), -1)
        p = far.shape[-1]
        mixed = torch.baddbmm(self.grid.mix(probs[..., :p], prefix[1]), probs[..., p:], values)
        return mixed.view(rows, heads * shape.head_dim)

    def keep(self, index: Tensor) -> None:
        """See Decoder."""
        for number, cache in enumerate(self.caches):
            kept = cache.new_empty(2, len(index), *cache.shape[2:])
            kept[:, :, :, : self.fed] = cache[:, :, :, : self.fed].index_select(1, index)
            self.caches[number] = kept
        if 2 * len(index) <= self.rows:  # filling them up would cost more than packing saves
            self.stepping = self.weights
        self.lengths = self.lengths[index]
        used, prompt = torch.unique(self.grid.prompt[index], return_inverse=True)
        if len(used) < len(self.prefixes[0][0]):
            self.prefixes = [prefix.index_select(1, used) for prefix in self.prefixes]
        self.grid = PromptGrid(prompt, self.grid.prompt_lengths[used], self.dtype, self.weights.shape)


class PromptGrid:
    """Which row continues which prompt, as a grid [P,G] with room for the prompt that has the most rows.

    Rows of a prompt stand together in the batch, prompts in order, so a full grid is the batch itself and nothing is
    moved.
    """

    def __init__(self, prompt: Tensor, prompt_lengths: Tensor, dtype: torch.dtype, shape: Shape) -> None:
        """``prompt`` [A] increasing, every prompt used; ``prompt_lengths`` [P]."""
        self.prompt, self.prompt_lengths = prompt, prompt_lengths
        self.kv_heads, self.rep, self.head_dim = shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim
        counts = torch.bincount(prompt, minlength=len(prompt_lengths))
        self.prompts, self.room = len(prompt_lengths), int(counts.max())
        self.slot: Tensor | None = None  # row -> place in the flattened grid
        self.row: Tensor | None = None  # place -> row, any row where the place is empty
        if self.prompts * self.room != len(prompt):
            first = counts.cumsum(0) - counts
            self.slot = prompt * self.room + torch.arange(len(prompt), device=prompt.device) - first[prompt]
            self.row = torch.zeros(self.prompts * self.room, dtype=torch.int64, device=prompt.device)
            self.row[self.slot] = torch.arange(len(prompt), device=prompt.device)
        self.longest = int(prompt_lengths.max())
        self.positions = torch.arange(self.longest, device=prompt.device)
        self.unseen: Tensor | None = None  # [P,p] behind the end of a prompt
        self.dtype = dtype
        if bool((prompt_lengths != self.longest).any()):
            self.unseen = self.positions >= prompt_lengths[:, None]
        self.whole = self._hole(self.unseen)

    def hole(self, window: int | None, fed: int) -> Tensor | None:
        """[P*K,1,p] 0 or -inf, what is added to the scores of a token after ``fed`` others; None where all is seen."""
        if window is None or self.longest + fed < window:
            return self.whole
        behind = self.prompt_lengths[:, None] + fed - self.positions >= window
        return self._hole(behind if self.unseen is None else behind | self.unseen)

    def _hole(self, unseen: Tensor | None) -> Tensor | None:
        if unseen is None:
            return None
        hole = torch.zeros(unseen.shape, dtype=self.dtype, device=unseen.device).masked_fill_(unseen, float("-inf"))
        return hole.repeat_interleave(self.kv_heads, 0)[:, None]

    def scores(self, q: Tensor, keys: Tensor, hole: Tensor | None) -> Tensor:
        """q [A*K,r,d] and the prompts' keys [P,K,>=p,d] -> [A*K,r,p] with ``hole`` (see there) added."""
        keys = keys[:, :, : self.longest].flatten(0, 1).transpose(1, 2)
        gathered = self._gather(q)
        found = torch.bmm(gathered, keys) if hole is None else torch.baddbmm(hole, gathered, keys)
        return self._scatter(found)

    def mix(self, probs: Tensor, values: Tensor) -> Tensor:
        """probs [A*K,r,p] and the prompts' values [P,K,>=p,d] -> [A*K,r,d]."""
        return self._scatter(torch.bmm(self._gather(probs), values[:, :, : self.longest].flatten(0, 1)))

    def _gather(self, x: Tensor) -> Tensor:
        """[A*K,r,c] -> [P*K,G*r,c]."""
        width = x.shape[-1]
        x = x.view(-1, self.kv_heads, self.rep, width)
        if self.row is not None:
            x = x[self.row]
        x = x.view(self.prompts, self.room, self.kv_heads, self.rep, width).transpose(1, 2)
        return x.reshape(self.prompts * self.kv_heads, self.room * self.rep, width)

    def _scatter(self, x: Tensor) -> Tensor:
        """[P*K,G*r,c] -> [A*K,r,c]."""
        width = x.shape[-1]
        x = x.view(self.prompts, self.kv_heads, self.room, self.rep, width).transpose(1, 2)
        x = x.reshape(-1, self.kv_heads, self.rep, width)
        return (x if self.slot is None else x[self.slot]).reshape(-1, self.rep, width)

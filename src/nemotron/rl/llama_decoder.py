"""Continue a batch token by token with a Llama-like model.

Legend: P prompts still in use, n rows per prompt, A rows in the batch, G rows of the prompt that has the most, H query
heads, K key/value heads, r = H/K, d head size, p positions of the longest prompt, V vocabulary.

A prompt's keys and values are kept once, whatever the number of rows that continue it, and all its rows are
multiplied with them in one product. At 128 rows of a 1M-parameter model, reading keys and values is what a step waits
for, not arithmetic. Of a larger model every product pushes all else out of the processor's cache, so that the smallest
operation behind it waits for its own code: a step is made of as few as can be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nemotron.rl.attention import NormedHeads, Rotary
from nemotron.rl.kept_pass import Kept
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
        keep: bool = False,
    ) -> None:
        """``n`` rows for each of ``prompts``.

        Args:
            may_pack: there is memory for a second copy of the matrices.
            keep: leave in ``kept`` what a backward pass needs.
        """
        self.weights, self.prompts = weights, prompts
        self.stepping = weights
        """what steps multiply with"""
        self.rows = len(prompts) * n
        self.packs = may_pack and max_new_tokens >= _SETTLED + _WORTH and is_worth_packing(weights, self.rows)
        device, shape = weights.embedding.device, weights.shape
        self.fed = 0
        # Products with a single query row gain nothing from bfloat16 on CPU.
        self.dtype = torch.float32 if device.type == "cpu" else weights.dtype
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.ragged = bool((lengths != lengths[0]).any())
        prompt = torch.arange(len(prompts), device=device).repeat_interleave(n)
        self.grid = PromptGrid(prompt, lengths, self.dtype, shape)
        size = (2, len(prompts), shape.kv_heads, n, max_new_tokens, shape.head_dim)
        self.caches = [torch.empty(size, dtype=self.dtype, device=device) for _ in weights.layers]
        """[2,P,K,G,*,d] keys and values of new tokens, by layer"""
        self.prefixes: list[Tensor] = []
        """[2,P,K,>=p,d] those of the prompts"""
        self.keep_pass, self.max_new_tokens = keep, max_new_tokens
        self.kept: Kept | None = None
        self.fed_rows = torch.arange(self.rows, device=device)
        """[A] which of all rows are in the batch"""

    def prefill(self) -> Tensor:
        """See Decoder."""
        weights = self.weights
        plan = prompt_plan(self.prompts, weights.embedding.device)
        run = LlamaPass(weights, plan, keep=self.keep_pass)
        traces = []
        logits = torch.empty(len(self.prompts), len(weights.head.weight), device=weights.embedding.device)
        for batch in plan.batches:
            hidden, trace = run.hidden(batch, is_prompt=True)
            traces.append(trace)
            found = weights.head(hidden).float()
            logits[batch.prompts] = capped(found, weights.shape.logit_cap)
        self.prefixes = [prefix.to(self.dtype) for prefix in run.prefixes]
        if self.keep_pass:
            self.kept = Kept.of(run, traces, self.max_new_tokens)
        return logits.index_select(0, self.grid.prompt)

    def step(self, tokens: Tensor) -> Tensor:
        """See Decoder."""
        if self.packs and self.fed == _SETTLED and 2 * len(tokens) > self.rows:
            self.rows = len(tokens)
            self.stepping = pack(self.weights, self.rows)
        weights, shape = self.stepping, self.weights.shape
        lengths = self.grid.lengths
        positions = (lengths + self.fed)[:, None] if self.ragged else lengths[:1] + self.fed
        rotaries = [Rotary.at(kind.turns, positions, shape) for kind in weights.kinds]
        holes = [self.grid.hole(kind.window, self.fed) for kind in weights.kinds]
        hidden = weights.embedding.index_select(0, tokens)
        if shape.embedding_scale != 1.0:
            hidden.mul_(shape.embedding_scale)
        for number, layer in enumerate(weights.layers):
            normed, rstd = norm(hidden, shape.eps, weights.dtype)
            turned, heads = self._turned(layer.qkv(normed), layer, rotaries[layer.kind])
            attended = self._attend(turned, number, layer, holes[layer.kind]).to(weights.dtype)
            out_normed = add_normed_(hidden, layer.out(attended), layer.out_norm, shape.eps)
            mlp_normed, mlp_rstd = norm(hidden, shape.eps, weights.dtype)
            gate_up = layer.gate_up(mlp_normed)
            down_normed = add_normed_(hidden, layer.down(gated(gate_up, shape.gate)), layer.down_norm, shape.eps)
            if self.kept is not None:
                self.kept.layers[number].add(
                    {
                        "normed": normed,
                        "rstd": rstd,
                        "turned": self.grid.gather(turned.flatten(0, 1)),
                        "attended": attended,
                        "mlp_normed": mlp_normed,
                        "mlp_rstd": mlp_rstd,
                        "gate_up": gate_up,
                    },
                    {"heads": heads, "out": out_normed, "down": down_normed},
                )
        self.fed += 1
        normed, rstd = norm(hidden, shape.eps, weights.dtype)
        if self.kept is not None:
            self.kept.end_step(self.fed_rows, normed, rstd)
        return capped(weights.head(normed).float(), shape.logit_cap)

    def _turned(self, qkv: Tensor, layer: Layer, rotary: Rotary) -> tuple[Tensor, NormedHeads | None]:
        """[A,(H+2K)*d] -> [P,G,H+2K,d] float32 queries, keys and values, normed where the family norms them."""
        shape, grid = self.weights.shape, self.grid
        x = grid.spread(qkv).float().view(grid.prompts, grid.room, shape.all_heads, shape.head_dim)
        heads = None
        if layer.head_norm is not None:
            heads = NormedHeads.apply_(x, layer.head_norm, shape, qkv.dtype, keep=self.keep_pass)
        if heads is not None:  # of the rows, as everything else that is kept
            heads = NormedHeads(*(grid.gather(part.flatten(0, 1)) for part in (heads.normed, heads.rstd)))
        rotary.apply_(x, shape)
        return x, heads

    def _attend(self, x: Tensor, number: int, layer: Layer, hole: Tensor | None) -> Tensor:
        """[P,G,H+2K,d] -> [A,H*d]; stores the new keys and values."""
        shape, grid, now = self.weights.shape, self.grid, self.fed
        cache, prefix = self.caches[number], self.prefixes[number]
        heads, kv_heads, rep, d = shape.heads, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim
        new = x[:, :, heads:].view(grid.prompts, grid.room, 2, kv_heads, d)
        cache[:, :, :, :, now] = new.permute(2, 0, 3, 1, 4)
        q = x[:, :, :heads].view(grid.prompts, grid.room, kv_heads, rep, d).transpose(1, 2).to(cache.dtype)
        # The same queries twice: all of a prompt meet its keys in one product, those of a row its own.
        of_prompts = q.reshape(grid.prompts * kv_heads, grid.room * rep, d)
        of_rows = of_prompts.view(-1, rep, d)
        window = self.weights.kinds[layer.kind].window
        start = 0 if window is None else max(0, now + 1 - window)
        keys, values = cache.view(2, len(of_rows), -1, d)[:, :, start : now + 1]
        p = grid.longest
        far_keys, far_values = prefix[:, :, :, :p].flatten(1, 2)
        turned = far_keys.transpose(1, 2)
        far = torch.bmm(of_prompts, turned) if hole is None else torch.baddbmm(hole, of_prompts, turned)
        near = torch.bmm(of_rows, keys.transpose(1, 2))
        probs = torch.softmax(torch.cat([far.view(*near.shape[:2], p), near], -1), -1)
        mixed = torch.bmm(probs.view(*of_prompts.shape[:2], -1)[..., :p], far_values).view_as(of_rows)
        mixed.baddbmm_(probs[..., p:], values)
        return grid.gather(mixed.view(grid.prompts, kv_heads, grid.room, -1).transpose(1, 2).reshape(-1, heads * d))

    def keep(self, index: Tensor) -> None:
        """See Decoder."""
        used, prompt = torch.unique(self.grid.prompt[index], return_inverse=True)
        old, self.grid = self.grid, PromptGrid(prompt, self.grid.lengths[used], self.dtype, self.weights.shape)
        self.fed_rows = self.fed_rows[index]
        # Where a new place has no row it gets any: nobody looks at what becomes of it.
        place = old.places(index if self.grid.row is None else index[self.grid.row])
        for number, cache in enumerate(self.caches):
            rows = cache[..., : self.fed, :].transpose(2, 3).flatten(1, 2).index_select(1, place)
            kept = cache.new_empty(2, self.grid.prompts, cache.shape[2], self.grid.room, *cache.shape[4:])
            kept[..., : self.fed, :] = rows.view(2, self.grid.prompts, self.grid.room, *rows.shape[2:]).transpose(2, 3)
            self.caches[number] = kept
        if 2 * len(index) <= self.rows:  # filling them up would cost more than packing saves
            self.stepping = self.weights
        if len(used) < len(self.prefixes[0][0]):
            self.prefixes = [prefix.index_select(1, used) for prefix in self.prefixes]


class PromptGrid:
    """Which row continues which prompt, as a grid [P,G] with room for the prompt that has the most rows.

    Rows of a prompt stand together in the batch, prompts in order, so a full grid is the batch itself and nothing is
    moved.
    """

    def __init__(self, prompt: Tensor, lengths: Tensor, dtype: torch.dtype, shape: Shape) -> None:
        """``prompt`` [A] of each row, increasing, every prompt used; ``lengths`` [P] of the prompts."""
        self.prompt, self.lengths, self.dtype, self.kv_heads = prompt, lengths, dtype, shape.kv_heads
        counts = torch.bincount(prompt, minlength=len(lengths))
        self.prompts, self.room = len(lengths), int(counts.max())
        self.slot: Tensor | None = None
        """row -> place in the flattened grid; None of a full one"""
        self.row: Tensor | None = None
        """place -> row, any row where the place is empty"""
        if self.prompts * self.room != len(prompt):
            first = counts.cumsum(0) - counts
            self.slot = prompt * self.room + torch.arange(len(prompt), device=prompt.device) - first[prompt]
            self.row = torch.zeros(self.prompts * self.room, dtype=torch.int64, device=prompt.device)
            self.row[self.slot] = torch.arange(len(prompt), device=prompt.device)
        self.longest = int(lengths.max())
        self.positions = torch.arange(self.longest, device=prompt.device)
        self.unseen: Tensor | None = None
        """[P,p] behind the end of a prompt"""
        if bool((lengths != self.longest).any()):
            self.unseen = self.positions >= lengths[:, None]
        self.whole = self._hole(self.unseen)

    def hole(self, window: int | None, fed: int) -> Tensor | None:
        """[P*K,1,p] 0 or -inf, what is added to the scores of a token after ``fed`` others; None where all is seen."""
        if window is None or self.longest + fed < window:
            return self.whole
        behind = self.lengths[:, None] + fed - self.positions >= window
        return self._hole(behind if self.unseen is None else behind | self.unseen)

    def _hole(self, unseen: Tensor | None) -> Tensor | None:
        if unseen is None:
            return None
        hole = torch.zeros(unseen.shape, dtype=self.dtype, device=unseen.device).masked_fill_(unseen, float("-inf"))
        return hole.repeat_interleave(self.kv_heads, 0)[:, None]

    def spread(self, rows: Tensor) -> Tensor:
        """[A,*] -> [P*G,*]."""
        return rows if self.row is None else rows.index_select(0, self.row)

    def gather(self, places: Tensor) -> Tensor:
        """[P*G,*] -> [A,*]."""
        return places if self.slot is None else places.index_select(0, self.slot)

    def places(self, rows: Tensor) -> Tensor:
        """Where rows are."""
        return rows if self.slot is None else self.slot[rows]

"""Causal attention of new tokens over a shared prefix and themselves, forward and backward, written out as batched
products.

Legend: n sequences, t new tokens, p prefix positions, L = p + t, H query heads, K key/value heads, r = H/K, d head
size.

Written out because torch's own bfloat16 kernel is slow on CPU at these lengths: its backward took 76 ms where these
products took 9 ms (128 sequences, t 63, L 96, 4 heads of 32, one core). The scores are kept, so memory grows with
t*L; callers cut long batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nemotron.rl.llama_parts import Shape


@dataclass(frozen=True, slots=True)
class Rotary:
    """The turns of the positions of a batch, one column per (query or key head, pair)."""

    turns: Tensor
    """[t, (H+K)*d/2], or [n, t, ...] where positions differ; complex64"""

    @classmethod
    def at(cls, turns: Tensor, positions: Tensor, shape: Shape) -> Rotary:
        """From the table [positions, d/2] and the positions [t] or [n,t]."""
        return cls(turns[positions].repeat(*[1] * positions.dim(), shape.heads + shape.kv_heads))

    def back(self) -> Rotary:
        """The opposite turns, which a gradient goes through: the transpose of a turn is that by the negative angle."""
        return Rotary(self.turns.conj().resolve_conj())

    def apply_(self, x: Tensor, shape: Shape) -> None:
        """Turn queries and keys of ``x`` [n,t,H+2K,d] float32 in place; values are not turned."""
        width = (shape.heads + shape.kv_heads) * shape.head_dim
        # The two numbers of a pair stand side by side (see fused_llama.py), so a turn is a product of complex numbers,
        # of all heads at once.
        pairs = x.flatten(2)[..., :width].view(*x.shape[:2], width // 2, 2)
        torch.view_as_complex(pairs).mul_(self.turns)


@dataclass(frozen=True, slots=True)
class Mask:
    """What is added to the scores."""

    causal: Tensor
    """[t,t] 0 or -inf, the dtype of the arithmetic"""
    prefix: Tensor | None
    """[n,1,1,1,p] 0 or -inf where prefixes have different lengths; [n or 1,1,1,t,p] where a window ends within"""
    windowed: bool = False
    """a window hides some of the new tokens from later ones: the triangle does not say all"""

    @classmethod
    def of(
        cls,
        t: int,
        prefix_lengths: Tensor | None,
        p: int,
        dtype: torch.dtype,
        device: torch.device,
        window: int | None = None,
    ) -> Mask:
        """For t new tokens after prefixes of the given lengths [n] (None: all are p long).

        A token sees itself and the ``window - 1`` before it.
        """
        causal = torch.full((t, t), float("-inf"), dtype=dtype, device=device).triu_(1)
        new, old = torch.arange(t, device=device), torch.arange(p, device=device)
        windowed = False
        if window is not None and t > window:
            windowed = True
            causal.masked_fill_(new[:, None] - new >= window, float("-inf"))
        lengths = torch.full((1,), p, device=device) if prefix_lengths is None else prefix_lengths
        unseen = None if prefix_lengths is None else (old >= prefix_lengths[:, None])[:, None]
        if window is not None and p + t > window:
            behind = lengths[:, None, None] + new[:, None] - old >= window
            unseen = behind if unseen is None else behind | unseen
        if unseen is None or p == 0:
            return cls(causal, None, windowed)
        prefix = torch.zeros(unseen.shape, dtype=dtype, device=device).masked_fill_(unseen, float("-inf"))
        return cls(causal, prefix[:, None, None], windowed)


@dataclass(frozen=True, slots=True)
class Saved:
    """What the backward pass needs."""

    q: Tensor
    """[n*K, r*t, d]"""
    kv: Tensor
    """[2, n, K, L, d]"""
    probs: Tensor
    """[n*K, r*t, L]"""
    heads: NormedHeads | None
    """where queries and keys are normed"""


@dataclass(frozen=True, slots=True)
class NormedHeads:
    """Queries and keys behind the division of their norm, before its weight and the turn."""

    normed: Tensor
    """[n,t,H+K,d]"""
    rstd: Tensor
    """[n,t,H+K,1] float32"""

    @classmethod
    def apply_(cls, x: Tensor, weight: Tensor, shape: Shape, dtype: torch.dtype, *, keep: bool) -> NormedHeads | None:
        """Norm queries and keys of ``x`` [n,t,H+2K,d] float32 in place, each head by itself; values stay.

        ``weight`` [H+K,d]. What ``backward_`` needs is returned in ``dtype``, with ``keep``.
        """
        turned = x[..., : shape.heads + shape.kv_heads, :]
        rstd = turned.square().mean(-1, keepdim=True).add_(shape.eps).rsqrt_()
        turned.mul_(rstd)
        kept = cls(turned.to(dtype, copy=True), rstd) if keep else None
        turned.mul_(weight)
        return kept

    def backward_(self, x_grad: Tensor, weight: Tensor, weight_grad: Tensor | None, shape: Shape) -> None:
        """From the gradient of the norms' results to that of what went in, in place; adds to ``weight_grad``."""
        grad, normed = x_grad[..., : shape.heads + shape.kv_heads, :], self.normed.float()
        if weight_grad is not None:
            weight_grad.add_((grad * normed).sum((0, 1)))
        # As in `llama_logprobs.norm_backward_`: y = x r gives dx = r (g - y mean(g y)), here with g behind the weight.
        grad.mul_(weight)
        mean = (grad * normed).mean(-1, keepdim=True)
        grad.sub_(normed.mul_(mean)).mul_(self.rstd)


def forward(
    qkv: Tensor,
    prefix: Tensor | None,
    rotary: Rotary,
    mask: Mask,
    shape: Shape,
    *,
    head_norm: Tensor | None = None,
    keep: bool = True,
) -> tuple[Tensor, Saved]:
    """Attend.

    Args:
        qkv: [n,t,(H+2K)*d] in the row order of ``FusedLlama``, queries scaled already.
        prefix: [2,n,K,p,d] keys (turned) and values of the prefixes, or None.
        head_norm: [H+K,d] weights of the norms of queries and keys, where the family has them.
        keep: whether ``backward`` will follow.

    Returns:
        [n,t,H*d] and what ``backward`` needs; ``saved.kv[..., p:, :]`` are the new keys and values.
    """
    n, t = qkv.shape[:2]
    heads, kv_heads, rep = shape.heads, shape.kv_heads, shape.heads // shape.kv_heads
    dtype = qkv.dtype
    # Angles are multiplied in float32: a bfloat16 cosine is off by 0.4 %, which grows with the position.
    x = qkv.float().view(n, t, shape.all_heads, shape.head_dim)
    normed = None if head_norm is None else NormedHeads.apply_(x, head_norm, shape, dtype, keep=keep)
    rotary.apply_(x, shape)
    q, kv = _arranged(x, prefix, shape, dtype)
    if prefix is None and not keep:  # long prompts of a sampler: here torch's kernel is as fast, and keeps no scores
        by_head = q.view(n, heads, t, shape.head_dim)
        causal = mask.causal if mask.windowed else None
        out = scaled_dot_product_attention(
            by_head, kv[0], kv[1], attn_mask=causal, is_causal=causal is None, scale=1.0, enable_gqa=True
        )
        return out.transpose(1, 2).reshape(n, t, heads * shape.head_dim), Saved(q, kv, q.new_empty(0), None)
    probs = _probabilities(q, kv, mask, shape)
    out = torch.bmm(probs, kv[1].flatten(0, 1)).view(n, kv_heads, rep, t, shape.head_dim)
    return out.permute(0, 3, 1, 2, 4).reshape(n, t, heads * shape.head_dim), Saved(q, kv, probs, normed)


def recall(x: Tensor, prefix: Tensor, mask: Mask, shape: Shape, heads: NormedHeads | None) -> Saved:
    """What ``forward`` saved, from queries, keys and values [n,t,H+2K,d] that were normed and turned already."""
    q, kv = _arranged(x, prefix, shape, x.dtype)
    return Saved(q, kv, _probabilities(q, kv, mask, shape), heads)


def _arranged(x: Tensor, prefix: Tensor | None, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Turned queries, keys and values [n,t,H+2K,d] as products want them: [n*K,r*t,d] and [2,n,K,L,d]."""
    n, t = x.shape[:2]
    heads, kv_heads, rep = shape.heads, shape.kv_heads, shape.heads // shape.kv_heads
    p = 0 if prefix is None else prefix.shape[3]
    # The r query heads that share a key head become r*t rows of one product over its keys: the keys are never repeated,
    # neither here nor, more costly, in the backward pass, where repeating would mean summing gradients over copies.
    q = torch.empty(n, kv_heads, rep, t, shape.head_dim, dtype=dtype, device=x.device)
    q.copy_(x[:, :, :heads].view(n, t, kv_heads, rep, -1).permute(0, 2, 3, 1, 4))
    kv = torch.empty(2, n, kv_heads, p + t, shape.head_dim, dtype=dtype, device=x.device)
    kv[:, :, :, p:].copy_(x[:, :, heads:].view(n, t, 2, kv_heads, -1).permute(2, 0, 3, 1, 4))
    if prefix is not None:
        kv[:, :, :, :p].copy_(prefix)
    return q.view(n * kv_heads, rep * t, shape.head_dim), kv


def _probabilities(q: Tensor, kv: Tensor, mask: Mask, shape: Shape) -> Tensor:
    """[n*K,r*t,L] from q [n*K,r*t,d] and kv [2,n,K,L,d]."""
    _, n, kv_heads, length, _ = kv.shape
    rep = shape.heads // kv_heads
    t = q.shape[1] // rep
    scores = torch.bmm(q, kv[0].flatten(0, 1).transpose(1, 2))
    by_row = scores.view(n, kv_heads, rep, t, length)
    # The triangle covers the last t columns only: the prefix is seen whole, but for a window's end.
    by_row[..., length - t :].add_(mask.causal)
    if mask.prefix is not None:
        by_row[..., : length - t].add_(mask.prefix)
    return torch.softmax(scores, -1)


def backward(
    grad: Tensor,
    saved: Saved,
    back: Rotary,
    shape: Shape,
    new_kv_grad: Tensor | None = None,
    *,
    head_norm: Tensor | None = None,
    head_norm_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """From the gradient of ``forward``'s result [n,t,H*d] to those of its inputs.

    Args:
        back: the turns of ``forward``, turned back.
        new_kv_grad: [2,n,K,t,d] float32, what later users of the new keys and values add to their gradient.
        head_norm: as ``forward`` had it; ``head_norm_grad`` takes its gradient where it is trained.

    Returns:
        gradient of qkv [n,t,(H+2K)*d], in the dtype of ``grad``; gradient of the prefix [2,n,K,p,d].
    """
    n, t = grad.shape[:2]
    heads, kv_heads, rep = shape.heads, shape.kv_heads, shape.heads // shape.kv_heads
    length = saved.kv.shape[3]
    p = length - t
    out_grad = grad.view(n, t, kv_heads, rep, shape.head_dim).permute(0, 2, 3, 1, 4)
    out_grad = out_grad.reshape(n * kv_heads, rep * t, shape.head_dim)
    keys, values = saved.kv.view(2, n * kv_heads, length, shape.head_dim)
    kv_grad = torch.empty_like(saved.kv).view(2, n * kv_heads, length, shape.head_dim)
    # With A the probabilities, out = A V: dV = A^T dOut, dA = dOut V^T. The r*t rows of a key head are summed inside
    # the product, which is the sum over its query heads.
    torch.bmm(saved.probs.transpose(1, 2), out_grad, out=kv_grad[1])
    probs_grad = torch.bmm(out_grad, values.transpose(1, 2))
    # dS = A * (dA - sum(A * dA)): a masked score has A = 0 and so gets no gradient; no mask is needed here. S = Q K^T
    # then gives dK = dS^T Q and dQ = dS K. The scale 1/sqrt(d) is part of the q rows of the weights.
    scores_grad = torch._softmax_backward_data(probs_grad, saved.probs, -1, saved.probs.dtype)
    torch.bmm(scores_grad.transpose(1, 2), saved.q, out=kv_grad[0])
    q_grad = torch.bmm(scores_grad, keys)
    x_grad = torch.empty(n, t, shape.all_heads, shape.head_dim, dtype=torch.float32, device=grad.device)
    x_grad[:, :, :heads].view(n, t, kv_heads, rep, -1).copy_(
        q_grad.view(n, kv_heads, rep, t, -1).permute(0, 3, 1, 2, 4)
    )
    all_kv = kv_grad.view(2, n, kv_heads, length, shape.head_dim)
    into = x_grad[:, :, heads:].view(n, t, 2, kv_heads, -1).permute(2, 0, 3, 1, 4)
    into.copy_(all_kv[:, :, :, p:])
    if new_kv_grad is not None:
        # Added before the turn is undone: what responses want of a prompt's keys is said about turned keys.
        into.add_(new_kv_grad)
    back.apply_(x_grad, shape)
    if saved.heads is not None and head_norm is not None:
        saved.heads.backward_(x_grad, head_norm, head_norm_grad, shape)
    return x_grad.view(n, t, -1).to(grad.dtype), all_kv[:, :, :, :p]

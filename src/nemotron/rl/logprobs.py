"""Log-probabilities of tokens from logits, and what is done with them before the loss.

Legend: B rows, S columns, V vocabulary. Log-probabilities are in nats, float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

NEG_INF = float("-inf")


def filter_logits(logits: Tensor, *, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """Set the logits of tokens that a sampler would never draw to -inf; the rest stay as they are.

    ``top_k`` first keeps the k largest (all that tie with the k-th); ``top_p`` then keeps, of what is left, the
    smallest set of most likely tokens whose probability reaches ``top_p``, at least one. ``top_k`` of ``None``, 0 or
    -1 (vLLM's "off") keeps all. Shape [..., V] in and out.
    """
    if top_k is not None and 0 < top_k < logits.shape[-1]:
        smallest_kept = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest_kept, NEG_INF)
    if top_p < 1.0:
        ascending, order = logits.sort(dim=-1)
        dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - top_p
        dropped[..., -1] = False
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), NEG_INF)
    return logits


def token_logprobs(
    logits: Tensor, token_ids: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """Log-probability of ``token_ids`` [...] under ``logits`` [..., V], position by position.

    Temperature divides the logits first, then top-k and top-p cut the distribution, which is normalised again. A token
    that was cut off gets -inf. Differentiable; computed in float32 whatever the dtype of the logits.
    """
    scaled = logits.float() if temperature == 1.0 else logits.float() / temperature
    scaled = filter_logits(scaled, top_k=top_k, top_p=top_p)
    flat = functional.cross_entropy(scaled.flatten(0, -2), token_ids.flatten(), reduction="none")
    return -flat.view(token_ids.shape)


def next_token_logprobs(
    logits: Tensor, input_ids: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """Log-probability of every token given those before it: logits [B,S,V], ids [B,S] -> [B,S-1].

    Column t belongs to token t+1; the first token has no prediction.
    """
    return token_logprobs(logits[:, :-1], input_ids[:, 1:], temperature=temperature, top_k=top_k, top_p=top_p)


def mask_out_neg_inf(logprobs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Replace -inf by 0 and take those positions out of the mask.

    A token can have been drawn and yet be cut off by top-k or top-p in the trainer, whose arithmetic differs a little
    from the sampler's. Its ratio would be 0/0. The gradient at such a position is zero.
    """
    gone = torch.isneginf(logprobs)
    return logprobs.masked_fill(gone, 0.0), mask * (~gone).to(mask.dtype)


@dataclass(frozen=True, slots=True)
class SequenceErrorStats:
    """Sampler against trainer, per response; the fields carry NeMo-RL's metric names. All 0 with no valid response."""

    max_seq_mult_prob_error: float
    mean_seq_mult_prob_error: float
    min_seq_mult_prob_error: float
    max_seq_mult_prob_error_after_mask: float
    mean_seq_mult_prob_error_after_mask: float
    min_seq_mult_prob_error_after_mask: float
    num_masked_seqs: int
    masked_correct_pct: float
    """Share (0 to 1) of the responses masked here whose reward is exactly 1."""


def mask_sequence_errors(
    prev_logprobs: Tensor,
    generation_logprobs: Tensor,
    token_mask: Tensor,
    sample_mask: Tensor,
    rewards: Tensor,
    *,
    threshold: float | None,
) -> tuple[Tensor, SequenceErrorStats]:
    """Take responses out of the loss for which sampler and trainer disagree too much about the log-probs.

    The error of a response is the mean of ``exp(|generation - prev|)`` over its valid tokens (1 = no disagreement).
    [B,S] tensors are un-shifted, their first column is not used; ``sample_mask`` and ``rewards`` are [B]. Returns the
    new sample mask (float32) and the statistics; ``threshold=None`` changes nothing.
    """
    before = sample_mask.float()
    mask = token_mask[:, 1:].float() * before[:, None]
    gap = (generation_logprobs - prev_logprobs)[:, 1:].abs()
    errors = (torch.exp(gap * mask) * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    after = before if threshold is None else before * (errors <= threshold).float()
    newly_masked = (before > 0) & (after == 0)
    count = int(newly_masked.sum())
    correct = float((rewards[newly_masked] == 1).float().mean()) if count else 0.0
    stats = SequenceErrorStats(*_spread(errors[before > 0]), *_spread(errors[after > 0]), count, correct)
    return after, stats


def _spread(values: Tensor) -> tuple[float, float, float]:
    """Largest, mean and smallest value; zeros when there is none."""
    if values.numel() == 0:
        return 0.0, 0.0, 0.0
    return float(values.max()), float(values.mean()), float(values.min())

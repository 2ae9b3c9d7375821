"""The clipped policy-gradient loss of NeMo-RL v0.7.0, every variant a parameter of one composition.

    loss = actor + beta * KL(policy || reference) + weight * NLL(responses with reward > 0)

Legend: B rows of a micro-batch, S columns, T = S-1 predicted tokens. Inputs are [B,S] and un-shifted; column t of the
log-probs belongs to the token in column t, column 0 is never used. A caller whose rows hold only the response puts one
column in front for the last prompt token (``prepend_column``), so S = T+1.

Sums are divided by counts of the *global* batch, so losses, gradients and metrics of micro-batches add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nemotron.config.schema.grpo import LossFnConfig
from nemotron.rl.kl import calculate_kl, importance_weight, score_function_weight

EPSILON = 1e-8  # NeMo-RL adds it to every count it divides by
Count = float | Tensor


@dataclass(frozen=True, slots=True)
class LossBatch:
    """One micro-batch. [B,S] tensors are un-shifted (module docstring)."""

    token_mask: Tensor
    """[B,S] 1 on tokens to train on."""
    sample_mask: Tensor
    """[B] 1 on responses to train on."""
    advantages: Tensor
    """[B,S]"""
    generation_logprobs: Tensor
    """[B,S] from the sampler."""
    prev_logprobs: Tensor | None = None
    """[B,S] from the trainer before the update; not read with ``force_on_policy_ratio``."""
    reference_policy_logprobs: Tensor | None = None
    """[B,S]; not read without a KL term."""
    curr_logprobs_unfiltered: Tensor | None = None
    """[B,S-1], shifted like ``next_token_logprobs``: without top-k/top-p, for the KL. ``None``: they are the same."""
    rewards: Tensor | None = None
    """[B], for the positive-example NLL."""


@dataclass(frozen=True, slots=True)
class _Aligned:
    """The batch as the loss sees it: [B,T] tensors, all about the same token."""

    curr: Tensor
    prev: Tensor
    generation: Tensor
    advantages: Tensor
    token_mask: Tensor
    sample_mask: Tensor
    mask: Tensor
    tokens: Count
    sequences: Count

    def token_mean(self, values: Tensor) -> Tensor:
        """Mean over the valid tokens of the global batch."""
        return masked_mean(values, self.mask, self.tokens)


def clipped_pg_loss(
    next_token_logprobs: Tensor,
    batch: LossBatch,
    config: LossFnConfig,
    *,
    global_valid_seqs: Count,
    global_valid_toks: Count,
) -> tuple[Tensor, dict[str, float]]:
    """Loss (scalar, differentiable in ``next_token_logprobs`` [B,S-1]) and NeMo-RL's metrics of one micro-batch.

    ``global_valid_seqs`` is the sum of ``sample_mask`` and ``global_valid_toks`` that of
    ``token_mask[:, 1:] * sample_mask[:, None]`` over the global batch. Sum the metrics of micro-batches, except
    ``*_min`` and ``*_max`` (``merge_metrics``). Raises ``ValueError`` when a tensor that the configured variant reads
    is missing. Three habits of NeMo-RL are kept: in GSPO ``sampling_importance_ratio`` is multiplied by B;
    sequence-level means weigh by ``token_mask`` alone; ``probs_ratio_min/max`` are +-inf when everything is masked.
    """
    aligned = _align(next_token_logprobs, batch, config, global_valid_seqs, global_valid_toks)
    ratio, clipped = probability_ratios(aligned.curr, aligned.prev, aligned.token_mask, config)
    weights, weight_metrics = _importance_weights(aligned, config)
    terms = _policy_gradient_terms(ratio, clipped, aligned, config)
    actor = _reduce(weights * terms if config.use_importance_sampling_correction else terms, aligned, config)
    kl = _reference_kl(aligned, batch, config)
    nll = _positive_nll(aligned, batch, config)
    loss = actor + config.reference_policy_kl_penalty * kl + config.positive_example_nll_weight * nll
    with torch.no_grad():
        metrics = {
            "loss": loss,
            **_ratio_metrics(ratio, clipped, aligned),
            "kl_penalty": kl,
            **_sampler_metrics(aligned, config),
            **weight_metrics,
            "num_valid_samples": aligned.sample_mask.sum(),
            "positive_nll_loss": nll,
        }
        names = list(metrics)
        # One transfer for all of them: a read per metric would make a GPU wait sixteen times.
        values = torch.stack([metrics[name].detach().float() for name in names]).tolist()
    return loss, dict(zip(names, values, strict=True))


def merge_metrics(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Metrics of a global batch from those of its micro-batches: sums, except for ``*_min`` and ``*_max``."""
    merged: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            if name not in merged:
                merged[name] = value
            elif name.endswith("_min"):
                merged[name] = min(merged[name], value)
            elif name.endswith("_max"):
                merged[name] = max(merged[name], value)
            else:
                merged[name] += value
    return merged


def valid_counts(token_mask: Tensor, sample_mask: Tensor) -> tuple[float, float]:
    """``global_valid_seqs`` and ``global_valid_toks`` of the masks [N,S] and [N] of a global batch."""
    tokens = token_mask[:, 1:].float() * sample_mask.float()[:, None]
    return float(sample_mask.float().sum()), float(tokens.sum())


def prepend_column(values: Tensor) -> Tensor:
    """[B,T] per response token -> [B,T+1] with a zero column for the last prompt token, as the loss takes it."""
    return functional.pad(values, (1, 0))


def masked_mean(values: Tensor, mask: Tensor, count: Count | None = None, dim: int | None = None) -> Tensor:
    """``sum(values * mask) / (count + 1e-8)``; the count is that of the mask when not given."""
    total = (values * mask).sum() if dim is None else (values * mask).sum(dim)
    if count is None:
        count = mask.sum() if dim is None else mask.sum(dim)
    return total / (count + EPSILON)


def probability_ratios(curr: Tensor, prev: Tensor, token_mask: Tensor, config: LossFnConfig) -> tuple[Tensor, Tensor]:
    """New over old probability of each token, plain and clipped; [B,T] each.

    GSPO takes the geometric mean over the tokens of a response. ``force_on_policy_ratio`` is 1 with the gradient of
    the ratio; ``disable_ppo_ratio`` puts the log-prob itself in its place. These two are not clipped.
    """
    if config.force_on_policy_ratio:
        ratio = torch.exp(curr - curr.detach())
        return ratio, ratio
    if config.disable_ppo_ratio:
        return curr, curr
    log_ratio = curr - prev
    if config.sequence_level_importance_ratios:
        log_ratio = masked_mean(log_ratio, token_mask, dim=-1)[:, None].expand_as(curr)
    ratio = log_ratio.exp()
    return ratio, ratio.clamp(1.0 - config.ratio_clip_min, 1.0 + config.ratio_clip_max)


def clip_fraction(
    next_token_logprobs: Tensor, batch: LossBatch, config: LossFnConfig, *, global_valid_toks: Count
) -> float:
    """Share of the valid tokens whose ratio has left the clip range on the side to which the advantage pushes.

    Those are the tokens that the clip takes out of the gradient (in CISPO: whose weight it bounds). Not a metric of
    NeMo-RL. Adds up over micro-batches; 0 for the variants without a clip.
    """
    with torch.no_grad():
        aligned = _align(next_token_logprobs, batch, config, 1.0, global_valid_toks)
        ratio, clipped = probability_ratios(aligned.curr, aligned.prev, aligned.token_mask, config)
        beyond = (ratio - clipped) * aligned.advantages > 0
        return float(aligned.token_mean(beyond.float()))


def _align(
    curr: Tensor, batch: LossBatch, config: LossFnConfig, global_valid_seqs: Count, global_valid_toks: Count
) -> _Aligned:
    """Drop the first column of everything that is un-shifted and combine the masks."""
    token_mask = batch.token_mask[:, 1:].to(curr.dtype)
    sample_mask = batch.sample_mask.to(curr.dtype)
    mask = token_mask * sample_mask[:, None]
    prev = curr.detach() if config.force_on_policy_ratio else _required(batch.prev_logprobs, "prev_logprobs")[:, 1:]

    def valid(logprobs: Tensor) -> Tensor:
        # A row may be masked because its log-probs are far apart: their ratio would be infinite, and 0 times that is
        # not 0, neither in the loss nor in its gradient.
        return torch.where(mask > 0, logprobs, curr.detach())

    return _Aligned(
        curr=curr,
        prev=valid(prev),
        generation=valid(batch.generation_logprobs[:, 1:]),
        advantages=batch.advantages[:, 1:],
        token_mask=token_mask,
        sample_mask=sample_mask,
        mask=mask,
        tokens=global_valid_toks,
        sequences=global_valid_seqs,
    )


def _required(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"this loss variant needs `{name}`")
    return tensor


def _policy_gradient_terms(ratio: Tensor, clipped: Tensor, batch: _Aligned, config: LossFnConfig) -> Tensor:
    """The loss of each token before weighting: pessimistic of plain and clipped, or CISPO's; then the dual clip."""
    advantages = batch.advantages
    if config.use_cispo:
        terms = -advantages * clipped.detach() * batch.curr
    else:
        terms = torch.max(-advantages * ratio, -advantages * clipped)
    if config.ratio_clip_c is not None:
        bounded = torch.min(terms, -advantages * config.ratio_clip_c)
        terms = torch.where(advantages < 0, bounded, terms)
    return terms


def _importance_weights(batch: _Aligned, config: LossFnConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Trainer over sampler probability, truncated as configured: [B,T], or [B,1] in GSPO; and its metrics.

    Computed whether or not the loss is weighted by it, because the metrics tell how far sampler and trainer are apart.
    """
    whole_sequence = config.sequence_level_importance_ratios
    with torch.no_grad():
        if whole_sequence:
            gap = ((batch.prev - batch.generation) * batch.mask).sum(-1, keepdim=True)
            weights = importance_weight(gap, torch.zeros_like(gap))
        else:
            weights = importance_weight(batch.prev, batch.generation)
        weights, outside = _truncate(weights, batch, config)
        # NeMo-RL multiplies [B,1] by [B] in GSPO, which scales this metric by B; kept for comparable curves.
        mask, count = (batch.sample_mask, batch.sequences) if whole_sequence else (batch.mask, batch.tokens)
        metrics = {"sampling_importance_ratio": masked_mean(weights, mask, count)}
    return weights, metrics if outside is None else {**metrics, "is_oob_ratio": outside}


def _truncate(weights: Tensor, batch: _Aligned, config: LossFnConfig) -> tuple[Tensor, Tensor | None]:
    """Bound the weights; also the share of tokens (``seq-mask-tis``: responses) outside, ``None`` without a bound."""
    kind = config.truncated_importance_sampling_type
    if kind is None:
        return weights, None
    if config.truncated_importance_sampling_ratio is None:
        raise ValueError("truncated_importance_sampling_type needs truncated_importance_sampling_ratio")
    high = config.truncated_importance_sampling_ratio
    low = config.truncated_importance_sampling_ratio_min or 0.0
    if kind == "seq-mask-tis":
        gap = torch.nan_to_num(batch.prev - batch.generation, nan=0.0, posinf=0.0, neginf=0.0)
        geometric_mean = masked_mean(gap, batch.token_mask, dim=-1).exp()
        inside = ((geometric_mean >= low) & (geometric_mean <= high)).to(weights.dtype)
        return weights * inside[:, None], masked_mean(1.0 - inside, batch.sample_mask, batch.sequences)
    outside = (weights < low) | (weights > high)
    share = batch.token_mean(outside.to(weights.dtype))
    return (weights.clamp(low, high) if kind == "tis" else weights.masked_fill(outside, 0.0)), share


def _reduce(values: Tensor, batch: _Aligned, config: LossFnConfig) -> Tensor:
    """Mean over tokens, or over tokens of each response and then over responses."""
    if config.token_level_loss:
        return batch.token_mean(values)
    return masked_mean(masked_mean(values, batch.token_mask, dim=-1), batch.sample_mask, batch.sequences)


def _reference_kl(batch: _Aligned, raw: LossBatch, config: LossFnConfig) -> Tensor:
    """KL to the reference without its coefficient; 0 when the coefficient is 0 or the KL is in the rewards."""
    if config.reference_policy_kl_penalty == 0 or config.use_kl_in_reward:
        return torch.zeros((), device=batch.curr.device)
    curr = batch.curr if raw.curr_logprobs_unfiltered is None else raw.curr_logprobs_unfiltered
    if config.use_on_policy_kl_approximation:
        weights = importance_weight(curr, batch.generation)
    else:
        weights = score_function_weight(curr)
    kl = calculate_kl(
        curr,
        _required(raw.reference_policy_logprobs, "reference_policy_logprobs")[:, 1:],
        kl_type=config.reference_policy_kl_type,
        input_clamp=config.kl_input_clamp_value,
        output_clamp=config.kl_output_clamp_value,
        weights=weights,
    )
    return _reduce(kl, batch, config)


def _positive_nll(batch: _Aligned, raw: LossBatch, config: LossFnConfig) -> Tensor:
    """Negative log-likelihood on responses with reward > 0, a mean over the tokens of *this* micro-batch (VAPO)."""
    if config.positive_example_nll_weight == 0:
        return torch.zeros((), device=batch.curr.device)
    good = batch.mask * (_required(raw.rewards, "rewards") > 0).to(batch.mask.dtype)[:, None]
    return masked_mean(-batch.curr, good)


def _ratio_metrics(ratio: Tensor, clipped: Tensor, batch: _Aligned) -> dict[str, Tensor]:
    """Mean, least and greatest probability ratio over the valid tokens."""
    valid = batch.mask.bool()
    metrics = {"probs_ratio": batch.token_mean(ratio), "probs_ratio_clamped": batch.token_mean(clipped)}
    for name, values in (("probs_ratio", ratio), ("probs_ratio_clamped", clipped)):
        metrics[f"{name}_min"] = values.masked_fill(~valid, float("inf")).amin()
        metrics[f"{name}_max"] = values.masked_fill(~valid, float("-inf")).amax()
    return metrics


def _sampler_metrics(batch: _Aligned, config: LossFnConfig) -> dict[str, Tensor]:
    """How far sampler and trainer are apart, and the entropy of the current policy, all estimated on sampled tokens."""
    prev, generation, mask = batch.prev, batch.generation, batch.mask
    kl_type = config.reference_policy_kl_type

    def divergence(logprobs: Tensor, other: Tensor) -> Tensor:
        return calculate_kl(logprobs, other, kl_type=kl_type, input_clamp=None, output_clamp=None)

    mixture = torch.log(0.5 * torch.exp(prev) + 0.5 * torch.exp(generation))
    to_mixture = [torch.exp(x - mixture) - (x - mixture) - 1 for x in (prev, generation)]
    return {
        "token_mult_prob_error": batch.token_mean(torch.exp((generation - prev).abs() * mask)),
        "gen_kl_error": batch.token_mean(divergence(generation, prev)),
        "policy_kl_error": batch.token_mean(divergence(prev, generation)),
        "js_divergence_error": batch.token_mean(0.5 * to_mixture[0] + 0.5 * to_mixture[1]),
        "approx_entropy": -batch.token_mean(torch.exp(batch.curr - generation) * batch.curr),
    }

"""Losses on preference pairs of NeMo-RL v0.7.0: Bradley-Terry on two scores, DPO, and the likelihood of SFT.

Legend: B rows of a micro-batch, pairs interleaved (even rows chosen, odd rows rejected), S columns, T = S-1 predicted
tokens. Column t of a [B,S-1] tensor belongs to the token in column t+1, as everywhere in NeMo-RL.

Sums are divided by counts of the *global* batch, so losses, gradients and metrics of micro-batches add up.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nemotron.config.schema.dpo import DpoLossConfig
from nemotron.rl.losses import Count, masked_mean


def preference_loss(
    rewards: Tensor,
    sample_mask: Tensor,
    *,
    beta: float,
    global_valid_seqs: Count,
    margins: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Bradley-Terry: the mean over pairs of ``-log sigmoid(beta * (R_chosen - R_rejected) - margin)``.

    ``rewards`` and ``sample_mask`` are [B]; a pair counts when its chosen row does. ``global_valid_seqs`` is the sum of
    ``sample_mask`` over the global batch, twice the number of pairs. The metrics are NeMo-RL's ``PreferenceLossFn``'s:
    a tie is not accurate, and mean rewards are without ``beta``. Source: ``loss_functions.py::PreferenceLossFn``.
    """
    chosen, rejected = rewards[::2], rewards[1::2]
    mask, pairs = sample_mask[::2].to(rewards.dtype), global_valid_seqs / 2

    def mean(values: Tensor) -> Tensor:
        return masked_mean(values, mask, pairs)

    lead = beta * (chosen - rejected)
    loss = mean(-functional.logsigmoid(lead if margins is None else lead - margins))
    metrics = {
        "accuracy": mean((chosen > rejected).to(rewards.dtype)),
        "rewards_chosen_mean": mean(chosen),
        "rewards_rejected_mean": mean(rejected),
        "num_valid_samples": mask.sum(),
    }
    return loss, {name: value.detach() for name, value in metrics.items()}


def dpo_loss(
    next_token_logprobs: Tensor,
    reference_logprobs: Tensor,
    token_mask: Tensor,
    sample_mask: Tensor,
    config: DpoLossConfig,
    *,
    global_valid_seqs: Count,
) -> tuple[Tensor, dict[str, float]]:
    """Direct preference optimisation with an optional SFT term on the chosen rows.

    ``L = preference_loss_weight * L_preference + sft_loss_weight * L_sft``; the reward of a row is the sum (or mean,
    ``preference_average_log_probs``) of ``log p - log p_reference`` over its answer.

    Args:
        next_token_logprobs: [B,S-1], differentiable.
        reference_logprobs: [B,S-1] of the reference policy.
        token_mask: [B,S] 1 on the tokens of the answer.
        sample_mask: [B] 1 on rows that count.
        global_valid_seqs: sum of ``sample_mask`` over the global batch.

    Returns:
        The loss, and NeMo-RL's metrics plus ``logps_chosen_mean`` and ``logps_rejected_mean``: the summed
        log-probability of an answer, which falls for both sides when a run forgets how to write.

    Source: ``loss_functions.py::DPOLossFn`` (Rafailov et al. 2023, equation 7).
    """
    mask = token_mask[:, 1:].to(next_token_logprobs.dtype)
    rewards = answer_rewards(
        next_token_logprobs, reference_logprobs, token_mask, average=config.preference_average_log_probs
    )
    preference, metrics = preference_loss(
        rewards, sample_mask, beta=config.reference_policy_kl_penalty, global_valid_seqs=global_valid_seqs
    )
    loss = config.preference_loss_weight * preference
    pairs = global_valid_seqs / 2
    chosen_mask = sample_mask[::2].to(mask.dtype)
    sft = torch.zeros_like(preference)
    logps = (next_token_logprobs * mask).sum(-1)
    if config.sft_loss_weight > 0:
        rows = -logps[::2]
        if config.sft_average_log_probs:
            rows = masked_mean(-next_token_logprobs[::2], mask[::2], dim=-1)
        sft = masked_mean(rows, chosen_mask, pairs)
        loss = loss + config.sft_loss_weight * sft
    with torch.no_grad():
        metrics = {
            "loss": loss,
            "sft_loss": sft,
            "preference_loss": preference,
            **metrics,
            "logps_chosen_mean": masked_mean(logps[::2], chosen_mask, pairs),
            "logps_rejected_mean": masked_mean(logps[1::2], chosen_mask, pairs),
        }
        # One transfer for all of them.
        values = torch.stack([value.detach().float() for value in metrics.values()]).tolist()
    return loss, dict(zip(metrics, values, strict=True))


def answer_rewards(
    next_token_logprobs: Tensor, reference_logprobs: Tensor, token_mask: Tensor, *, average: bool
) -> Tensor:
    """[B] sum, or with ``average`` mean, of ``log p - log p_reference`` over each answer; shapes as in
    :func:`dpo_loss`."""
    mask = token_mask[:, 1:].to(next_token_logprobs.dtype)
    rewards = ((next_token_logprobs - reference_logprobs) * mask).sum(-1)
    return rewards / mask.sum(-1).clamp(min=1) if average else rewards


def sft_nll_loss(
    next_token_logprobs: Tensor, token_mask: Tensor, sample_mask: Tensor, *, global_valid_toks: Count
) -> tuple[Tensor, dict[str, float]]:
    """Mean negative log-likelihood of the masked tokens; shapes as in :func:`dpo_loss`.

    ``global_valid_toks`` is the sum of ``token_mask[:, 1:] * sample_mask[:, None]`` over the global batch.
    Source: ``loss_functions.py::NLLLossFn``.
    """
    mask = token_mask[:, 1:].to(next_token_logprobs.dtype) * sample_mask[:, None].to(next_token_logprobs.dtype)
    loss = masked_mean(-next_token_logprobs, mask, global_valid_toks)
    metrics = {
        "loss": float(loss.detach()),
        "num_unmasked_tokens": float(mask.sum()),
        "num_valid_samples": float(sample_mask.sum()),
    }
    return loss, metrics

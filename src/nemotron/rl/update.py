"""One call of the optimizer on a rollout batch: global batches, micro-batches, clipping, step.

Legend: N rows of the rollout batch (prompt-major), S = T + 1 columns (see ``batch.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron.config.schema.grpo import LossFnConfig
from nemotron.contracts.sampler import Pass
from nemotron.contracts.samples import Group, SamplingParams, cuts, split_rows
from nemotron.errors import EngineError
from nemotron.rl.kl import importance_weight
from nemotron.rl.logprobs import mask_out_neg_inf
from nemotron.rl.losses import (
    LossBatch,
    clip_fraction,
    clipped_pg_loss,
    masked_mean,
    merge_metrics,
    prepend_column,
    valid_counts,
)
from nemotron.rl.optim import Optimization
from nemotron.rl.policy import Policy

_NOT_FINITE_HINT = "lower the learning rate or use `policy.precision=float32`; the last checkpoint is unharmed"


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """What a rollout batch brings to training."""

    groups: list[Group]
    token_mask: Tensor
    """[N,S]"""
    sample_mask: Tensor
    """[N] 0.0 removes a row: overlong, missing judgement, log-prob error."""
    advantages: Tensor
    """[N,S]"""
    generation_logprobs: Tensor
    """[N,S]"""
    prev_logprobs: Tensor | None
    """[N,S]; ``None`` when one optimizer step uses the whole batch: the current log-probs are then the old ones."""
    reference_logprobs: Tensor | None
    """[N,S]; ``None`` without a KL term."""
    rewards: Tensor
    """[N]"""

    def on(self, device: torch.device) -> TrainBatch:
        """The same batch with its tensors on ``device``."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device)

        return TrainBatch(
            groups=self.groups,
            token_mask=move(self.token_mask),
            sample_mask=move(self.sample_mask),
            advantages=move(self.advantages),
            generation_logprobs=move(self.generation_logprobs),
            prev_logprobs=None if self.prev_logprobs is None else move(self.prev_logprobs),
            reference_logprobs=None if self.reference_logprobs is None else move(self.reference_logprobs),
            rewards=move(self.rewards),
        )

    def rows(self, start: int, stop: int) -> TrainBatch:
        """Rows ``start:stop`` of every tensor; groups are cut to match."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor[start:stop]

        return TrainBatch(
            groups=_cut_groups(self.groups, start, stop),
            token_mask=cut(self.token_mask),
            sample_mask=cut(self.sample_mask),
            advantages=cut(self.advantages),
            generation_logprobs=cut(self.generation_logprobs),
            prev_logprobs=None if self.prev_logprobs is None else cut(self.prev_logprobs),
            reference_logprobs=None if self.reference_logprobs is None else cut(self.reference_logprobs),
            rewards=cut(self.rewards),
        )


def update(
    policy: Policy,
    optimization: Optimization,
    batch: TrainBatch,
    loss_config: LossFnConfig,
    sampling: SamplingParams,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    entropy_bonus: float = 0.0,
    drawn: Pass | None = None,
) -> dict[str, float]:
    """Train on ``batch`` once: an optimizer step per global batch of rows, the scheduler once (NeMo-RL's DTensor path).

    Returns NeMo-RL's loss metrics, ``grad_norm`` and ``lr`` of the call. ``entropy_bonus`` is the weight of the
    policy's entropy (``sampled_entropy``), which is subtracted from the loss. ``drawn`` is the pass that drew the whole
    batch, for one micro-batch of all its rows.

    Raises:
        EngineError: the loss or the gradient is not finite; the weights are as before the step.
    """
    # Rollouts are put together on the host; the loss is computed where the policy is.
    batch = batch.on(policy.device)
    total = batch.sample_mask.shape[0]
    reports: list[dict[str, float]] = []
    grad_norm = 0.0
    for start in range(0, total, global_batch_size):
        part = batch.rows(start, min(start + global_batch_size, total))
        reports.append(_accumulate(policy, part, loss_config, sampling, micro_batch_size, entropy_bonus, drawn))
        grad_norm = optimization.clip_and_step()
        if not math.isfinite(grad_norm):
            raise EngineError("the gradient is not finite", hint=_NOT_FINITE_HINT)
    lr = optimization.learning_rate
    optimization.step_scheduler()
    return {**_mean_reports(reports), "grad_norm": grad_norm, "lr": lr}


def _accumulate(
    policy: Policy,
    batch: TrainBatch,
    loss_config: LossFnConfig,
    sampling: SamplingParams,
    micro_batch_size: int,
    entropy_bonus: float,
    drawn: Pass | None,
) -> dict[str, float]:
    """Gradients of one global batch: micro-batch losses share the global normalisers, so they sum to the batch loss."""
    valid_rows, valid_tokens = valid_counts(batch.token_mask, batch.sample_mask)
    reports: list[dict[str, float]] = []
    first = 0
    for groups in split_rows(batch.groups, micro_batch_size):
        rows = sum(len(group.completions) for group in groups)
        part = batch.rows(first, first + rows)
        first += rows
        logprobs, inputs = _forward(policy, groups, part, loss_config, sampling, drawn)
        loss, metrics = clipped_pg_loss(
            logprobs, inputs, loss_config, global_valid_seqs=valid_rows, global_valid_toks=valid_tokens
        )
        if entropy_bonus:
            entropy = sampled_entropy(logprobs, inputs, global_valid_toks=valid_tokens)
            loss = loss - entropy_bonus * entropy
            metrics["scaled_entropy"] = entropy_bonus * float(entropy.detach())
        if not torch.isfinite(loss):
            raise EngineError("the loss is not finite", hint=_NOT_FINITE_HINT)
        loss.backward()  # type: ignore[no-untyped-call]
        clipped = clip_fraction(logprobs, inputs, loss_config, global_valid_toks=valid_tokens)
        reports.append({**metrics, "clip_fraction": clipped})
    return {**merge_metrics(reports), "global_valid_seqs": valid_rows, "global_valid_toks": valid_tokens}


def sampled_entropy(next_token_logprobs: Tensor, inputs: LossBatch, *, global_valid_toks: float) -> Tensor:
    """Mean token entropy of the current policy in nats, estimated on the sampled tokens; adds up over micro-batches.

    ``-mean(w log p)`` with ``w = p / p_sampler``, NeMo-RL's ``approx_entropy``. Its gradient is an unbiased estimate of
    the entropy's at the states that were sampled, because the gradient of ``p log p`` holds both terms.
    """
    weights = importance_weight(next_token_logprobs, inputs.generation_logprobs[:, 1:])
    mask = inputs.token_mask[:, 1:] * inputs.sample_mask[:, None]
    return -masked_mean(weights * next_token_logprobs, mask, global_valid_toks)


def _forward(
    policy: Policy,
    groups: list[Group],
    part: TrainBatch,
    loss_config: LossFnConfig,
    sampling: SamplingParams,
    drawn: Pass | None,
) -> tuple[Tensor, LossBatch]:
    """Log-probs [n,T'] with gradients, and the inputs of the loss cut to the longest response: [n,T'+1]."""
    temperature = sampling.temperature
    filtered = cuts(sampling.top_k, sampling.top_p)
    if drawn is None:
        logprobs = policy.response_logprobs(groups, temperature=temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    else:
        logprobs = drawn()
    width = logprobs.shape[1] + 1
    token_mask = part.token_mask[:, :width]
    unfiltered = None
    if filtered:
        logprobs, kept = mask_out_neg_inf(logprobs, token_mask[:, 1:])
        token_mask = prepend_column(kept)
        if loss_config.reference_policy_kl_penalty:
            # The KL compares whole distributions, so its log-probs are those before top-k and top-p.
            unfiltered = policy.response_logprobs(groups, temperature=temperature)
    previous = prepend_column(logprobs.detach()) if part.prev_logprobs is None else part.prev_logprobs[:, :width]
    reference = part.reference_logprobs
    return logprobs, LossBatch(
        token_mask=token_mask,
        sample_mask=part.sample_mask,
        advantages=part.advantages[:, :width],
        prev_logprobs=previous,
        generation_logprobs=part.generation_logprobs[:, :width],
        reference_policy_logprobs=None if reference is None else reference[:, :width],
        curr_logprobs_unfiltered=unfiltered,
        rewards=part.rewards,
    )


def _cut_groups(groups: Sequence[Group], start: int, stop: int) -> list[Group]:
    """The groups of rows ``start:stop``."""
    kept: list[Group] = []
    first = 0
    for group in groups:
        size = len(group.completions)
        inside = group.completions[max(start - first, 0) : max(stop - first, 0)]
        if inside:
            kept.append(Group(group.prompt_ids, inside))
        first += size
    return kept


def _mean_reports(reports: Sequence[dict[str, float]]) -> dict[str, float]:
    """Over global batches: sums become means, extremes stay."""
    merged = merge_metrics(reports)
    return {name: value if name.endswith(("_min", "_max")) else value / len(reports) for name, value in merged.items()}

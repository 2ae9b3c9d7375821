"""The critic's clipped squared error, NeMo-RL v0.7.0's ``MseValueLossFn`` (tests/golden).

Legend: B rows of a micro-batch, S columns. Unlike in the policy's loss nothing is shifted: column t of values, returns
and mask belongs to one token. Sums are divided by a count of the *global* batch, so micro-batches add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron.config.schema.ppo import ValueLossConfig
from nemotron.rl.losses import Count, masked_mean


@dataclass(frozen=True, slots=True)
class ValueBatch:
    """One micro-batch for the critic; all [B,S]."""

    returns: Tensor
    old_values: Tensor
    """Before the update."""
    mask: Tensor
    """Token mask times sample mask."""


def value_loss(
    values: Tensor, batch: ValueBatch, config: ValueLossConfig, *, global_valid_toks: Count
) -> tuple[Tensor, dict[str, float]]:
    """``scale / 2 * mean(max((v - R)^2, (v_clipped - R)^2))`` over valid tokens, and NeMo-RL's metrics.

    ``v_clipped`` is held within ``cliprange`` of the old value. Differentiable in ``values`` [B,S]. Metrics of
    micro-batches add up (``losses.merge_metrics``), but for ``values_min`` and ``values_max``.
    """

    def mean(of: Tensor) -> Tensor:
        return masked_mean(of, batch.mask, global_valid_toks)

    error = (values - batch.returns).square()
    clipped = torch.zeros_like(values, dtype=torch.bool)
    if config.cliprange:
        near = torch.minimum(
            torch.maximum(values, batch.old_values - config.cliprange), batch.old_values + config.cliprange
        )
        other = (near - batch.returns).square()
        clipped = other > error
        error = torch.maximum(error, other)
    loss = 0.5 * config.scale * mean(error)
    with torch.no_grad():
        valid = batch.mask > 0
        metrics = {
            "loss": loss,
            "vf_clipfrac": mean(clipped.float()),
            "returns_mean": mean(batch.returns),
            "values_mean": mean(values),
            "values_min": values.masked_fill(~valid, float("inf")).amin(),
            "values_max": values.masked_fill(~valid, float("-inf")).amax(),
            "returns_sq_mean": mean(batch.returns.square()),
            "residual_sq_mean": mean((batch.returns - values).square()),
            "num_valid_samples": valid.any(1).sum(),
        }
        names = list(metrics)
        numbers = torch.stack([metrics[name].detach().float() for name in names]).tolist()
    return loss, dict(zip(names, numbers, strict=True))


def explained_variance(metrics: Mapping[str, float]) -> float:
    """1 - Var(R - v) / Var(R) from the moments that ``value_loss`` reports, as NeMo-RL computes it."""
    mean_gap = metrics["returns_mean"] - metrics["values_mean"]
    residual = metrics["residual_sq_mean"] - mean_gap**2
    spread = metrics["returns_sq_mean"] - metrics["returns_mean"] ** 2
    return 1 - residual / max(spread, 1e-8)

"""Per-token estimates of the KL divergence between two policies, from the log-probs of sampled tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

KlType = Literal["k1", "k2", "k3"]

_ESTIMATORS: dict[KlType, Callable[[Tensor], Tensor]] = {
    "k1": lambda x: -x,
    "k2": lambda x: x.square() / 2,
    "k3": lambda x: torch.exp(x) - 1 - x,
}


def calculate_kl(
    logprobs: Tensor,
    logprobs_reference: Tensor,
    *,
    kl_type: KlType = "k3",
    input_clamp: float | None = 20.0,
    output_clamp: float | None = 10.0,
    weights: Tensor | None = None,
) -> Tensor:
    """KL(policy || reference) of each token in nats, same shape as the inputs.

    With ``x = reference - policy``, clamped to +-``input_clamp``: k1 ``-x``, k2 ``x^2 / 2``, k3 ``exp(x) - 1 - x``
    (Schulman, "Approximating KL divergence"). The result, times ``weights`` where given, is clamped to
    +-``output_clamp``. ``None`` switches a clamp off.

    Where the input clamp is active, ``weights`` count as constants: their gradient would push on a token whose own
    gradient has been cut (NeMo-RL v0.7.0).
    """
    log_ratio = logprobs_reference - logprobs
    clamped = log_ratio if input_clamp is None else log_ratio.clamp(-input_clamp, input_clamp)
    kl = _ESTIMATORS[kl_type](clamped)
    if weights is not None:
        if input_clamp is not None:
            weights = torch.where(log_ratio.detach().abs() > input_clamp, weights.detach(), weights)
        kl = weights * kl
    return kl if output_clamp is None else kl.clamp(-output_clamp, output_clamp)


def score_function_weight(logprobs: Tensor) -> Tensor:
    """A weight of value 1 whose gradient is the score function: ``exp(x - stop_gradient(x))``.

    Multiplied into a sampled KL ``k(x)`` it makes the gradient ``k + k'``: that of the expectation, in which the
    sampling probability moves too, and not just that of the estimate (arXiv:2506.09477).
    """
    return torch.exp(logprobs - logprobs.detach())


def importance_weight(logprobs: Tensor, sampled_under: Tensor) -> Tensor:
    """``exp(logprobs - sampled_under)``: how much likelier a token is than it was for the sampler.

    Overflow and NaN count as 0, so a token whose probability got lost does not take over the batch.
    """
    return torch.nan_to_num(torch.exp(logprobs - sampled_under), nan=0.0, posinf=0.0, neginf=0.0)

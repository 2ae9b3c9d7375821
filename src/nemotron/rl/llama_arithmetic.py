"""The small products and norms that passes of Llama-like models are made of, forward and backward.

Legend: D hidden size. Norms are of root mean squares; the residual stream they read is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from nemotron.rl.llama_gradients import LinearGradient
from nemotron.rl.llama_parts import Linear

Gate = Literal["silu", "gelu_tanh"]


def norm(hidden: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """RMS norm without weight: [*,D] float32 -> ([*,D] in ``dtype``, 1/rms [*,1] float32)."""
    rstd = hidden.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return torch.mul(hidden, rstd, out=torch.empty_like(hidden, dtype=dtype)), rstd


def norm_backward_(hidden_grad: Tensor, normed_grad: Tensor, normed: Tensor, rstd: Tensor) -> None:
    """Add the norm's part to ``hidden_grad``: rstd * (g - y * mean(g * y)) for y = normed, g = its gradient.

    From y = x * r with r = (mean(x^2) + eps)^-1/2: dr/dx = -r^3 x / D, so dx = r g - r^3 x mean(g x), which is
    r (g - y mean(g y)).
    The weight of the norm is part of the matrix behind it and does not appear.
    """
    mean = (normed_grad * normed).sum(-1, keepdim=True, dtype=torch.float32).div_(normed.shape[-1])
    hidden_grad.addcmul_(torch.addcmul(normed_grad, normed, mean.to(normed.dtype), value=-1), rstd)


@dataclass(frozen=True, slots=True)
class Normed:
    """What the backward pass of a norm behind a matrix needs."""

    normed: Tensor
    """[*,D] in the dtype of the arithmetic"""
    rstd: Tensor
    """[*,1] float32"""


def add_normed_(hidden: Tensor, branch: Tensor, weight: Tensor | None, eps: float) -> Normed | None:
    """Add a branch to the residual stream in place, through a norm where its family has one there (``weight`` [D])."""
    if weight is None:
        hidden.add_(branch)
        return None
    normed, rstd = norm(branch.float(), eps, torch.float32)
    hidden.addcmul_(normed, weight)
    return Normed(normed.to(branch.dtype), rstd)


def add_normed_backward(
    hidden_grad: Tensor, kept: Normed | None, weight: Tensor | None, weight_grad: Tensor | None
) -> Tensor:
    """Gradient of the branch from that of the stream; adds that of the weight where it is trained."""
    if kept is None or weight is None:
        return hidden_grad
    normed = kept.normed.float()
    if weight_grad is not None:
        weight_grad.add_((hidden_grad * normed).sum(0))
    found = torch.zeros_like(hidden_grad)
    norm_backward_(found, hidden_grad * weight, normed, kept.rstd)
    return found


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """``cap * tanh(logits / cap)``; differentiable."""
    return logits if cap is None else torch.tanh(logits.float() / cap) * cap


def gated(gate_up: Tensor, kind: Gate) -> Tensor:
    """f(gate) * up."""
    gate, up = gate_up.chunk(2, -1)
    return _activated(gate, kind).mul_(up)


def _activated(gate: Tensor, kind: Gate) -> Tensor:
    return silu(gate) if kind == "silu" else gelu(gate, approximate="tanh")


def mlp_backward(down: Linear, down_grad: LinearGradient, gate_up: Tensor, grad: Tensor, kind: Gate) -> Tensor:
    """Gradient of the gate and up projections' result from that of the MLP's; adds to ``down_grad``."""
    gate, up = gate_up.chunk(2, -1)
    activated = _activated(gate, kind)
    inner_grad = linear_backward(down, down_grad, activated * up, grad)
    # y = f(g) * u: du = dy * f(g), dg = f'(g) * dy * u. `inner_grad` is not needed after `up_grad`, so it is
    # multiplied in place; both results are halves of one buffer, as the product behind wants them.
    result = torch.empty_like(gate_up)
    gate_grad, up_grad = result.chunk(2, -1)
    torch.mul(inner_grad, activated, out=up_grad)
    inner_grad.mul_(up)
    if kind == "silu":
        torch.ops.aten.silu_backward(inner_grad, gate, grad_input=gate_grad)
    else:
        torch.ops.aten.gelu_backward(inner_grad, gate, approximate="tanh", grad_input=gate_grad)
    return result


def linear_backward(linear: Linear, grads: LinearGradient, x: Tensor, grad: Tensor) -> Tensor:
    """Gradient of ``x``; adds those of the weight, the bias and the adapters to ``grads``, as far as it has them."""
    if grads.weight is not None:
        accumulate(grads.weight, grad, x)
    if grads.bias is not None:
        grads.bias.add_(grad.sum(0, dtype=torch.float32))
    found = linear.back(grad)
    if linear.low is not None and grads.low is not None:
        # y += (x a^T) b^T: db = dy^T (x a^T), and what goes through b is the gradient of x a^T. That product is
        # computed anew: it is thin, and keeping it for every batch would cost memory.
        through = grad @ linear.low.b
        accumulate(grads.low.b, grad, x @ linear.low.a.t())
        accumulate(grads.low.a, through, x)
        found.addmm_(through, linear.low.a)
    return found


def accumulate(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """total += grad^T x, in float32."""
    # In half precision the product's own accumulator is float32, but a sum over batches in bfloat16 would lose all that
    # is smaller than 1/256 of the total.
    if grad.dtype == torch.float32:
        total.addmm_(grad.t(), x)
    else:
        total.add_(grad.t() @ x)

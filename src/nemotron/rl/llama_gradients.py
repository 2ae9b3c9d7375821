"""Gradients of a Llama-like model's rearranged weights, brought back to the model's own parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nemotron.rl.fused_llama import FusedLlama
from nemotron.rl.llama_adapters import stacks_of
from nemotron.rl.llama_parts import Layer, Linear, LowRank, Weights, attention_scale, head_of, norm_weight, norms_of


@dataclass(frozen=True, slots=True)
class LinearGradient:
    """float32 accumulators for a ``Linear``; None for what is not trained."""

    weight: Tensor | None
    bias: Tensor | None
    low: LowRank | None

    @classmethod
    def zeros(cls, linear: Linear, *, frozen: bool) -> LinearGradient:
        """Nothing accumulated yet. ``frozen``: of the adapters alone."""
        low = None if linear.low is None else LowRank(_zeros(linear.low.a), _zeros(linear.low.b))
        if frozen:
            return cls(None, None, low)
        return cls(_zeros(linear.weight), None if linear.bias is None else _zeros(linear.bias), low)


@dataclass(frozen=True, slots=True)
class LayerGradient:
    """The same for a ``Layer``."""

    qkv: LinearGradient
    out: LinearGradient
    gate_up: LinearGradient
    down: LinearGradient
    head_norm: Tensor | None
    out_norm: Tensor | None
    down_norm: Tensor | None

    @classmethod
    def zeros(cls, layer: Layer, *, frozen: bool) -> LayerGradient:
        """Nothing accumulated yet."""

        def of_linear(linear: Linear) -> LinearGradient:
            return LinearGradient.zeros(linear, frozen=frozen)

        def of_norm(weight: Tensor | None) -> Tensor | None:
            return None if frozen or weight is None else _zeros(weight)

        return cls(
            qkv=of_linear(layer.qkv),
            out=of_linear(layer.out),
            gate_up=of_linear(layer.gate_up),
            down=of_linear(layer.down),
            head_norm=of_norm(layer.head_norm),
            out_norm=of_norm(layer.out_norm),
            down_norm=of_norm(layer.down_norm),
        )


@dataclass(frozen=True, slots=True)
class Gradients:
    """float32 accumulators for the gradients of ``Weights``; None for what is not trained."""

    embedding: Tensor | None
    layers: list[LayerGradient]
    head: Tensor | None

    @classmethod
    def zeros(cls, weights: Weights) -> Gradients:
        """Nothing accumulated yet."""
        frozen = weights.adapted
        layers = [LayerGradient.zeros(layer, frozen=frozen) for layer in weights.layers]
        head = _zeros(weights.head.weight) if weights.head_trained else None
        return cls(None if frozen else torch.zeros_like(weights.embedding), layers, head)


class _Found:
    """Gradients by parameter."""

    def __init__(self) -> None:
        self.of: dict[Tensor, Tensor] = {}

    def add(self, parameter: Tensor | None, grad: Tensor | None) -> None:
        """A parameter may be met twice: a norm before several matrices, an embedding that is also the head."""
        if parameter is not None and grad is not None:
            self.of[parameter] = self.of[parameter] + grad if parameter in self.of else grad

    def add_normed(self, norm: Any, linears: Sequence[nn.Linear], weight: Tensor, bias: Tensor | None) -> None:
        """Take apart the gradient of ``norm * [stacked linears]``."""
        # F = W diag(w): dW = dF diag(w), and dw sums dF * W over the rows of every matrix behind the norm. That a norm
        # stores 1 less than its weight changes nothing in its gradient.
        start = 0
        for linear in linears:
            stop = start + linear.out_features
            part = weight[start:stop]
            self.add(norm.weight, (part * linear.weight).sum(0))
            self.add(linear.weight, part * norm_weight(norm))
            self.add(linear.bias, None if bias is None else bias[start:stop])
            start = stop


def to_parameters(fused: FusedLlama, grads: Gradients, wanted: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of ``wanted``, in that order, from those of the rearranged weights, which are used up."""
    model, body = fused.model, fused.model.model
    found = _Found()
    # Rows go back to the model's order first: norms and biases are taken apart by the model's own matrices.
    back = torch.argsort(fused.order)
    while grads.layers:  # what has been taken apart is let go of: both forms together would be twice the model
        grad = grads.layers.pop()
        layer = body.layers[len(grads.layers)]
        if fused.adapted:
            for stack in stacks_of(layer):
                low: LowRank | None = getattr(grad, stack.name).low
                if low is not None:
                    stack.take_apart(low, fused.scale, back, found.add)
        else:
            _layer_to_parameters(fused, layer, grad, back, found)
    if grads.head is not None:
        found.add_normed(body.norm, [head_of(model)], grads.head, None)
    found.add(body.embed_tokens.weight, grads.embedding)
    return [found.of[parameter] for parameter in wanted]


def _layer_to_parameters(fused: FusedLlama, layer: Any, grad: LayerGradient, back: Tensor, found: _Found) -> None:
    attention, mlp, qkv = layer.self_attn, layer.mlp, grad.qkv
    before_mlp, after_attention, after_mlp = norms_of(layer)
    assert qkv.weight is not None
    assert grad.gate_up.weight is not None
    weight = qkv.weight[back] * fused.scale
    bias = None if qkv.bias is None else qkv.bias[back] * fused.scale[:, 0]
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    found.add_normed(layer.input_layernorm, projections, weight, bias)
    if grad.head_norm is not None:
        parts = (grad.head_norm[: fused.shape.heads], grad.head_norm[fused.shape.heads :])
        q, k = (part.sum(0).view(-1, 2).t().flatten() for part in parts)
        found.add(attention.q_norm.weight, q * attention_scale(fused.model))
        found.add(attention.k_norm.weight, k)
    found.add(attention.o_proj.weight, grad.out.weight)
    found.add(attention.o_proj.bias, grad.out.bias)
    found.add_normed(before_mlp, [mlp.gate_proj, mlp.up_proj], grad.gate_up.weight, grad.gate_up.bias)
    found.add(mlp.down_proj.weight, grad.down.weight)
    found.add(mlp.down_proj.bias, grad.down.bias)
    for norm, norm_grad in ((after_attention, grad.out_norm), (after_mlp, grad.down_norm)):
        found.add(None if norm is None else norm.weight, norm_grad)


def _zeros(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight, dtype=torch.float32)

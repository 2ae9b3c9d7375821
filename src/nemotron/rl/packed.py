"""Matrices in the order in which the processor's library multiplies them, for many products of as many rows.

Where no cache holds a model, a product with a few dozen rows takes as long to bring the matrix into that order as to
multiply it. A sampler multiplies the same matrices at every step, so it has them brought into order once (MKL's
``cblas_sgemm_pack``): steps of a model of 135M parameters with 32 rows take a fifth less.

The price is a second copy of them. While a policy samples, its gradients do not exist, which are larger.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from nemotron.rl.llama_parts import Linear, Weights

_FEWEST, _MOST = 4, 128
"""Rows. A single one waits for memory alone; with many the order is a small part of a product."""
_LARGE = 2**24
"""Weights that no cache holds."""


@dataclass(frozen=True, slots=True)
class PackedLinear(Linear):
    """A ``Linear`` for at most so many rows."""

    packed: Tensor | None = None
    """the weight in the library's own order"""
    rows: int = 0
    """of every product that is computed; fewer are filled up"""

    @classmethod
    def of(cls, linear: Linear, rows: int) -> PackedLinear:
        """Pack a float32 matrix of a CPU."""
        packed = torch.ops.mkl._mkl_reorder_linear_weight(linear.weight, rows)
        return cls(linear.weight, linear.bias, linear.low, packed, rows)

    def unadapted(self, x: Tensor) -> Tensor:
        """See Linear; ``x`` has at most ``rows`` rows."""
        count = len(x)
        whole = x if count == self.rows else pad(x, (0, 0, 0, self.rows - count))
        found: Tensor = torch.ops.mkl._mkl_linear(whole, self.packed, self.weight, self.bias, self.rows)[:count]
        return found


def is_worth_packing(weights: Weights, rows: int) -> bool:
    """Whether steps of so many rows become faster by it."""
    if weights.dtype != torch.float32 or weights.embedding.device.type != "cpu" or not _FEWEST <= rows <= _MOST:
        return False
    layer = weights.layers[0]
    inside = sum(part.weight.numel() for part in (layer.qkv, layer.out, layer.gate_up, layer.down))
    if len(weights.layers) * inside + weights.head.weight.numel() < _LARGE:
        return False
    return bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]


def pack(weights: Weights, rows: int) -> Weights:
    """The same model, for products of at most ``rows`` rows."""
    layers = [
        replace(
            layer,
            qkv=PackedLinear.of(layer.qkv, rows),
            out=PackedLinear.of(layer.out, rows),
            gate_up=PackedLinear.of(layer.gate_up, rows),
            down=PackedLinear.of(layer.down, rows),
        )
        for layer in weights.layers
    ]
    return replace(weights, layers=tuple(layers), head=PackedLinear.of(weights.head, rows))

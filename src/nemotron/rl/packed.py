"""Matrices in the order in which the processor's library multiplies them, for many products of as many rows.

Where no cache holds a model, a product with a few dozen rows takes as long to bring the matrix into that order as to
multiply it. A sampler multiplies the same matrices at every step, so it has them brought into order once: steps of a
model of 135M parameters with 32 rows take a fifth less (MKL's ``cblas_sgemm_pack`` and oneDNN's blocks alike). Adapters
are added to the matrices on the way, as their thin products cost as much as thick ones there.

The price is a second copy of the matrices. While a policy is sampled that is trained whole, its gradients do not exist,
which are larger; beside adapters it comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from nemotron.rl.llama_parts import Linear, Weights
from nemotron.rl.products import LARGE, OneDnnLinear, product

_FEWEST, _MOST = 4, 128
"""Rows. A single one waits for memory alone; with many the order is a small part of a product."""
BESIDE_ADAPTERS = 2**29
"""Most weights (2 GiB) that a copy is made of where nothing else is let go of."""


@dataclass(frozen=True, slots=True)
class MklPacked(Linear):
    """A matrix without adapters for at most so many rows, by MKL."""

    packed: Tensor | None = None
    """the weight in the library's own order; of ``weight`` the sizes are asked alone"""
    rows: int = 0
    """of every product that is computed; fewer are filled up"""

    def unadapted(self, x: Tensor) -> Tensor:
        """See Linear; ``x`` has at most ``rows`` rows."""
        count = len(x)
        whole = x if count == self.rows else pad(x, (0, 0, 0, self.rows - count))
        found: Tensor = torch.ops.mkl._mkl_linear(whole, self.packed, self.weight, self.bias, self.rows)[:count]
        return found


@dataclass(frozen=True, slots=True)
class OneDnnPacked(Linear):
    """A matrix without adapters, by oneDNN; any number of rows will do."""

    packed: Tensor | None = None
    """the weight in the library's own order"""

    def unadapted(self, x: Tensor) -> Tensor:
        """See Linear."""
        assert self.packed is not None
        return product(x, self.packed, self.bias)


def is_worth_packing(weights: Weights, rows: int) -> bool:
    """Whether steps of so many rows become faster by it, and the copy is not too large."""
    if weights.dtype != torch.float32 or weights.embedding.device.type != "cpu" or not _FEWEST <= rows <= _MOST:
        return False
    layer = weights.layers[0]
    inside = sum(part.weight.numel() for part in (layer.qkv, layer.out, layer.gate_up, layer.down))
    size = len(weights.layers) * inside + weights.head.weight.numel()
    if size < LARGE or (weights.adapted and size > BESIDE_ADAPTERS):
        return False
    by_mkl = bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]
    return by_mkl or isinstance(layer.qkv, OneDnnLinear)


def pack(weights: Weights, rows: int) -> Weights:
    """The same model, for products of at most ``rows`` rows."""
    layers = [
        replace(
            layer,
            qkv=packed(layer.qkv, rows),
            out=packed(layer.out, rows),
            gate_up=packed(layer.gate_up, rows),
            down=packed(layer.down, rows),
        )
        for layer in weights.layers
    ]
    return replace(weights, layers=tuple(layers), head=packed(weights.head, rows))


def packed(linear: Linear, rows: int) -> Linear:
    """The same float32 matrix of a CPU, its adapters added, for products of at most ``rows`` rows."""
    low = linear.low
    weight = linear.weight if low is None else torch.addmm(linear.weight, low.b, low.a)
    if isinstance(linear, OneDnnLinear):
        reordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        return OneDnnPacked(linear.weight, linear.bias, packed=reordered)
    reordered = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return MklPacked(linear.weight, linear.bias, packed=reordered, rows=rows)

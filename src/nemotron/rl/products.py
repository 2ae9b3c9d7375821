"""Which library multiplies the float32 matrices of a large model on a processor.

torch asks MKL. On processors that are not Intel's MKL keeps to less than they can do: on a Zen 4 with 32 rows it took
twice as long as oneDNN, which torch carries as well, and with 1,024 rows a seventh longer
(``benchmarks/products.py``). The choice follows from the processor's maker and the size of the model alone, never from
a measurement: the two round differently, and a resumed run repeats the bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from nemotron.place import cpu_maker
from nemotron.rl.llama_parts import Linear

LARGE = 2**24
"""Weights that no cache holds. Of smaller models a product is over before oneDNN has found its code."""
_MAKERS = {"AuthenticAMD"}
"""Where it was measured that oneDNN is faster."""


@dataclass(frozen=True, slots=True)
class OneDnnLinear(Linear):
    """A ``Linear`` whose products are oneDNN's."""

    def unadapted(self, x: Tensor) -> Tensor:
        """See Linear."""
        return product(x, self.weight, self.bias)

    def back(self, grad: Tensor) -> Tensor:
        """See Linear."""
        return product(grad, self.weight.t(), None)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` [rows, in] times ``weight`` [out, in], which may be a reordered one, by oneDNN -> [rows, out]."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


@cache
def prefers_onednn() -> bool:
    """Whether oneDNN multiplies faster than MKL here."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
    return there and cpu_maker(Path("/proc/cpuinfo")) in _MAKERS


def fastest(linear: Linear, weights_of_model: int) -> Linear:
    """The same matrix, multiplied by the faster library."""
    plain = linear.weight.dtype == torch.float32 and linear.weight.device.type == "cpu"
    if plain and weights_of_model >= LARGE and prefers_onednn():
        return OneDnnLinear(linear.weight, linear.bias, linear.low)
    return linear

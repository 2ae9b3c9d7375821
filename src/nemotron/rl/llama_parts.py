"""What the rearranged weights of a Llama-like model consist of, and where a model has its parts.

Legend: D hidden size, H query heads, K key/value heads, d head size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

_KINDS = (("CausalLM", "lm_head"), ("SequenceClassification", "score"))
_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
# The name of the output layer by the kind of model: logits of a vocabulary, or one score.
HEADS = {f"{family}For{kind}": head for family in _FAMILIES for kind, head in _KINDS} | {
    "Gemma3ForCausalLM": "lm_head",
    "Gemma3TextForSequenceClassification": "score",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama-like model (see the legend)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    gate: Literal["silu", "gelu_tanh"] = "silu"
    """The function of the MLP's gate."""
    embedding_scale: float = 1.0
    """What embeddings are multiplied with before the first layer."""
    logit_cap: float | None = None
    """Logits go through ``cap * tanh(logits / cap)``."""

    @property
    def half(self) -> int:
        """Half a head."""
        return self.head_dim // 2

    @property
    def all_heads(self) -> int:
        """Query, key and value heads together."""
        return self.heads + 2 * self.kv_heads


@dataclass(frozen=True, slots=True)
class LowRank:
    """What adapters add to a matrix: ``b @ a``. Those of stacked matrices are one, with zeros beside their blocks."""

    a: Tensor
    """[r, in]"""
    b: Tensor
    """[out, r], the adapters' scale in it"""

    def to(self, dtype: torch.dtype) -> LowRank:
        """In the dtype of the arithmetic."""
        return LowRank(self.a.to(dtype), self.b.to(dtype))


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix [out, in] and perhaps a bias [out] and adapters, in the dtype of the arithmetic."""

    weight: Tensor
    bias: Tensor | None
    low: LowRank | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` [rows, in] -> [rows, out]."""
        found = self.unadapted(x)
        return found if self.low is None else found.addmm_(x @ self.low.a.t(), self.low.b.t())

    def unadapted(self, x: Tensor) -> Tensor:
        """The same without the adapters; a new tensor."""
        return nn.functional.linear(x, self.weight, self.bias)

    def back(self, grad: Tensor) -> Tensor:
        """Gradient [rows, in] of ``x`` from that of the result without adapters [rows, out]; a new tensor."""
        return grad @ self.weight


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer, rearranged."""

    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    head_norm: Tensor | None = None
    """[H+K,d] float32: the weights of the norms of queries (scaled) and keys, in the order of their rows"""
    out_norm: Tensor | None = None
    """[D] float32: the weight of a norm behind the attention's last matrix"""
    down_norm: Tensor | None = None
    """[D] float32: the same behind the MLP's last matrix"""
    kind: int = 0
    """place in ``Weights.kinds``"""


@dataclass(frozen=True, slots=True)
class Kind:
    """What layers of one kind have in common: how far they see, and the angles of positions."""

    window: int | None
    """a token sees itself and so many minus one before it; None: all"""
    turns: Tensor
    """[positions, d/2] complex64: cosine and sine of the angle of every pair"""


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model, rearranged, in one dtype."""

    shape: Shape
    dtype: torch.dtype
    embedding: Tensor
    """[V,D] float32: the residual stream is float32 whatever ``dtype`` is."""
    layers: tuple[Layer, ...]
    head: Linear
    """of a causal LM in ``dtype``; a score's is always float32, half precision would round the rewards"""
    kinds: tuple[Kind, ...]
    adapted: bool = False
    """only adapters are trained, and the head if it is a score's"""
    head_trained: bool = True


def head_of(model: Any) -> nn.Linear:
    """The output layer: ``lm_head`` [V,D] of a causal LM, ``score`` [1,D] of a sequence classifier."""
    head: nn.Linear = getattr(model, HEADS[type(model).__name__])
    return head


def attention_scale(model: Any) -> float:
    """What attention scores are multiplied with."""
    return float(model.model.layers[0].self_attn.scaling)


def norm_weight(norm: Any) -> Tensor:
    """What a norm multiplies with: Gemma's stores 1 less."""
    weight: Tensor = norm.weight
    return 1.0 + weight if type(norm).__name__.startswith("Gemma") else weight


def norms_of(layer: Any) -> tuple[Any, Any, Any]:
    """The norms before the MLP, behind attention, behind the MLP: Gemma's layers have all of them."""
    if hasattr(layer, "pre_feedforward_layernorm"):
        return layer.pre_feedforward_layernorm, layer.post_attention_layernorm, layer.post_feedforward_layernorm
    return layer.post_attention_layernorm, None, None


def base_of(module: Any) -> nn.Linear:
    """The layer itself, or what its adapters stand beside."""
    found: nn.Linear = getattr(module, "base_layer", module)
    return found

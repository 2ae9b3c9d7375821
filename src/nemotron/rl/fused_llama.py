"""The weights of a Llama-like model, rearranged once for fast arithmetic, and gradients brought back to the model's
own.

Legend: D hidden size, H query heads, K key/value heads, d head size, I MLP width, V vocabulary.

What is rearranged, and why it changes no result beyond rounding:

* q, k and v projections become one matrix, gate and up another: fewer and larger products.
* The weight of a norm is multiplied into the matrix that follows it, and 1/sqrt(d) into the q rows.
* The q, k, v rows are ordered (half of the head, head, place in the half), so that the rotary embedding, which mixes
the two halves
  of a head, works on long contiguous runs. Dot products of heads do not depend on the order within a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

_KINDS = (("CausalLM", "lm_head"), ("SequenceClassification", "score"))
_FAMILIES = ("Llama", "Mistral", "Qwen2")
# The name of the output layer by the kind of model: logits of a vocabulary, or one score.
_HEADS = {f"{family}For{kind}": head for family in _FAMILIES for kind, head in _KINDS}
# Rotary embeddings whose frequencies do not depend on the length of the sequence.
_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama-like model (see the legend)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float

    @property
    def half(self) -> int:
        """Half a head."""
        return self.head_dim // 2

    @property
    def all_heads(self) -> int:
        """Query, key and value heads together."""
        return self.heads + 2 * self.kv_heads


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix [out, in] and perhaps a bias [out], in the dtype of the arithmetic."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` [*, in] -> [*, out]."""
        return nn.functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer, rearranged."""

    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear

    @property
    def linears(self) -> tuple[Linear, Linear, Linear, Linear]:
        """In the order of use."""
        return self.qkv, self.out, self.gate_up, self.down


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
    cos: Tensor
    """[positions, d/2] float32"""
    sin: Tensor
    """[positions, d/2] float32"""


def shape_of(model: Any) -> Shape | None:
    """The sizes of a model that this module can rearrange; None for every other model."""
    config: Any = model.config
    if type(model).__name__ not in _HEADS or config.hidden_act != "silu":
        return None
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    sliding = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    rope = config.rope_parameters.get("rope_type", "default")
    if windows or sliding or rope not in _ROPE_TYPES:
        return None
    linears = [m for name, m in model.named_modules() if name.endswith(("_proj", *_HEADS.values()))]
    if any(type(m) is not nn.Linear or m._forward_hooks for m in linears):
        return None  # adapters and quantised layers compute something else
    if any(p.dtype != torch.float32 for p in model.parameters()):
        return None
    attention = model.model.layers[0].self_attn
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return Shape(len(model.model.layers), config.hidden_size, heads, kv_heads, attention.head_dim, config.rms_norm_eps)


class _OptimizerSteps:
    """Counts the steps of every optimizer. torch's fused optimizers change weights without a trace in ``_version``."""

    def __init__(self) -> None:
        self.taken = 0
        register_optimizer_step_post_hook(self._count)

    def _count(self, *call: Any) -> None:
        self.taken += 1


_steps = _OptimizerSteps()


class FusedLlama:
    """Keeps the rearranged weights of a model and renews them after the model's own have changed."""

    def __init__(self, model: Any, shape: Shape) -> None:
        """``shape`` is ``shape_of(model)``."""
        self.model, self.shape = model, shape
        device = self.device = model.model.embed_tokens.weight.device
        self.order = _row_order(shape).to(device)
        # 1/sqrt(d) for the q rows, 1 for k and v.
        query = torch.arange(shape.all_heads * shape.head_dim, device=device) < shape.heads * shape.head_dim
        self.scale = torch.where(query, float(attention_scale(model)), 1.0)[:, None]
        self.parameters: list[nn.Parameter] = list(model.parameters())
        self._kept: dict[torch.dtype, tuple[tuple[Any, ...], Weights]] = {}
        self._rotary: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def weights(self, dtype: torch.dtype) -> Weights:
        """The rearranged weights in ``dtype``, up to date."""
        trained = any(p.requires_grad for p in self.parameters)
        # In-place changes raise `_version`, new storage (load_state_dict with assign, offloading) moves `data_ptr`, and
        # fused optimizers do neither: they are counted.
        state = (_steps.taken if trained else 0, *((p._version, p.data_ptr()) for p in self.parameters))
        if dtype in self._kept and self._kept[dtype][0] == state:
            return self._kept[dtype][1]
        body = self.model.model
        # The last norm's weight goes into the head, as every norm's goes into the matrix behind it: diag(w) x then M is
        # M diag(w) then x. So only the division by the root mean square is left to do for each token.
        head_dtype = torch.float32 if hasattr(self.model, "score") else dtype
        cos, sin = self._cos_sin()
        weights = Weights(
            shape=self.shape,
            dtype=dtype,
            embedding=body.embed_tokens.weight.detach(),
            layers=tuple(self._layer(layer, dtype) for layer in body.layers),
            head=Linear((head_of(self.model).weight * body.norm.weight).to(head_dtype), None),
            cos=cos,
            sin=sin,
        )
        self._kept[dtype] = (state, weights)
        return weights

    def forget(self) -> None:
        """Let go of the rearranged copies; the next call makes new ones. For a model that leaves the device."""
        self._kept.clear()

    def _layer(self, layer: Any, dtype: torch.dtype) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = _stack([attention.q_proj, attention.k_proj, attention.v_proj])
        # A bias stands behind the norm, so it takes the scale of its row but not the norm's weight.
        qkv_weight = (qkv.weight * self.scale * layer.input_layernorm.weight)[self.order]
        qkv_bias = None if qkv.bias is None else (qkv.bias * self.scale[:, 0])[self.order]
        gate_up = _stack([mlp.gate_proj, mlp.up_proj])
        return Layer(
            qkv=_cast(Linear(qkv_weight, qkv_bias), dtype),
            out=_cast(_stack([attention.o_proj]), dtype),
            gate_up=_cast(Linear(gate_up.weight * layer.post_attention_layernorm.weight, gate_up.bias), dtype),
            down=_cast(_stack([mlp.down_proj]), dtype),
        )

    def _cos_sin(self) -> tuple[Tensor, Tensor]:
        if self._rotary is None:
            # Both halves of a head have the same frequencies, so the first half of the columns says all. The tables are
            # asked of the model's own module, which knows the scaling of its family.
            rotary, length = self.model.model.rotary_emb, self.model.config.max_position_embeddings
            positions = torch.arange(length, device=self.device)[None]
            cos, sin = rotary(torch.zeros(1, device=self.device), positions)
            half = self.shape.half
            self._rotary = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
        return self._rotary


@dataclass(frozen=True, slots=True)
class Gradients:
    """float32 accumulators for the gradients of ``Weights``."""

    embedding: Tensor
    layers: tuple[tuple[Linear, Linear, Linear, Linear], ...]
    """As ``Layer.linears``."""
    head: Tensor

    @classmethod
    def zeros(cls, weights: Weights) -> Gradients:
        """Nothing accumulated yet."""
        layers = tuple(tuple(_zeros(linear) for linear in layer.linears) for layer in weights.layers)
        head = torch.zeros_like(weights.head.weight, dtype=torch.float32)
        return cls(torch.zeros_like(weights.embedding), layers, head)  # type: ignore[arg-type]


def to_parameters(fused: FusedLlama, grads: Gradients) -> list[Tensor]:
    """Gradients of ``fused.parameters``, in that order, from those of the rearranged weights."""
    model, body = fused.model, fused.model.model
    found: dict[Tensor, Tensor] = {}

    def add(parameter: Tensor | None, grad: Tensor | None) -> None:
        # A parameter may be met twice: a norm before several matrices, an embedding that is also the head.
        if parameter is not None and grad is not None:
            found[parameter] = found[parameter] + grad if parameter in found else grad

    def add_normed(norm: Tensor, linears: list[nn.Linear], weight: Tensor, bias: Tensor | None) -> None:
        """Take apart the gradient of ``norm * [stacked linears]``."""
        # F = W diag(w): dW = dF diag(w), and dw sums dF * W over the rows of every matrix behind the norm.
        start = 0
        for linear in linears:
            stop = start + linear.out_features
            part = weight[start:stop]
            add(norm, (part * linear.weight).sum(0))
            add(linear.weight, part * norm)
            add(linear.bias, None if bias is None else bias[start:stop])
            start = stop

    # Rows go back to the model's order first: norms and biases are taken apart by the model's own matrices.
    back = torch.argsort(fused.order)
    for layer, (qkv, out, gate_up, down) in zip(body.layers, grads.layers, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        weight = qkv.weight[back] * fused.scale
        bias = None if qkv.bias is None else qkv.bias[back] * fused.scale[:, 0]
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        add_normed(layer.input_layernorm.weight, projections, weight, bias)
        add(attention.o_proj.weight, out.weight)
        add(attention.o_proj.bias, out.bias)
        add_normed(layer.post_attention_layernorm.weight, [mlp.gate_proj, mlp.up_proj], gate_up.weight, gate_up.bias)
        add(mlp.down_proj.weight, down.weight)
        add(mlp.down_proj.bias, down.bias)
    add_normed(body.norm.weight, [head_of(model)], grads.head, None)
    add(body.embed_tokens.weight, grads.embedding)
    return [found[parameter] for parameter in fused.parameters]


def head_of(model: Any) -> nn.Linear:
    """The output layer: ``lm_head`` [V,D] of a causal LM, ``score`` [1,D] of a sequence classifier."""
    head: nn.Linear = getattr(model, _HEADS[type(model).__name__])
    return head


def attention_scale(model: Any) -> float:
    """What attention scores are multiplied with."""
    return float(model.model.layers[0].self_attn.scaling)


def _row_order(shape: Shape) -> Tensor:
    """Rows (head, half, place) of q, k, v -> rows (half, head, place)."""
    rows = torch.arange(shape.all_heads * shape.head_dim)
    return rows.view(shape.all_heads, 2, shape.half).transpose(0, 1).reshape(-1)


def _stack(linears: list[nn.Linear]) -> Linear:
    """Linears of one input as one; a missing bias beside others counts as zero."""
    weight = torch.cat([linear.weight for linear in linears])
    if all(linear.bias is None for linear in linears):
        return Linear(weight, None)
    rows: list[Tensor] = [
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears
    ]
    return Linear(weight, torch.cat(rows))


def _cast(linear: Linear, dtype: torch.dtype) -> Linear:
    return Linear(linear.weight.to(dtype), None if linear.bias is None else linear.bias.to(dtype))


def _zeros(linear: Linear) -> Linear:
    bias = None if linear.bias is None else torch.zeros_like(linear.bias, dtype=torch.float32)
    return Linear(torch.zeros_like(linear.weight, dtype=torch.float32), bias)

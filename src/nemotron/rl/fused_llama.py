"""The weights of a Llama-like model, rearranged once for fast arithmetic (back: llama_gradients.py).

Legend: D hidden size, H query heads, K key/value heads, d head size, I MLP width, V vocabulary.

Llama-like are decoders of RMS norms, rotary embeddings and a gated MLP. What they differ in is data: biases, norms of
queries and keys (Qwen3, Gemma 3), norms behind attention and MLP, scaled embeddings and the gate's function (Gemma 3),
windows of attention and frequencies by layer.

What is rearranged, and why it changes no result beyond rounding:

* q, k and v projections become one matrix, gate and up another: fewer and larger products.
* The weight of a norm is multiplied into the matrix that follows it, and 1/sqrt(d) into the q rows; where queries are
  normed it goes into the weight of that norm, which would undo it in the rows.
* The q and k rows of a head are ordered (place in the half, half), so that the two numbers which the rotary embedding
  mixes, one of each half, stand side by side as a complex number. Dot products of heads do not depend on the order
  within one.

Adapters (LoRA) are rearranged as the matrices that they stand beside (llama_adapters.py); those are frozen, so that is
done once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from nemotron.rl.llama_adapters import is_plain_adapter, stacks_of
from nemotron.rl.llama_parts import (
    HEADS,
    Kind,
    Layer,
    Linear,
    Shape,
    Weights,
    attention_scale,
    base_of,
    head_of,
    norm_weight,
    norms_of,
)
from nemotron.rl.products import fastest

_GATES: dict[str, Literal["silu", "gelu_tanh"]] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# Rotary embeddings whose frequencies do not depend on the length of the sequence.
_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}
_TABLE = 8192
"""Positions by which the tables of angles grow: all 131,072 of a model would be 134 MB for each kind of layer."""


def shape_of(model: Any) -> Shape | None:
    """The sizes of a model that this module can rearrange; None for every other model."""
    config: Any = model.config
    if type(model).__name__ not in HEADS:
        return None
    gate = _GATES.get(str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)))
    if gate is None or getattr(config, "use_bidirectional_attention", False):
        return None
    if any(rope.get("rope_type", "default") not in _ROPE_TYPES for rope in _ropes(config).values()):
        return None
    heads = tuple(set(HEADS.values()))
    for name, module in model.named_modules():
        is_head = name.endswith(heads)
        known = type(module) is nn.Linear or (is_plain_adapter(module) and not is_head)
        # Adapters elsewhere, and quantised layers, compute something else.
        if ((is_head or name.endswith("_proj")) and (not known or module._forward_hooks)) or (
            hasattr(module, "base_layer") and not known
        ):
            return None
    if any(p.dtype != torch.float32 for p in model.parameters()):
        return None
    body = model.model
    return Shape(
        layers=len(body.layers),
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=body.layers[0].self_attn.head_dim,
        eps=config.rms_norm_eps,
        gate=gate,
        embedding_scale=float(getattr(body.embed_tokens, "embed_scale", 1.0)),
        # A cap of attention scores stands in Gemma 3's config too, but its layers do not apply it.
        logit_cap=getattr(config, "final_logit_softcapping", None) if hasattr(model, "lm_head") else None,
    )


def _ropes(config: Any) -> dict[str, dict[str, Any]]:
    """The parameters of rotary embeddings by type of layer; under ``""`` where all layers have the same."""
    found: dict[str, Any] = config.rope_parameters
    by_layer = {name: value for name, value in found.items() if isinstance(value, dict)}
    return {name: by_layer[name] for name in set(config.layer_types)} if by_layer else {"": found}


def _kind_of(model: Any, layer: Any) -> tuple[int | None, str]:
    """How far a layer sees, and which rotary embedding it has."""
    config, attention = model.config, layer.self_attn
    # Mistral's layers have no attribute of their own: all see as far as the config says.
    mistral = type(model).__name__.startswith("Mistral")
    window = config.sliding_window if mistral else getattr(attention, "sliding_window", None)
    name = getattr(attention, "layer_type", None)
    return window, name if name in _ropes(config) else ""


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
        normed = hasattr(model.model.layers[0].self_attn, "q_norm")
        self.scale = torch.where(query, 1.0 if normed else float(attention_scale(model)), 1.0)[:, None]
        self.parameters: list[nn.Parameter] = list(model.parameters())
        self.size = sum(p.numel() for p in self.parameters)
        self.has_adapters = self.adapted = any(hasattr(module, "lora_A") for module in model.modules())
        """Whether the model has adapters, and whether they are on here."""
        self._kept: dict[torch.dtype, tuple[tuple[Any, ...], Weights]] = {}
        self._frozen: dict[torch.dtype, tuple[tuple[Layer, ...], Linear]] = {}
        kinds = [_kind_of(model, layer) for layer in model.model.layers]
        self.kind_names = list(dict.fromkeys(kinds))
        self.kind_of_layer = [self.kind_names.index(kind) for kind in kinds]
        self._tables: tuple[Kind, ...] = ()
        self._settled: Weights | None = None

    @torch.no_grad()
    def weights(self, dtype: torch.dtype, longest: int) -> Weights:
        """The rearranged weights in ``dtype``, up to date, with angles for ``longest`` positions."""
        kinds = self._kinds(longest)
        if self._settled is not None:
            return replace(self._settled, kinds=kinds)
        # In-place changes raise `_version`, new storage (load_state_dict with assign, offloading) moves `data_ptr`, and
        # fused optimizers do neither: they are counted.
        state = (_steps.taken if self.trained else 0, *((p._version, p.data_ptr()) for p in self.parameters))
        if dtype in self._kept and self._kept[dtype][0] == state:
            weights = self._kept[dtype][1]
            return weights if weights.kinds is kinds else replace(weights, kinds=kinds)
        weights = Weights(
            shape=self.shape,
            dtype=dtype,
            embedding=self.model.model.embed_tokens.weight.detach(),
            layers=self._adapted_layers(dtype) if self.adapted else self._unadapted(dtype)[0],
            head=self._head(dtype) if self.head_is_trained else self._unadapted(dtype)[1],
            kinds=kinds,
            adapted=self.adapted,
            head_trained=self.head_is_trained,
        )
        self._kept[dtype] = (state, weights)
        return weights

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that want a gradient."""
        return [p for p in self.parameters if p.requires_grad]

    @property
    def head_is_trained(self) -> bool:
        """Whether the head wants a gradient."""
        return head_of(self.model).weight.requires_grad

    def without_adapters(self) -> FusedLlama:
        """The same model as it was before its adapters; what is rearranged is shared with this one."""
        found = copy.copy(self)
        found.adapted, found.parameters, found._kept = False, [], {}
        return found

    @torch.no_grad()
    def rearrange_frozen(self, dtype: torch.dtype) -> None:
        """Rearrange what adapters stand beside: from now on the model's own may be rounded to ``dtype``."""
        self._unadapted(dtype)

    def _unadapted(self, dtype: torch.dtype) -> tuple[tuple[Layer, ...], Linear]:
        """The layers and the head without adapters. Beside adapters they do not change, so there they are kept."""
        if dtype in self._frozen:
            return self._frozen[dtype]
        layers = zip(self.model.model.layers, self.kind_of_layer, strict=True)
        found = tuple(self._layer(layer, kind, dtype) for layer, kind in layers), self._head(dtype)
        if self.has_adapters:
            self._frozen[dtype] = found
        return found

    def _adapted_layers(self, dtype: torch.dtype) -> tuple[Layer, ...]:
        found = []
        for layer, frozen in zip(self.model.model.layers, self._unadapted(dtype)[0], strict=True):
            adapted = [stack for stack in stacks_of(layer) if stack.adapted]
            lows = {stack.name: stack.low(self.scale, self.order).to(dtype) for stack in adapted}
            parts = {name: replace(getattr(frozen, name), low=low) for name, low in lows.items()}
            found.append(replace(frozen, **parts))
        return tuple(found)

    def _head(self, dtype: torch.dtype) -> Linear:
        # The last norm's weight goes into the head, as every norm's goes into the matrix behind it: diag(w) x then M is
        # M diag(w) then x. So only the division by the root mean square is left to do for each token.
        weight = head_of(self.model).weight * norm_weight(self.model.model.norm)
        return self._ready(Linear(weight, None), torch.float32 if hasattr(self.model, "score") else dtype)

    def settle(self, dtype: torch.dtype) -> None:
        """Rearrange once and for all: the model's own weights are frozen, and may be rounded from now on."""
        self._settled = self.weights(dtype, 1)
        self._kept.clear()

    def forget(self) -> None:
        """Let go of the rearranged copies; the next call makes new ones. For a model that leaves the device."""
        self._kept.clear()
        self._frozen.clear()

    def _layer(self, layer: Any, kind: int, dtype: torch.dtype) -> Layer:
        attention, mlp, shape = layer.self_attn, layer.mlp, self.shape
        qkv = _stack([attention.q_proj, attention.k_proj, attention.v_proj])
        # A bias stands behind the norm, so it takes the scale of its row but not the norm's weight.
        qkv_weight = (qkv.weight * self.scale * norm_weight(layer.input_layernorm))[self.order]
        qkv_bias = None if qkv.bias is None else (qkv.bias * self.scale[:, 0])[self.order]
        gate_up = _stack([mlp.gate_proj, mlp.up_proj])
        before_mlp, after_attention, after_mlp = norms_of(layer)
        head_norm = None
        if hasattr(attention, "q_norm"):
            norms = (norm_weight(norm) for norm in (attention.q_norm, attention.k_norm))
            q, k = (weight.view(2, shape.half).t().reshape(1, -1) for weight in norms)
            q = q * attention_scale(self.model)
            head_norm = torch.cat([q.expand(shape.heads, -1), k.expand(shape.kv_heads, -1)])
        return Layer(
            qkv=self._ready(Linear(qkv_weight, qkv_bias), dtype),
            out=self._ready(_stack([attention.o_proj]), dtype),
            gate_up=self._ready(Linear(gate_up.weight * norm_weight(before_mlp), gate_up.bias), dtype),
            down=self._ready(_stack([mlp.down_proj]), dtype),
            head_norm=head_norm,
            out_norm=None if after_attention is None else norm_weight(after_attention).clone(),
            down_norm=None if after_mlp is None else norm_weight(after_mlp).clone(),
            kind=kind,
        )

    def _ready(self, linear: Linear, dtype: torch.dtype) -> Linear:
        bias = None if linear.bias is None else linear.bias.to(dtype)
        return fastest(Linear(linear.weight.to(dtype), bias), self.size)

    def _kinds(self, longest: int) -> tuple[Kind, ...]:
        """Windows and angles of every kind of layer, for at least ``longest`` positions if the model has so many."""
        most: int = self.model.config.max_position_embeddings
        wanted = min(most, math.ceil(longest / _TABLE) * _TABLE)
        if not self._tables or len(self._tables[0].turns) < wanted:
            rotary, half = self.model.model.rotary_emb, self.shape.half
            positions = torch.arange(wanted, device=self.device)[None]
            anything = torch.zeros(1, device=self.device)
            kinds = []
            for window, name in self.kind_names:
                # Both halves of a head have the same frequencies, so the first half of the columns says all. The tables
                # are asked of the model's own module, which knows the scaling of its family.
                cos, sin = rotary(anything, positions, name) if name else rotary(anything, positions)
                kinds.append(Kind(window, torch.complex(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())))
            self._tables = tuple(kinds)
        return self._tables


def _row_order(shape: Shape) -> Tensor:
    """Rows (head, half, place) of q and k -> rows (head, place, half); those of v stay."""
    rows = torch.arange(shape.all_heads * shape.head_dim)
    turned = rows[: (shape.heads + shape.kv_heads) * shape.head_dim]
    return torch.cat([turned.view(-1, 2, shape.half).transpose(1, 2).flatten(), rows[len(turned) :]])


def _stack(modules: Sequence[Any]) -> Linear:
    """Linears of one input as one; a missing bias beside others counts as zero. One alone is not copied."""
    linears = [base_of(module) for module in modules]
    if len(linears) == 1:
        bias = linears[0].bias
        return Linear(linears[0].weight.detach(), None if bias is None else bias.detach())
    weight = torch.cat([linear.weight for linear in linears])
    if all(linear.bias is None for linear in linears):
        return Linear(weight, None)
    rows: list[Tensor] = [
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears
    ]
    return Linear(weight, torch.cat(rows))

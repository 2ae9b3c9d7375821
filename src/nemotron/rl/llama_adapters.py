"""Adapters (LoRA) beside the rearranged matrices of a Llama-like model: which can be, how, and their gradients.

An adapter stays what it is, a product of two thin matrices: added to the model's own it would be a second copy of that,
and its gradient as large as that of all weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nemotron.rl.llama_parts import LowRank, base_of, norm_weight, norms_of


def is_plain_adapter(module: Any) -> bool:
    """Whether it is peft's LoRA of a linear layer that adds its one product of two matrices and nothing else."""
    if not (hasattr(module, "lora_A") and type(getattr(module, "base_layer", None)) is nn.Linear):
        return False
    names = list(module.active_adapters)
    return (
        len(names) == 1
        and list(module.lora_A) == names
        and not (module.merged or module.lora_variant or module.lora_bias[names[0]] or module.fan_in_fan_out)
        and isinstance(module.lora_dropout[names[0]], nn.Identity)
    )


@dataclass(frozen=True, slots=True)
class AdaptedStack:
    """The modules of a layer that one ``Linear`` stands for, as far as their adapters go."""

    name: str
    """the field of ``Layer``"""
    modules: tuple[Any, ...]
    norm: Any
    """the norm that went into the matrix, None where there is none"""
    turned: bool = False
    """the rows are scaled and ordered as those of q, k, v"""

    @property
    def adapted(self) -> bool:
        """Whether any module has an adapter."""
        return any(hasattr(module, "lora_A") for module in self.modules)

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor, float, slice, slice]]:
        """Both matrices of each adapter, its scale, its rows in the stack and its columns between the two."""
        row = column = 0
        for module in self.modules:
            rows = slice(row, row := row + base_of(module).out_features)
            if hasattr(module, "lora_A"):
                [name] = module.lora_A
                a, b = module.lora_A[name].weight, module.lora_B[name].weight
                yield a, b, float(module.scaling[name]), rows, slice(column, column := column + len(a))

    def low(self, scale_of_rows: Tensor, order: Tensor) -> LowRank:
        """The adapters, rearranged. Rows of q, k, v are scaled by ``scale_of_rows`` [rows,1] and put in ``order``."""
        blocks = list(self._blocks())
        a = torch.cat([one for one, *_ in blocks])
        b = a.new_zeros(sum(base_of(module).out_features for module in self.modules), len(a))
        for _, one, scale, rows, columns in blocks:
            b[rows, columns] = one * scale
        if self.turned:
            b = (b * scale_of_rows)[order]
        return LowRank(a if self.norm is None else a * norm_weight(self.norm), b)

    def take_apart(
        self, grad: LowRank, scale_of_rows: Tensor, back: Tensor, add: Callable[[Tensor, Tensor], None]
    ) -> None:
        """Gradients of the adapters from those of what ``low`` made of them; ``back`` undoes the order."""
        b_grad = grad.b[back] * scale_of_rows if self.turned else grad.b
        a_grad = grad.a if self.norm is None else grad.a * norm_weight(self.norm)
        for a, b, scale, rows, columns in self._blocks():
            add(a, a_grad[columns])
            add(b, b_grad[rows, columns] * scale)


def stacks_of(layer: Any) -> tuple[AdaptedStack, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return (
        AdaptedStack("qkv", projections, layer.input_layernorm, turned=True),
        AdaptedStack("out", (attention.o_proj,), None),
        AdaptedStack("gate_up", (mlp.gate_proj, mlp.up_proj), norms_of(layer)[0]),
        AdaptedStack("down", (mlp.down_proj,), None),
    )

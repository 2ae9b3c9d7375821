"""Frozen weights in the number type that they are multiplied in."""

from __future__ import annotations

import torch
from torch import nn

from nemotron.rl.fused_llama import FusedLlama


def freeze(model: nn.Module, fused: FusedLlama | None, dtype: torch.dtype, *, keep: nn.Module | None = None) -> None:
    """Let the weights never change, and want no gradient.

    In half precision the matrices are kept as they are multiplied, with the same results to the bit.

    Args:
        fused: the model's rearranged weights, where it has them; made from the weights as they are, before any is
            rounded.
        keep: a layer that is always multiplied in float32.
    """
    model.requires_grad_(False)
    if fused is not None and dtype != torch.float32:
        fused.settle(dtype)
    halve(model, dtype, keep=keep)


def halve(model: nn.Module, dtype: torch.dtype, *, exact: bool = False, keep: nn.Module | None = None) -> None:
    """Keep the frozen matrices of ``model`` in ``dtype``: autocast rounds them so before every product.

    What is computed stays the same to the bit. Norms and embeddings, which are not multiplied in half precision, stay,
    and so do matrices that share their weight with one.

    Args:
        exact: only those that lose nothing by it, as most published weights do, which were bfloat16 once; for a model
            that is saved again.
        keep: a layer that is always multiplied in float32.
    """
    if dtype == torch.float32:
        return
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for module in model.modules():
        if type(module) is not nn.Linear or module is keep:
            continue
        parameters = list(module.parameters(recurse=False))
        if any(p.requires_grad or owners[id(p)] > 1 for p in parameters):
            continue
        halves = [p.detach().to(dtype) for p in parameters]
        if exact and not all(torch.equal(half.to(p.dtype), p) for half, p in zip(halves, parameters, strict=True)):
            continue
        for parameter, half in zip(parameters, halves, strict=True):
            parameter.data = half

"""Which Hugging Face weights make which Megatron-Core tensor, and their shapes (torch-free).

Every decoder tensor carries the layer as its first axis. Query, key and value lie interleaved per key-value group:
the group's query heads, then its key head, then its value head; gate and up projections lie one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nemotron.checkpoints.megatron.families import ModelShape

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
LAYERS = "decoder.layers."

Kind = Literal["plain", "qkv", "gate_up"]


@dataclass(frozen=True, slots=True)
class Weight:
    """One Megatron-Core tensor: ``key``, shape without the layer axis, and the weights that make it."""

    key: str
    shape: tuple[int, ...]
    hf: tuple[str, ...]
    """Hugging Face names; ``{i}`` stands for the layer."""
    kind: Kind = "plain"

    @property
    def layered(self) -> bool:
        """The tensor has one slice per decoder layer."""
        return self.key.startswith(LAYERS)

    def at_layer(self, layer: int) -> str:
        """The key in checkpoints that keep every layer under a name of its own."""
        return self.key.replace(LAYERS, f"{LAYERS}{layer}.", 1)


def weights(shape: ModelShape) -> list[Weight]:
    """All tensors of a model, embedding first."""
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    attention, mlp = f"{LAYERS}self_attention.", f"{LAYERS}mlp."
    hf = "model.layers.{i}."
    three = tuple(f"{hf}self_attn.{x}_proj." for x in "qkv")
    found = [
        Weight(EMBEDDING, (shape.vocab, shape.hidden), ("model.embed_tokens.weight",)),
        Weight(f"{attention}linear_qkv.layer_norm_weight", (shape.hidden,), (f"{hf}input_layernorm.weight",)),
        Weight(f"{attention}linear_qkv.weight", (qkv, shape.hidden), tuple(f"{x}weight" for x in three), "qkv"),
        Weight(
            f"{attention}linear_proj.weight",
            (shape.hidden, shape.heads * shape.head_dim),
            (f"{hf}self_attn.o_proj.weight",),
        ),
        Weight(f"{mlp}linear_fc1.layer_norm_weight", (shape.hidden,), (f"{hf}post_attention_layernorm.weight",)),
        Weight(
            f"{mlp}linear_fc1.weight",
            (2 * shape.ffn, shape.hidden),
            (f"{hf}mlp.gate_proj.weight", f"{hf}mlp.up_proj.weight"),
            "gate_up",
        ),
        Weight(f"{mlp}linear_fc2.weight", (shape.hidden, shape.ffn), (f"{hf}mlp.down_proj.weight",)),
        Weight("decoder.final_layernorm.weight", (shape.hidden,), ("model.norm.weight",)),
    ]
    if shape.qkv_bias:
        found.append(Weight(f"{attention}linear_qkv.bias", (qkv,), tuple(f"{x}bias" for x in three), "qkv"))
    if shape.qk_norm:
        found += [
            Weight(f"{attention}{x}_layernorm.weight", (shape.head_dim,), (f"{hf}self_attn.{x}_norm.weight",))
            for x in "qk"
        ]
    if not shape.tied:
        found.append(Weight(OUTPUT, (shape.vocab, shape.hidden), ("lm_head.weight",)))
    return found


def extra_states(shape: ModelShape) -> list[str]:
    """Names of the empty ``_extra_state`` objects that some Megatron-Core or Transformer Engine version asks for.

    Surplus ones are ignored by every loader; a missing one is fatal under the default strictness.
    """
    modules = ["self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention"]
    modules += ["mlp.linear_fc1", "mlp.linear_fc2"]
    if shape.qk_norm:
        modules += ["self_attention.q_layernorm", "self_attention.k_layernorm"]
    names = [
        f"{LAYERS}{module}._extra_state/shard_{layer}_{shape.layers}"
        for module in modules
        for layer in range(shape.layers)
    ]
    return [*names, "decoder.final_layernorm._extra_state/shard_0_1"]


@dataclass(frozen=True, slots=True)
class Part:
    """One Hugging Face weight: the tensor it is cut from, the layer (``None`` outside them), which part, its shape."""

    weight: Weight
    layer: int | None
    part: int
    shape: tuple[int, ...]


def hf_parts(shape: ModelShape) -> dict[str, Part]:
    """Every Hugging Face weight of the model by name."""
    rows = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.kv_heads * shape.head_dim)
    parts: dict[str, Part] = {}
    for weight in weights(shape):
        for layer in range(shape.layers) if weight.layered else (None,):
            for number, name in enumerate(weight.hf):
                first = {"plain": weight.shape[0], "qkv": rows[number], "gate_up": shape.ffn}[weight.kind]
                parts[name.format(i=layer)] = Part(weight, layer, number, (first, *weight.shape[1:]))
    return parts

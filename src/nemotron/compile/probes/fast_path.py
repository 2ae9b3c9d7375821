"""Whether the embedded engine computes a model by hand (``rl/fused_llama.py``), told from its ``config.json`` alone."""

from __future__ import annotations

from typing import Any

from nemotron.compile.probes.model_files import ModelFiles

FAMILIES = {"llama": "silu", "mistral": "silu", "qwen2": "silu", "qwen3": "silu", "gemma3_text": "gelu_pytorch_tanh"}
"""By `model_type`: the gate of the MLP that it has when its config does not say."""
STATEFUL = (
    *("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "lfm2_moe", "mamba"),
    *("mamba2", "minimax", "nemotron_h", "olmo_hybrid", "openai-gpt", "qwen3_5", "qwen3_5_moe", "qwen3_next"),
    *("recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2", "zaya"),
)
"""Types of models whose state is no cache of keys and values that rows could share."""
GATES = ("silu", "gelu_pytorch_tanh")
ROPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies do not depend on the length of a sequence."""
LONGEST = 1024
"""Longer sequences go through torch's own attention, whatever the model."""


def slow_path(model: ModelFiles) -> str | None:
    """Why a model is computed by its own forward and autograd, as the end of a sentence; None where it is not."""
    config = model.config
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        return f"models of type `{family}` are computed so"
    gate = config.get("hidden_activation") or config.get("hidden_act") or FAMILIES[family]
    if gate not in GATES:
        return f"its gate is `{gate}`"
    if config.get("use_bidirectional_attention"):
        return "its attention looks ahead"
    for rope in _ropes(config):
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ROPES:
            return f"its rotary embedding is `{kind}`"
    return None


def matrices(model: ModelFiles) -> list[str] | None:
    """Paths of the modules with a matrix, of a family whose names are the same in every model; else None."""
    layers = model.config.get("num_hidden_layers")
    if model.config.get("model_type") not in FAMILIES or not isinstance(layers, int):
        return None
    inside = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    paths = [f"model.layers.{layer}.{name}" for layer in range(layers) for name in inside]
    return ["model.embed_tokens", *paths, "lm_head"]


def tied(model: ModelFiles) -> tuple[str, ...]:
    """Those of ``matrices`` that are one and the same: embedding and output layer. What a config leaves out is what
    transformers takes for its family."""
    usual = str(model.config.get("model_type")).startswith("gemma")
    return ("model.embed_tokens", "lm_head") if model.config.get("tie_word_embeddings", usual) else ()


def _ropes(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters of rotary embeddings: one set, or one for each type of layer."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, dict):
        return []
    nested = [value for value in found.values() if isinstance(value, dict)]
    return nested or [found]

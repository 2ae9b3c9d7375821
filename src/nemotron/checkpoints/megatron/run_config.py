"""``run_config.yaml``: Megatron-Bridge's description of a model. Read as plain YAML; ``_target_`` is never followed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nemotron.checkpoints.megatron.families import Family, ModelShape, refuse
from nemotron.disk.documents import read_bytes
from nemotron.errors import ArtifactError

_MOST_BYTES = 16 << 20
FILE = "run_config.yaml"
_DTYPES = ("bfloat16", "float16", "float32")


def _whole(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def vocab_divisor(vocab: int) -> int:
    """Largest power of two up to 128 that divides the vocabulary, so that no consumer pads it."""
    return min(128, vocab & -vocab)


def dump(shape: ModelShape, dtype: str, hf_model_id: str | None) -> str:
    """The YAML text for a checkpoint of ``shape`` whose weights are ``dtype``."""
    bridge = "megatron.bridge.training."
    model: dict[str, Any] = {
        "_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider",
        "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
        "add_bias_linear": False,
        "add_qkv_bias": shape.qkv_bias,
        "attention_dropout": 0.0,
        "autocast_dtype": {"_target_": f"torch.{dtype}", "_call_": False},
        "bf16": dtype == "bfloat16",
        "ffn_hidden_size": shape.ffn,
        "fp16": dtype == "float16",
        "gated_linear_unit": True,
        "hf_model_id": hf_model_id,
        "hidden_dropout": 0.0,
        "hidden_size": shape.hidden,
        "init_method_std": shape.init_std,
        "kv_channels": shape.head_dim,
        "layernorm_epsilon": shape.rms_eps,
        "make_vocab_size_divisible_by": vocab_divisor(shape.vocab),
        "normalization": "RMSNorm",
        "num_attention_heads": shape.heads,
        "num_layers": shape.layers,
        "num_query_groups": shape.kv_heads,
        "params_dtype": {"_target_": f"torch.{dtype}", "_call_": False},
        "position_embedding_type": "rope",
        "qk_layernorm": shape.qk_norm,
        "rope_scaling": shape.rope_factor is not None,
        "rope_scaling_factor": shape.rope_factor or 1.0,
        "rotary_base": _whole(shape.rope_theta),
        "seq_length": shape.max_positions,
        "share_embeddings_and_output_weights": shape.tied,
        "should_pad_vocab": False,
        "vocab_size": shape.vocab,
    }
    if shape.window is not None:
        # Megatron-Core counts the tokens to the left; Hugging Face counts the token itself too.
        model |= {"window_size": [shape.window - 1, 0], "cp_comm_type": "a2a"}
    config = {
        "_target_": f"{bridge}config.ConfigContainer",
        "checkpoint": {
            "_target_": f"{bridge}config.CheckpointConfig",
            "ckpt_format": "torch_dist",
            "fully_parallel_save": True,
            "save_optim": False,
            "save_rng": False,
        },
        "model": model,
        "tokenizer": {
            "_target_": f"{bridge}tokenizers.config.TokenizerConfig",
            "tokenizer_model": hf_model_id,
            "tokenizer_type": "HuggingFaceTokenizer",
        },
    }
    # PyYAML on purpose: Megatron-Bridge reads with it, and to it `1e-06` without a point is a string.
    return str(yaml.safe_dump(config))


def load(path: Path) -> dict[str, Any]:
    """All sections as plain data.

    Raises:
        ArtifactError: not YAML, or no ``model`` section.
    """
    try:
        config = yaml.safe_load(read_bytes(path, _MOST_BYTES))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ArtifactError(f"`{path}` cannot be read as YAML", hint="copy the checkpoint again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise ArtifactError(
            f"`{path}` has no `model` section", hint="it is written by Megatron-Bridge beside the weights"
        )
    return config


def shape_of(config: Mapping[str, Any], where: str, family: Family | None = None) -> ModelShape:
    """The model that a ``run_config.yaml`` describes.

    Llama and Mistral look the same there but for the attention window; ``family`` settles it where it is known.

    Raises:
        ArtifactError: a kind of model that does not convert (by name), or fields are missing.
    """
    model = config["model"]
    _refuse_kind(config, where)
    try:
        heads, hidden = int(model["num_attention_heads"]), int(model["hidden_size"])
        window = model.get("window_size")
        return ModelShape(
            family=family or _family(model),
            layers=int(model["num_layers"]),
            hidden=hidden,
            ffn=int(model["ffn_hidden_size"]),
            heads=heads,
            kv_heads=int(model.get("num_query_groups") or heads),
            head_dim=int(model.get("kv_channels") or hidden // heads),
            vocab=int(model["vocab_size"]),
            tied=bool(model.get("share_embeddings_and_output_weights", True)),
            rms_eps=float(model.get("layernorm_epsilon", 1e-5)),
            rope_theta=float(model.get("rotary_base", 10000)),
            rope_factor=float(model.get("rope_scaling_factor", 8.0)) if model.get("rope_scaling") else None,
            max_positions=int(model.get("seq_length", 2048)),
            window=int(window[0]) + 1 if window else None,
            dtype=_dtype(model),
            init_std=float(model.get("init_method_std", 0.02)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{where}: the `model` section lacks or mistypes {error}") from error


def _family(model: Mapping[str, Any]) -> Family:
    if model.get("qk_layernorm"):
        return "qwen3"
    if model.get("add_qkv_bias"):
        return "qwen2"
    return "mistral" if model.get("window_size") else "llama"


def _dtype(model: Mapping[str, Any]) -> str:
    if model.get("bf16"):
        return "bfloat16"
    if model.get("fp16"):
        return "float16"
    declared = model.get("params_dtype")
    name = str(declared.get("_target_", "") if isinstance(declared, Mapping) else declared).removeprefix("torch.")
    return name if name in _DTYPES else "float32"


def _refuse_kind(config: Mapping[str, Any], where: str) -> None:
    model = config["model"]
    if model.get("num_moe_experts"):
        raise refuse("mixture of experts (MoE) is", where)
    if model.get("multi_latent_attention"):
        raise refuse("multi-head latent attention (MLA) is", where)
    if model.get("hybrid_override_pattern") or model.get("is_hybrid_model") or "mamba" in str(model.get("_target_")):
        raise refuse("a hybrid or Mamba model is", where)
    if model.get("fp8") or model.get("fp4"):
        raise refuse(f"weights trained in fp8 or fp4 (`{model.get('fp8') or model.get('fp4')}`) are", where)
    if config.get("peft"):
        raise refuse(
            "an adapter (PEFT, LoRA) is", where, "merge the adapter into its base model first, with Megatron-Bridge"
        )
    if model.get("qk_layernorm") and model.get("add_qkv_bias"):
        raise refuse("query-key norm together with a query-key-value bias is", where)
    if model.get("add_bias_linear") or model.get("normalization", "RMSNorm") != "RMSNorm":
        raise refuse("a model with linear biases or LayerNorm (GPT-2 style) is", where)
    if float(model.get("rotary_percent") or 1.0) != 1.0 or model.get("position_embedding_type", "rope") != "rope":
        raise refuse("another position embedding than plain rope is", where)
    if model.get("seq_len_interpolation_factor") or model.get("rotary_scaling_factor"):
        raise refuse("linear rope scaling is", where)

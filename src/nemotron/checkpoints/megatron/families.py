"""Model families that convert between Hugging Face and Megatron-Core, and what is refused by name (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from nemotron.errors import ArtifactError

Family = Literal["llama", "qwen2", "qwen3", "mistral"]

ARCHITECTURES: dict[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
}
# GPTModel has these in its code, not in its config; only base and factor travel with a checkpoint.
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """All that the two formats must agree on."""

    family: Family
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    """Rows of the embedding that mean something; a checkpoint may hold more (padding)."""
    tied: bool
    """The output layer is the embedding."""
    rms_eps: float
    rope_theta: float
    rope_factor: float | None
    """Factor of llama3 rope scaling; ``None`` without scaling."""
    max_positions: int
    window: int | None
    """Sliding attention window in tokens (Mistral)."""
    dtype: str
    init_std: float

    @property
    def qkv_bias(self) -> bool:
        """Query, key and value projections have a bias (Qwen2)."""
        return self.family == "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Queries and keys are normalised per head (Qwen3)."""
        return self.family == "qwen3"

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied output layer counted once."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        layer = qkv * self.hidden + self.heads * self.head_dim * self.hidden + 3 * self.ffn * self.hidden
        layer += 2 * self.hidden + (qkv if self.qkv_bias else 0) + (2 * self.head_dim if self.qk_norm else 0)
        return self.layers * layer + self.hidden + self.vocab * self.hidden * (1 if self.tied else 2)


def refuse(what: str, where: str, hint: str | None = None) -> ArtifactError:
    """The error for a model that is known and not supported."""
    supported = "Llama, Qwen2, Qwen3 and Mistral with dense layers convert; use Megatron-Bridge for this one"
    return ArtifactError(f"{where}: {what} not supported", hint=hint or supported)


def _refuse_kind(config: Mapping[str, Any], where: str) -> None:
    """Refuse by name what is not a dense decoder in plain floating point."""
    model_type = str(config.get("model_type", ""))
    experts = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size", "num_moe_experts")
    if any(config.get(key) for key in experts) or "moe" in model_type or model_type == "mixtral":
        raise refuse(f"mixture of experts (MoE, `{model_type}`) is", where)
    if config.get("kv_lora_rank") or model_type.startswith("deepseek"):
        raise refuse(f"multi-head latent attention (MLA, `{model_type}`) is", where)
    hybrid = ("hybrid_override_pattern", "layers_block_type", "mamba_num_heads", "ssm_cfg", "linear_num_key_heads")
    if any(config.get(key) for key in hybrid) or "mamba" in model_type:
        raise refuse(f"a hybrid or Mamba model (`{model_type}`) is", where)
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "?") if isinstance(quantization, Mapping) else "?"
        raise refuse(f"quantised weights (`{method}`: fp8, int8, int4 ...) are", where, "use the unquantised model")
    if model_type not in ARCHITECTURES:
        raise refuse(f"model type `{model_type or '?'}` is", where)


def _number(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArtifactError(f"{where}: `{key}` is `{value}`, expected a positive whole number")
    return value


def _rope(config: Mapping[str, Any], where: str) -> tuple[float, float | None]:
    """Base and llama3 factor, from ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling``."""
    scaling = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    theta = scaling.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default")) or "default"
    if float(config.get("partial_rotary_factor") or scaling.get("partial_rotary_factor") or 1.0) != 1.0:
        raise refuse("a partial rotary embedding is", where)
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise refuse(f"rope scaling `{kind}` is", where, "only `llama3` rope scaling travels with a checkpoint")
    for key, fixed in LLAMA3_ROPE.items():
        if float(scaling.get(key, fixed)) != fixed:
            raise refuse(
                f"llama3 rope with `{key}: {scaling[key]}` is",
                where,
                f"Megatron-Core fixes it at {fixed:g}; the model would compute something else there",
            )
    return float(theta), float(scaling.get("factor", 8.0))


def from_hf(config: Mapping[str, Any], where: str) -> ModelShape:
    """The shape that a Hugging Face ``config.json`` describes; ``where`` names it in errors.

    Raises:
        ArtifactError: a family or feature that does not convert (by name), or a broken config.
    """
    _refuse_kind(config, where)
    family = cast(Family, config["model_type"])
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise refuse(f"activation `{activation}` is", where)
    if family != "qwen2" and (config.get("attention_bias") or config.get("mlp_bias")):
        raise refuse(f"`{family}` with biases in attention or MLP is", where)
    window = config.get("sliding_window") if family == "mistral" else None
    if family != "mistral" and config.get("use_sliding_window"):
        raise refuse(f"`{family}` with a sliding window in some layers is", where)
    heads, hidden = _number(config, "num_attention_heads", where), _number(config, "hidden_size", where)
    kv_heads = _number(config, "num_key_value_heads", where, heads)
    if heads % kv_heads:
        raise ArtifactError(f"{where}: {heads} attention heads do not divide into {kv_heads} key-value groups")
    theta, factor = _rope(config, where)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return ModelShape(
        family=family,
        layers=_number(config, "num_hidden_layers", where),
        hidden=hidden,
        ffn=_number(config, "intermediate_size", where),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_number(config, "head_dim", where, 128 if family == "qwen3" else hidden // heads),
        vocab=_number(config, "vocab_size", where),
        tied=bool(config.get("tie_word_embeddings", False)),
        rms_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_factor=factor,
        max_positions=_number(config, "max_position_embeddings", where, 2048),
        window=window,
        dtype=dtype,
        init_std=float(config.get("initializer_range", 0.02)),
    )


def to_hf(shape: ModelShape) -> dict[str, Any]:
    """A Hugging Face ``config.json`` for ``shape``. Token ids are not part of a shape; the caller adds them."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.rope_factor is not None:
        rope |= {"rope_type": "llama3", "factor": shape.rope_factor, **LLAMA3_ROPE}
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[shape.family]],
        "attention_dropout": 0.0,
        "dtype": shape.dtype,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": shape.init_std,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.max_positions,
        "model_type": shape.family,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.rms_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": shape.tied,
        "use_cache": True,
        "vocab_size": shape.vocab,
    }
    if shape.family == "mistral":
        config["sliding_window"] = shape.window
    if shape.family in ("qwen2", "qwen3"):
        config["use_sliding_window"] = False
    return config

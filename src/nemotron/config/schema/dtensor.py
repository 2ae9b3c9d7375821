"""``policy.dtensor_cfg``: training with PyTorch FSDP2/DTensor (NeMo-RL), off when Megatron trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import Count, Name, Off, Omittable, Probability, needs_keys_when_enabled
from nemotron.config.schema.reads import Read


class LoraConfig(Strict):
    """Low-rank adapters instead of full weights."""

    enabled: Read[bool]
    """Train adapters."""
    dim: Read[Count]
    """Rank of the adapters."""
    alpha: Read[Count]
    """Scale: an adapter's output is multiplied by alpha / dim."""
    dropout: Probability
    """Dropout probability inside the adapters."""
    dropout_position: Literal["pre", "post"]
    """Dropout before or after the adapter."""
    target_modules: Read[list[str]]
    """Modules that get an adapter; empty with ``match_all_linear`` means all."""
    exclude_modules: Read[list[str]]
    """Modules that get none."""
    lora_A_init: Read[str]
    """Initialisation of the first matrix."""
    match_all_linear: Read[Omittable[bool]] = None
    """Adapt every linear layer."""
    use_triton: Omittable[bool] = None
    """Triton kernels; not with tensor parallelism."""


class AutomodelBackendConfig(Strict):
    """Kernels that the Automodel implementation of a model uses."""

    target: Name = Field(alias="_target_")
    """Dotted path of the backend class."""
    attn: Omittable[str] = None
    """Attention kernel."""
    linear: Omittable[str] = None
    """Linear layer kernel."""
    rms_norm: Omittable[str] = None
    """Norm kernel."""
    experts: Omittable[str] = None
    """Expert kernel."""
    dispatcher: Omittable[str] = None
    """Token dispatcher of the experts."""
    enable_deepep: Omittable[bool] = None
    """DeepEP communication for the experts."""
    fake_balanced_gate: Omittable[bool] = None
    """Spread tokens evenly over experts whatever the router says (benchmarks only)."""
    gate_precision: Omittable[str] = None
    """Number type of the router."""
    enable_hf_state_dict_adapter: Omittable[bool] = None
    """Read and write weights under their Hugging Face names."""
    enable_fsdp_optimizations: Omittable[bool] = None
    """Communication shortcuts of FSDP for experts."""


class AutomodelFreezeConfig(Strict):
    """Parts of a multimodal model that are not trained."""

    freeze_language_model: Omittable[bool] = None
    """Freeze the language model."""
    freeze_vision_tower: Omittable[bool] = None
    """Freeze the image encoder."""
    freeze_audio_tower: Omittable[bool] = None
    """Freeze the audio encoder."""


class AutomodelKwargs(Strict):
    """Arguments of NeMo Automodel when it builds the model."""

    backend: Omittable[AutomodelBackendConfig] = None
    """Kernels of a custom model implementation."""
    force_hf: Omittable[bool] = None
    """Use the transformers implementation even where Automodel has its own."""
    use_liger_kernel: Omittable[bool] = None
    """Liger kernels in the transformers implementation."""
    freeze_config: Omittable[AutomodelFreezeConfig] = None
    """Parts that are not trained."""


class MoEParallelizerOptions(Strict):
    """How FSDP wraps a mixture-of-experts model."""

    ignore_router_for_ac: Omittable[bool] = None
    """Leave the router out of activation checkpointing."""
    lm_head_precision: str | None = None
    """Number type of the output layer."""
    reshard_after_forward: Omittable[bool] = None
    """Free gathered weights after the forward pass."""
    wrap_outer_model: Omittable[bool] = None
    """Put the outermost module under FSDP too."""


class DTensorConfig(Strict):
    """Parallelism of DTensor training."""

    enabled: Read[bool]
    """Train with DTensor; exactly one of DTensor and Megatron is on."""
    v2: Omittable[bool] = Field(default=None, alias="_v2")
    """Worker built on NeMo Automodel instead of the first one."""
    tensor_parallel_size: Count
    """GPUs that share every layer."""
    context_parallel_size: Count
    """GPUs that share every sequence."""
    expert_parallel_size: Omittable[Count] = None
    """GPUs that share the experts."""
    dp_replicate_size: Omittable[Count] = None
    """Replicas in hybrid sharding; must divide the data-parallel size."""
    sequence_parallel: bool
    """Split norms and dropout along the sequence inside a tensor-parallel group."""
    activation_checkpointing: Read[bool]
    """Recompute activations in the backward pass: less memory, more time."""
    cpu_offload: bool
    """Keep weights and optimizer state in host memory; not on a single GPU."""
    custom_parallel_plan: str | None = None
    """Dotted path to a tensor-parallel plan."""
    clear_cache_every_n_steps: Count | None = None
    """Steps between calls of ``torch.cuda.empty_cache``; null never calls it."""
    defer_fsdp_grad_sync: Omittable[bool] = None
    """Reduce gradients once per global batch instead of once per micro-batch."""
    env_vars: dict[str, str] | None = None
    """Environment variables of the workers."""
    lora_cfg: Read[Omittable[Annotated[LoraConfig | Off, needs_keys_when_enabled(LoraConfig)]]] = None
    """Low-rank adapters."""
    automodel_kwargs: Omittable[AutomodelKwargs] = None
    """How the model is built."""
    moe_parallelizer: Omittable[MoEParallelizerOptions] = None
    """How a mixture of experts is sharded."""

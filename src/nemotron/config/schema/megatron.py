"""``policy.megatron_cfg``: training with Megatron-Core (NeMo-RL)."""

from __future__ import annotations

from typing import Annotated, Literal

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import (
    Count,
    NonNegativeFloat,
    NonNegativeInt,
    Off,
    Omittable,
    PositiveFloat,
    Probability,
    needs_keys_when_enabled,
)
from nemotron.config.schema.reads import Read


class MegatronOptimizerConfig(Strict):
    """Optimizer of Megatron-Core; ``policy.optimizer`` is the one of DTensor and of the embedded engine."""

    optimizer: str
    """``adam`` or ``sgd``."""
    lr: PositiveFloat
    """Peak learning rate."""
    min_lr: NonNegativeFloat
    """Learning rate at the end of the decay."""
    weight_decay: NonNegativeFloat
    """Decoupled weight decay per step."""
    adam_beta1: Probability
    """Decay of the first moment."""
    adam_beta2: Probability
    """Decay of the second moment."""
    adam_eps: PositiveFloat
    """Term that keeps Adam's division finite."""
    sgd_momentum: Probability
    """Momentum of SGD."""
    clip_grad: NonNegativeFloat
    """Largest global gradient norm; 0 does not clip."""
    bf16: bool
    """Mixed precision in bfloat16; must agree with ``policy.precision``."""
    fp16: bool
    """Mixed precision in float16; must agree with ``policy.precision``."""
    params_dtype: str
    """Number type of the master weights."""
    use_distributed_optimizer: bool
    """Shard optimizer state over the data-parallel ranks."""
    use_precision_aware_optimizer: bool
    """Keep moments in a lower precision."""
    optimizer_cpu_offload: bool
    """Keep optimizer state in host memory."""
    optimizer_offload_fraction: Probability
    """Share of the state that is offloaded; NeMo-RL needs 1.0 when offloading is on."""


class MegatronSchedulerConfig(Strict):
    """Learning-rate and weight-decay schedule of Megatron-Core, counted in iterations (optimizer steps)."""

    lr_decay_style: str
    """``constant``, ``linear``, ``cosine`` ..."""
    lr_decay_iters: Count | None = None
    """Iterations until ``min_lr`` is reached; null means all."""
    lr_warmup_iters: NonNegativeInt
    """Iterations of linear warm-up."""
    lr_warmup_init: NonNegativeFloat
    """Learning rate at the first iteration."""
    weight_decay_incr_style: str
    """How weight decay moves from start to end."""
    start_weight_decay: NonNegativeFloat
    """Weight decay at the first iteration."""
    end_weight_decay: NonNegativeFloat
    """Weight decay at the last iteration."""
    override_opt_param_scheduler: Omittable[bool] = None
    """On resume take the schedule of the config, not the one in the checkpoint."""


class MegatronDDPConfig(Strict):
    """Gradient reduction over the data-parallel ranks."""

    grad_reduce_in_fp32: bool
    """Reduce gradients in float32."""
    overlap_grad_reduce: bool
    """Reduce while the backward pass still runs."""
    overlap_param_gather: bool
    """Gather weights while the forward pass already runs."""
    data_parallel_sharding_strategy: str
    """What is sharded: ``no_shard``, ``optim``, ``optim_grads``, ``optim_grads_params``."""
    use_custom_fsdp: bool
    """Megatron's own FSDP."""
    average_in_collective: Omittable[bool] = None
    """Average inside the reduction instead of scaling the loss."""


class MegatronPeftConfig(Strict):
    """Low-rank adapters with Megatron."""

    enabled: bool
    """Train adapters."""
    dim: Count
    """Rank of the adapters."""
    alpha: Count
    """Scale: an adapter's output is multiplied by alpha / dim."""
    dropout: Probability
    """Dropout probability inside the adapters."""
    dropout_position: Literal["pre", "post"]
    """Dropout before or after the adapter."""
    target_modules: list[str]
    """Modules that get an adapter; empty means Megatron-Bridge's default."""
    exclude_modules: list[str]
    """Modules that get none."""
    lora_A_init_method: str
    """Initialisation of the first matrix."""
    lora_B_init_method: str
    """Initialisation of the second matrix."""
    a2a_experimental: bool
    """Experimental all-to-all communication of the adapters."""
    lora_dtype: str | None
    """Number type of the adapters; null follows the model."""


class Fp8Config(Strict):
    """Training in 8-bit floating point."""

    enabled: bool
    """Train in FP8."""
    fp8: Omittable[str] = None
    """Number format, ``e4m3`` or ``hybrid``."""
    fp8_recipe: Omittable[str] = None
    """Scaling: ``tensorwise``, ``blockwise``, ``mxfp8``."""
    fp8_param: Omittable[bool] = None
    """Keep weights in FP8."""
    force_clear_fp8_caches: Omittable[bool] = None
    """Drop cached FP8 weights after each step."""


class MegatronMoeConfig(Strict):
    """Mixture-of-experts keys of ``megatron_cfg``."""

    expert_model_parallel_size: Count
    """GPUs that share the experts of a layer."""
    expert_tensor_parallel_size: Count
    """GPUs that share one expert."""
    freeze_moe_router: bool
    """Do not train the router."""
    moe_per_layer_logging: bool
    """Log router statistics of every layer."""
    moe_enable_deepep: bool
    """DeepEP communication."""
    moe_token_dispatcher_type: str
    """``allgather``, ``alltoall`` or ``flex``."""
    moe_shared_expert_overlap: bool
    """Compute shared experts while tokens travel."""
    moe_grouped_gemm: Omittable[bool] = None
    """One grouped matrix product for all local experts."""
    moe_permute_fusion: Omittable[bool] = None
    """Fused kernel that sorts tokens by expert."""
    moe_router_dtype: Omittable[str] = None
    """Number type of the router."""
    moe_router_load_balancing_type: Omittable[str] = None
    """Load balancing: ``none``, ``aux_loss``, ``sinkhorn`` ..."""
    moe_router_bias_update_rate: Omittable[float] = None
    """Step size of the experts' bias; 0 keeps it."""
    moe_router_enable_expert_bias: Omittable[bool] = None
    """Balance experts by a bias instead of a loss."""
    moe_router_group_topk: Count | None = None
    """Groups of experts a token may use."""
    moe_router_num_groups: Count | None = None
    """Groups of experts."""
    moe_aux_loss_coeff: Omittable[NonNegativeFloat] = None
    """Weight of the balancing loss; must be 0 in GRPO with an ``aux_loss`` router."""
    moe_flex_dispatcher_backend: Omittable[str] = None
    """Backend of the ``flex`` dispatcher."""
    moe_hybridep_num_sms: Omittable[Count] = None
    """GPU multiprocessors reserved for HybridEP communication."""
    hybridep_num_ranks_per_nvlink_domain: Omittable[Count] = None
    """Ranks per NVLink domain for HybridEP."""
    hybridep_use_mnnvl: Omittable[bool] = None
    """HybridEP over multi-node NVLink."""
    moe_pad_experts_for_cuda_graph_inference: Omittable[bool] = None
    """Pad experts so that inference can be captured as a CUDA graph."""
    inference_grouped_gemm_backend: Omittable[str] = None
    """Expert kernel at inference."""
    inference_moe_token_dispatcher_type: Omittable[str] = None
    """Token dispatcher at inference."""
    track_moe_metrics: Omittable[bool] = None
    """Log balancing metrics of the router."""


class MegatronConfig(MegatronMoeConfig):
    """Parallelism, precision and kernels of Megatron training."""

    enabled: Read[bool]
    """Train with Megatron; exactly one of Megatron and DTensor is on."""
    tensor_model_parallel_size: Count
    """GPUs that share every layer."""
    pipeline_model_parallel_size: Count
    """Groups of layers that sit on different GPUs."""
    context_parallel_size: Count
    """GPUs that share every sequence; above 1 needs sequence packing."""
    num_layers_in_first_pipeline_stage: Count | None
    """Layers of the first pipeline stage; null splits evenly."""
    num_layers_in_last_pipeline_stage: Count | None
    """Layers of the last pipeline stage; null splits evenly."""
    sequence_parallel: bool
    """Split norms and dropout along the sequence inside a tensor-parallel group."""
    pipeline_dtype: str
    """Number type of what travels between stages."""
    activation_checkpointing: Read[bool]
    """Recompute activations in the backward pass: less memory, more time."""
    recompute_granularity: Omittable[Literal["full", "selective"]] = None
    """What is recomputed: whole layers or chosen modules."""
    recompute_modules: list[str] | None = None
    """Modules of selective recomputation."""
    empty_unused_memory_level: NonNegativeInt
    """How often cached GPU memory is released: 0 never, 1 per step, 2 per micro-batch."""
    apply_rope_fusion: bool
    """Fused rotary embedding."""
    bias_activation_fusion: bool
    """Fused bias and activation."""
    gradient_accumulation_fusion: Omittable[bool] = None
    """Accumulate weight gradients inside the matrix product."""
    use_fused_weighted_squared_relu: Omittable[bool] = None
    """Fused squared ReLU of weighted experts."""
    attention_backend: Omittable[str] = None
    """Attention kernel: ``auto``, ``flash``, ``fused``, ``unfused``, ``local``."""
    transformer_impl: Omittable[str] = None
    """Layer implementation, ``transformer_engine`` or ``local``."""
    cuda_graph_impl: Omittable[str] = None
    """CUDA graph capture."""
    defer_fp32_logits: Omittable[bool] = None
    """Cast logits to float32 chunk by chunk, needed by ``policy.logprob_chunk_size``."""
    use_linear_ce_fusion_loss: Omittable[bool] = None
    """Fuse output layer and cross entropy (SFT only)."""
    linear_ce_fusion_chunk_size: Omittable[Count] = None
    """Tokens per chunk of that fusion."""
    mtp_num_layers: Omittable[NonNegativeInt] = None
    """Multi-token-prediction layers."""
    mtp_loss_scaling_factor: Omittable[NonNegativeFloat] = None
    """Weight of their loss."""
    mtp_detach_heads: Omittable[bool] = None
    """Keep their gradient out of the main model."""
    mtp_use_repeated_layer: Omittable[bool] = None
    """Use one such layer several times."""
    clear_memory_caches_before_refit: Omittable[bool] = None
    """Release cached memory before weights go to the generation engine."""
    force_reconvert_from_hf: Omittable[bool] = None
    """Convert the Hugging Face model again even if a converted copy is cached."""
    train_iters: Omittable[Count] = None
    """Iterations of the schedule; NeMo-RL sets it itself."""
    env_vars: dict[str, str] | None = None
    """Environment variables of the workers."""
    optimizer: MegatronOptimizerConfig
    """Optimizer."""
    scheduler: MegatronSchedulerConfig
    """Schedule."""
    distributed_data_parallel_config: MegatronDDPConfig
    """Gradient reduction."""
    peft: Omittable[Annotated[MegatronPeftConfig | Off, needs_keys_when_enabled(MegatronPeftConfig)]] = None
    """Low-rank adapters."""
    fp8_cfg: Omittable[Fp8Config] = None
    """FP8 training."""

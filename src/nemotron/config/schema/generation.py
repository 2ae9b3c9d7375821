"""``policy.generation``: how responses are sampled, and the engines that can sample them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from nemotron.config.schema.base import Open, Strict
from nemotron.config.schema.fields import Count, Name, NonNegativeFloat, NonNegativeInt, Omittable, Port, Share
from nemotron.config.schema.reads import Read


class ResourcesConfig(Strict):
    """GPUs set aside for generation when it does not share those of training."""

    gpus_per_node: Count | None
    """GPUs of every node; null when colocated."""
    num_nodes: Count | None
    """Nodes; null when colocated, or on a single node."""


class ColocationConfig(Strict):
    """Whether generation and training take turns on the same GPUs."""

    enabled: bool
    """Share the GPUs."""
    resources: ResourcesConfig
    """GPUs of generation when they are not shared."""


class ServingChatKwargs(Open):
    """Arguments of vLLM's chat endpoint; further ones are passed on."""

    chat_template: Omittable[str] = None
    """Template used by the endpoint instead of the tokenizer's own."""
    default_chat_template_kwargs: Omittable[dict[str, Any]] = None
    """Arguments of the template when a request gives none."""
    enable_auto_tools: Omittable[bool] = None
    """Let the model decide when to call a tool."""
    tool_parser: Omittable[str] = None
    """Parser of tool calls."""
    reasoning_parser: Omittable[str] = None
    """Parser that separates reasoning from the answer."""


class VllmConfig(Strict):
    """vLLM as NeMo-RL starts it."""

    async_engine: bool
    """Requests run independently of each other; needed by NeMo-Gym and pipeline parallelism."""
    tensor_parallel_size: Count
    """GPUs that share every layer."""
    pipeline_parallel_size: Count
    """Groups of layers on different GPUs; above 1 needs ``async_engine``."""
    expert_parallel_size: Count
    """GPUs that share the experts; a multiple of the tensor-parallel size."""
    gpu_memory_utilization: Share
    """Share of GPU memory that vLLM may take."""
    max_model_len: Count
    """Longest prompt plus response in tokens."""
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3"]
    """Number type of the KV cache; FP8 needs ``precision: fp8``."""
    precision: Omittable[str] = None
    """Number type of the weights; left out follows ``policy.precision``."""
    skip_tokenizer_init: Omittable[bool] = None
    """Start without tokenizer. NeMo-RL sets it itself: false with stop strings or the HTTP server, else true."""
    expose_http_server: Omittable[bool] = None
    """Serve an OpenAI-compatible endpoint; NeMo-Gym needs it."""
    http_server_serving_chat_kwargs: Omittable[ServingChatKwargs] = None
    """Arguments of that endpoint."""
    enforce_eager: Omittable[bool] = None
    """No CUDA graphs: starts sooner, generates more slowly."""
    enable_prefix_caching: Omittable[bool] = None
    """Reuse the KV cache of equal prompt beginnings."""
    enable_return_routed_experts: Omittable[bool] = None
    """Report which experts each token used, for router replay."""
    enable_thinking: Omittable[bool] = None
    """Argument of chat templates that can reason."""
    enforce_monotonicity: Omittable[bool] = None
    """Check that the tokens of a conversation only ever grow."""
    load_format: Omittable[str] = None
    """How weights are loaded; NeMo-RL uses ``dummy`` for training because they arrive from the trainer."""
    env_vars: Omittable[dict[str, str]] = None
    """Environment variables of the workers."""
    tool_parser_plugin: Omittable[str] = None
    """File that defines a tool parser."""
    reasoning_parser_plugin: Omittable[str] = None
    """File that defines a reasoning parser."""
    use_tqdm: Omittable[bool] = None
    """Progress bar of vLLM."""
    use_deep_gemm: Omittable[bool] = None
    """DeepGEMM kernels for FP8."""
    num_first_layers_in_bf16: Omittable[NonNegativeInt] = None
    """FP8: first layers that stay in bfloat16."""
    num_last_layers_in_bf16: Omittable[NonNegativeInt] = None
    """FP8: last layers that stay in bfloat16."""
    enable_vllm_metrics_logger: Omittable[bool] = None
    """Log queue and cache metrics; needs ``async_engine``."""
    vllm_metrics_logger_interval: Omittable[float] = None
    """Seconds between those metrics."""


class McoreGenerationConfig(Strict):
    """Megatron-Core inference as generation engine."""

    tensor_model_parallel_size: Omittable[Count] = None
    """GPUs that share every layer."""
    pipeline_model_parallel_size: Omittable[Count] = None
    """Groups of layers on different GPUs."""
    context_parallel_size: Omittable[Count] = None
    """GPUs that share every sequence."""
    expert_model_parallel_size: Omittable[Count] = None
    """GPUs that share the experts."""
    expert_tensor_parallel_size: Omittable[Count] = None
    """GPUs that share one expert."""
    sequence_parallel: Omittable[bool] = None
    """Split norms along the sequence."""
    max_model_len: Omittable[Count] = None
    """Longest prompt plus response in tokens."""
    max_tokens: Omittable[Count] = None
    """Tokens of one inference step over all requests."""
    buffer_size_gb: Omittable[Count] = None
    """KV cache in GiB."""
    block_size_tokens: Omittable[Count] = None
    """Tokens per cache block."""
    kv_cache_management_mode: Omittable[str] = None
    """What happens to the cache during training: ``persist``, ``offload``, ``recompute``."""
    enable_chunked_prefill: Omittable[bool] = None
    """Cut long prompts into pieces."""
    enable_prefix_caching: Omittable[bool] = None
    """Reuse the cache of equal prompt beginnings."""
    materialize_only_last_token_logits: Omittable[bool] = None
    """Compute logits only where a token is sampled."""
    cuda_graph_impl: Omittable[str] = None
    """CUDA graph capture."""
    inference_cuda_graph_scope: Omittable[str] = None
    """What a CUDA graph covers."""
    num_cuda_graphs: Omittable[NonNegativeInt] = None
    """Number of batch sizes that are captured."""
    use_cuda_graphs_for_non_decode_steps: Omittable[bool] = None
    """Capture prefill steps too."""
    num_speculative_tokens: Omittable[NonNegativeInt] = None
    """Tokens drafted ahead; 0 does not draft."""
    async_engine: Omittable[bool] = None
    """Requests run independently of each other."""
    expose_http_server: Omittable[bool] = None
    """Serve an OpenAI-compatible endpoint."""
    parsers: Omittable[list[Any]] = None
    """Parsers of the endpoint."""
    refit_backend: Omittable[str] = None
    """How new weights arrive."""
    activation_checkpointing: Omittable[bool] = None
    """Recompute activations."""
    transformer_impl: Omittable[str] = None
    """Layer implementation."""
    inference_grouped_gemm_backend: Omittable[str] = None
    """Expert kernel."""
    inference_moe_token_dispatcher_type: Omittable[str] = None
    """Token dispatcher of the experts."""
    mamba_inference_ssm_states_dtype: Omittable[str] = None
    """Number type of Mamba states."""
    moe_router_group_topk: Count | None = None
    """Groups of experts a token may use."""
    moe_router_num_groups: Count | None = None
    """Groups of experts."""


class GenerationConfig(Strict):
    """Sampling of responses."""

    backend: Name
    """Engine: ``vllm``, ``megatron`` or ``sglang`` with NeMo-RL. The embedded engine samples by itself."""
    max_new_tokens: Read[Count]
    """Longest response in tokens; a response that reaches it without a stop token is truncated."""
    temperature: Read[NonNegativeFloat]
    """Divides logits, in sampling and in the training log-probabilities alike."""
    top_p: Read[Share]
    """Sample from the smallest set of tokens with this probability mass."""
    top_k: Read[int | None]
    """Sample from this many likeliest tokens; null or -1 samples from all."""
    stop_token_ids: Read[list[NonNegativeInt] | None]
    """Tokens that end a response; null means the tokenizer's end-of-sequence token."""
    stop_strings: list[str] | None
    """Texts that end a response."""
    colocated: Omittable[ColocationConfig] = None
    """GPUs shared with training or not."""
    vllm_cfg: Omittable[VllmConfig] = None
    """vLLM settings; required when ``backend`` is ``vllm``."""
    vllm_kwargs: Omittable[dict[str, Any]] = None
    """Further arguments of vLLM's engine, passed on as they are."""
    mcore_generation_config: Omittable[McoreGenerationConfig] = None
    """Megatron inference settings."""
    use_async_rollouts: Omittable[bool] = None
    """Roll out every sample on its own."""
    model_name: Omittable[Name] = None
    """Set by NeMo-RL from ``policy.model_name``."""
    port_range_low: Omittable[Port] = None
    """First port for the HTTP servers of generation."""
    port_range_high: Omittable[Port] = None
    """Last port for them."""
    quant_cfg: str | None = None
    """ModelOpt recipe for quantised rollouts."""
    real_quant: Omittable[bool] = None
    """Quantise weights for real instead of simulating it."""
    real_quant_ignore: Omittable[list[str]] = None
    """Modules that stay in full precision."""
    pad_token_id: Omittable[NonNegativeInt] = Field(default=None, alias="_pad_token_id")
    """Set by NeMo-RL from the tokenizer."""
    mtp_weights_from_refit: Omittable[bool] = Field(default=None, alias="_mtp_weights_from_refit")
    """Set by NeMo-RL: draft weights arrive with the policy's."""

"""GPUs of a NeMo-RL job: who has which, and how much memory is taken on each, from files and numbers alone.

With P parameters, b bytes of the precision, t tokens of a micro-batch on a GPU, h hidden size, L layers, V vocabulary:

===========  ==========================================  ==============================================================
part         Megatron                                    DTensor
===========  ==========================================  ==============================================================
weights      P b / (TP PP)                               4 P / (TP CP DP): sharded, kept in float32
gradients    P g / (TP PP), g = 4 with                   4 P / (TP CP DP)
             `grad_reduce_in_fp32`, else b
optimizer    12 P / (TP PP), / (CP DP) where it is       8 P / (TP CP DP)
             distributed: a float32 copy and 2 moments
activations  34 h t / TP bytes a layer (only 24 of the   the same
             34 are split without `sequence_parallel`),
             L / PP layers; with checkpointing 2 h t a
             layer and one whole; and 6 t V / TP of
             logits
===========  ==========================================  ==============================================================

t is `train_mb_tokens` with packed sequences, else micro-batch x longest sequence, over CP. Attention scores are never
whole (flash attention). Of a model with E parameters in experts, E counts over EP ETP in the place of TP under
Megatron, and its optimizer over the ranks that hold the same experts, DP CP TP / (EP ETP); its activations are those of
the layer's other parts, and of as many experts as a token is sent to.

vLLM needs its weights, P b / (TP PP), and the keys and values of the longest sequence, 2 n L / PP k d c bytes for n
tokens, k heads of keys over TP, d numbers a head and c bytes each: with less it ends while it starts. Models that keep
something else than keys and values of every token (latent attention, states) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from nemotron.compile.plan import GpuMemory, ServedMemory
from nemotron.compile.probes.fast_path import STATEFUL
from nemotron.compile.probes.model_files import ModelFiles, read_model
from nemotron.config.schema.judge import GenrmModelConfig, VllmServeKwargs
from nemotron.judge.serving import served_beside

if TYPE_CHECKING:
    from nemotron.compile.jobs.base import AnyJob

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
SENT_TO = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")
"""What models call the number of experts that a token is sent to."""
_EXPERT_SIZE = ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
_MLP, _REST = 19, 15
"""Of the 34 bytes: those of an MLP four times as wide as the model, and the others."""
JUDGE_SHARE = 0.9
"""Of a GPU, that the judge's vLLM takes where nothing is said."""
NUMBER_BYTES = {"float32": 4, "fp8": 1}


def gpu_memory(job: AnyJob) -> GpuMemory | None:
    """What the policy takes of each GPU that trains, and what vLLM needs; None when the model is not on this machine.

    Of models with experts whose weights are not counted one by one nothing is known either.
    """
    policy = job.config.policy
    if policy.megatron is None and policy.dtensor is None:
        return None
    model = read_model(policy.model_name, job.place)
    if model is None or model.parameters is None or (_has_experts(model) and not model.in_experts):
        return None
    parameters, tensor = model.parameters, job.tensor_parallel
    share = job.vllm.gpu_memory_utilization if job.vllm else None
    activations, served = _activations(job, model), tuple(_served(job, model))
    if policy.megatron is None:
        parts = max(1, job.training_gpus)
        return GpuMemory(
            weights=4 * parameters // parts,
            gradients=4 * parameters // parts,
            optimizer=8 * parameters // parts,
            activations=activations,
            generation_share=share,
            served=served,
        )
    m = policy.megatron
    split = tensor * m.pipeline_model_parallel_size
    experts = m.expert_model_parallel_size * m.expert_tensor_parallel_size
    inside, outside = model.in_experts, parameters - model.in_experts
    here = outside / split + inside / (experts * m.pipeline_model_parallel_size)
    size = 4 if policy.precision == "float32" else 2
    reduced = m.distributed_data_parallel_config
    spread = m.optimizer is not None and m.optimizer.use_distributed_optimizer
    ranks = job.data_parallel * m.context_parallel_size if spread else 1
    # Experts need not be in as many copies as the rest.
    alike = max(1, ranks * tensor // experts) if spread else 1
    moments = outside / (split * ranks) + inside / (experts * m.pipeline_model_parallel_size * alike)
    return GpuMemory(
        weights=int(size * here),
        gradients=int((4 if reduced and reduced.grad_reduce_in_fp32 else size) * here),
        optimizer=int(12 * moments),
        activations=activations,
        generation_share=share,
        served=served,
    )


def _activations(job: AnyJob, model: ModelFiles) -> int:
    """Bytes that a micro-batch leaves for its backward pass."""
    policy, config = job.config.policy, model.config
    hidden, layers = config.get("hidden_size"), config.get("num_hidden_layers")
    if not (isinstance(hidden, int) and isinstance(layers, int)):
        return 0
    trained: Any = policy.megatron or policy.dtensor
    packed = policy.packing or policy.batching
    tokens = packed.train_mb_tokens if packed else policy.train_micro_batch_size * policy.max_total_sequence_length
    tokens = math.ceil(tokens / trained.context_parallel_size)
    tensor = job.tensor_parallel
    wide = _width(model, hidden)
    split = 34 - _MLP + _MLP * wide
    whole = hidden * tokens * (split / tensor if trained.sequence_parallel else 10 + (split - 10) / tensor)
    here = math.ceil(layers / getattr(trained, "pipeline_model_parallel_size", 1))
    kept = 2 * hidden * tokens * here + whole if trained.activation_checkpointing else whole * here
    return int(kept + 6 * tokens * (model.vocabulary or 0) / tensor)


def _has_experts(model: ModelFiles) -> bool:
    return any(model.config.get(name) for name in (*EXPERTS, *SENT_TO))


def _sent_to(model: ModelFiles) -> int:
    return next((found for name in SENT_TO if isinstance(found := model.config.get(name), int)), 0)


def _width(model: ModelFiles, hidden: int) -> float:
    """How wide a token's MLP is, over the four times the model's width that the formula means; 1 without experts."""
    size = next((found for name in _EXPERT_SIZE if isinstance(found := model.config.get(name), int)), None)
    many = _sent_to(model)
    return many * size / (4 * hidden) if many and size else 1.0


def _served(job: AnyJob, policy: ModelFiles) -> Iterator[ServedMemory]:
    """Of generation, and of a judge that NeMo-Gym or the job starts on GPUs."""
    if (vllm := job.vllm) is not None:
        found = _on_a_gpu(
            "generation",
            policy,
            parts=(vllm.tensor_parallel_size, vllm.pipeline_parallel_size),
            tokens=vllm.max_model_len,
            share=vllm.gpu_memory_utilization,
            sizes=(
                NUMBER_BYTES.get(vllm.precision or job.config.policy.precision, 2),
                1 if "fp8" in vllm.kv_cache_dtype else 2,
            ),
        )
        if found:
            yield found
    asked = job.judge_model
    on_processors = judge_beside(job.config) and job.place.judge_gpus == 0
    model = None
    if asked is not None and judge_gpus(asked) and not on_processors:
        model = read_model(asked.model, job.place)
    if asked is None or model is None or not model.parameters:
        return
    kwargs = asked.vllm_serve_kwargs or VllmServeKwargs()
    said = kwargs.settings
    tokens, share = said.get("max_model_len") or model.positions, said.get("gpu_memory_utilization") or JUDGE_SHARE
    if isinstance(tokens, int) and isinstance(share, int | float):
        parts = (kwargs.tensor_parallel_size or 1, kwargs.pipeline_parallel_size or 1)
        if found := _on_a_gpu("judge", model, parts=parts, tokens=tokens, share=share, sizes=(2, 2)):
            yield found


def _on_a_gpu(
    role: Literal["generation", "judge"],
    model: ModelFiles,
    *,
    parts: tuple[int, int],
    tokens: int,
    share: float,
    sizes: tuple[int, int],
) -> ServedMemory | None:
    """``parts``: GPUs that share a layer, and groups of layers; ``sizes``: bytes of a weight, and of a key."""
    config, (tensor, pipeline) = model.config, parts
    layers, heads, hidden = config.get("num_hidden_layers"), model.heads, config.get("hidden_size")
    numbers = config.get("head_dim") or (hidden // heads if isinstance(hidden, int) and heads else None)
    if config.get("model_type") in STATEFUL or "kv_lora_rank" in config or model.parameters is None:
        return None
    if not (isinstance(layers, int) and isinstance(numbers, int) and model.kv_heads):
        return None
    keys = max(1, math.ceil(model.kv_heads / tensor)) * numbers
    return ServedMemory(
        role=role,
        weights=sizes[0] * model.parameters // (tensor * pipeline),
        cache=2 * tokens * math.ceil(layers / pipeline) * keys * sizes[1],
        tokens=tokens,
        share=share,
    )


def judge_gpus(model: GenrmModelConfig | None) -> int:
    """GPUs that NeMo-Gym takes for the judge; 0 for one that answers elsewhere."""
    if model is None or model.base_url is not None:
        return 0
    return model.vllm_serve_kwargs.gpus if model.vllm_serve_kwargs else 1


def judge_nodes(config: Any) -> int:
    """Whole nodes that the judge needs beside `cluster.num_nodes`, in a config of any step."""
    gpus = gym_judge_gpus(config)
    return math.ceil(gpus / config.cluster.gpus_per_node) if gpus else 0


def gym_judge_gpus(config: Any) -> int:
    """GPUs that NeMo-Gym takes for the judge of a config of any step; 0 where something else serves it."""
    model = getattr(getattr(config, "env", None), "judge_model", None)
    return 0 if judge_beside(config) else judge_gpus(model)


def judge_beside(config: Any) -> bool:
    """Whether a job on NeMo-RL serves the judge of a config of any step on a machine of its own."""
    model = getattr(getattr(config, "env", None), "judge_model", None)
    return served_beside(model, getattr(config, "judge", None))

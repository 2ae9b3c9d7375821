"""GPUs of a NeMo-RL job: who has which, and how much memory the policy takes on each, from files and numbers alone.

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
whole (flash attention). Models with experts are not estimated: how they are split depends on more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nemotron.compile.plan import GpuMemory
from nemotron.compile.probes.model_files import ModelFiles, read_model
from nemotron.config.schema.judge import GenrmModelConfig

if TYPE_CHECKING:
    from nemotron.compile.jobs.base import AnyJob

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def gpu_memory(job: AnyJob) -> GpuMemory | None:
    """What the policy takes of each GPU that trains; None when the model is not on this machine, or has experts."""
    policy = job.config.policy
    if policy.megatron is None and policy.dtensor is None:
        return None
    model = read_model(policy.model_name, job.place)
    if model is None or model.parameters is None or any(model.config.get(name) for name in EXPERTS):
        return None
    parameters, tensor = model.parameters, job.tensor_parallel
    share = job.vllm.gpu_memory_utilization if job.vllm else None
    activations = _activations(job, model)
    if policy.megatron is None:
        parts = max(1, job.training_gpus)
        return GpuMemory(
            weights=4 * parameters // parts,
            gradients=4 * parameters // parts,
            optimizer=8 * parameters // parts,
            activations=activations,
            generation_share=share,
        )
    m = policy.megatron
    split = tensor * m.pipeline_model_parallel_size
    size = 4 if policy.precision == "float32" else 2
    reduced = m.distributed_data_parallel_config
    ranks = job.data_parallel * m.context_parallel_size if m.optimizer and m.optimizer.use_distributed_optimizer else 1
    return GpuMemory(
        weights=size * parameters // split,
        gradients=(4 if reduced and reduced.grad_reduce_in_fp32 else size) * parameters // split,
        optimizer=12 * parameters // (split * ranks),
        activations=activations,
        generation_share=share,
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
    whole = hidden * tokens * (34 / tensor if trained.sequence_parallel else 10 + 24 / tensor)
    here = math.ceil(layers / getattr(trained, "pipeline_model_parallel_size", 1))
    kept = 2 * hidden * tokens * here + whole if trained.activation_checkpointing else whole * here
    return int(kept + 6 * tokens * (model.vocabulary or 0) / tensor)


def judge_gpus(model: GenrmModelConfig | None) -> int:
    """GPUs that NeMo-Gym takes for the judge; 0 for one that answers elsewhere."""
    if model is None or model.base_url is not None:
        return 0
    return model.vllm_serve_kwargs.gpus if model.vllm_serve_kwargs else 1


def judge_nodes(config: Any) -> int:
    """Whole nodes that the judge needs beside `cluster.num_nodes`, in a config of any step."""
    env = getattr(config, "env", None)
    gpus = judge_gpus(getattr(env, "judge_model", None))
    return math.ceil(gpus / config.cluster.gpus_per_node) if gpus else 0

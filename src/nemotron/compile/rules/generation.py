"""Rules of sampling and of the engines that sample."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.rules.base import NEMO_RL, Rules
from nemotron.contracts.samples import GREEDY
from nemotron.errors import Finding

rules: Rules[AnyJob] = Rules("generation")
"""Of every job that samples, if only to measure."""
rollouts: Rules[AnyJob] = Rules("rollouts")
"""Of jobs that learn from what they sample."""
VLLM = "policy.generation.vllm_cfg"


@rules.rule("no-generation", number=30)
def responses_are_generated(job: AnyJob) -> Iterator[Finding]:
    """A policy gradient learns from its own samples; elsewhere the held-out metric samples."""
    if job.generation is not None:
        return
    if job.rows_at_once:
        yield job.error("policy", "the section `policy.generation` is missing", hint="inherit it: `defaults: default`")
    elif job.heldout is not None and job.heldout_kind == "prompt":
        yield job.error(
            "eval.heldout",
            "the held-out metric samples answers, but there is no section `policy.generation`",
            hint="add it as `tiny.yaml` does, or set `eval.heldout=null`",
        )


@rules.rule("top-k", number=35)
def top_k_is_possible(job: AnyJob) -> Iterator[Finding]:
    """Null and -1 mean all tokens."""
    top_k = job.generation.top_k if job.generation else None
    if top_k is not None and top_k != -1 and top_k < 1:
        yield job.error(
            "policy.generation.top_k",
            f"`policy.generation.top_k` {top_k} keeps no token",
            hint="use null to sample from all tokens",
        )


@rollouts.rule("generation-backend", number=31, engines=NEMO_RL)
def backend_has_its_section(job: AnyJob) -> Iterator[Finding]:
    """The backend is one that NeMo-RL has, and its settings are there."""
    generation = job.generation
    if generation is None:
        return
    key = "policy.generation.backend"
    if generation.backend not in ("vllm", "megatron", "sglang"):
        yield job.error(key, f"NeMo-RL has no generation backend `{generation.backend}`", hint="use `vllm`")
    if generation.backend == "vllm" and generation.vllm_cfg is None:
        yield job.error(key, f"the vLLM backend needs the section `{VLLM}`")
    if generation.backend == "megatron" and generation.mcore_generation_config is None:
        yield job.error(key, "the Megatron backend needs the section `policy.generation.mcore_generation_config`")


@rollouts.rule("generation-world", number=32, engines=NEMO_RL)
def generation_gpus_divide(job: AnyJob) -> Iterator[Finding]:
    """vLLM replicas fill the GPUs that generate."""
    vllm, generation = job.vllm, job.generation
    if vllm is None or generation is None:
        return
    cluster, colocated = job.config.cluster, generation.colocated
    total = cluster.num_nodes * cluster.gpus_per_node
    gpus = total if colocated is None or colocated.enabled else total - job.training_gpus
    replica = vllm.tensor_parallel_size * vllm.pipeline_parallel_size
    if gpus % replica:
        yield job.error(
            f"{VLLM}.tensor_parallel_size",
            f"{gpus} GPUs that generate do not divide into vLLM replicas of {replica} (tensor x pipeline parallel)",
        )


@rollouts.rule("vllm-pipeline", number=33, engines=NEMO_RL)
def pipeline_needs_async(job: AnyJob) -> Iterator[Finding]:
    """vLLM pipelines only in its asynchronous engine."""
    if job.vllm and job.vllm.pipeline_parallel_size > 1 and not job.vllm.async_engine:
        yield job.error(
            f"{VLLM}.pipeline_parallel_size",
            f"vLLM pipeline parallelism needs `{VLLM}.async_engine`",
            hint=f"set `{VLLM}.async_engine=true`",
        )


@rollouts.rule("vllm-experts", number=34, engines=NEMO_RL)
def expert_parallelism_fits(job: AnyJob) -> Iterator[Finding]:
    """Expert groups are whole tensor-parallel groups."""
    if job.vllm is None:
        return
    expert, tensor = job.vllm.expert_parallel_size, job.vllm.tensor_parallel_size
    key = f"{VLLM}.expert_parallel_size"
    if expert == 1:
        return
    if expert % tensor:
        yield job.error(key, f"`{key}` {expert} is not a multiple of the tensor-parallel size {tensor}")
    elif expert > tensor and job.vllm.async_engine:
        yield job.error(key, f"`{key}` above the tensor-parallel size does not work with the asynchronous engine")


@rollouts.rule("greedy-rollouts", number=55)
def rollouts_differ(job: AnyJob) -> Iterator[Finding]:
    """At temperature 0, or from one token, all responses of a group are equal, and their advantages 0."""
    if job.generation and job.generation.top_k == 1:
        yield job.error(
            "policy.generation.top_k",
            "with `top_k` 1 all responses to a prompt are the same, so there is nothing to learn from",
            hint="set `policy.generation.top_k=null` to sample from all tokens",
        )
    if job.generation and job.generation.temperature < GREEDY:
        yield job.error(
            "policy.generation.temperature",
            f"at temperature {job.generation.temperature:g} all responses to a prompt are the same, so there is "
            "nothing to learn from",
            hint="set `policy.generation.temperature=1.0`",
        )


@rollouts.rule("vllm-fp8", number=36, engines=NEMO_RL)
def fp8_generation_is_corrected(job: AnyJob) -> Iterator[Finding]:
    """FP8 samples come from a slightly different model than the one that is trained."""
    vllm, policy = job.vllm, job.config.policy
    if vllm is None:
        return
    loss = job.policy_loss
    if vllm.precision == "fp8" and loss is not None and not loss.use_importance_sampling_correction:
        yield job.error(
            f"{VLLM}.precision",
            "FP8 generation needs importance-sampling correction",
            hint="set `loss_fn.use_importance_sampling_correction=true`",
        )
    key = f"{VLLM}.kv_cache_dtype"
    if not vllm.kv_cache_dtype.startswith("fp8"):
        return
    clashes = {
        f"`{VLLM}.precision=fp8`": vllm.precision != "fp8",
        "training with Megatron": policy.megatron is None,
        "synchronous rollouts": job.samples_asynchronously,
        "pipeline-parallel size 1": bool(policy.megatron and policy.megatron.pipeline_model_parallel_size > 1),
    }
    missing = [need for need, lacking in clashes.items() if lacking]
    if missing:
        yield job.error(key, f"an FP8 KV cache needs {', '.join(missing)}")


@rollouts.rule("vllm-metrics", number=37, engines=NEMO_RL)
def metrics_logger_can_run(job: AnyJob) -> Iterator[Finding]:
    """vLLM's queue metrics come from the asynchronous engine."""
    vllm = job.vllm
    if vllm is None or not vllm.enable_vllm_metrics_logger:
        return
    if not vllm.async_engine:
        yield job.error(f"{VLLM}.enable_vllm_metrics_logger", f"vLLM metrics need `{VLLM}.async_engine=true`")
    if vllm.vllm_metrics_logger_interval is not None and vllm.vllm_metrics_logger_interval <= 0:
        yield job.error(f"{VLLM}.vllm_metrics_logger_interval", "the interval of vLLM metrics must be above 0 s")


@rollouts.rule("generation-gpus", number=39, engines=NEMO_RL)
def separate_generation_has_gpus(job: AnyJob) -> Iterator[Finding]:
    """Generation on GPUs of its own must leave some for training."""
    colocated = job.generation.colocated if job.generation else None
    if colocated is None or colocated.enabled:
        return
    cluster, aside = job.config.cluster, colocated.resources
    key = "policy.generation.colocated.resources"
    if job.generation and job.generation.backend == "sglang":
        yield job.error("policy.generation.backend", "SGLang generates on the training GPUs only")
    if aside.gpus_per_node is None:
        yield job.error(f"{key}.gpus_per_node", f"separate generation needs `{key}.gpus_per_node`")
    elif cluster.num_nodes == 1 and aside.num_nodes not in (None, 1):
        yield job.error(f"{key}.num_nodes", f"one node cannot give {aside.num_nodes} nodes to generation")
    elif cluster.num_nodes > 1 and aside.num_nodes is None:
        yield job.error(f"{key}.num_nodes", f"on several nodes separate generation needs `{key}.num_nodes`")
    elif cluster.num_nodes > 1 and aside.gpus_per_node != cluster.gpus_per_node:
        yield job.error(
            f"{key}.gpus_per_node",
            f"on several nodes generation takes whole nodes: `{key}.gpus_per_node` {aside.gpus_per_node} "
            f"must be `cluster.gpus_per_node` {cluster.gpus_per_node}",
        )
    elif job.training_gpus < 1:
        yield job.error(f"{key}.gpus_per_node", "generation takes every GPU, none is left for training")


@rollouts.rule("response-too-long")
def response_fits_the_sequence(job: AnyJob) -> Iterator[Finding]:
    """Silent upstream: prompt and response share the sequence, so a response as long as it leaves no room."""
    generation, longest = job.generation, job.config.policy.max_total_sequence_length
    if generation is None:
        return
    key, limit, place = "policy.generation.max_new_tokens", longest, "policy.max_total_sequence_length"
    if generation.max_new_tokens < longest and job.engine == "nemo_rl" and job.vllm:
        limit, place = job.vllm.max_model_len, f"{VLLM}.max_model_len"
    if generation.max_new_tokens >= limit:
        yield job.error(
            key,
            f"`{key}` {generation.max_new_tokens} leaves no room for a prompt in the {limit} tokens of `{place}`",
            hint=f"set `{key}` well below {limit}, or raise `{place}`",
        )

"""Training backend and parallelism: rules about the GPUs of a NeMo-RL job."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.probes.model_files import read_model
from nemotron.compile.rules.base import NEMO_RL, Rules
from nemotron.contracts.samples import cuts
from nemotron.errors import Finding

rules: Rules[AnyJob] = Rules("parallelism")
MEGATRON = "policy.megatron_cfg"
DTENSOR = "policy.dtensor_cfg"
PACKING = "policy.sequence_packing.enabled"


@rules.rule("training-backend", number=1, engines=NEMO_RL)
def one_backend_trains(job: AnyJob) -> Iterator[Finding]:
    """Exactly one of Megatron and DTensor."""
    policy = job.config.policy
    if bool(policy.megatron) == bool(policy.dtensor):
        what = "both are on" if policy.megatron else "both are off"
        yield job.error(
            f"{MEGATRON}.enabled",
            f"exactly one of `{MEGATRON}.enabled` and `{DTENSOR}.enabled` must be true, {what}",
        )


@rules.rule("draft-model", number=2, engines=NEMO_RL)
def draft_model_can_train(job: AnyJob) -> Iterator[Finding]:
    """Draft models train with Megatron on unpacked sequences."""
    policy = job.config.policy
    if not (policy.draft and policy.draft.enabled):
        return
    if policy.megatron is None:
        yield job.error("policy.draft.enabled", "a draft model trains with Megatron only")
    if policy.packing:
        yield job.error("policy.draft.enabled", "a draft model does not train on packed sequences")


@rules.rule("cuda-arch-list", number=3, engines=NEMO_RL)
def arch_list_is_set(job: AnyJob) -> Iterator[Finding]:
    """Megatron workers stop without it; containers usually set it."""
    megatron = job.config.policy.megatron
    if megatron and "TORCH_CUDA_ARCH_LIST" not in job.env and "TORCH_CUDA_ARCH_LIST" not in (megatron.env_vars or {}):
        yield job.warning(
            MEGATRON,
            "Megatron needs the environment variable `TORCH_CUDA_ARCH_LIST`, which is not set here",
            hint=f"set it where the job runs, or in `{MEGATRON}.env_vars`",
        )


@rules.rule("world-size", number=4, engines=NEMO_RL)
def gpus_hold_whole_copies(job: AnyJob) -> Iterator[Finding]:
    """The training GPUs hold a whole number of copies of the policy."""
    gpus, copy = job.training_gpus, job.model_parallel
    if gpus < copy or gpus % copy:
        yield job.error(
            "cluster.gpus_per_node",
            f"{gpus} training GPUs do not hold whole copies of the policy of {copy} GPUs "
            "(tensor x pipeline x context parallel)",
            hint="change `cluster` or the parallel sizes",
        )


@rules.rule("tensor-parallel-accuracy", number=5, engines=NEMO_RL)
def equal_micro_batches_at_high_tp(job: AnyJob) -> Iterator[Finding]:
    """At TP >= 4 kernels differ by batch size, so log-probabilities would not compare."""
    policy = job.config.policy
    logprob = policy.logprob_rows
    loss = job.policy_loss
    excused = "NRL_IGNORE_TP_ACCURACY_CHECK" in job.env or (loss is not None and loss.force_on_policy_ratio)
    if job.tensor_parallel >= 4 and logprob != policy.train_micro_batch_size and not excused:
        yield job.error(
            "policy.logprob_batch_size",
            f"with tensor parallelism {job.tensor_parallel}, `policy.logprob_batch_size` {logprob} must equal "
            f"`policy.train_micro_batch_size` {policy.train_micro_batch_size}",
        )


@rules.rule("lora", number=6, engines=NEMO_RL)
def lora_is_supported(job: AnyJob) -> Iterator[Finding]:
    """DTensor adapters need the second worker, and Triton kernels no tensor parallelism."""
    dtensor = job.config.policy.dtensor
    if dtensor is None or dtensor.lora_cfg is None or not dtensor.lora_cfg.enabled:
        return
    if not dtensor.v2:
        yield job.error(f"{DTENSOR}.lora_cfg", "LoRA needs the DTensor v2 worker", hint=f"set `{DTENSOR}._v2=true`")
    if getattr(dtensor.lora_cfg, "use_triton", None) and dtensor.tensor_parallel_size > 1:
        yield job.error(f"{DTENSOR}.lora_cfg.use_triton", "LoRA's Triton kernels do not work with tensor parallelism")


@rules.rule("save-format", number=7, engines=NEMO_RL)
def dtensor_v1_has_one_format(job: AnyJob) -> Iterator[Finding]:
    """NeMo-RL finds this out when it saves for the first time."""
    dtensor, checkpointing = job.config.policy.dtensor, job.config.checkpointing
    if dtensor and not dtensor.v2 and checkpointing.enabled and checkpointing.model_save_format is not None:
        yield job.error(
            "checkpointing.model_save_format", "the DTensor v1 worker needs `checkpointing.model_save_format=null`"
        )


@rules.rule("batching-mode", number={"prompt": 8, "preference": 63, "conversation": 8}, engines=NEMO_RL)
def packing_or_dynamic(job: AnyJob) -> Iterator[Finding]:
    """One way of filling micro-batches, none where rows stand side by side, no dynamic one across pipeline stages."""
    policy = job.config.policy
    if not job.packs_rows:
        for name, section in (("sequence_packing", policy.packing), ("dynamic_batching", policy.batching)):
            if section is not None:
                key = f"policy.{name}.enabled"
                yield job.error(key, f"NeMo-RL has no `policy.{name}` for pairs", hint=f"set `{key}=false`")
        return
    if policy.packing and policy.batching:
        yield job.error(PACKING, "sequence packing and dynamic batching exclude each other")
    if policy.batching and policy.megatron and policy.megatron.pipeline_model_parallel_size > 1:
        yield job.error("policy.dynamic_batching.enabled", "dynamic batching needs pipeline-parallel size 1")


@rules.rule("context-parallel", number=9, engines=NEMO_RL)
def context_parallel_is_supported(job: AnyJob) -> Iterator[Finding]:
    """Megatron splits packed sequences only, DTensor unpacked ones only."""
    policy = job.config.policy
    if policy.megatron and policy.megatron.context_parallel_size > 1 and not policy.packing:
        yield job.error(f"{MEGATRON}.context_parallel_size", f"context parallelism needs `{PACKING}=true`")
    dtensor = policy.dtensor
    if dtensor and dtensor.context_parallel_size > 1:
        key = f"{DTENSOR}.context_parallel_size"
        if policy.packing:
            yield job.error(key, "DTensor context parallelism does not work with sequence packing")
        if dtensor.sequence_parallel and dtensor.tensor_parallel_size > 1:
            yield job.error(key, "DTensor context parallelism does not work with `sequence_parallel`")


@rules.rule("attention-heads", number=11, engines=NEMO_RL)
def heads_divide(job: AnyJob) -> Iterator[Finding]:
    """Tensor parallelism splits attention by heads."""
    model = read_model(job.config.policy.model_name, job.place)
    if model is None or job.tensor_parallel == 1:
        return
    for name, heads in (("attention heads", model.heads), ("key-value heads", model.kv_heads)):
        if heads is not None and heads % job.tensor_parallel:
            yield job.error(
                MEGATRON if job.config.policy.megatron else DTENSOR,
                f"the model's {heads} {name} do not divide by the tensor-parallel size {job.tensor_parallel}",
            )


@rules.rule("cpu-offload", number=12, engines=NEMO_RL)
def offload_needs_several_gpus(job: AnyJob) -> Iterator[Finding]:
    """FSDP cannot offload on a single GPU."""
    dtensor = job.config.policy.dtensor
    if dtensor and dtensor.cpu_offload and job.training_gpus == 1:
        yield job.error(f"{DTENSOR}.cpu_offload", "CPU offload does not work on a single GPU")


@rules.rule("megatron-precision", number=13, engines=NEMO_RL)
def optimizer_flags_match_precision(job: AnyJob) -> Iterator[Finding]:
    """Megatron's optimizer repeats the precision as two flags."""
    megatron, precision = job.config.policy.megatron, job.config.policy.precision
    if megatron is None:
        return
    for flag, name in (("bf16", "bfloat16"), ("fp16", "float16")):
        if getattr(megatron.optimizer, flag) != (precision == name):
            value = str(precision == name).lower()
            key = f"{MEGATRON}.optimizer.{flag}"
            yield job.error(
                key,
                f"`policy.precision` is {precision}, but `{key}` is {str(precision != name).lower()}",
                hint=f"set `{key}={value}`",
            )


@rules.rule("yarn", number=14, engines=NEMO_RL)
def yarn_needs_megatron(job: AnyJob) -> Iterator[Finding]:
    """YaRN position scaling is Megatron's."""
    scaling = (job.config.policy.hf_config_overrides or {}).get("rope_scaling")
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    if kind == "yarn" and job.config.policy.megatron is None:
        yield job.error("policy.hf_config_overrides.rope_scaling", "YaRN position scaling works with Megatron only")


ATTENTION = ("auto", "flash", "fused", "unfused", "local")


@rules.rule("megatron-settings", number=15, engines=NEMO_RL)
def megatron_settings_agree(job: AnyJob) -> Iterator[Finding]:
    """Combinations that Megatron refuses while it builds the model."""
    megatron = job.config.policy.megatron
    if megatron is None:
        return
    optimizer = megatron.optimizer
    if optimizer.optimizer_cpu_offload and optimizer.optimizer_offload_fraction != 1:
        key = f"{MEGATRON}.optimizer.optimizer_offload_fraction"
        yield job.error(key, "optimizer offloading needs the fraction 1.0", hint=f"set `{key}=1.0`")
    if megatron.attention_backend is not None and megatron.attention_backend not in ATTENTION:
        yield job.error(
            f"{MEGATRON}.attention_backend",
            f"`{megatron.attention_backend}` is not an attention backend",
            hint=f"use one of {', '.join(ATTENTION)}",
        )
    if "aux_loss" in (megatron.moe_router_load_balancing_type or "") and megatron.moe_aux_loss_coeff != 0:
        yield job.error(
            f"{MEGATRON}.moe_router_load_balancing_type",
            "a balancing loss of the router must have the weight 0",
            hint=f"set `{MEGATRON}.moe_aux_loss_coeff=0.0`",
        )
    if megatron.train_iters is not None:
        yield job.warning(f"{MEGATRON}.train_iters", "`train_iters` has no effect: NeMo-RL sets it itself")


@rules.rule("logprob-chunks", number=16, engines=NEMO_RL)
def chunks_need_deferred_logits(job: AnyJob) -> Iterator[Finding]:
    """Megatron can only chunk logits that are still in low precision."""
    policy = job.config.policy
    if policy.megatron and policy.logprob_chunk_size is not None and not policy.megatron.defer_fp32_logits:
        yield job.error(
            "policy.logprob_chunk_size", f"`policy.logprob_chunk_size` needs `{MEGATRON}.defer_fp32_logits=true`"
        )


@rules.rule("padding-multiple", number=17, engines=NEMO_RL)
def packed_lengths_divide(job: AnyJob) -> Iterator[Finding]:
    """Found late upstream: at the first log-probability pass, after the whole first rollout."""
    policy, megatron = job.config.policy, job.config.policy.megatron
    if megatron is None or policy.packing is None:
        return
    context, tensor = megatron.context_parallel_size, megatron.tensor_model_parallel_size
    factor = (2 * context if context > 1 else 1) * (tensor if tensor > 1 and megatron.sequence_parallel else 1)
    key = "policy.make_sequence_length_divisible_by"
    if policy.make_sequence_length_divisible_by % factor:
        yield job.error(
            key,
            f"`{key}` {policy.make_sequence_length_divisible_by} must be a multiple of {factor} "
            "for packed sequences with these parallel sizes",
            hint=f"set `{key}={factor}`",
        )


@rules.rule("linear-ce-fusion", number=18, engines=NEMO_RL)
def fused_cross_entropy_is_for_sft(job: AnyJob) -> Iterator[Finding]:
    """The fused loss gives no log-probabilities."""
    if job.config.policy.megatron and job.config.policy.megatron.use_linear_ce_fusion_loss:
        yield job.error(f"{MEGATRON}.use_linear_ce_fusion_loss", "the fused cross entropy works for SFT only")


@rules.rule("hybrid-sharding", number=20, engines=NEMO_RL)
def replicas_divide(job: AnyJob) -> Iterator[Finding]:
    """Hybrid sharding replicates over whole data-parallel groups of the v2 worker."""
    dtensor = job.config.policy.dtensor
    if dtensor is None or dtensor.dp_replicate_size in (None, 1):
        return
    key = f"{DTENSOR}.dp_replicate_size"
    if not dtensor.v2:
        yield job.error(key, "hybrid sharding needs the DTensor v2 worker", hint=f"set `{DTENSOR}._v2=true`")
    if dtensor.dp_replicate_size and job.data_parallel % dtensor.dp_replicate_size:
        yield job.error(key, f"`{key}` {dtensor.dp_replicate_size} does not divide the {job.data_parallel} ranks")


@rules.rule("router-replay", number=20, engines=NEMO_RL)
def replay_has_both_sides(job: AnyJob) -> Iterator[Finding]:
    """Expert choices are recorded by vLLM and replayed by Megatron."""
    replay = job.config.policy.router_replay
    if replay and replay.enabled and (job.config.policy.megatron is None or job.vllm is None):
        yield job.error("policy.router_replay.enabled", "router replay needs Megatron training and vLLM generation")


@rules.rule("nsys-variables", number=21, engines=NEMO_RL)
def profiler_variables_agree(job: AnyJob) -> Iterator[Finding]:
    """Either both variables of the profiler or none."""
    patterns, steps = "NRL_NSYS_WORKER_PATTERNS" in job.env, job.env.get("NRL_NSYS_PROFILE_STEP_RANGE")
    if patterns != (steps is not None):
        yield job.error("cluster", "set both `NRL_NSYS_WORKER_PATTERNS` and `NRL_NSYS_PROFILE_STEP_RANGE`, or none")
    elif steps is not None:
        low, colon, high = steps.partition(":")
        if not (colon and low.isdecimal() and high.isdecimal()):
            yield job.error("cluster", f"`NRL_NSYS_PROFILE_STEP_RANGE` must look like `3:5`, it is `{steps}`")


@rules.rule("filtered-logits", number=29, engines=NEMO_RL)
def filtered_logits_divide(job: AnyJob) -> Iterator[Finding]:
    """Top-k and top-p spread rows x tokens over the tensor-parallel ranks."""
    policy, generation = job.config.policy, job.generation
    if generation is None or job.tensor_parallel == 1:
        return
    filtered = cuts(generation.top_k, generation.top_p)
    if filtered and policy.train_micro_batch_size * policy.make_sequence_length_divisible_by % job.tensor_parallel:
        key = "policy.make_sequence_length_divisible_by"
        yield job.error(
            key,
            f"top-k and top-p need rows x tokens to divide by the tensor-parallel size {job.tensor_parallel}",
            hint=f"set `{key}={job.tensor_parallel}`",
        )

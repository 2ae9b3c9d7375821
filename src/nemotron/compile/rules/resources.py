"""Does the job fit this machine?"""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.estimate import memory, savings
from nemotron.compile.gpus import gpu_memory
from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.rules.base import EMBEDDED, NEMO_RL, Rules
from nemotron.compile.rules.generation import VLLM
from nemotron.config.schema.judge import JUDGE_MODEL
from nemotron.errors import Finding
from nemotron.out_of_memory import OFFLOAD, either, keys_to_lower

rules: Rules[AnyJob] = Rules("resources")
SERVED = f"{JUDGE_MODEL}.vllm_serve_kwargs"
_SHOWN = 3
"""Ways to save memory that a hint names."""
_WORTH = 2**30 // 20
"""Bytes that are shown as more than nothing."""


@rules.rule("memory", engines=EMBEDDED)
def job_fits_memory(job: AnyJob) -> Iterator[Finding]:
    """Main memory, or that of a GPU where the profile says how large it is."""
    place = job.place
    main = "this machine" if place.is_here else f"a node of `{place.name}`"
    have, whose = (place.gpu_memory_bytes, "the GPU") if place.has_cuda else (place.memory_bytes, main)
    need = memory(job)
    if need and have and need.total > have:
        yield job.warning(
            "policy.model_name",
            f"the job needs about {need.total / 2**30:.1f} GiB of memory, {whose} has {have / 2**30:.1f} GiB",
            hint=_hint(job),
        )


@rules.rule("host-memory", engines=EMBEDDED)
def moments_fit_the_host(job: AnyJob) -> Iterator[Finding]:
    """The optimizer's state in pinned memory, which is taken whole and never swapped."""
    need, have = memory(job), job.place.memory_bytes
    if need and have and need.host > have:
        yield job.warning(
            OFFLOAD,
            f"the optimizer's state needs about {need.host / 2**30:.1f} GiB of the host's memory, which has "
            f"{have / 2**30:.1f} GiB",
            hint=f"set `{OFFLOAD}=false`, or use a smaller model",
        )


@rules.rule("optimizer-offload-without-gpu", engines=EMBEDDED)
def state_has_somewhere_to_go(job: AnyJob) -> Iterator[Finding]:
    """On a CPU the optimizer's state is in host memory already."""
    if job.config.policy.offload_optimizer_for_logprob and not job.place.has_cuda:
        yield job.warning(
            OFFLOAD,
            f"there is no GPU here, so `{OFFLOAD}` has no effect",
            hint="leave it out: what it saves is memory of a GPU",
        )


@rules.rule("gpu-memory", engines=NEMO_RL)
def policy_fits_a_gpu(job: AnyJob) -> Iterator[Finding]:
    """Where the profile says how large a GPU is; finding it out there takes the nodes, the models and half an hour."""
    need, have = gpu_memory(job), job.place.gpu_memory_bytes
    if need is None or have is None or need.total <= have:
        return
    largest = max(("activations", "optimizer", "weights", "gradients"), key=lambda part: getattr(need, part))
    megatron = job.config.policy.megatron is not None
    section = "policy.megatron_cfg" if megatron else "policy.dtensor_cfg"
    shared = f"{section}.tensor_model_parallel_size" if megatron else f"{section}.tensor_parallel_size"
    ways = {
        "activations": f"`{section}.activation_checkpointing=true`, a smaller `policy.train_micro_batch_size` or "
        f"packed sequences, or a larger `{shared}`",
        "optimizer": f"a larger `{shared}`, or more nodes",
    }
    yield job.warning(
        "policy.model_name",
        f"training needs about {need.total / 2**30:.1f} GiB on each GPU, which has {have / 2**30:.1f} GiB; most of it "
        f"for {largest}",
        hint="what makes that less: " + ways.get(largest, f"a larger `{shared}`, or more nodes"),
    )


@rules.rule("vllm-memory", engines=NEMO_RL)
def what_vllm_serves_fits_a_gpu(job: AnyJob) -> Iterator[Finding]:
    """vLLM refuses to start where the longest sequence does not fit beside the weights."""
    need, have = gpu_memory(job), job.place.gpu_memory_bytes
    if need is None or have is None:
        return
    for one in need.served:
        if one.total <= one.share * have:
            continue
        where = VLLM if one.role == "generation" else SERVED
        yield job.error(
            f"{where}.tensor_parallel_size",
            f"vLLM's {one.role} needs {one.weights / 2**30:.1f} GiB of weights and {one.cache / 2**30:.1f} GiB for a "
            f"sequence of {one.tokens:,} tokens on each GPU, and may take {one.share:.0%} of {have / 2**30:.1f} GiB",
            hint=f"raise `{where}.tensor_parallel_size`, or lower `{where}.max_model_len`",
        )


def _hint(job: AnyJob) -> str:
    """What saves most, measured by the same estimate."""
    found, lower = savings(job)[:_SHOWN], either(keys_to_lower(job.resolved.values))
    told = [
        f"{' '.join(f'`{word}`' for word in words.split())} saves about {saved / 2**30:.1f} GiB"
        for words, saved in found
        if saved >= _WORTH
    ]
    if not told:
        return f"use a smaller model, or lower {lower}"
    return "; ".join(told) + f"; or use a smaller model, or lower {lower}"

"""Batch arithmetic: prompts, generations, global and micro batches."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.grpo import AnyGrpoJob
from nemotron.compile.rules.base import NEMO_RL, Rules
from nemotron.errors import Finding

rules: Rules[AnyGrpoJob] = Rules("batch")
GBS = "policy.train_global_batch_size"
MBS = "policy.train_micro_batch_size"


def _product(job: AnyGrpoJob) -> str:
    grpo = job.config.grpo
    return f"{grpo.num_prompts_per_step} prompts x {grpo.num_generations_per_prompt} generations = {job.responses}"


@rules.rule("batch-not-divisible", number=22, needs=("grpo.num_generations_per_prompt",))
def total_batch_divides(job: AnyGrpoJob) -> Iterator[Finding]:
    """Every response of a step lands in exactly one optimizer step."""
    gbs = job.config.policy.train_global_batch_size
    if job.responses % gbs:
        yield job.error(
            GBS,
            f"{_product(job)} responses per step are not a multiple of `{GBS}` {gbs}",
            hint=f"set `{GBS}={job.responses}` for one optimizer step per rollout",
        )


@rules.rule("off-policy-updates")
def one_update_per_rollout(job: AnyGrpoJob) -> Iterator[Finding]:
    """Silent upstream: with several updates per rollout all but the first are off-policy."""
    gbs = job.config.policy.train_global_batch_size
    updates, rest = divmod(job.responses, gbs)
    if updates > 1 and not rest:
        yield job.warning(
            GBS,
            f"each rollout of {job.responses} responses is trained on in {updates} optimizer steps, "
            f"of which {updates - 1} are off-policy",
            hint=f"set `{GBS}={job.responses}` to stay on-policy",
        )


@rules.rule("data-parallel-batch", number=23, engines=NEMO_RL)
def batches_divide_over_ranks(job: AnyGrpoJob) -> Iterator[Finding]:
    """A global batch splits evenly over the data-parallel ranks and there into micro-batches."""
    policy, dp = job.config.policy, job.data_parallel
    gbs, mbs = policy.train_global_batch_size, policy.train_micro_batch_size
    if gbs % dp:
        yield job.error(GBS, f"`{GBS}` {gbs} does not divide over {dp} data-parallel ranks")
        return
    if policy.packing or policy.batching:
        return
    if gbs // dp % mbs:
        yield job.error(MBS, f"{gbs // dp} responses per rank are not a multiple of `{MBS}` {mbs}")
    logprob = policy.logprob_batch_size or mbs
    if job.responses % dp == 0 and job.responses // dp % logprob:
        yield job.error(
            "policy.logprob_batch_size",
            f"{job.responses // dp} responses per rank are not a multiple of `policy.logprob_batch_size` {logprob}",
        )


@rules.rule("async-batch", number=24, engines=NEMO_RL)
def async_batch_divides(job: AnyGrpoJob) -> Iterator[Finding]:
    """Asynchronous GRPO shards whole rollouts over the ranks."""
    asynchronous = job.config.grpo.async_grpo
    if asynchronous and asynchronous.enabled and job.responses % job.data_parallel:
        yield job.error(
            "grpo.num_prompts_per_step", f"{_product(job)} responses do not divide over {job.data_parallel} ranks"
        )


@rules.rule("on-policy-ratio-batch", number=25, needs=(GBS,))
def forced_ratio_needs_one_update(job: AnyGrpoJob) -> Iterator[Finding]:
    """A ratio that is taken as 1 is only right in the first update after a rollout."""
    gbs = job.config.policy.train_global_batch_size
    if job.config.loss_fn.force_on_policy_ratio and gbs != job.responses:
        yield job.error(
            "loss_fn.force_on_policy_ratio",
            f"`loss_fn.force_on_policy_ratio` needs `{GBS}` to be the {job.responses} responses of a step, it is {gbs}",
            hint=f"set `{GBS}={job.responses}`",
        )


@rules.rule("batch-multiplier", number=26)
def multiplier_needs_dynamic_sampling(job: AnyGrpoJob) -> Iterator[Finding]:
    """More prompts per loader batch make sense only where groups are filtered away."""
    grpo = job.config.grpo
    if grpo.batch_multiplier != 1 and not grpo.use_dynamic_sampling:
        yield job.error(
            "grpo.batch_multiplier",
            f"`grpo.batch_multiplier` is {grpo.batch_multiplier:g} without `grpo.use_dynamic_sampling`",
            hint="set `grpo.batch_multiplier=1` or `grpo.use_dynamic_sampling=true`",
        )


@rules.rule("dynamic-sampling-unit", engines=NEMO_RL)
def nemo_rl_drops_rows(job: AnyGrpoJob) -> Iterator[Finding]:
    """NeMo-RL v0.7.0 knows rows only."""
    grpo = job.config.grpo
    if grpo.use_dynamic_sampling and grpo.dynamic_sampling_unit == "group" and grpo.use_leave_one_out_baseline:
        yield job.warning(
            "grpo.dynamic_sampling_unit",
            "NeMo-RL v0.7.0 drops rows and not groups: with a leave-one-out baseline the only answer that differs goes",
            hint="set `grpo.use_leave_one_out_baseline=false`, or `grpo.dynamic_sampling_unit=row` if that is meant",
        )


@rules.rule("prompts-per-dataloader", number=27, engines=NEMO_RL)
def loaders_share_a_batch(job: AnyGrpoJob) -> Iterator[Finding]:
    """Each of several loaders contributes the same number of prompts."""
    data, prompts = job.config.data, job.config.grpo.num_prompts_per_step
    if not data.use_multiple_dataloader:
        return
    if data.num_prompts_per_dataloader is None:
        yield job.error("data", "`data.use_multiple_dataloader` needs `data.num_prompts_per_dataloader`")
    elif prompts % data.num_prompts_per_dataloader:
        yield job.error(
            "data.num_prompts_per_dataloader",
            f"`grpo.num_prompts_per_step` {prompts} is not a multiple of "
            f"`data.num_prompts_per_dataloader` {data.num_prompts_per_dataloader}",
        )


@rules.rule("bin-too-small", number=28, engines=NEMO_RL)
def longest_sequence_fits_a_bin(job: AnyGrpoJob) -> Iterator[Finding]:
    """Packed bins and dynamic micro-batches must hold the longest sequence."""
    policy = job.config.policy
    longest = policy.max_total_sequence_length
    for name, section in (("sequence_packing", policy.packing), ("dynamic_batching", policy.batching)):
        if section is None:
            continue
        for key in ("train_mb_tokens", "logprob_mb_tokens"):
            size = getattr(section, key)
            if size is not None and size < longest:
                yield job.error(
                    f"policy.{name}.{key}",
                    f"`policy.{name}.{key}` {size} cannot hold a sequence of "
                    f"`policy.max_total_sequence_length` {longest} tokens",
                )


PACKERS = ("concatenative", "first_fit_decreasing", "first_fit_shuffle", "modified_first_fit_decreasing")


@rules.rule("packing-algorithm", number=28, engines=NEMO_RL)
def packing_algorithm_exists(job: AnyGrpoJob) -> Iterator[Finding]:
    """NeMo-RL looks the name up when the first batch is packed."""
    packing = job.config.policy.packing
    if packing and packing.algorithm.lower() not in PACKERS:
        yield job.error(
            "policy.sequence_packing.algorithm",
            f"`{packing.algorithm}` is not a packing algorithm",
            hint=f"use one of {', '.join(PACKERS)}",
        )


@rules.rule("group-of-one")
def group_has_something_to_compare(job: AnyGrpoJob) -> Iterator[Finding]:
    """Silent upstream: in a group of one the baseline is the reward itself, so nothing is ever learned."""
    grpo = job.config.grpo
    estimator = grpo.adv_estimator.name if grpo.adv_estimator else "grpo"
    if grpo.num_generations_per_prompt == 1 and estimator not in ("raw_reward", "opd"):
        yield job.error(
            "grpo.num_generations_per_prompt",
            "with one generation per prompt there is nothing to compare: every advantage is 0",
            hint="set `grpo.num_generations_per_prompt` to at least 2; 8 is usual",
        )

"""Rules of policy gradients: rollouts and updates, advantages, rewards, the loss, the KL to the reference."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.policy_gradient import AnyPolicyGradientJob
from nemotron.compile.rules.base import NEMO_RL, Rules
from nemotron.config.schema.grpo import GrpoConfig
from nemotron.errors import Finding

rules: Rules[AnyPolicyGradientJob] = Rules("policy-gradient")
SKIPS = "skip_reference_policy_logprobs_calculation"


@rules.rule("batch-not-divisible", number=22, needs=("{section}.num_generations_per_prompt",))
def total_batch_divides(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """Every response of a step lands in exactly one optimizer step of each model that is trained."""
    for batch in job.rollout_batches():
        if job.responses % batch.size:
            yield job.error(
                batch.key,
                f"{job.product} responses per step are not a multiple of `{batch.key}` {batch.size}",
                hint=f"set `{batch.key}={job.responses}` for one optimizer step per rollout",
            )


@rules.rule("on-policy-ratio-batch", number=25, needs=("policy.train_global_batch_size",))
def forced_ratio_needs_one_update(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """A ratio that is taken as 1 is only right in the first update after a rollout."""
    updates, gbs = job.config.updates_per_step, "policy.train_global_batch_size"
    if job.policy_loss.force_on_policy_ratio and updates > 1:
        passes = f"{job.section}.ppo_epochs"
        again = job.resolved.get(passes) not in (None, 1)
        yield job.error(
            "loss_fn.force_on_policy_ratio",
            f"`loss_fn.force_on_policy_ratio` needs one optimizer step per rollout, there are {updates}",
            hint=f"set `{gbs}={job.responses}`" + (f" and `{passes}=1`" if again else ""),
        )


@rules.rule("batch-multiplier", number=26)
def multiplier_needs_dynamic_sampling(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """More prompts per loader batch make sense only where groups are filtered away."""
    times, section = job.algorithm.batch_multiplier, job.section
    if times != 1 and not job.algorithm.use_dynamic_sampling:
        yield job.error(
            f"{section}.batch_multiplier",
            f"`{section}.batch_multiplier` is {times:g} without `{section}.use_dynamic_sampling`",
            hint=f"set `{section}.batch_multiplier=1` or `{section}.use_dynamic_sampling=true`",
        )


@rules.rule("dynamic-sampling-unit", engines=NEMO_RL)
def nemo_rl_drops_rows(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """NeMo-RL v0.7.0 knows rows only."""
    grpo = job.algorithm
    if not isinstance(grpo, GrpoConfig) or not grpo.use_dynamic_sampling or grpo.dynamic_sampling_unit != "group":
        return
    if grpo.use_leave_one_out_baseline:
        yield job.warning(
            f"{job.section}.dynamic_sampling_unit",
            "NeMo-RL v0.7.0 drops rows and not groups: with a leave-one-out baseline the only answer that differs goes",
            hint=f"set `{job.section}.use_leave_one_out_baseline=false`, or "
            f"`{job.section}.dynamic_sampling_unit=row` if that is meant",
        )


@rules.rule("prompts-per-dataloader", number=27, engines=NEMO_RL)
def loaders_share_a_batch(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """Each of several loaders contributes the same number of prompts."""
    data, prompts = job.config.data, job.algorithm.num_prompts_per_step
    if not data.use_multiple_dataloader:
        return
    if data.num_prompts_per_dataloader is None:
        yield job.error("data", "`data.use_multiple_dataloader` needs `data.num_prompts_per_dataloader`")
    elif prompts % data.num_prompts_per_dataloader:
        yield job.error(
            "data.num_prompts_per_dataloader",
            f"`{job.section}.num_prompts_per_step` {prompts} is not a multiple of "
            f"`data.num_prompts_per_dataloader` {data.num_prompts_per_dataloader}",
        )


@rules.rule("group-of-one")
def group_has_something_to_compare(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """Silent upstream: in a group of one the baseline is the reward itself, so nothing is ever learned."""
    key = f"{job.section}.num_generations_per_prompt"
    if job.algorithm.num_generations_per_prompt == 1 and job.estimator not in job.lonely_estimators:
        yield job.error(
            key,
            f"with one generation per prompt `{job.estimator}` has nothing to compare: every advantage is 0",
            hint=f"set `{key}` to at least 2; 8 is usual",
        )


@rules.rule("reference-kl-skipped", number=44)
def skipped_reference_needs_no_kl(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """Without reference log-probabilities there is no KL, in the rewards or in the loss."""
    key, beta = f"{job.section}.{SKIPS}", job.policy_loss.reference_policy_kl_penalty
    if job.algorithm.skip_reference_policy_logprobs_calculation and beta:
        yield job.error(
            key,
            f"`{key}` leaves nothing to compute `loss_fn.reference_policy_kl_penalty` {beta:g} from",
            hint=f"set `{key}=false`, or `loss_fn.reference_policy_kl_penalty=0`",
        )


@rules.rule("limit-unmeasured", needs=("{section}.skip_reference_policy_logprobs_calculation",))
def kl_limit_is_measured(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """The limit compares with the reference, so the reference must be computed."""
    if job.algorithm.skip_reference_policy_logprobs_calculation and job.shared.limits.max_kl is not None:
        yield job.error(
            "limits.max_kl",
            "`limits.max_kl` cannot be measured without log-probabilities of the reference",
            hint=f"set `limits.max_kl=null`, or `{job.section}.{SKIPS}=false`",
        )


@rules.rule("sequence-level-loss", number=46)
def sequence_ratios_need_sequence_loss(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """GSPO weighs whole responses."""
    loss = job.policy_loss
    if loss.sequence_level_importance_ratios and loss.token_level_loss:
        yield job.error(
            "loss_fn.sequence_level_importance_ratios",
            "`loss_fn.sequence_level_importance_ratios` needs `loss_fn.token_level_loss` to be false",
            hint="set `loss_fn.token_level_loss=false`",
        )


@rules.rule("importance-sampling", number=47)
def truncation_is_complete(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """A truncation type needs the correction it truncates and its bounds."""
    loss = job.policy_loss
    kind, high, low = (
        loss.truncated_importance_sampling_type,
        loss.truncated_importance_sampling_ratio,
        loss.truncated_importance_sampling_ratio_min,
    )
    key = "loss_fn.truncated_importance_sampling_type"
    if kind is None:
        if high is not None or low is not None:
            yield job.warning(
                key,
                "the truncation bounds have no effect without `truncated_importance_sampling_type`",
                hint=f"set `{key}=tis`",
            )
        return
    if not loss.use_importance_sampling_correction:
        yield job.error(
            key,
            f"`{kind}` truncates importance weights, which are not used",
            hint="set `loss_fn.use_importance_sampling_correction=true`",
        )
    if high is None:
        yield job.error(key, f"`{kind}` needs `loss_fn.truncated_importance_sampling_ratio`")
    elif low is not None and low > high:
        yield job.error(
            "loss_fn.truncated_importance_sampling_ratio_min",
            f"the lower truncation bound {low:g} is above the upper one {high:g}",
        )
    if low is None and kind != "tis":
        yield job.error(key, f"`{kind}` needs `loss_fn.truncated_importance_sampling_ratio_min`")
    if kind == "seq-mask-tis" and loss.sequence_level_importance_ratios:
        yield job.error(key, "`seq-mask-tis` works on token weights, not with `sequence_level_importance_ratios`")


@rules.rule("cispo", number=49)
def cispo_stands_alone(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """CISPO replaces the clipped objective, so switches of that objective contradict it."""
    loss = job.policy_loss
    if not loss.use_cispo:
        return
    clashes = {
        "disable_ppo_ratio": loss.disable_ppo_ratio,
        "force_on_policy_ratio": loss.force_on_policy_ratio,
        "sequence_level_importance_ratios": loss.sequence_level_importance_ratios,
        "ratio_clip_c": loss.ratio_clip_c is not None,
    }
    for name, on in clashes.items():
        if on:
            yield job.error(f"loss_fn.{name}", f"`loss_fn.use_cispo` and `loss_fn.{name}` exclude each other")
    if not loss.token_level_loss:
        yield job.error("loss_fn.token_level_loss", "`loss_fn.use_cispo` needs `loss_fn.token_level_loss=true`")


@rules.rule("reward-shaping", number=50)
def shaping_is_complete(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """Either the stop coefficient or all three values of the length penalty."""
    shaping, key = job.algorithm.reward_shaping, f"{job.section}.reward_shaping"
    if not shaping.enabled or shaping.stop_properly_penalty_coef is not None:
        return
    for name in ("overlong_buffer_length", "overlong_buffer_penalty", "max_response_length"):
        if getattr(shaping, name) is None:
            yield job.error(f"{key}.{name}", f"reward shaping needs `{key}.{name}`")


@rules.rule("overlong-buffer")
def buffer_is_inside_the_response(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """Silent upstream: with such a buffer every response is penalised."""
    shaping = job.algorithm.reward_shaping
    longest, buffer = shaping.max_response_length, shaping.overlong_buffer_length
    if not shaping.enabled or shaping.stop_properly_penalty_coef is not None or longest is None or buffer is None:
        return
    if buffer > longest:
        yield job.error(
            f"{job.section}.reward_shaping.overlong_buffer_length",
            f"the overlong buffer of {buffer} tokens is longer than a response may be ({longest})",
        )


@rules.rule("empty-range")
def ranges_are_not_empty(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """Bounds that leave nothing between them."""
    scaling, (low, high) = job.algorithm.reward_scaling, job.advantage_range
    if scaling.enabled and scaling.source_min >= scaling.source_max:
        yield job.error(
            f"{job.section}.reward_scaling.source_max",
            f"reward scaling maps an empty range: {scaling.source_min:g} to {scaling.source_max:g}",
        )
    if low is not None and high is not None and low >= high:
        key = f"{job.section}.advantage_clip_high"
        yield job.error(key, f"advantages are clipped to an empty range: {low:g} to {high:g}")


@rules.rule("reward-scale")
def scaling_covers_rewards(job: AnyPolicyGradientJob) -> Iterator[Finding]:
    """Scaling clamps what lies outside its source range."""
    scaling, known, key = job.algorithm.reward_scaling, job.reward_range, f"{job.section}.reward_scaling"
    if not scaling.enabled or known is None:
        return
    low, high = known
    if scaling.source_max < high or scaling.source_min > low:
        yield job.warning(
            f"{key}.source_max",
            f"rewards run from {low:g} to {high:g}, but scaling clamps them to {scaling.source_min:g} to "
            f"{scaling.source_max:g} first",
            hint=f"set `{key}.source_min={low:g}` and `{key}.source_max={high:g}`",
        )

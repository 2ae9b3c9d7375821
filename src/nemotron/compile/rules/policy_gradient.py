"""Rules of the algorithm: advantages, rewards, the loss and validation."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.grpo import AnyGrpoJob
from nemotron.compile.rules.base import NEMO_RL, Rules
from nemotron.errors import Finding

rules: Rules[AnyGrpoJob] = Rules("grpo")


@rules.rule("no-validation-data", number=42)
def validation_needs_rows(job: AnyGrpoJob) -> Iterator[Finding]:
    """Validation that is asked for needs something to validate on."""
    grpo, data = job.config.grpo, job.config.data
    if data.validation_sets():
        return
    wanted = [
        name
        for name, on in (
            ("val_period", grpo.val_period > 0),
            ("val_at_start", grpo.val_at_start),
            ("val_at_end", grpo.val_at_end),
        )
        if on
    ]
    if wanted and not any(d.split_validation_size for d in data.training_sets()):
        yield job.error(
            f"grpo.{wanted[0]}",
            f"`grpo.{wanted[0]}` asks for validation, but `data.validation` is not set",
            hint="set `data.validation.data_path`, or `grpo.val_period=0`, `grpo.val_at_start=false`, "
            "`grpo.val_at_end=false`",
        )


@rules.rule("reference-kl-skipped", number=44)
def skipped_reference_needs_no_kl(job: AnyGrpoJob) -> Iterator[Finding]:
    """Without reference log-probabilities there is no KL term."""
    beta = job.config.loss_fn.reference_policy_kl_penalty
    if job.config.grpo.skip_reference_policy_logprobs_calculation and beta:
        yield job.error(
            "grpo.skip_reference_policy_logprobs_calculation",
            "`grpo.skip_reference_policy_logprobs_calculation` leaves nothing to compute "
            f"`loss_fn.reference_policy_kl_penalty` {beta:g} from",
            hint="set `grpo.skip_reference_policy_logprobs_calculation=false`, "
            "or `loss_fn.reference_policy_kl_penalty=0`",
        )


@rules.rule("limit-unmeasured", needs=("grpo.skip_reference_policy_logprobs_calculation",))
def kl_limit_is_measured(job: AnyGrpoJob) -> Iterator[Finding]:
    """The limit compares with the reference, so the reference must be computed."""
    if job.config.grpo.skip_reference_policy_logprobs_calculation and job.config.limits.max_kl is not None:
        yield job.error(
            "limits.max_kl",
            "`limits.max_kl` cannot be measured without log-probabilities of the reference",
            hint="set `limits.max_kl=null`, or `grpo.skip_reference_policy_logprobs_calculation=false`",
        )


@rules.rule("advantage-estimator", number=45, needs=("grpo.adv_estimator.name",))
def estimator_has_what_it_needs(job: AnyGrpoJob) -> Iterator[Finding]:
    """``gdpo`` needs several rewards, ``opd`` needs teachers; the embedded loop has one reward."""
    estimator = job.config.grpo.adv_estimator
    name = estimator.name if estimator else "grpo"
    key = "grpo.adv_estimator.name"
    if name == "gdpo":
        yield job.error(
            key, "`gdpo` needs at least two reward components, this step gives one", hint=f"set `{key}=grpo`"
        )
    distillation = job.config.on_policy_distillation
    if name == "opd" and not (distillation and distillation.enabled):
        yield job.error(key, "`opd` needs teachers", hint="set `on_policy_distillation.enabled=true` and its teachers")


@rules.rule("estimator-settings-differ")
def estimator_agrees_with_grpo(job: AnyGrpoJob) -> Iterator[Finding]:
    """The estimator has its own copy of two switches; NeMo-RL uses one for the std and the other for the advantage."""
    grpo = job.config.grpo
    if grpo.adv_estimator is None:
        return
    for name in ("normalize_rewards", "use_leave_one_out_baseline"):
        ours, theirs = getattr(grpo, name), getattr(grpo.adv_estimator, name)
        if ours != theirs:
            yield job.warning(
                f"grpo.adv_estimator.{name}",
                f"`grpo.{name}` is {str(ours).lower()}, but `grpo.adv_estimator.{name}` is {str(theirs).lower()}",
                hint=f"set both, or write `${{grpo.{name}}}` in the estimator",
            )


@rules.rule("sequence-level-loss", number=46)
def sequence_ratios_need_sequence_loss(job: AnyGrpoJob) -> Iterator[Finding]:
    """GSPO weighs whole responses."""
    loss = job.config.loss_fn
    if loss.sequence_level_importance_ratios and loss.token_level_loss:
        yield job.error(
            "loss_fn.sequence_level_importance_ratios",
            "`loss_fn.sequence_level_importance_ratios` needs `loss_fn.token_level_loss` to be false",
            hint="set `loss_fn.token_level_loss=false`",
        )


@rules.rule("importance-sampling", number=47)
def truncation_is_complete(job: AnyGrpoJob) -> Iterator[Finding]:
    """A truncation type needs the correction it truncates and its bounds."""
    loss = job.config.loss_fn
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
def cispo_stands_alone(job: AnyGrpoJob) -> Iterator[Finding]:
    """CISPO replaces the clipped objective, so switches of that objective contradict it."""
    loss = job.config.loss_fn
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
def shaping_is_complete(job: AnyGrpoJob) -> Iterator[Finding]:
    """Either the stop coefficient or all three values of the length penalty."""
    shaping = job.config.grpo.reward_shaping
    if not shaping.enabled or shaping.stop_properly_penalty_coef is not None:
        return
    for name in ("overlong_buffer_length", "overlong_buffer_penalty", "max_response_length"):
        if getattr(shaping, name) is None:
            yield job.error(f"grpo.reward_shaping.{name}", f"reward shaping needs `grpo.reward_shaping.{name}`")


@rules.rule("overlong-buffer")
def buffer_is_inside_the_response(job: AnyGrpoJob) -> Iterator[Finding]:
    """Silent upstream: with such a buffer every response is penalised."""
    shaping = job.config.grpo.reward_shaping
    longest, buffer = shaping.max_response_length, shaping.overlong_buffer_length
    if not shaping.enabled or shaping.stop_properly_penalty_coef is not None or longest is None or buffer is None:
        return
    if buffer > longest:
        yield job.error(
            "grpo.reward_shaping.overlong_buffer_length",
            f"the overlong buffer of {buffer} tokens is longer than a response may be ({longest})",
        )


@rules.rule("async-grpo", number=51, engines=NEMO_RL)
def async_has_what_it_needs(job: AnyGrpoJob) -> Iterator[Finding]:
    """Asynchronous GRPO: own GPUs for an asynchronous engine, corrected weights, nothing that reshapes batches."""
    grpo = job.config.grpo
    if not (grpo.async_grpo and grpo.async_grpo.enabled):
        return
    key = "grpo.async_grpo.enabled"
    colocated = job.generation.colocated if job.generation else None
    wanted = {
        "policy.generation.vllm_cfg.async_engine=true": job.vllm is not None and job.vllm.async_engine,
        "loss_fn.use_importance_sampling_correction=true": job.config.loss_fn.use_importance_sampling_correction,
        "policy.generation.colocated.enabled=false": colocated is not None and not colocated.enabled,
        "grpo.use_dynamic_sampling=false": not grpo.use_dynamic_sampling,
        "grpo.reward_scaling.enabled=false": not grpo.reward_scaling.enabled,
        "grpo.reward_shaping.enabled=false": not grpo.reward_shaping.enabled,
        "data.use_multiple_dataloader=false": not job.config.data.use_multiple_dataloader,
    }
    missing = [setting for setting, there in wanted.items() if not there]
    if missing:
        yield job.error(
            key,
            "asynchronous GRPO does not work with these settings",
            hint="set " + ", ".join(f"`{setting}`" for setting in missing),
        )


@rules.rule("kl-in-reward", number=53)
def kl_in_reward_is_used(job: AnyGrpoJob) -> Iterator[Finding]:
    """Only ``reinforce_plus_plus`` puts the KL into the advantages, and it needs real previous log-probabilities."""
    loss, estimator = job.config.loss_fn, job.config.grpo.adv_estimator
    key = "loss_fn.use_kl_in_reward"
    if not loss.use_kl_in_reward:
        return
    if estimator is None or estimator.name != "reinforce_plus_plus":
        yield job.error(
            key,
            f"`{key}` has an effect with the estimator `reinforce_plus_plus` only",
            hint="set `grpo.adv_estimator.name=reinforce_plus_plus`, or leave the KL in the loss",
        )
    if loss.force_on_policy_ratio and loss.reference_policy_kl_penalty:
        yield job.error(key, f"`{key}` needs previous log-probabilities, which `force_on_policy_ratio` skips")


@rules.rule("validation-of-nothing", engines=NEMO_RL)
def validation_covers_a_batch(job: AnyGrpoJob) -> Iterator[Finding]:
    """Silent upstream: fewer samples than one validation batch give accuracy 0.0."""
    grpo = job.config.grpo
    if grpo.max_val_samples is not None and grpo.val_batch_size and grpo.max_val_samples < grpo.val_batch_size:
        yield job.error(
            "grpo.max_val_samples",
            f"`grpo.max_val_samples` {grpo.max_val_samples} is less than one batch of `grpo.val_batch_size` "
            f"{grpo.val_batch_size}: validation would score nothing and report 0",
            hint=f"set `grpo.val_batch_size={max(1, grpo.max_val_samples)}` or raise `grpo.max_val_samples`",
        )


@rules.rule("empty-range")
def ranges_are_not_empty(job: AnyGrpoJob) -> Iterator[Finding]:
    """Bounds that leave nothing between them."""
    grpo, scaling = job.config.grpo, job.config.grpo.reward_scaling
    if scaling.enabled and scaling.source_min >= scaling.source_max:
        yield job.error(
            "grpo.reward_scaling.source_max",
            f"reward scaling maps an empty range: {scaling.source_min:g} to {scaling.source_max:g}",
        )
    low, high = grpo.advantage_clip_low, grpo.advantage_clip_high
    if low is not None and high is not None and low >= high:
        yield job.error("grpo.advantage_clip_high", f"advantages are clipped to an empty range: {low:g} to {high:g}")


@rules.rule("reward-scale")
def scaling_covers_rewards(job: AnyGrpoJob) -> Iterator[Finding]:
    """Scaling clamps what lies outside its source range."""
    scaling, known = job.config.grpo.reward_scaling, job.reward_range
    if not scaling.enabled or known is None:
        return
    low, high = known
    if scaling.source_max < high or scaling.source_min > low:
        yield job.warning(
            "grpo.reward_scaling.source_max",
            f"rewards run from {low:g} to {high:g}, but scaling clamps them to {scaling.source_min:g} to "
            f"{scaling.source_max:g} first",
            hint=f"set `grpo.reward_scaling.source_min={low:g}` and `grpo.reward_scaling.source_max={high:g}`",
        )


@rules.rule("schedulers", number=19)
def schedulers_form_a_sequence(job: AnyGrpoJob) -> Iterator[Finding]:
    """Several schedulers need, as last entry, the steps at which one hands over to the next."""
    entries = job.config.policy.scheduler or []
    key = "policy.scheduler"
    named = [entry for entry in entries if entry.milestones is None]
    if any(entry.milestones is not None for entry in entries[:-1]):
        yield job.error(key, "`milestones` must be the last entry of `policy.scheduler`")
    elif len(named) > 1:
        milestones = entries[-1].milestones
        if milestones is None or len(milestones) != len(named) - 1:
            given = 0 if milestones is None else len(milestones)
            yield job.error(
                key,
                f"{len(named)} schedulers in sequence need {len(named) - 1} milestones, {given} are given",
                hint=f"end the list with `milestones: [...]` of {len(named) - 1} steps",
            )
    elif entries and not named:
        yield job.error(key, "`policy.scheduler` has milestones but no scheduler")

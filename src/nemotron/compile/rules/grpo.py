"""Rules that GRPO alone has."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.grpo import AnyGrpoJob
from nemotron.compile.rules.base import EMBEDDED, NEMO_RL, Rules
from nemotron.errors import Finding, NotAvailableError
from nemotron.vllm.arguments import OURS
from nemotron.vllm.where import get, missing, unseen

rules: Rules[AnyGrpoJob] = Rules("grpo")


@rules.rule("sampler-server", engines=NEMO_RL)
def sampler_is_nemo_rls(job: AnyGrpoJob) -> Iterator[Finding]:
    """NeMo-RL has a key of its own for who samples."""
    if job.config.sampler.server != "embedded":
        yield job.note("sampler.server", "not read here: NeMo-RL samples as `policy.generation.backend` says")


@rules.rule("sampler-server", engines=EMBEDDED)
def sampler_can_be_served_so(job: AnyGrpoJob) -> Iterator[Finding]:
    """The vLLM that samples is there, and what is said of it is said of one that is started."""
    settings = job.config.sampler
    if settings.server == "embedded":
        seen: set[int] = set()
        for key, origin in job.resolved.origins.items():
            if origin.argument is None or origin.argument in seen or key == "sampler.server":
                continue
            if key.startswith("sampler."):
                seen.add(origin.argument)
                message = f"`{key}` has no effect: the policy samples itself (`sampler.server` is `embedded`)"
                yield job.error(key, message, hint="leave it out, or set `sampler.server=vllm`")
        return
    key = "sampler.vllm_command" if settings.vllm_command else "sampler.server"
    if (lacking := missing(settings.vllm_command, job.place)) is not None:
        yield job.error(key, lacking, hint=get("sampler.vllm_command"), kind=NotAvailableError)
    elif unseen(settings.vllm_command, job.place):
        yield job.note(key, f"whether `{job.place.name}` has vLLM was not looked at from here")
    for name in settings.vllm_serve_kwargs or {}:
        if name.replace("-", "_") in OURS:
            message = "where and as what the sampler answers is chosen when it is started"
            yield job.error(f"sampler.vllm_serve_kwargs.{name}", message, hint="leave it out")
    if job.config.policy.precision != "float32" and not job.config.loss_fn.use_importance_sampling_correction:
        yield job.warning(
            "loss_fn.use_importance_sampling_correction",
            f"vLLM and the policy round differently in {job.config.policy.precision}, and nothing corrects for it",
            hint="set `loss_fn.use_importance_sampling_correction=true`",
        )


@rules.rule("off-policy-updates")
def one_update_per_rollout(job: AnyGrpoJob) -> Iterator[Finding]:
    """Silent upstream: with several updates per rollout all but the first are off-policy."""
    key, gbs = "policy.train_global_batch_size", job.config.policy.train_global_batch_size
    updates, rest = divmod(job.responses, gbs)
    if updates > 1 and not rest:
        yield job.warning(
            key,
            f"each rollout of {job.responses} responses is trained on in {updates} optimizer steps, "
            f"of which {updates - 1} are off-policy",
            hint=f"set `{key}={job.responses}` to stay on-policy",
        )


@rules.rule("async-batch", number=24, engines=NEMO_RL)
def async_batch_divides(job: AnyGrpoJob) -> Iterator[Finding]:
    """Asynchronous GRPO shards whole rollouts over the ranks."""
    asynchronous = job.config.grpo.async_grpo
    if asynchronous and asynchronous.enabled and job.responses % job.data_parallel:
        yield job.error(
            "grpo.num_prompts_per_step", f"{job.product} responses do not divide over {job.data_parallel} ranks"
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

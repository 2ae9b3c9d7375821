"""The preflight of reward model training: what is special about it, and every family of rules, in order."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.pairs import RmJob
from nemotron.compile.rules.base import NEMO_RL, Rules
from nemotron.errors import DataError, Finding, NotAvailableError

KIND = "policy.reward_model_cfg"
GBS = "policy.train_global_batch_size"
MBS = "policy.train_micro_batch_size"


rules: Rules[RmJob] = Rules("reward-model")


@rules.rule("reward-model-type", number=65)
def bradley_terry_is_asked_for(job: RmJob) -> Iterator[Finding]:
    """The policy becomes a reward model only when the config says so, and pairs teach one kind only."""
    section = job.config.policy.reward_model_cfg
    if section is None or not section.enabled:
        yield job.error(
            f"{KIND}.enabled", f"`{KIND}.enabled` must be true: this step trains a reward model", hint="set it to true"
        )
    elif section.reward_model_type != "bradley_terry":
        yield job.error(
            f"{KIND}.reward_model_type",
            f"pairs train a `bradley_terry` reward model, not `{section.reward_model_type}`",
            hint=f"set `{KIND}.reward_model_type=bradley_terry`",
        )


@rules.rule("no-validation-data", number=64)
def validation_has_data(job: RmJob) -> Iterator[Finding]:
    """NeMo-RL stops when a validation is due and there is nothing to validate on."""
    rm = job.config.rm
    if job.config.data.validation_sets():
        return
    off = {"val_period": "0", "val_at_start": "false", "val_at_end": "false"}
    wanted = [key for key in off if getattr(rm, key)]
    if wanted:
        yield job.error(
            f"rm.{wanted[0]}",
            f"`rm.{wanted[0]}` asks for validation, and `data.validation` is null",
            kind=DataError,
            hint="name validation pairs, or set " + ", ".join(f"`rm.{key}={off[key]}`" for key in wanted),
        )


@rules.rule("no-steps")
def something_is_trained(job: RmJob) -> Iterator[Finding]:
    """-1 leaves the end to the epochs; 0 would train nothing and end with success."""
    most = job.config.rm.max_num_steps
    if most == 0 or most < -1:
        yield job.error("rm.max_num_steps", f"`rm.max_num_steps` is {most}", hint="set -1 to end with the last epoch")


@rules.rule("micro-batch")
def micro_batches_fill_a_batch(job: RmJob) -> Iterator[Finding]:
    """Both count pairs."""
    policy, rm = job.config.policy, job.config.rm
    places = (
        (MBS, policy.train_micro_batch_size, GBS, policy.train_global_batch_size),
        ("rm.val_micro_batch_size", rm.val_micro_batch_size, "rm.val_global_batch_size", rm.val_global_batch_size),
    )
    for small_key, small, large_key, large in places:
        if large % small:
            yield job.error(
                small_key,
                f"`{large_key}` {large} is not a multiple of `{small_key}` {small}; both count pairs",
                hint=f"set `{small_key}` to a divisor of {large}",
            )


@rules.rule("data-parallel-batch", number=23, engines=NEMO_RL)
def batches_divide_over_ranks(job: RmJob) -> Iterator[Finding]:
    """A global batch of pairs splits evenly over the data-parallel ranks and there into micro-batches."""
    policy, rm, ranks = job.config.policy, job.config.rm, job.data_parallel
    places = (
        (GBS, policy.train_global_batch_size, policy.train_micro_batch_size),
        ("rm.val_global_batch_size", rm.val_global_batch_size, rm.val_micro_batch_size),
    )
    for key, large, small in places:
        if large % (ranks * small):
            yield job.error(
                key, f"`{key}` {large} does not divide into micro-batches of {small} on {ranks} data-parallel ranks"
            )


@rules.rule("reward-model-backend", number=65, engines=NEMO_RL)
def backend_trains_reward_models(job: RmJob) -> Iterator[Finding]:
    """NeMo-RL v0.7.0 has reward models with DTensor alone, unpacked and without context parallelism."""
    policy = job.config.policy
    if policy.megatron:
        yield job.error(
            "policy.megatron_cfg.enabled",
            "NeMo-RL trains reward models with DTensor only",
            hint="set `policy.megatron_cfg.enabled=false` and `policy.dtensor_cfg.enabled=true`",
        )
    if policy.packing:
        yield job.error("policy.sequence_packing.enabled", "NeMo-RL does not pack the rows of a reward model")
    if policy.dtensor and policy.dtensor.context_parallel_size > 1:
        yield job.error(
            "policy.dtensor_cfg.context_parallel_size", "NeMo-RL trains reward models with context-parallel size 1"
        )


@rules.rule("not-in-nemo-rl", engines=NEMO_RL)
def nemo_rl_has_the_plain_loss(job: RmJob) -> Iterator[Finding]:
    """Margin and centring are ours."""
    section = job.config.bradley_terry
    for key in ("margin_key", "center_rewards_coefficient"):
        if getattr(section, key):
            yield job.error(
                f"bradley_terry.{key}",
                f"NeMo-RL has no `{key}`",
                kind=NotAvailableError,
                hint="leave it out, or run with `engine=embedded`",
            )


@rules.rule("margin-in-tokens")
def tokens_hold_no_margins(job: RmJob) -> Iterator[Finding]:
    """Token shards hold ids and lengths, no other fields."""
    if job.config.data.use_tokens and job.config.bradley_terry.margin_key:
        yield job.error(
            "bradley_terry.margin_key",
            "token ids come without margins",
            hint="set `data.use_tokens=false` to read the rows",
        )

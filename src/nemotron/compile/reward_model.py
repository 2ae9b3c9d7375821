"""The preflight of reward model training: what is special about it, and every family of rules, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from nemotron.compile import artifacts, checkpointing, data, engine, output, parallelism, prepared, resources
from nemotron.compile.describe import inputs, outputs, policy_processes
from nemotron.compile.dpo import PAIR_READS
from nemotron.compile.estimate import Work, memory, steps
from nemotron.compile.job import COMMON_READS, Job
from nemotron.compile.plan import Preflight, Surroundings
from nemotron.compile.rules import NEMO_RL, Rules, check
from nemotron.compile.secrets import secrets_in
from nemotron.compile.survey import RowKind
from nemotron.config.layers import Resolved
from nemotron.config.schema.rm import RmRunConfig
from nemotron.errors import DataError, Finding, NotAvailableError

KIND = "policy.reward_model_cfg"
GBS = "policy.train_global_batch_size"
MBS = "policy.train_micro_batch_size"
METRICS = ("loss", "accuracy", "margin", "rewards_chosen_mean", "rewards_rejected_mean", "num_valid_samples")


@dataclass(frozen=True)
class RmJob(Job[RmRunConfig]):
    """Training a reward model."""

    section: ClassVar[str] = "rm"
    row_kind: ClassVar[RowKind] = "preference"
    heldout_kind: ClassVar[RowKind] = "preference"
    reads: ClassVar[tuple[str, ...]] = (
        *COMMON_READS,
        "bradley_terry",
        *PAIR_READS,
        KIND,
        "rm",
    )
    trains_reward_model: ClassVar[bool] = True

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        """NeMo-RL's names, for every validation set."""
        sets = self.config.data.named_validation_sets()
        return tuple(f"validation-{name}_{metric}" for name in sets for metric in METRICS)

    @property
    def has_heldout(self) -> bool:
        """Whether `eval.heldout` is measured."""
        return self.config.eval.heldout is not None

    @property
    def heldout_path(self) -> str | None:
        """The file of `eval.heldout`."""
        heldout = self.config.eval.heldout
        return heldout.data_path if heldout else None

    @property
    def heldout_split(self) -> str | None:
        """The split of `data.manifest_path` that `eval.heldout` takes instead."""
        heldout = self.config.eval.heldout
        return heldout.split if heldout else None


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
    for key in ("val_period", "val_at_start", "val_at_end"):
        if getattr(rm, key):
            off = "0" if key == "val_period" else "false"
            yield job.error(
                f"rm.{key}",
                f"`rm.{key}` asks for validation, and `data.validation` is null",
                kind=DataError,
                hint=f"name validation pairs, or set `rm.{key}={off}`",
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


@rules.rule("token-shards")
def tokens_are_there(job: RmJob) -> Iterator[Finding]:
    """Token shards come with a manifest, and hold neither text nor other fields."""
    section, key = job.config.bradley_terry, "bradley_terry.token_shards"
    if not section.token_shards:
        return
    if job.config.data.manifest_path is None:
        yield job.error(key, f"`{key}` needs a manifest", kind=DataError, hint="set `data.manifest_path`")
        return
    if section.margin_key:
        yield job.error(
            "bradley_terry.margin_key", "token shards hold no margins", hint=f"set `{key}=false` to read the rows"
        )
    manifest = prepared.manifest_of(job)
    wanted = prepared.splits_wanted(job).values() if manifest else ()
    for split, _ in wanted:
        entry = manifest.value["splits"].get(split, {}) if manifest else {}
        if entry.get("shards") and not entry.get("token_shards"):
            yield job.error(
                key,
                f"the manifest has no tokens of the split `{split}`",
                kind=DataError,
                hint="prepare the data with `tokenize.tokenizer` and `tokenize.max_length`, or set it to false",
            )


STAGES: tuple[tuple[Rules[Any], ...], ...] = (
    (engine.rules,),
    (rules, parallelism.rules, checkpointing.rules),
    (output.rules, resources.rules),
    (artifacts.rules,),
    (data.rules,),
)
"""The order of the preflight. All stages run; the first error in this order decides the exit code."""


def preflight(config: RmRunConfig, resolved: Resolved, where: Surroundings) -> Preflight:
    """Choose the engine, run every rule, and describe what would run."""
    choice = engine.choose(config.engine, where.machine)
    job = RmJob(config, resolved, choice.engine, where.machine, where.runs_dir, where.env)
    return Preflight(
        engine=choice.engine,
        engine_reason=choice.reason,
        findings=check(job, STAGES),
        processes=tuple(policy_processes(job, work="trains the reward model")),
        inputs=inputs(job),
        outputs=outputs(job),
        work=work(job),
        memory=memory(job) if choice.engine == "embedded" else None,
        secrets=secrets_in(config),
    )


def work(job: RmJob) -> Work:
    """Sizes of the run."""
    pairs = job.config.policy.train_global_batch_size
    return Work(
        batch=f"{pairs} pairs",
        pairs=pairs,
        updates=1,
        steps=steps(job),
        tokens_per_step=2 * pairs * job.config.policy.max_total_sequence_length,
    )

"""The preflight of DPO: its own rules, and the families that it shares with every training step."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.pairs import DpoJob
from nemotron.compile.rules.base import NEMO_RL, Rules
from nemotron.errors import DataError, Finding

GBS, MBS = "policy.train_global_batch_size", "policy.train_micro_batch_size"


rules: Rules[DpoJob] = Rules("dpo")


@rules.rule("no-steps")
def steps_are_made(job: DpoJob) -> Iterator[Finding]:
    """Silent upstream: -1 means "no limit" in other sections; here it ends the run before its first step."""
    most = job.config.dpo.max_num_steps
    if most < 1:
        yield job.error(
            "dpo.max_num_steps",
            f"with `dpo.max_num_steps` {most} no step is made",
            hint="for whole epochs set a number that is larger than they have, for example 1000000",
        )


@rules.rule("no-loss")
def something_is_learned(job: DpoJob) -> Iterator[Finding]:
    """With both weights 0 every gradient is 0."""
    dpo = job.config.dpo
    if dpo.preference_loss_weight == 0 and dpo.sft_loss_weight == 0:
        yield job.error(
            "dpo.preference_loss_weight",
            "both `dpo.preference_loss_weight` and `dpo.sft_loss_weight` are 0: there is nothing to learn from",
            hint="set `dpo.preference_loss_weight=1`",
        )


@rules.rule("sft-average-unused")
def average_belongs_to_a_term(job: DpoJob) -> Iterator[Finding]:
    """The SFT term is left out at weight 0, however it would be averaged."""
    dpo = job.config.dpo
    if dpo.sft_average_log_probs and dpo.sft_loss_weight == 0:
        yield job.warning(
            "dpo.sft_average_log_probs",
            "`dpo.sft_average_log_probs` has no effect: `dpo.sft_loss_weight` is 0",
            hint="set `dpo.sft_loss_weight`, for example 0.1",
        )


@rules.rule("no-validation-data", number=64)
def validation_has_pairs(job: DpoJob) -> Iterator[Finding]:
    """Upstream stops at the first validation."""
    if job.validates and not job.config.data.validation_sets():
        yield job.error(
            "data.validation",
            "validation is asked for, but there are no validation pairs",
            kind=DataError,
            hint="set `data.validation.data_path`, or `dpo.val_period=0`, `dpo.val_at_start=false`, "
            "`dpo.val_at_end=false`",
        )


@rules.rule("no-generation", number=30)
def heldout_answers_can_be_sampled(job: DpoJob) -> Iterator[Finding]:
    """DPO itself samples nothing, its held-out metric does."""
    if job.config.eval.heldout and job.generation is None:
        yield job.error(
            "eval.heldout",
            "the held-out metric samples answers, but there is no section `policy.generation`",
            hint="add it as `tiny.yaml` does, or set `eval.heldout=null`",
        )


@rules.rule("data-parallel-batch", number=23, engines=NEMO_RL)
def batches_divide_over_ranks(job: DpoJob) -> Iterator[Finding]:
    """NeMo-RL doubles both sizes, because a pair is two rows, and then wants whole micro-batches on every rank."""
    policy, dp = job.config.policy, job.data_parallel
    gbs, mbs = policy.train_global_batch_size, policy.train_micro_batch_size
    if 2 * gbs % dp:
        yield job.error(GBS, f"{gbs} pairs are {2 * gbs} rows, which do not divide over {dp} data-parallel ranks")
    elif 2 * gbs // dp % (2 * mbs):
        yield job.error(
            MBS,
            f"{2 * gbs // dp} rows per rank are not a multiple of {2 * mbs}, the rows of `{MBS}` {mbs} pairs",
            hint=f"choose `{GBS}` as a multiple of {dp * mbs} pairs ({dp} ranks x {mbs})",
        )


@rules.rule("batching-mode", number=63, engines=NEMO_RL)
def pairs_are_not_packed(job: DpoJob) -> Iterator[Finding]:
    """The loss needs chosen and rejected rows side by side."""
    policy = job.config.policy
    for name, section in (("sequence_packing", policy.packing), ("dynamic_batching", policy.batching)):
        if section is not None:
            key = f"policy.{name}.enabled"
            yield job.error(key, f"DPO in NeMo-RL does not work with `policy.{name}`", hint=f"set `{key}=false`")


@rules.rule("response-too-long")
def limits_agree(job: DpoJob) -> Iterator[Finding]:
    """Both bound prompt and answer together here; pairs beyond the smaller one are left out and counted."""
    rows, longest = job.config.data.max_input_seq_length, job.config.policy.max_total_sequence_length
    if rows is not None and rows > longest:
        yield job.error(
            "data.max_input_seq_length",
            f"`data.max_input_seq_length` {rows} is more than `policy.max_total_sequence_length` {longest}",
            hint="set both to the same number",
        )

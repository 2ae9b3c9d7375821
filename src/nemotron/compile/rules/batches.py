"""Arithmetic of batches and lengths: global and micro batches, ranks, bins, rows that fit."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.rules.base import NEMO_RL, Rules
from nemotron.errors import Finding

rules: Rules[AnyJob] = Rules("batches")


@rules.rule("micro-batch")
def micro_batches_fill_a_batch(job: AnyJob) -> Iterator[Finding]:
    """Where the loss is a mean over whole micro-batches."""
    for batch in job.batches() if job.whole_micro_batches else ():
        if batch.size % batch.micro:
            yield job.error(
                batch.micro_key,
                f"`{batch.key}` {batch.size} is not a multiple of `{batch.micro_key}` {batch.micro}; "
                f"both count {job.noun}",
                hint=f"set `{batch.micro_key}` to a divisor of {batch.size}",
            )


@rules.rule("data-parallel-batch", number=23, engines=NEMO_RL)
def batches_divide_over_ranks(job: AnyJob) -> Iterator[Finding]:
    """A global batch splits evenly over the data-parallel ranks and there into micro-batches."""
    policy, ranks = job.config.policy, job.data_parallel
    reshaped = job.packs_rows and bool(policy.packing or policy.batching)
    for batch in job.batches():
        fit = f"choose a multiple of {ranks * batch.micro} ({ranks} ranks x {batch.micro})"
        if batch.size % ranks:
            message = f"`{batch.key}` {batch.size} does not divide over {ranks} data-parallel ranks"
            yield job.error(batch.key, message, hint=fit)
        elif not reshaped and batch.size // ranks % batch.micro:
            message = f"{batch.size // ranks} {job.noun} per rank are not a multiple of `{batch.micro_key}`"
            yield job.error(batch.micro_key, f"{message} {batch.micro}", hint=f"for `{batch.key}` {fit}")
    at_once, size = job.rows_at_once, policy.logprob_rows
    if not reshaped and at_once % ranks == 0 and at_once // ranks % size:
        yield job.error(
            "policy.logprob_batch_size",
            f"{at_once // ranks} responses per rank are not a multiple of `policy.logprob_batch_size` {size}",
        )


@rules.rule("bin-too-small", number=28, engines=NEMO_RL)
def longest_sequence_fits_a_bin(job: AnyJob) -> Iterator[Finding]:
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
def packing_algorithm_exists(job: AnyJob) -> Iterator[Finding]:
    """NeMo-RL looks the name up when the first batch is packed."""
    packing = job.config.policy.packing
    if packing and packing.algorithm.lower() not in PACKERS:
        yield job.error(
            "policy.sequence_packing.algorithm",
            f"`{packing.algorithm}` is not a packing algorithm",
            hint=f"use one of {', '.join(PACKERS)}",
        )


@rules.rule("prompt-too-long")
def longest_row_fits_the_sequence(job: AnyJob) -> Iterator[Finding]:
    """Silent upstream: such prompts leave no room for a response. Of a pair it bounds prompt and answer together."""
    key, row, longest = "data.max_input_seq_length", job.config.data.max_input_seq_length, "max_total_sequence_length"
    limit = job.config.policy.max_total_sequence_length
    if row is not None and row > limit:
        yield job.error(
            key,
            f"`{key}` {row} is more than `policy.{longest}` {limit}",
            hint=f"set `{key}={limit}`, or raise `policy.{longest}`",
        )

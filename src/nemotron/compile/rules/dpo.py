"""Rules that DPO alone has."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.pairs import DpoJob
from nemotron.compile.rules.base import Rules
from nemotron.errors import Finding

rules: Rules[DpoJob] = Rules("dpo")


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

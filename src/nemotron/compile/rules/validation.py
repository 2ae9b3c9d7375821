"""Rules of validation while a run trains."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.jobs.policy_gradient import PolicyGradientJob
from nemotron.compile.rules.base import NEMO_RL, Rules
from nemotron.errors import DataError, Finding

rules: Rules[AnyJob] = Rules("validation")


@rules.rule("no-validation-data", number={"prompt": 42, "preference": 64, "conversation": 64})
def validation_has_rows(job: AnyJob) -> Iterator[Finding]:
    """Validation that is asked for needs something to validate on; NeMo-RL stops when it is due."""
    data, off = job.config.data, {"val_period": "0", "val_at_start": "false", "val_at_end": "false"}
    if data.validation_sets() or any(rows.split_validation_size for rows in data.training_sets()):
        return
    wanted = [f"{job.section}.{name}" for name in off if getattr(job.course, name)]
    if wanted:
        switched_off = ", ".join(f"`{key}={off[key.partition('.')[2]]}`" for key in wanted)
        yield job.error(
            wanted[0],
            f"`{wanted[0]}` asks for validation, but `data.validation` is not set",
            kind=DataError,
            hint=f"set `data.validation.data_path`, or {switched_off}",
        )


@rules.rule("validation-of-nothing", engines=NEMO_RL)
def validation_covers_a_batch(job: AnyJob) -> Iterator[Finding]:
    """Silent upstream: fewer samples than one validation batch give accuracy 0.0."""
    if not isinstance(job, PolicyGradientJob):
        return
    most, batch, section = job.algorithm.max_val_samples, job.algorithm.val_batch_size, job.section
    if most is not None and batch and most < batch:
        yield job.error(
            f"{section}.max_val_samples",
            f"`{section}.max_val_samples` {most} is less than one batch of `{section}.val_batch_size` {batch}: "
            "validation would score nothing and report 0",
            hint=f"set `{section}.val_batch_size={max(1, most)}` or raise `{section}.max_val_samples`",
        )

"""Rules of checkpoints: when, which metric, how many, and whether they fit."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.rules.base import EMBEDDED, Rules
from nemotron.errors import Finding
from nemotron.suggest import closest

rules: Rules[AnyJob] = Rules("checkpointing")


@rules.rule("save-period")
def period_is_positive(job: AnyJob) -> Iterator[Finding]:
    """Silent upstream until the first step has been computed: a division by zero."""
    checkpointing = job.config.checkpointing
    if checkpointing.enabled and checkpointing.save_period < 1:
        yield job.error(
            "checkpointing.save_period",
            f"`checkpointing.save_period` must be at least 1, it is {checkpointing.save_period}",
            hint="to write no checkpoints set `checkpointing.enabled=false`",
        )


@rules.rule("keep-top-k")
def something_is_kept(job: AnyJob) -> Iterator[Finding]:
    """Silent upstream: 0 keeps nothing but the newest."""
    kept = job.config.checkpointing.keep_top_k
    if job.config.checkpointing.enabled and kept is not None and kept < 1:
        yield job.error(
            "checkpointing.keep_top_k",
            f"`checkpointing.keep_top_k` {kept} would delete checkpoints as they are written",
            hint="use null to keep all",
        )


@rules.rule("checkpoint-metric", number=79)
def metric_exists(job: AnyJob) -> Iterator[Finding]:
    """A metric that no step has ranks every checkpoint last, so that the best one is pruned."""
    checkpointing, period = job.config.checkpointing, job.course.val_period
    key, name = "checkpointing.metric_name", checkpointing.metric_name
    if not checkpointing.enabled or name is None:
        return
    prefix, _, metric = name.partition(":")
    if prefix not in ("val", "train") or not metric:
        prefixed = f"val:{metric or name}"
        yield job.error(key, f"`{key}` must begin with `val:` or `train:`, it is `{name}`", hint=f"try `{prefixed}`")
        return
    known = job.validation_metrics if prefix == "val" else job.train_metrics
    guess = closest(metric, known, cutoff=0.7)
    # What NeMo-RL measures beside these depends on its environments; there only a name that looks mistyped is one.
    # Without any there are no validation sets, which another rule says.
    if known and metric not in known and (guess or job.engine == "embedded"):
        measured = ", ".join(f"`{prefix}:{one}`" for one in sorted(known))
        where = "validation" if prefix == "val" else "training"
        meant = f"did you mean `{prefix}:{guess}`? " if guess else ""
        yield job.error(key, f"{where} has no metric `{metric}`", hint=f"{meant}{where} measures {measured}")
    if prefix == "train":
        return
    if period < 1:
        yield job.error(key, f"`{name}` is never measured: `{job.section}.val_period` is 0", hint=f"set `{key}=null`")
    elif checkpointing.save_period > 0 and checkpointing.save_period % period:
        yield job.warning(
            "checkpointing.save_period",
            f"checkpoints every {checkpointing.save_period} steps do not coincide with validation every "
            f"{period} steps, so some have no `{name}` and rank last",
            hint=f"set `checkpointing.save_period` to a multiple of {period}",
        )


@rules.rule("no-checkpoints", engines=EMBEDDED)
def result_is_saved(job: AnyJob) -> Iterator[Finding]:
    """A run without checkpoints leaves no model."""
    if not job.config.checkpointing.enabled:
        yield job.warning(
            "checkpointing.enabled", "no checkpoint will be written: the trained weights are lost at the end"
        )

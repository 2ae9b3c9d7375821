"""A run goes on for more steps than it was compiled for: ``nemotron runs resume RUN --max-steps N``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron.checkpoints.store import CheckpointStore
from nemotron.config.schema.policy import SchedulerEntry
from nemotron.errors import ArtifactError, UsageError
from nemotron.job import Asked, Changed, CompiledJob
from nemotron.runs.folder import RunFolder
from nemotron.runs.metrics import number

SECTIONS = ("grpo", "dpo", "rm", "ppo", "sft")
"""Sections that say how many steps a training run makes."""


@dataclass(frozen=True, slots=True)
class Extension:
    """A new end of a run."""

    section: str
    before: int
    after: int
    """Values of ``max_num_steps``."""
    remarks: tuple[str, ...]
    """What the user should know: where the data end, and what becomes of the learning rate."""

    @property
    def key(self) -> str:
        """The key that changes."""
        return f"{self.section}.max_num_steps"


def plan_extension(run: RunFolder, job: CompiledJob, steps: int) -> Extension:
    """Whether ``run`` can go on until step ``steps``, and how. Changes nothing.

    Raises:
        UsageError: it makes no steps, has made as many, its data are at their end, or its schedule is.
        ArtifactError: it is finished and has no checkpoint to go on from.
    """
    config = job.config
    section = next((name for name in SECTIONS if "max_num_steps" in (config.get(name) or {})), None)
    if section is None:
        raise UsageError(
            f"`{job.step}` trains nothing, so `--max-steps` has no use", hint="leave `--max-steps` out to resume"
        )
    before, key = int(config[section]["max_num_steps"]), f"{section}.max_num_steps"
    reached = _reached(run)
    if steps <= reached:
        raise UsageError(
            f"run {run.id} has made {reached} steps already, `--max-steps {steps}` is not above that",
            hint=f"give more than {reached}",
        )
    if run.status().state == "finished":
        if before < 1 or 0 < reached < before:
            epochs = config[section]["max_num_epochs"]
            raise UsageError(
                f"the data ended run {run.id} after {reached} steps, not `{key}`: more steps would need more epochs",
                hint=f"start a new run with `{section}.max_num_epochs` above {epochs}",
            )
        if not CheckpointStore(Path(config["checkpointing"]["checkpoint_dir"]), None, None, True).steps():
            raise ArtifactError(
                f"run {run.id} has no checkpoint to go on from",
                hint=f"start a new run with `{key}={steps}` and `checkpointing.enabled=true`",
            )
    remarks = (*_data(job.asked, steps), *_schedules(config, job.asked, section, before, steps))
    return Extension(section, before, steps, remarks)


def _reached(run: RunFolder) -> int:
    """The last step that is done, in whichever attempt."""
    rows = [number(row.get("step")) or 0 for row in run.read_metrics()]
    return max(run.status().steps_done, int(max(rows, default=0)))


def _data(asked: Asked, steps: int) -> Iterator[str]:
    end = asked.data_steps
    if end is not None and end < steps:
        yield f"the epochs end the run after about {end} steps, before step {steps}"


def _schedules(config: dict[str, Any], asked: Asked, section: str, before: int, steps: int) -> Iterator[str]:
    """What the schedules of the learning rate do beyond the end that they were compiled for; they stay as they are."""
    passes = config[section].get("ppo_epochs", 1) if section == "ppo" else 1
    for key in ("policy.scheduler", "value.scheduler"):
        entries = (config.get(key.partition(".")[0]) or {}).get("scheduler") or []
        entries = [entries] if isinstance(entries, dict) else entries
        if not entries:
            continue
        if key in asked.schedules:
            yield (
                f"`{key}` was computed for {before} steps and stays as it is: "
                f"a run that is started with {steps} steps has another learning rate"
            )
        milestones: list[int] = next((entry["milestones"] for entry in entries if "milestones" in entry), [])
        last = [entry for entry in entries if "milestones" not in entry][-1]
        begun, kwargs = (milestones[-1] if milestones else 0), last.get("kwargs") or {}
        name = str(last.get("name")).rpartition(".")[2]
        end = SchedulerEntry.model_validate(last).last_step
        if end is not None and begun + end < steps * passes:
            raise UsageError(
                f"`{key}` is a {name} of {end} steps, which cannot go on after its end",
                hint=f"start a new run with `{section}.max_num_steps={steps}` and a schedule that is as long",
            )
        if name == "CosineAnnealingLR" and begun + kwargs.get("T_max", steps * passes) < steps * passes:
            yield f"`{key}` ends at step {begun + kwargs['T_max']}; after that a cosine rises again"


def extend(run: RunFolder, steps: int, command: Sequence[str], changed: tuple[Changed, ...] = ()) -> None:
    """Give the run, which this process holds, its new end; what it was compiled with stays beside it.

    Raises:
        UsageError, ArtifactError: as :func:`plan_extension`.
        OutputError: it cannot be written; the run stays as it was.
    """
    extension = plan_extension(run, run.job(), steps)
    job = run.note_resumed(command, changed, key=extension.key, was=extension.before, now=extension.after)
    section = {**job.config[extension.section], "max_num_steps": extension.after}
    run.write_job(job.model_copy(update={"config": {**job.config, extension.section: section}}))
    # They were measured at the old end.
    run.write_status(heldout_after=None)
    print(f"run {run.id}: `{extension.key}` {extension.before} -> {extension.after}", file=sys.stderr)
    for remark in extension.remarks:
        print(f"note: {remark}", file=sys.stderr)

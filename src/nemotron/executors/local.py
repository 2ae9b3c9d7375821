"""Runs on this machine: compile, make the run folder, start the worker on it in this process.

The worker holds ``run.lock`` while it lives, and the kernel lets go of it however the worker ends. So the lock is this
executor's answer to "does it still go on?", true even after ``kill -9`` and when process ids are used again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron.disk import lock
from nemotron.disk.faults import output_errors
from nemotron.errors import OutputError
from nemotron.runs.attempts import Alive
from nemotron.runs.folder import LOCK, RunFolder, newest_of_job

if TYPE_CHECKING:
    from nemotron.compile.plan import Plan
    from nemotron.job import Asked, Changed

NAME = "local"


def alive(run: RunFolder) -> Alive:
    """Whether a process of this machine works on the run; not known where the file system has no locks."""
    held = lock.is_held(run.path / LOCK)
    return "unknown" if held is None else "yes" if held else "no"


def launch(
    plan: Plan,
    asked: Asked,
    *,
    runs_dir: Path,
    resume: bool,
    goes_on: Callable[[RunFolder], bool],
    accept_changed: bool = False,
) -> int:
    """Run a compiled job to its end, attached; returns the exit code.

    With ``resume``, the newest run of the same step and config goes on, or is left alone when it is finished; when
    there is none a new run starts (a run can be killed before it has a folder). With ``accept_changed`` it does so also
    when an input is not what it was.

    Raises:
        NotAvailableError: the step has no entry for the engine of the plan.
        OutputError: the run folder cannot be written, or another process works on the run.
        ArtifactError: an input of a run that goes on has changed.
    """
    from nemotron.engines.worker import work

    plan.require_entry()
    run = None
    if resume:
        # Held while it is looked for, until the one that is made holds itself: of two commands that find none, the
        # second finds the run of the first.
        with output_errors(runs_dir):
            runs_dir.mkdir(parents=True, exist_ok=True)
        with lock.alone(runs_dir, busy=_STARTING.format(runs_dir), hint=_WAIT, patience_s=_START_S):
            run = newest_of_job(runs_dir, plan.step, plan.fingerprint)
            if run is None:
                print("nothing to resume, starting a new run", file=sys.stderr)
                made = RunFolder.create(runs_dir, plan.job(asked))
    else:
        made = RunFolder.create(runs_dir, plan.job(asked))
    if run is None:
        announce(f"{plan.step}: starting in {runs_dir / plan.run_id}")
        return work(made, plan.secrets())
    if run.status().state == "finished":
        return _finished_already(run)
    if goes_on(run):
        raise OutputError(
            f"{lock.holder(run.path / LOCK)} works on run `{run.id}` of this config",
            hint=f"{_WAIT}; without `--resume` a second run starts beside it",
        )
    announce(f"{plan.step}: going on in {run.path}")
    return work(run, plan.secrets(), preparing(run, asked.command), accept_changed=accept_changed)


_STARTING = "{} is in use: another command is starting a run in it with `--resume`"
_WAIT = "wait until it ends, or stop that process"
_START_S = 30.0
"""Seconds in which a command that starts a run has made its folder."""


def preparing(run: RunFolder, command: Sequence[str]) -> Callable[[tuple[Changed, ...]], bool]:
    """What a worker does first with a run that goes on: note the command, unless nothing is left to do."""

    def prepare(changed: tuple[Changed, ...]) -> bool:
        # Whoever held it until now may have done what was left.
        if run.status().state == "finished":
            _finished_already(run)
            return False
        run.write_job(run.note_resumed(command, changed))
        return True

    return prepare


def resume(
    run_dir: Path, *, max_steps: int | None = None, command: Sequence[str] = (), accept_changed: bool = False
) -> int:
    """Go on with an unfinished run from its last checkpoint; returns the exit code.

    Args:
        max_steps: the run ends with this step instead of the one that it was compiled for; a finished run goes on.
        command: the words of the command line, to be kept with the run.
        accept_changed: go on also when an input is not what it was.

    Raises:
        NotFoundError: there is no run. OutputError: another process works on it.
        UsageError: it cannot go on until ``max_steps``. ArtifactError: this version cannot read the run.
    """
    from nemotron.engines.extension import extend
    from nemotron.engines.worker import secrets_of, work

    run = RunFolder.open(run_dir)
    if max_steps is None and run.status().state == "finished":
        return _finished_already(run)

    def longer(changed: tuple[Changed, ...]) -> bool:
        if max_steps is not None:
            extend(run, max_steps, command, changed)
        return True

    prepare = preparing(run, command) if max_steps is None else longer
    job = run.job()
    announce(f"{job.step}: going on in {run.path}")
    return work(run, secrets_of(job), prepare, accept_changed=accept_changed)


def _finished_already(run: RunFolder) -> int:
    print(
        f"run {run.id} is finished already; without `--resume` a new one starts, "
        f"`nemotron runs resume {run.id} --max-steps N` extends it",
        file=sys.stderr,
    )
    return 0


def announce(text: str) -> None:
    """Said before torch is imported: from here to the first line of the step it takes seconds."""
    print(f"{text}, loading libraries ...", file=sys.stderr, flush=True)

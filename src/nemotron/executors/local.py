"""Runs on this machine: compile, make the run folder, start the worker on it in this process.

The worker holds ``run.lock`` while it lives, and the kernel lets go of it however the worker ends. So the lock is this
executor's answer to "does it still go on?", true even after ``kill -9`` and when process ids are used again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron.disk import lock
from nemotron.errors import NotAvailableError
from nemotron.runs.attempts import Alive
from nemotron.runs.folder import LOCK, RunFolder, newest_of_job

if TYPE_CHECKING:
    from nemotron.compile.plan import Plan

NAME = "local"


def alive(run: RunFolder) -> Alive:
    """Whether a process of this machine works on the run; not known where the file system has no locks."""
    held = lock.is_held(run.path / LOCK)
    return "unknown" if held is None else "yes" if held else "no"


def launch(plan: Plan, *, runs_dir: Path, resume: bool, goes_on: Callable[[RunFolder], bool]) -> int:
    """Run a compiled job to its end, attached; returns the exit code.

    With ``resume``, the newest run of the same step and config goes on, or is left alone when it is finished; when
    there is none a new run starts (a run can be killed before it has a folder).

    Raises:
        NotAvailableError: the step has no entry for the engine of the plan.
        OutputError: the run folder cannot be written.
    """
    from nemotron.engines.worker import work

    if not plan.has_entry:
        raise NotAvailableError(
            f"the engine `{plan.engine}` is not available yet",
            hint="set `engine=embedded`, or wait for a later version",
        )
    run = newest_of_job(runs_dir, plan.step, plan.fingerprint, goes_on) if resume else None
    if run is not None and run.status().state == "finished":
        return finished_already(run)
    if run is None:
        if resume:
            print("nothing to resume, starting a new run", file=sys.stderr)
        _announce(f"{plan.step}: starting in {runs_dir / plan.run_id}")
        run = RunFolder.create(runs_dir, plan.job())
    else:
        _announce(f"{plan.step}: going on in {run.path}")
    return work(run, plan.secrets())


def resume(run_dir: Path) -> int:
    """Go on with an unfinished run from its last checkpoint; returns the exit code.

    Raises:
        NotFoundError: there is no run. OutputError: another process works on it.
        ArtifactError: this version cannot read the run.
    """
    from nemotron.engines.worker import secrets_of, work

    run = RunFolder.open(run_dir)
    if run.status().state == "finished":
        return finished_already(run)
    job = run.job()
    _announce(f"{job.step}: going on in {run.path}")
    return work(run, secrets_of(job))


def _announce(text: str) -> None:
    """Said before torch is imported: from here to the first line of the step it takes seconds."""
    print(f"{text}, loading libraries ...", file=sys.stderr, flush=True)


def finished_already(run: RunFolder) -> int:
    """Say that there is nothing left to do; returns the exit code."""
    print(f"run {run.id} is finished already; without `--resume` a new one starts", file=sys.stderr)
    return 0

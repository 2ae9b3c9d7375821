"""What is left to do when a job elsewhere is over: its small files come here, and what was made for it is given back.

Lepton makes a Ray cluster for one job, and bills it until it is deleted. Whoever sees the job end deletes it; where
that does not succeed, or nobody is there to see it, the user is told.
"""

from __future__ import annotations

import os
import sys
import time

from nemotron.errors import ExecutorError, NemotronError
from nemotron.executors.base import Executor, JobState
from nemotron.outcome import print_error
from nemotron.runs.attempts import Handle, attempts_of
from nemotron.runs.folder import RunFolder

GRACE_S = 90.0
"""How long a cancelled job may take to leave a true status before the machines below it go."""
_POLL_S = 1.0


def finish(run: RunFolder, by: Executor, handle: Handle, state: JobState) -> None:
    """Small files first: with a cluster its log goes, too.

    Raises:
        NemotronError: something could not be fetched, or is still there and costs money.
    """
    try:
        by.fetch(run, handle)
    finally:
        give_back(run, by, handle, state)


def give_back(run: RunFolder, by: Executor, handle: Handle, state: JobState) -> None:
    """Delete what was made for the job alone, once.

    Raises:
        ExecutorError: it may still be there.
    """
    if (what := by.costs(handle)) is None:
        return
    try:
        kept = by.release(handle, state)
    except (NemotronError, KeyboardInterrupt) as error:
        why = error.message if isinstance(error, NemotronError) else "the deletion was interrupted"
        left = ExecutorError(
            f"{what} may still be there and cost money: {why}",
            hint=f"`nemotron runs cancel {run.id}` deletes it",
        )
        if isinstance(error, NemotronError):
            raise left from error
        print_error(left)
        raise
    attempts_of(run.path)[-1].write_handle(kept)
    print(f"{run.id}: deleted {what}", file=sys.stderr, flush=True)


def end_early(run: RunFolder, by: Executor, handle: Handle, *, goes_on: bool) -> None:
    """Cancel a job, and what was made for it alone.

    Raises:
        ExecutorError: it cannot be ended, or costs on.
    """
    costs = by.costs(handle)
    if goes_on:
        try:
            by.cancel(handle)
        except NemotronError as error:
            if costs is None:
                raise
            # What ends it all comes next.
            print_error(error, label="warning")
    if costs is None:
        return
    end = time.monotonic() + GRACE_S
    while (state := by.state(handle)).state == "running" and time.monotonic() < end:
        time.sleep(_POLL_S)
    finish(run, by, handle, state if state.is_over else JobState("cancelled"))


def clear(run: RunFolder, by: Executor, handle: Handle) -> None:
    """Of a run that is looked at: give back what its job does not need any more. For the run's own user.

    Raises:
        ExecutorError: it may still be there.
    """
    if by.costs(handle) is None or attempts_of(run.path)[-1].path.stat().st_uid != os.geteuid():
        return
    if (state := by.state(handle)).is_over:
        give_back(run, by, handle, state)


def costs_on(run: RunFolder, by: Executor, handle: Handle) -> str | None:
    """What to tell whoever leaves a job to itself; None where nothing goes on costing."""
    if (what := by.costs(handle)) is None:
        return None
    return (
        f"{what} costs money until it is deleted: `nemotron runs logs -f {run.id}` and `nemotron runs report {run.id}` "
        f"do that when the job is over, `nemotron runs cancel {run.id}` at once"
    )

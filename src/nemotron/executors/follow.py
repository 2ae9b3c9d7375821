"""Stay with a job: print what it prints, say when it waits and why, return its exit code."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from nemotron.errors import EngineError, ExecutorError, NemotronError
from nemotron.executors.base import Executor, JobState, StateName
from nemotron.executors.ending import costs_on, finish
from nemotron.executors.registry import executor_of
from nemotron.outcome import print_error
from nemotron.runs.attempts import Handle, attempts_of
from nemotron.runs.folder import RunFolder
from nemotron.runs.status import ENDED

POLL_S = 1.0
PATIENCE_S = 900.0
"""How long a cluster may be out of reach before the command gives up; the job does not notice."""

LATE_S = 60.0
"""How long the last status of a run may take to be seen here: a shared folder is looked at anew after a while."""
ENDS: dict[StateName, tuple[str, int, str | None]] = {
    "cancelled": ("was cancelled", 130, "go on with `nemotron runs resume {run}`"),
    "timeout": (
        "reached its time limit",
        130,
        "go on with `nemotron runs resume {run}`; `time` of the profile is the limit",
    ),
    "preempted": ("was preempted", 130, "go on with `nemotron runs resume {run}`"),
    "out_of_memory": (
        "ran out of memory",
        EngineError.exit_code,
        "give it more (`mem` of the profile), or make micro-batches smaller; then `nemotron runs resume {run}`",
    ),
    "node_failed": ("lost its machine", EngineError.exit_code, "go on with `nemotron runs resume {run}`"),
    "lost": ("is not known any more", ExecutorError.exit_code, "`nemotron runs show {run}` says how far it came"),
}
"""How a job ends that its own process does not end: (what happened, exit code, what to do)."""


@dataclass
class _Follower:
    run: RunFolder
    by: Executor
    handle: Handle
    offset: int = 0
    said: str = ""
    out_of_reach_since: float | None = None

    def until_over(self) -> JobState:
        while True:
            state = self.by.state(self.handle)
            reached = self.print_new()
            self.say(state)
            if state.is_over:
                self.print_new()
                return state
            self.check_patience(reached and state.state != "unknown", state)
            time.sleep(POLL_S)

    def print_new(self) -> bool:
        """Print what the job has printed since; whether the cluster could be reached."""
        try:
            new = self.by.read_log(self.handle, self.offset)
        except NemotronError:
            # What the connection brings later begins where this one broke.
            return False
        self.offset += len(new)
        sys.stdout.buffer.write(new)
        sys.stdout.flush()
        return True

    def say(self, state: JobState) -> None:
        text = f"{state.state}" + (f" ({state.reason})" if state.reason else "")
        if state.state in ("queued", "unknown") and text != self.said:
            print(f"{self.run.id}: {text}", file=sys.stderr, flush=True)
        elif state.state == "running" and self.said.startswith("queued"):
            print(f"{self.run.id}: running", file=sys.stderr, flush=True)
        self.said = text

    def check_patience(self, reached: bool, state: JobState) -> None:
        if reached:
            self.out_of_reach_since = None
            return
        now = time.monotonic()
        self.out_of_reach_since = now if self.out_of_reach_since is None else self.out_of_reach_since
        if now - self.out_of_reach_since > PATIENCE_S:
            raise ExecutorError(
                f"the cluster has been out of reach for {PATIENCE_S / 60:.0f} minutes: {state.reason}",
                hint=f"the job goes on without this command; `nemotron runs logs -f {self.run.id}` follows it again"
                + (f"; {costs}" if (costs := costs_on(self.run, self.by, self.handle)) else ""),
            )


def follow(run: RunFolder, *, may_cancel: bool) -> int:
    """Print the newest attempt's output until its job is over; returns the job's exit code.

    Ctrl-C leaves the job alone or, where ``may_cancel`` and a person is there to be asked, cancels it.

    Raises:
        ExecutorError: the cluster stays out of reach.
    """
    handle = attempts_of(run.path)[-1].handle()
    by = executor_of(handle)
    follower = _Follower(run, by, handle)
    while (state := _unless_interrupted(follower)) is None:
        if not may_cancel or not _wants_on(run, by, handle):
            return 130
    fetched = False
    try:
        finish(run, by, handle, state)
        fetched = True
    except NemotronError as error:
        if by.costs(handle) is None:
            raise
        # How the job ended is known; what it leaves behind does not change that.
        print_error(error)
    # What a worker finishes, it says. Nobody knows what it has said where nothing could be fetched.
    if (state.state == "failed" and run.status().state not in ENDED) or (
        state.state == "finished" and fetched and not _says_so(run, by, handle)
    ):
        state = by.explain(handle, state)
    return _outcome(run, state)


def _unless_interrupted(follower: _Follower) -> JobState | None:
    """How the job has ended; None after Ctrl-C, whose wake ends here: what then goes wrong is an error of its own."""
    with suppress(KeyboardInterrupt):
        return follower.until_over()
    return None


def _says_so(run: RunFolder, by: Executor, handle: Handle) -> bool:
    """Whether the run has its last status, which may take a while to be seen."""
    end = time.monotonic() + LATE_S
    while run.status().state not in ENDED:
        if time.monotonic() > end:
            return False
        time.sleep(POLL_S)
        if by.costs(handle) is None:
            with suppress(NemotronError):
                by.fetch(run, handle)
    return True


def _wants_on(run: RunFolder, by: Executor, handle: Handle) -> bool:
    """Ask what Ctrl-C meant; whether to go on following."""
    detached = f"the job goes on; `nemotron runs logs -f {run.id}` follows it, `nemotron runs cancel {run.id}` ends it"
    if costs := costs_on(run, by, handle):
        detached = f"{detached}; {costs}"
    if not sys.stdin.isatty():
        print(f"\n{detached}", file=sys.stderr)
        return False
    print("\n[d]etach and let the job go on, [c]ancel the job, or [f]ollow on? ", end="", file=sys.stderr, flush=True)
    try:
        answer = sys.stdin.readline().strip().lower()
    except KeyboardInterrupt:
        answer = "d"
    if answer.startswith("c"):
        by.cancel(handle)
        print(f"{run.id}: cancelled", file=sys.stderr)
        return True
    if answer.startswith("f"):
        return True
    print(detached, file=sys.stderr)
    return False


def _outcome(run: RunFolder, state: JobState) -> int:
    """The exit code of a job that is over; how it ended is said where its own process could not."""
    if state.state == "finished":
        return 0
    status = run.status()
    if state.state == "failed" and state.exit_code:
        if status.state not in ENDED:
            reason = f": {state.reason}" if state.reason else ""
            print_error(EngineError(f"the job of run `{run.id}` ended with exit code {state.exit_code}{reason}"))
        # A process can end with no other; 256 would be 0 to whoever called us.
        return state.exit_code if 0 < state.exit_code < 256 else EngineError.exit_code
    if state.state == "lost" and status.state in ENDED and status.exit_code is not None:
        return status.exit_code
    what, code, hint = ENDS.get(state.state, ("failed", EngineError.exit_code, None))
    reason = f" ({state.reason})" if state.reason else ""
    error = ExecutorError(f"the job of run `{run.id}` {what}{reason}", hint=hint.format(run=run.id) if hint else None)
    print_error(error)
    return code

"""Where runs are started, and whether they still go on: each kind of executor answers for the attempts it started."""

from __future__ import annotations

import os

from nemotron.errors import ArtifactError, ExecutorError, NotAvailableError
from nemotron.executors import local
from nemotron.runs.attempts import Alive, Handle, attempts_of, reported
from nemotron.runs.folder import RunFolder
from nemotron.runs.status import ENDED, ReportedState


def handle_of(run: RunFolder) -> Handle | None:
    """How the newest attempt was started; None without one, or where that cannot be read."""
    attempts = attempts_of(run.path)
    try:
        handle = attempts[-1].handle() if attempts else None
        ssh = (handle.model_extra or {}).get("ssh") if handle is not None else None
        if handle is None or not isinstance(ssh, dict) or attempts[-1].path.stat().st_uid == os.geteuid():
            return handle
    except (ArtifactError, OSError):
        return None
    # Options of ssh may run commands: those of somebody else are not for us.
    return handle.model_copy(update={"ssh": {name: value for name, value in ssh.items() if name != "options"}})


def is_elsewhere(run: RunFolder) -> bool:
    """Whether an executor other than the command's own process has the newest attempt."""
    handle = handle_of(run)
    return handle is not None and handle.executor != local.NAME


def alive(run: RunFolder) -> Alive:
    """What the executor of the newest attempt says of it. A run without an attempt is being made, on this machine."""
    handle = handle_of(run)
    if handle is None:
        return "unknown" if attempts_of(run.path) else local.alive(run)
    if handle.executor == local.NAME:
        return local.alive(run)
    from nemotron.executors.registry import executor_of

    try:
        state = executor_of(handle).state(handle)
    except (ArtifactError, NotAvailableError):
        return "unknown"
    return "unknown" if state.state == "unknown" else "no" if state.is_over else "yes"


def state_of(run: RunFolder) -> ReportedState:
    """The state to tell a user.

    Raises:
        ArtifactError: ``status.json`` is missing or damaged.
    """
    written = run.status().state
    handle = handle_of(run)
    if written in ENDED or handle is None or handle.executor == local.NAME:
        return reported(written, "no" if written in ENDED else alive(run))
    from nemotron.executors.registry import executor_of

    try:
        by = executor_of(handle)
        state = by.state(handle)
        # A mirror is older than the job: there the run may have said that it has finished.
        if state.state == "finished" and not (handle.model_extra or {}).get("mirrored"):
            state = by.explain(handle, state)
    except (ArtifactError, ExecutorError, NotAvailableError):
        return "unknown"
    words: dict[str, ReportedState] = {
        "out_of_memory": "out of memory",
        "node_failed": "node failed",
        "running": written,
        "finished": "finished",
        "failed": "killed",
        "queued": "queued",
        "cancelled": "cancelled",
        "timeout": "timeout",
        "preempted": "preempted",
        "lost": "lost",
    }
    return words.get(state.state, "unknown")


def goes_on(run: RunFolder) -> bool:
    """Whether somebody is known to work on the run."""
    return alive(run) == "yes"

"""Where runs are started, and whether they still go on: each kind of executor answers for the attempts it started."""

from __future__ import annotations

from nemotron.errors import ArtifactError
from nemotron.executors import local
from nemotron.runs.attempts import Alive, attempts_of, reported
from nemotron.runs.folder import RunFolder
from nemotron.runs.status import ReportedState


def alive(run: RunFolder) -> Alive:
    """What the executor of the newest attempt says of it. A run without an attempt is being made, on this machine."""
    attempts = attempts_of(run.path)
    try:
        executor = attempts[-1].handle().executor if attempts else local.NAME
    except ArtifactError:
        return "unknown"
    return local.alive(run) if executor == local.NAME else "unknown"


def state_of(run: RunFolder) -> ReportedState:
    """The state to tell a user.

    Raises:
        ArtifactError: ``status.json`` is missing or damaged.
    """
    return reported(run.status().state, alive(run))


def goes_on(run: RunFolder) -> bool:
    """Whether somebody is known to work on the run."""
    return alive(run) == "yes"

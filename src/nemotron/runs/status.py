"""What ``status.json`` holds: the one small file that says how a run is doing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypedDict

from pydantic import TypeAdapter

State = Literal["starting", "running", "finished", "failed", "stopped", "interrupted"]
"""``starting``: the folder exists, the loop has not begun. ``running``: in the loop or evaluating. ``finished``: all
steps done. ``failed``: an error ended it. ``stopped``: a limit of the config ended it. ``interrupted``: Ctrl-C or
SIGTERM ended it."""

ReportedState = (
    State
    | Literal["killed", "unknown"]
    | Literal["queued", "cancelled", "timeout", "preempted", "out of memory", "node failed", "lost"]
)
"""States that are never written are what a reader sees: ``killed`` when a starting or running run has no live process,
``unknown`` when nobody can say whether it has one, and the words of a cluster's executor for a job that waits or that
it ended."""

UNREADABLE = "unreadable"
"""What lists say of a run whose files are damaged."""
ENDED: frozenset[State] = frozenset({"finished", "failed", "stopped", "interrupted"})


class StatusFields(TypedDict, total=False):
    """What the engine may set with ``RunFolder.write_status``; a field not named keeps its value."""

    state: State
    phase: str | None
    steps_done: int
    steps_total: int | None
    wall_s: float | None
    heldout_before: dict[str, float] | None
    heldout_after: dict[str, float] | None
    checkpoint: str | None
    error: str | None
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """The content of ``status.json``."""

    state: State
    pid: int
    """The process that wrote this."""
    started_at: str
    """ISO 8601, UTC; when the run was created."""
    updated_at: str
    finished_at: str | None = None
    """When it reached a final state; back to null when it is resumed."""
    phase: str | None = None
    """What it does right now in a few words, e.g. ``loading policy``."""
    steps_done: int = 0
    steps_total: int | None = None
    wall_s: float | None = None
    """Seconds at work, all attempts of a resumed run together."""
    heldout_before: dict[str, float] | None = None
    """Share of held-out answers (0 to 1) with each property before training; ``fully_right`` is the headline."""
    heldout_after: dict[str, float] | None = None
    checkpoint: str | None = None
    """Newest complete checkpoint, relative to the run folder when it lies in there."""
    error: str | None = None
    """The message of the error that ended it."""
    exit_code: int | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Status:
        """Build from a parsed ``status.json``; fields of later versions are ignored.

        Raises:
            ValueError: a field is missing or has another type.
        """
        # Shares that are not numbers are written as null.
        shares = {
            key: {name: math.nan if share is None else share for name, share in value.items()}
            for key in ("heldout_before", "heldout_after")
            if isinstance(value := values.get(key), dict)
        }
        return _adapter().validate_python({**values, **shares})


@cache
def _adapter() -> TypeAdapter[Status]:
    return TypeAdapter(Status)

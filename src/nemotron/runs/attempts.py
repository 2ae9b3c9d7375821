"""Attempts at a run: ``attempts/N/`` holds how attempt N was started and what its processes wrote; never emptied.

=======================  ============================================================================================
``handle.json``          which executor started it, and by what it can be asked about the attempt
``logs/``                one file for each helper process (judge, critic), and what a detached worker prints
=======================  ============================================================================================

Whether an attempt still goes on is not the run folder's business: the executor that started it is asked
(:mod:`nemotron.executors`), and its answer is joined here with what the worker wrote into ``status.json``.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemotron.disk.atomic import write_atomic
from nemotron.disk.documents import read_bytes
from nemotron.disk.faults import output_errors
from nemotron.errors import ArtifactError, Origin
from nemotron.runs.status import ENDED, ReportedState, State

ATTEMPTS = "attempts"
_HANDLE = "handle.json"

Alive = Literal["yes", "no", "unknown"]
"""What an executor answers when it is asked whether a run's newest attempt still goes on."""


class Handle(BaseModel):
    """How an attempt was started. An executor may keep further keys of its own."""

    model_config = ConfigDict(frozen=True, extra="allow")

    executor: str
    """``local``, or the kind of the profile that it was started on."""
    started_at: str
    """ISO 8601, UTC."""
    host: str | None = None
    pid: Annotated[int, Field(ge=1)] | None = None
    command: tuple[str, ...] = ()
    """The words that started the worker; no values of secrets."""

    @classmethod
    def of_this_process(cls) -> Handle:
        """A worker in this process."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        # Values may be secrets; the keys say what was asked for.
        command = tuple(f"{word.partition('=')[0]}=..." if "=" in word else word for word in sys.argv)
        return cls(executor="local", started_at=now, host=platform.node(), pid=os.getpid(), command=command)


@dataclass(frozen=True, slots=True)
class AttemptFolder:
    """One attempt on disk."""

    path: Path

    @property
    def number(self) -> int:
        """1 for the first."""
        return int(self.path.name)

    @property
    def logs(self) -> Path:
        """The folder of logs."""
        return self.path / "logs"

    def write_handle(self, handle: Handle) -> None:
        """Replace what is known of it: a cluster's executor learns the job's name when it has submitted.

        Raises:
            OutputError: it cannot be written.
        """
        write_atomic(self.path / _HANDLE, handle.model_dump_json(indent=2, exclude_none=True).encode() + b"\n")

    def handle(self) -> Handle:
        """How it was started.

        Raises:
            ArtifactError: the file is missing or damaged.
        """
        path = self.path / _HANDLE
        try:
            return Handle.model_validate_json(read_bytes(path))
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is damaged"
            raise ArtifactError(
                f"cannot read how attempt {self.number} was started: {reason}", origin=Origin(str(path))
            ) from error


def attempts_of(run: Path) -> list[AttemptFolder]:
    """All attempts at the run in ``run``, the first one first."""
    folders = [path for path in (run / ATTEMPTS).glob("*") if path.name.isdecimal() and path.is_dir()]
    return sorted(map(AttemptFolder, folders), key=lambda attempt: attempt.number)


def begin_attempt(run: Path, handle: Handle) -> AttemptFolder:
    """A folder for the next attempt at the run in ``run``. For whoever holds the run.

    Raises:
        OutputError: it cannot be written.
    """
    before = attempts_of(run)
    attempt = AttemptFolder(run / ATTEMPTS / str(before[-1].number + 1 if before else 1))
    with output_errors(attempt.path):
        attempt.logs.mkdir(parents=True)
    attempt.write_handle(handle)
    return attempt


def given_attempt(run: Path, number: int) -> AttemptFolder:
    """The attempt that an executor has prepared before it started this process.

    Raises:
        ArtifactError: there is none of that number.
    """
    attempt = AttemptFolder(run / ATTEMPTS / str(number))
    attempt.handle()
    with output_errors(attempt.path):
        attempt.logs.mkdir(exist_ok=True)
    return attempt


def reported(written: State, alive: Alive) -> ReportedState:
    """What to tell a user: the state that the worker wrote, unless its executor knows better.

    A state that ends a run is the worker's last word. One that goes on is true while the executor sees the worker, is
    ``killed`` when the executor says that it is gone, and ``unknown`` when the executor cannot be asked.
    """
    if written in ENDED or alive == "yes":
        return written
    return "killed" if alive == "no" else "unknown"

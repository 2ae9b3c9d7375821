"""A run in a process of its own on this machine: its memory, threads and crashes are none of the next one's.

What the process is told goes through a pipe: secrets stand in no list of processes. It ends when its parent does, and
saves what it has as on Ctrl-C.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemotron.job import CompiledJob
from nemotron.outcome import exit_code_of
from nemotron.runs.folder import RunFolder

SIGNALLED = 128
"""Added to the number of the signal that ended a process, as shells do."""


def start(job: CompiledJob, runs_dir: Path, secrets: Mapping[str, str]) -> int:
    """Make the folder of a new run and work on it to its end; returns the exit code.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run has saved its state.
    """
    return _to_its_end(job.to_bytes(), None, runs_dir, secrets, job.asked.command, False)


def go_on(run: RunFolder, secrets: Mapping[str, str], command: Sequence[str], *, accept_changed: bool = False) -> int:
    """Go on with a run from where it stands to its end, as :func:`start` does."""
    return _to_its_end(None, run.path, run.path.parent, secrets, command, accept_changed)


def _to_its_end(
    job: bytes | None,
    earlier: Path | None,
    runs_dir: Path,
    secrets: Mapping[str, str],
    command: Sequence[str],
    accept_changed: bool,
) -> int:
    arguments = (job, earlier, runs_dir, dict(secrets), tuple(command), accept_changed)
    process = multiprocessing.get_context("spawn").Process(target=_work, args=arguments)
    process.start()
    while True:
        try:
            process.join()
            break
        except KeyboardInterrupt:
            try:
                process.terminate()
                process.join()
            except KeyboardInterrupt:
                process.kill()
                process.join()
            raise
    code = process.exitcode
    assert code is not None
    return code if code >= 0 else SIGNALLED - code


def _work(
    job: bytes | None,
    earlier: Path | None,
    runs_dir: Path,
    secrets: Mapping[str, str],
    command: Sequence[str],
    accept_changed: bool,
) -> None:
    """In the process of the run."""
    # Ctrl-C reaches every process of a terminal. It is for the command, which then tells this one once.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    threading.Thread(target=_end_with_parent, daemon=True, name="parent").start()

    def start() -> int:
        from nemotron.engines.worker import work
        from nemotron.executors.local import announce, preparing

        if earlier is not None:
            run = RunFolder.open(earlier)
            announce(f"{run.job().step}: going on in {run.path}")
            return work(run, secrets, preparing(run, command), accept_changed=accept_changed)
        assert job is not None
        run = RunFolder.create(runs_dir, CompiledJob.model_validate_json(job))
        announce(f"{run.job().step}: starting in {run.path}")
        return work(run, secrets)

    sys.exit(exit_code_of(start, tuple(command)))


def _end_with_parent() -> None:
    """A command that is killed takes the run along: nobody would begin the next one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
